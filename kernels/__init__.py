"""Operators: a float32 truth and faster forms of the same numbers. Knows torch and nothing of this project."""
