"""VAE weights in the layout of LTX-2's own files, and the sizes of a later model."""

from dataclasses import replace

import torch
from sana_streaming.sana_core.config import VAEConfig
from torch import Tensor

# Latents of LTX-2's size from another network, as small as it can be.
LATER = replace(
    VAEConfig(),
    block_out_channels=(8, 8, 8, 8),
    layers_per_block=(0, 0, 0, 0, 0),
    decoder_block_out_channels=(8, 8, 8),
    decoder_layers_per_block=(0, 0, 0, 0),
    upsample_factor=(1, 1, 1),
)


def original(state: dict[str, Tensor], config: VAEConfig, prefix: str = "") -> dict[str, Tensor]:
    """The same tensors under the names of LTX-2's own files, by the published table."""
    down, up = len(config.block_out_channels), len(config.decoder_block_out_channels)
    table = {
        "latents_mean": "per_channel_statistics.mean-of-means",
        "latents_std": "per_channel_statistics.std-of-means",
        "encoder.mid_block.resnets.": f"encoder.down_blocks.{2 * down}.res_blocks.",
        "decoder.mid_block.resnets.": "decoder.up_blocks.0.res_blocks.",
    }
    for i in range(down):
        table[f"encoder.down_blocks.{i}.resnets."] = f"encoder.down_blocks.{2 * i}.res_blocks."
        table[f"encoder.down_blocks.{i}.downsamplers.0."] = f"encoder.down_blocks.{2 * i + 1}."
    for i in range(up):
        table[f"decoder.up_blocks.{i}.upsamplers.0."] = f"decoder.up_blocks.{2 * i + 1}."
        table[f"decoder.up_blocks.{i}.resnets."] = f"decoder.up_blocks.{2 * i + 2}.res_blocks."
    renamed = {prefix + "per_channel_statistics.channel": torch.ones(1)}
    for key, value in state.items():
        begin = next((begin for begin in table if key.startswith(begin)), "")
        renamed[prefix + table.get(begin, "") + key.removeprefix(begin)] = value
    return renamed
