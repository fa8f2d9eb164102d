"""Numbers of fewer bits: units that take a format, formats, plans that say which, and applying them."""
