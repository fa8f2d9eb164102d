"""Weight files: reading, checking and key layouts."""
