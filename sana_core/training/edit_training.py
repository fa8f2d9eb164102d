"""Training of the transformer on pairs of clips, whole or as a LoRA: from the config to the file that it makes."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor, nn

from ..errors import InputError
from ..models.causal_vae import CausalVAE
from ..models.dit import PromptContext, SanaStreamingDiT
from ..models.prompt import PromptEmbedding
from ..models.prompt_cache import default_cache_dir
from ..models.text_encoder import GemmaTextEncoder
from ..streaming.sampler import check_latent_channels, check_streaming
from ..weights.dit import load_dit, save_dit
from ..weights.vae import load_vae
from .clips import crop_clips
from .config import EditTrainingConfig, check_multiple, dtype_of, frozen_dtype, identity
from .dit_init import initialize
from .edit_step import EditBatch, edit_losses
from .keep_init import keep_init
from .latents_cache import EncodedPair, LatentsCache
from .lora import Lora
from .pairs import open_pairs
from .trainer import Trainer, seeded
from .vae_init import to_video

MODEL_FOLDER, LORA_FILE, LATENTS_FOLDER = "model", "lora.safetensors", "latents"
# Frames that are encoded at once, to bound memory; the latents do not depend on it.
_ENCODED_FRAMES = 32


class EditTraining:
    """One run of ``train``: networks, data and trainer, made ready. Raises InputError for what does not fit together.

    A run in ``folder`` goes on if it has the same settings, and is refused if it has others.
    """

    def __init__(
        self,
        config: EditTrainingConfig,
        folder: Path,
        device: torch.device,
        *,
        log: Callable[[str], None] = print,
    ) -> None:
        self.config = config
        self.folder = folder
        self.device = device
        self.pairs = open_pairs(config.data, config.size, config.crr_weight, device)
        self.prompts = Prompts(config.text_encoder, device)
        self.vae = load_vae(config.vae, device=device, dtype=frozen_dtype(config.dtype, device))
        self.model = start_model(config, device)
        check_fit(config, self.model, self.vae, self.prompts)
        self.prompts.prepare(self.pairs.texts)
        self.lora = Lora(self.model, config.lora, config.trainer.seed) if config.lora else None
        trained: nn.Module = self.lora or self.model
        self.trainer = Trainer(
            folder, dict(trained.named_parameters()), config.trainer, identity=identity(config), log=log
        )
        self._encoded = self._encode
        if config.latents:
            seed = config.trainer.seed
            cache = LatentsCache(folder / LATENTS_FOLDER, config.latents.samples, seed, self._made_by(), self._encode)
            self._encoded = cache.pair

    @property
    def result(self) -> Path:
        """What the run makes: a folder that ``--model`` takes, or a LoRA file. Every checkpoint renews it."""
        return self.folder / (LORA_FILE if self.lora else MODEL_FOLDER)

    def run(self) -> Path:
        """Trains to the end and returns :attr:`result`."""
        self.trainer.run(self.losses, on_save=self.save)
        return self.result

    def losses(self, step: int) -> Mapping[str, Tensor]:
        """Losses of one step, a pure function of the weights and the step."""
        batch = self.batch(step)
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.config.autocast == "bfloat16"):
            return edit_losses(
                self.model,
                lambda texts: self.prompts.context(self.model, texts),
                batch,
                generator=seeded(self.config.trainer.seed, step),
                crr_weight=self.config.crr_weight,
                most_gap=self.config.most_gap,
                most_laps=self.config.most_laps,
            )

    def batch(self, step: int) -> EditBatch:
        """The pairs of one step, encoded."""
        size = self.config.batch
        pairs = [self._encoded(number) for number in range(step * size, (step + 1) * size)]
        reverse = [pair.reverse_prompt for pair in pairs if pair.reverse_prompt is not None]
        return EditBatch(
            source=torch.stack([pair.source.to(self.device) for pair in pairs]),
            target=torch.stack([pair.target.to(self.device) for pair in pairs]),
            prompts=[pair.prompt for pair in pairs],
            reverse_prompts=reverse if len(reverse) == size else None,
        )

    def save(self) -> None:
        """Writes :attr:`result` from the averaged weights."""
        dtype = dtype_of(self.config.save_dtype)
        with self.trainer.averaged():
            if self.lora:
                self.lora.save(self.result, dtype)
            else:
                save_model(self.model, self.result, dtype)

    def _encode(self, number: int) -> EncodedPair:
        seed = self.config.trainer.seed
        pair = self.pairs.sample(seed, number)
        clips = crop_clips((pair.source, pair.target), self.config.crop, seed, number)
        source, target = (encode_clip(self.vae, clip, self.device) for clip in clips)
        return EncodedPair(source, target, pair.prompt, pair.reverse_prompt)

    def _made_by(self) -> str:
        """Everything that the latents of a pair depend on."""
        settings = identity(self.config)
        kept = {name: settings.get(name) for name in ("data", "size", "crop", "seed", "dtype")}
        return json.dumps([self.vae.fingerprint, kept], sort_keys=True)


class Prompts:
    """Embeddings of instructions, each encoded once; keys and values are made of them anew for each step."""

    def __init__(self, folder: Path, device: torch.device) -> None:
        self._encoder = GemmaTextEncoder(folder, device=device, cache_dir=default_cache_dir())
        self._device = device
        self._known: dict[str, PromptEmbedding] = {}

    @property
    def channels(self) -> int:
        return self._encoder.hidden_size

    def prepare(self, texts: Iterable[str]) -> None:
        """Encodes what is known beforehand, and then lets go of the encoder's weights until another text comes."""
        for text in texts:
            self._embedding(text)
        self._encoder.unload()

    def context(self, model: SanaStreamingDiT, texts: Sequence[str]) -> PromptContext:
        """What the blocks read, with a gradient into ``model``; one text per sample of a batch."""
        found = [self._embedding(text) for text in texts]
        embeds, mask = (torch.cat([getattr(one, name) for one in found]) for name in ("embeds", "mask"))
        return model.prompt_context(embeds.to(self._device), mask.to(self._device))

    def _embedding(self, text: str) -> PromptEmbedding:
        if text not in self._known:
            self._known[text] = self._encoder.encode(text)
        return self._known[text]


def start_model(config: EditTrainingConfig, device: torch.device) -> SanaStreamingDiT:
    """The transformer before its first step: float32 with gradients, or frozen under a LoRA."""
    dtype = frozen_dtype(config.dtype, device) if config.lora else torch.float32
    sizes = config.model.sizes()
    if sizes is None:
        assert config.model.path is not None
        model = load_dit(config.model.path, layout="split", device=device, dtype=dtype)
    else:
        model = SanaStreamingDiT(sizes, layout="split", device=device, dtype=dtype).eval()
        _fill(model, config)
    return model.requires_grad_(config.lora is None)


def _fill(model: SanaStreamingDiT, config: EditTrainingConfig) -> None:
    if config.model.init == "random":
        initialize(model, config.trainer.seed)
        return
    try:
        keep_init(model, config.trainer.seed)
    except ValueError as error:
        raise InputError(f"model.init is keep, but {error}; make it so, or use init: random") from error


def check_networks(model: SanaStreamingDiT, vae: CausalVAE, prompts: Prompts, vae_name: str, text_name: str) -> None:
    """InputError unless a stream of the model can use VAE and text encoder, which are named as given."""
    check_streaming(model)
    check_latent_channels(model, vae.config.latent_channels, f"{vae_name} makes")
    if prompts.channels != model.config.caption_channels:
        raise InputError(
            f"{text_name} gives {prompts.channels} channels, the model takes {model.config.caption_channels}; "
            "use the text encoder that belongs to the model"
        )


def check_fit(config: EditTrainingConfig, model: SanaStreamingDiT, vae: CausalVAE, prompts: Prompts) -> None:
    """InputError unless networks and clips fit together."""
    check_networks(model, vae, prompts, str(config.vae), str(config.text_encoder))
    factor = vae.config.temporal_factor
    if (config.size.frames - 1) % factor:
        raise InputError(f"size.frames is {config.size.frames}; it must be 1 + {factor}k")
    check_multiple(config.crop, config.size, vae.config.spatial_factor)


@torch.no_grad()
def encode_clip(vae: CausalVAE, frames: Tensor, device: torch.device) -> Tensor:
    """Latents [C, T, h, w] float32 of a clip uint8 [1 + 8k, H, W, 3]."""
    latents, state = [], None
    for piece in frames.split(_ENCODED_FRAMES):
        encoded, state = vae.encode(to_video(piece).to(device), state)
        latents.append(encoded.float())
    return torch.cat(latents, 2)[0]


def save_model(model: SanaStreamingDiT, folder: Path, dtype: torch.dtype) -> None:
    """Writes a folder that ``--model`` takes. A file that is there is replaced when the next one is whole."""
    finished = SanaStreamingDiT(model.config, layout=model.layout, device="meta", dtype=dtype)
    finished.load_state_dict({key: value.to(dtype) for key, value in model.state_dict().items()}, assign=True)
    unfinished = folder.with_name(f"{folder.name}.part")
    save_dit(finished, unfinished)
    folder.mkdir(exist_ok=True)
    for file in unfinished.iterdir():
        file.replace(folder / file.name)
    unfinished.rmdir()
