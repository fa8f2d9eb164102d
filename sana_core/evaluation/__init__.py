"""How good a model's edits are: the held-out clips through the stream, compared with the true edits."""
