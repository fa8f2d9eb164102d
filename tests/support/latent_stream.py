"""A stream of random latents without a VAE, for tests of what runs the network."""

import torch
from sana_streaming.sana_core.streaming.chunks import LIVE_FIRST_LATENTS, ChunkPlan
from sana_streaming.sana_core.streaming.options import StreamOptions
from sana_streaming.sana_core.streaming.sampler import prompt_context, sample_chunks
from sana_streaming.sana_core.streaming.state import DiTState

GRID = (2, 3)


class Run:
    """One stream of latents, chunk by chunk."""

    def __init__(self, passes, options=None, seed=0, pool=None):
        self.model, self.passes, self.options, self.seed = passes.model, passes, options or StreamOptions(), seed
        self.plan = ChunkPlan(None)
        self.state = DiTState.for_plan(self.plan, self.options, pool)
        self.prompt = self.context(seed)

    def tensors(self, seed, *shape):
        return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))

    def context(self, seed):
        embeds = self.tensors(seed, 1, 5, self.model.config.caption_channels)
        mask = torch.ones(1, 5)
        return prompt_context(self.model, self.options, embeds, mask, embeds.flip(1), mask)

    def inputs(self):
        """Source latents and noise of the next chunk."""
        index = self.state.num_chunks
        size = self.plan.latent_sizes(index, LIVE_FIRST_LATENTS)[0]
        source = self.tensors(1000 * self.seed + index, 1, self.model.config.in_channels, size, *GRID)
        return source, source.flip(1)

    def chunk(self, inputs=None):
        source, noise = inputs or self.inputs()
        (latents,) = sample_chunks(
            self.model, self.state, [self.prompt], lambda *_: noise, source, self.options, [source.shape[2]],
            last=False, passes=self.passes,
        )  # fmt: skip
        return latents
