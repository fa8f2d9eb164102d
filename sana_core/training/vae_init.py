"""A start for small VAEs: principal components instead of random weights.

The best linear code of boxes of one patch and eight frames is found by eigenvectors in seconds, and written into the
convolutions of a ``CausalVAE`` whose space is merged by its patches alone and whose time is halved level by level. Training
goes on from there.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable

import torch
from einops import rearrange
from torch import Tensor, nn

from ..errors import InputError
from ..models.causal_vae import CausalVAE
from ..models.vae_layers import CausalConv3d, Downsampler, ResidualBlock, Upsampler

# Samplers each way, each of which merges or splits two frames; so a latent frame stands for this many frames.
_LEVELS = 3
_FRAMES = 2**_LEVELS
# A channel that is always this, beside coefficients of a few units: RMS normalisation then divides by nearly the same
# everywhere, and SiLU of small numbers is nearly half of them.
_CONSTANT = 1000.0
_LOG_VARIANCE = -6.0
# The place in a causal kernel of the position itself: the last frame, the middle row and column.
_HERE = (..., 2, 1, 1)
_MOST_BOXES_PER_CLIP = 640
# Keeps clips without contrast, and channels that never change, from a division by zero.
_LEAST_SPREAD = 1e-12


@torch.no_grad()
def pca_init(vae: CausalVAE, clips: Iterable[Tensor]) -> None:
    """Sets all weights of ``vae`` and its statistics from the principal components of ``clips``, uint8 [F, H, W, 3].

    Clips have 1 + 8k frames and sides that are multiples of the patch. The first convolutions of residual blocks keep the
    weights that they have; the second ones start at zero. Raises InputError for a VAE of another form, or no clip.
    """
    _check_form(vae)
    clips = list(clips)
    if not clips:
        raise InputError("the VAE cannot start from no clips: give at least one")
    for module in vae.modules():
        if isinstance(module, ResidualBlock):
            _zero(module.conv2)
    patch = vae.config.patch_size
    boxes = torch.cat([_boxes(clip, patch) for clip in clips])
    mean = boxes.flatten(0, 1).mean(0)
    boxes -= mean
    width = vae.decoder.conv_out.conv.in_channels - 1
    spatial = _components(boxes.flatten(0, 1), width)
    # [N, 8, coefficients of one frame]
    coefficients = boxes @ spatial
    latent = _set_encoder(vae, spatial, mean, coefficients)
    _set_decoder(vae, spatial, mean, coefficients, latent)
    calibrate(vae, clips)


@torch.no_grad()
def calibrate(vae: CausalVAE, clips: Iterable[Tensor]) -> None:
    """Sets the latent statistics from ``clips``, at least one, uint8 [F, H, W, 3] of 1 + 8k frames.

    Means become 0. A channel is divided by the square root of its deviation, not by the deviation: strong channels, which
    carry most of the picture, stay stronger than weak ones, and the mean square of all latents is 1.
    """
    channels = vae.config.latent_channels
    means = [vae.moments(to_video(clip))[:, :channels].movedim(1, 0).flatten(1) for clip in clips]
    values = torch.cat(means, 1)
    deviation = values.std(1).clamp_min(_LEAST_SPREAD)
    scale = deviation.sqrt()
    scale *= (deviation / scale).square().mean().sqrt()
    vae.latents_mean.copy_(values.mean(1))
    vae.latents_std.copy_(scale * vae.config.scaling_factor)


def to_video(clip: Tensor) -> Tensor:
    """uint8 [F, H, W, 3] as the VAE takes it: [1, 3, F, H, W], -1 to 1."""
    return clip.permute(3, 0, 1, 2)[None].float() / 127.5 - 1


def _components(boxes: Tensor, count: int) -> Tensor:
    """The ``count`` directions [D, count] in which boxes [N, D] have the greatest mean square, the greatest first."""
    wide = boxes.double()
    _, vectors = torch.linalg.eigh(wide.T @ wide)
    return vectors.flip(1)[:, :count].float()


def _boxes(clip: Tensor, patch: int) -> Tensor:
    """What latent positions stand for [N, 8, D]: the first frame eight times, then eight frames each.

    D is in the order of the VAE's channels. N is a random share where there are many.
    """
    video = torch.cat([clip[:1].expand(_FRAMES - 1, -1, -1, -1), clip])
    boxes = rearrange(
        video.float() / 127.5 - 1, "(t f) (h p) (w q) c -> (t h w) f (c q p)", f=_FRAMES, p=patch, q=patch
    )
    generator = torch.Generator().manual_seed(0)
    return boxes[torch.randperm(len(boxes), generator=generator)[:_MOST_BOXES_PER_CLIP]]


def _set_encoder(vae: CausalVAE, spatial: Tensor, mean: Tensor, coefficients: Tensor) -> Tensor:
    """Writes the encoder; returns its linear map from all coefficients to latents [C, 8 * width of spatial]."""
    encoder = vae.encoder
    kept = encoder.conv_in.conv.out_channels - 1
    basis = spatial[:, :kept]
    _set_here(encoder.conv_in, basis.T, -basis.T @ mean, constant=True)
    for module in encoder.modules():
        if isinstance(module, Downsampler):
            _zero(module.conv)
    channels = vae.config.latent_channels
    components = _components(coefficients[..., :kept].flatten(1), channels).unflatten(0, (-1, kept))
    # Channel ((c, a1), a2), a3 of the merged frames is coefficient c of frame 4 a3 + 2 a2 + a1.
    order = torch.arange(_FRAMES).view((2,) * _LEVELS).permute(*reversed(range(_LEVELS))).flatten()
    merged = torch.zeros(channels, kept + 1, _FRAMES)
    merged[:, :kept] = components[order].permute(2, 1, 0)
    gain = _gain(kept + 1)
    weight = torch.zeros(channels + 1, merged[0].numel())
    # Latents of order 1: the spread of all eight frames' coefficients is shared by few.
    scale = coefficients.square().sum((1, 2)).mean().div(channels).clamp_min(_LEAST_SPREAD).rsqrt()
    weight[:channels] = merged.flatten(1) * gain * scale
    bias = torch.zeros(channels + 1)
    bias[channels] = _LOG_VARIANCE
    _set_here(encoder.conv_out, weight, bias)
    full = torch.zeros(channels, _FRAMES, spatial.shape[1])
    full[..., :kept] = components.permute(2, 0, 1) * scale
    return full.flatten(1)


def _set_decoder(vae: CausalVAE, spatial: Tensor, mean: Tensor, coefficients: Tensor, latent: Tensor) -> None:
    """Writes the decoder: each up-sampler turns the code of a span of frames into the codes of its halves.

    ``latent`` is the encoder's map from coefficients to latents.
    """
    decoder, width = vae.decoder, spatial.shape[1]
    # Undoes the encoder's map, whose rows are orthogonal.
    synthesis = latent.T / latent.square().sum(1)
    _set_here(decoder.conv_in, torch.eye(width)[:, : latent.shape[0]], torch.zeros(width), constant=True)
    samplers = [module for module in decoder.modules() if isinstance(module, Upsampler)]
    for level, sampler in enumerate(samplers):
        half = 2 ** (_LEVELS - 1 - level)
        # [half * width, code]: the code of a half keeps the widest directions of its frames' coefficients.
        spans = coefficients.unflatten(1, (-1, half)).flatten(2).flatten(0, 1)
        basis = _components(spans, width) if half > 1 else torch.eye(width)
        parts = synthesis.unflatten(0, (2, -1))
        children = torch.zeros(width + 1, 2, width + 1)
        for a in range(2):
            children[:width, a, : synthesis.shape[1]] = basis.T @ parts[a]
        children[width, :, width] = 1
        _set_here(sampler.conv, children.flatten(0, 1), torch.zeros(2 * (width + 1)))
        synthesis = basis
    weight = torch.zeros(spatial.shape[0], width + 1)
    weight[:, :width] = spatial * _gain(width + 1)
    _set_here(decoder.conv_out, weight, mean)


def _gain(channels: int) -> float:
    """Undoes RMS normalisation and SiLU, up to a small second order, where one of so many channels is the constant."""
    return 2 * _CONSTANT * channels**-0.5


def _set_here(layer: CausalConv3d, matrix: Tensor, bias: Tensor, *, constant: bool = False) -> None:
    """A convolution that is ``matrix`` at each position alone; with ``constant`` one more channel that is always the same."""
    conv: nn.Conv3d = layer.conv
    if constant:
        matrix = torch.cat([matrix, torch.zeros_like(matrix[:1])])
        bias = torch.cat([bias, torch.full((1,), _CONSTANT)])
    conv.weight.zero_()
    conv.weight[_HERE][:, : matrix.shape[1]] = matrix
    conv.bias.copy_(bias)  # type: ignore[union-attr]


def _zero(layer: CausalConv3d) -> None:
    layer.conv.weight.zero_()
    layer.conv.bias.zero_()


def _check_form(vae: CausalVAE) -> None:
    """InputError unless the principal components can be written into a VAE of this form."""
    config = vae.config
    widths = (config.latent_channels, *config.block_out_channels)
    doubled = all(wide == 2 * narrow for narrow, wide in itertools.pairwise(widths))
    decoder_widths = set(config.decoder_block_out_channels)
    frame_values = config.out_channels * config.patch_size**2
    fits = (
        config.downsample_type == config.decoder_upsample_type == ("temporal",) * _LEVELS
        and doubled
        and len(decoder_widths) == 1
        and 1 < config.latent_channels < min(decoder_widths) <= frame_values + 1
        and config.decoder_causal
        and not any(config.upsample_residual)
        and set(config.upsample_factor) == {1}
    )
    if not fits:
        raise InputError(
            "this VAE cannot start from principal components: it needs three temporal samplers each way, 2 or more "
            "latent_channels, encoder widths that double from there, decoder widths that are all alike, above "
            f"latent_channels and at most {frame_values + 1} (a patch's values and one), decoder_causal true, "
            "upsample_factor 1 and upsample_residual false; or start it with init: random"
        )
