"""Video files and pixel geometry."""
