"""How fast it is, and how fast it could be: one registry of rows, from single operators to frames in, file out."""
