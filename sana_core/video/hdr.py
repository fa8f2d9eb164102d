"""Pictures of high dynamic range (PQ and HLG) made fit for a network that knows ordinary ones.

Light is formed from the code values in candela per square metre, moved from BT.2020 to BT.709 primaries, its highlights are
compressed, and it is coded again for an ordinary screen. Formulas: ITU-R BT.2100 (PQ, HLG), BT.2408 (white at 203), BT.2087
(primaries), BT.1886 (gamma of an ordinary screen).
"""

from typing import Literal

import torch
from torch import Tensor

Transfer = Literal["PQ", "HLG"]

# By the transfer tag of a file (as in H.273).
TRANSFERS: dict[int, Transfer] = {16: "PQ", 18: "HLG"}

# cd/m2 of white paper, which becomes the brightest that is left to ordinary things; what shines takes what is above.
REFERENCE_WHITE = 203.0
_PQ_PEAK, _HLG_PEAK, _HLG_GAMMA = 10_000.0, 1000.0, 1.2
_SCREEN_GAMMA = 2.4
# Light below this share of white is left as it is.
_KNEE = 0.75

_LUMINANCE_2020 = torch.tensor([0.2627, 0.6780, 0.0593])
_2020_TO_709 = torch.tensor(
    [[1.6605, -0.5876, -0.0728], [-0.1246, 1.1329, -0.0083], [-0.0182, -0.1006, 1.1187]],
)


def tone_map(picture: Tensor, transfer: Transfer) -> Tensor:
    """``picture`` [H, W, 3], R'G'B' of BT.2020 as floating point in 0 to 1, as uint8 [H, W, 3] of BT.709.

    Light up to three quarters of white keeps its proportions, more is compressed towards 1, hue kept.
    """
    light = (pq_light(picture.float()) if transfer == "PQ" else hlg_light(picture.float())) / REFERENCE_WHITE
    light = (light @ _2020_TO_709.T.to(light)).clamp_(min=0)
    brightest = light.amax(-1, keepdim=True)
    light *= compressed(brightest) / brightest.clamp(min=1e-6)
    return (255 * light.clamp_(0, 1) ** (1 / _SCREEN_GAMMA)).round_().to(torch.uint8)


def pq_light(code: Tensor) -> Tensor:
    """cd/m2, 0 to 10,000, of PQ code values in 0 to 1."""
    m1, m2 = 2610 / 16384, 2523 / 32
    c1, c2, c3 = 3424 / 4096, 2413 / 128, 2392 / 128
    root = code ** (1 / m2)
    return _PQ_PEAK * ((root - c1).clamp(min=0) / (c2 - c3 * root)) ** (1 / m1)


def hlg_light(code: Tensor) -> Tensor:
    """cd/m2 on a screen of 1000 cd/m2 of HLG code values [..., 3] in 0 to 1."""
    a, b, c = 0.17883277, 0.28466892, 0.55991073
    scene = torch.where(code <= 0.5, code**2 / 3, (((code - c) / a).exp() + b) / 12)
    luminance = scene @ _LUMINANCE_2020.to(scene)
    return _HLG_PEAK * luminance.clamp(min=1e-9)[..., None] ** (_HLG_GAMMA - 1) * scene


def compressed(light: Tensor) -> Tensor:
    """Light relative to white: itself up to the knee, then on with the same slope and ever less, towards 1."""
    above = (light - _KNEE).clamp(min=0) / (1 - _KNEE)
    return torch.where(light <= _KNEE, light, _KNEE + (1 - _KNEE) * above / (1 + above))
