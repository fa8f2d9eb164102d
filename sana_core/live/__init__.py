"""Live editing: a camera or a network stream goes in, the edit comes out while it happens."""
