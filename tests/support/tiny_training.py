"""Tiny networks to train, and a stream written out by hand to compare with."""

import re

import golden_files
import torch
from sana_streaming.sana_core.config import DiTConfig
from sana_streaming.sana_core.models.dit import BlockState
from sana_streaming.sana_core.weights.random_init import random_dit

BATCH, CHANNELS, GRID, TEXT = 2, 4, (2, 3), 8
SMALLEST_SIGMA = 8 * 0.001 / (1 + 7 * 0.001)


def network(seed=0, variant="streaming"):
    """Two blocks, one of each kind; trainable, and in the release's layout, so that every parameter matters."""
    config = DiTConfig(
        variant=variant,
        depth=2,
        hidden_size=24,
        num_heads=2,
        in_channels=CHANNELS,
        source_channels=CHANNELS,
        caption_channels=TEXT,
        max_text_tokens=5,
        mlp_ratio=2.0,
        softmax_layers=(1,),
        pos_embed_size=1,
    )
    return random_dit(config, seed, layout="split").requires_grad_(True)


def seeded(seed):
    return torch.Generator().manual_seed(seed)


def latents(frames, seed):
    return torch.randn(BATCH, CHANNELS, frames, *GRID, generator=seeded(seed))


def prompt(model, seed):
    """A prompt's context, with gradient into the model."""
    return model.prompt_context(torch.randn(BATCH, 5, TEXT, generator=seeded(seed)))


def calls(model):
    """The (timestep, whether a gradient was wanted) of each pass from now on."""
    seen = []
    model.register_forward_pre_hook(lambda _, inputs: seen.append((inputs[1][0].item(), torch.is_grad_enabled())))
    return seen


def gradients(model):
    """Each parameter's gradient by name; then forgets them."""
    found = {name: parameter.grad for name, parameter in model.named_parameters()}
    model.zero_grad()
    return found


class NaiveStream:
    """The chunks written so far in plain lists. A softmax block reads the first and the last, as window 2 with sink says."""

    def __init__(self, model):
        self.model, self.written, self.frames = model, [], 0

    def call(self, x, timestep, condition, context):
        state = None
        if self.written:
            kept = self.written[-2:] if len(self.written) <= 2 else [self.written[0], self.written[-1]]
            gdn, _ = self.written[-1]
            softmax = [chunk[1] for chunk in kept]
            joined = tuple(torch.cat([block.memory[part] for block in softmax], 2) for part in (0, 1))
            state = [gdn, BlockState(joined, softmax[-1].frame)]
        positions = self.model.positions(self.frames, x.shape[2], *GRID, x.device)
        return self.model(x, torch.full((BATCH,), float(timestep)), condition, context, state, positions)

    def write(self, x0, eps, condition, context):
        noised = (1 - SMALLEST_SIGMA) * x0.detach() + SMALLEST_SIGMA * eps
        with torch.no_grad():
            _, written = self.call(noised, 0, condition.detach(), context)
        self.written.append(written)
        self.frames += x0.shape[2]


class TrainingMath:
    """``text/training_math.json``; its note gives the layout [B, F, C, H, W] and the frames that the mask keeps."""

    def __init__(self):
        self.values = golden_files.load_json("text/training_math.json")
        self.atol = self.values["tolerance"]
        note = self.values["note"]
        assert "[B,F,C,H,W]" in note
        self.shape = [int(size) for size in re.search(r"shapes ([\d,]+)", note)[1].split(",")]
        kept = [int(frame) for frame in re.findall(r"\d+", note.split("mask keeps frames")[1])]
        self.mask = torch.tensor([frame in kept for frame in range(self.shape[1])]).view(1, 1, -1, 1, 1)

    def latents(self, case, name):
        """One tensor as [B, C, T, H, W]."""
        return torch.tensor(self.values[case][name]).view(self.shape).transpose(1, 2)
