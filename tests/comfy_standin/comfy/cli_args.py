"""What a user gave on the command line."""

import enum


class LatentPreviewMethod(enum.Enum):
    NoPreviews = "none"
    Auto = "auto"
    Latent2RGB = "latent2rgb"
    TAESD = "taesd"


class args:
    preview_method = LatentPreviewMethod.Auto
    preview_size = 512
