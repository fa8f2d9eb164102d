"""Training data that can be made or found on disk: scenes by arithmetic, free photographs and clips, edits with exact truth.

Nothing here downloads, and nothing knows the model: pictures are uint8 [F, H, W, 3], 0 to 255, RGB.
"""
