"""Loaders: SanaStreamingLoadModel, SanaStreamingLoadVAE, SanaStreamingLoadTextEncoder."""

from __future__ import annotations

import re
import shutil
import uuid
from pathlib import Path, PureWindowsPath
from typing import Any

from comfy_api.latest import io

from ..sana_core.models.gemma_files import SINGLE_FILE
from ..sana_core.models.prompt_cache import default_cache_dir
from ..sana_core.models.text_encoder import GemmaTextEncoder
from ..sana_core.weights.dit import load_dit
from ..sana_core.weights.nano import nano_folder
from ..sana_core.weights.toy import make_toy_bundle
from ..sana_core.weights.vae import INDEX_NAME, load_vae
from . import comfy_host
from .decode import decoder_text
from .downloads import PREFIX, check_download, download_names, downloaded, is_download
from .sockets import VAE, LoadedModel, LoadedVAE, Model, TextEncoder

CATEGORY = f"{comfy_host.CATEGORY}/loaders"
NANO = "nano (built in)"
TOY = "toy (random weights)"
MODEL_FOLDERS = ("diffusion_models", comfy_host.OWN_FOLDER)
SAMPLERS = {
    "streaming": "for Edit Video and the Sampler",
    "bidirectional": "for the Short Sampler",
}
VAE_FOLDERS = ("vae", comfy_host.OWN_FOLDER, "checkpoints")
TEXT_FOLDERS = ("text_encoders", comfy_host.OWN_FOLDER)
BUILT_IN_TOOLTIP = (
    f"'{NANO}' comes with the pack: small, fast, trained at 256x160 for a few kinds of edits. '{TOY}' edits nothing. "
    f"'{PREFIX}...' fetches a published file into models/{comfy_host.OWN_FOLDER} when this node runs, many GB, and uses it "
    "from then on."
)

SHARD = re.compile(r"-\d{5}-of-\d{5}\.")


def _vae_names() -> list[str]:
    """Files and sharded folders of VAEs, and whole checkpoints of LTX-2, which have one inside."""
    names = comfy_host.files_in(*VAE_FOLDERS[:-1])
    names += [name for name in comfy_host.files_in(VAE_FOLDERS[-1]) if "ltx" in name.lower()]
    names = [name for name in names if name.endswith((".safetensors", ".pth", ".pt")) and not SHARD.search(name)]
    return list(dict.fromkeys([*comfy_host.folders_with(INDEX_NAME, *VAE_FOLDERS), *names]))


def _text_encoder_names() -> list[str]:
    """Folders from Hugging Face, and single files: all of ComfyUI's, and of our own folder those called Gemma."""
    folders = comfy_host.folders_with("tokenizer.json", *TEXT_FOLDERS)
    files = comfy_host.files_in(TEXT_FOLDERS[0])
    files += [name for name in comfy_host.files_in(comfy_host.OWN_FOLDER) if "gemma" in name.lower()]
    inside = {name for name in files if PureWindowsPath(name).parent.as_posix() in folders}
    names = [name for name in files if name.endswith(".safetensors") and name not in inside]
    return list(dict.fromkeys([*folders, *names]))


def _toy(part: str) -> Path:
    """A part of the toy bundle, written into ComfyUI's temporary folder when first asked for."""
    folder = comfy_host.temporary_folder() / "sana_streaming_toy"
    if not folder.exists():
        # Whole or not there: another job may look at the same time.
        unfinished = comfy_host.temporary_folder() / f"sana_streaming_toy_{uuid.uuid4().hex}"
        make_toy_bundle(unfinished)
        try:
            unfinished.rename(folder)
        except OSError:
            shutil.rmtree(unfinished)
    return folder / part


def _path(node: type[io.ComfyNode], name: str, part: str, what: str, folders: tuple[str, ...]) -> Path:
    if name == NANO:
        return nano_folder() / part
    if is_download(name):
        return downloaded(name, folders, lambda text: comfy_host.show_text(node, text, log=False))
    return _toy(part) if name == TOY else comfy_host.resolve(name, what, *folders)


def _offered(name: str | None, what: str, folders: tuple[str, ...]) -> bool | str:
    """What validate_inputs returns: True, or one sentence. A name that comes over a link is None until the run."""
    if name is None or name == TOY:
        return True
    if name == NANO:
        return comfy_host.answer(nano_folder)
    if is_download(name):
        return comfy_host.answer(lambda: check_download(name, folders))
    return comfy_host.answer(lambda: comfy_host.resolve(name, what, *folders))


def stamp(path: Path) -> tuple[Any, ...]:
    """Changes when a file or the config beside it does, or any file of a folder or of its text_encoder."""
    if path.is_file():
        files = [file for file in (path, path.with_name("config.json")) if file.is_file()]
    else:
        files = sorted(file for file in (*path.glob("*"), *path.glob("text_encoder/*")) if file.is_file())
    return (str(path), *((file.name, file.stat().st_size, file.stat().st_mtime_ns) for file in files))


def _fingerprint(name: str | None, what: str, folders: tuple[str, ...]) -> Any:
    if name in (NANO, TOY, None) or is_download(str(name)):
        return name
    return stamp(comfy_host.resolve(str(name), what, *folders))


class SanaStreamingLoadModel(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        files = comfy_host.files_in(*MODEL_FOLDERS)
        return comfy_host.schema(
            node_id="SanaStreamingLoadModel",
            display_name="Load SANA-Streaming Model",
            category=CATEGORY,
            description="Loads the transformer that edits: the released sana_streaming_ar.pth for streams, "
            "sana_bidirectional_short.pth for short clips, or a file made from either.",
            search_aliases=["sana", "streaming", "video edit", "v2v", "load diffusion model"],
            inputs=[
                comfy_host.widget(
                    io.Combo,
                    "file",
                    options=[NANO, *files, TOY, *download_names("model", MODEL_FOLDERS)],
                    default=NANO,
                    tooltip=f"A file in models/diffusion_models or models/sana_streaming. {BUILT_IN_TOOLTIP}",
                ),
                comfy_host.widget(
                    io.Combo,
                    "dtype",
                    options=list(comfy_host.DTYPES),
                    default="auto",
                    tooltip="What the weights are kept and computed in. auto: bfloat16 on a GPU that has it (as the "
                    "release), float32 on a CPU.",
                ),
                comfy_host.widget(
                    io.Combo,
                    "kernels",
                    options=["auto", "eager", "naive", "triton"],
                    default="auto",
                    advanced=True,
                    tooltip="Implementation of the gated delta rule. auto takes the fastest that runs here; naive is "
                    "the slow reference, to compare with; triton needs an NVIDIA GPU.",
                ),
            ],
            hidden=[comfy_host.NODE_ID],
            outputs=[Model.Output(display_name="model")],
        )

    @classmethod
    def validate_inputs(cls, file: str | None = None) -> bool | str:
        return _offered(file, "model file", MODEL_FOLDERS)

    @classmethod
    def fingerprint_inputs(cls, file: str | None, dtype: str, kernels: str) -> Any:
        return _fingerprint(file, "model file", MODEL_FOLDERS)

    @classmethod
    def execute(cls, file: str, dtype: str, kernels: Any) -> io.NodeOutput:
        path = _path(cls, file, "dit/model.safetensors", "model file", MODEL_FOLDERS)
        device, home = comfy_host.model_device(), comfy_host.model_offload_device()
        kind = comfy_host.pick_dtype(dtype, device)
        network = load_dit(
            path,
            device=home,
            dtype=kind,
            operations=comfy_host.operations(kind),
            quantized_operations=comfy_host.quantized_operations(kind, device),
            runs_on=device,
        )
        network.use_kernels(kernels)
        comfy_host.show_text(cls, f"{network.config.variant} model: {SAMPLERS[network.config.variant]}")
        return io.NodeOutput(LoadedModel(comfy_host.patcher(network, device, home)))


class SanaStreamingLoadVAE(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return comfy_host.schema(
            node_id="SanaStreamingLoadVAE",
            display_name="Load SANA-Streaming VAE",
            category=CATEGORY,
            description="Loads the video VAE of LTX-2, with a causal decoder or the public one, from any of its files.",
            search_aliases=["sana", "ltx2", "ltx-2", "causal vae", "load vae"],
            inputs=[
                comfy_host.widget(
                    io.Combo,
                    "file",
                    options=[NANO, *_vae_names(), TOY, *download_names("vae", VAE_FOLDERS)],
                    default=NANO,
                    tooltip="A file in models/vae or models/sana_streaming: in diffusers' layout with its config.json beside "
                    "it, such as ltx2_causal_vae_0516/diffusion_pytorch_model.safetensors, or in LTX-2's own; or a whole "
                    f"LTX-2 checkpoint in models/checkpoints, of which only the VAE is read. {BUILT_IN_TOOLTIP}",
                ),
                comfy_host.widget(
                    io.Combo,
                    "decoder",
                    options=["auto", "causal", "chunk_tile"],
                    default="auto",
                    tooltip="auto does what the config says. causal decodes frame by frame whatever it says: right for "
                    "causal weights whose config is lost, wrong for the public LTX-2 VAE. chunk_tile is for that one: "
                    "overlapping tiles in time, at 3.3 times the work, and frames come 3 latent frames late.",
                ),
            ],
            hidden=[comfy_host.NODE_ID],
            outputs=[VAE.Output(display_name="vae")],
        )

    @classmethod
    def validate_inputs(cls, file: str | None = None) -> bool | str:
        return _offered(file, "VAE file", VAE_FOLDERS)

    @classmethod
    def fingerprint_inputs(cls, file: str | None, decoder: str) -> Any:
        return _fingerprint(file, "VAE file", VAE_FOLDERS)

    @classmethod
    def execute(cls, file: str, decoder: Any) -> io.NodeOutput:
        path = _path(cls, file, "vae/diffusion_pytorch_model.safetensors", "VAE file", VAE_FOLDERS)
        device, home = comfy_host.vae_device(), comfy_host.vae_offload_device()
        kind = comfy_host.pick_dtype("auto", device)
        network = load_vae(path, device=home, dtype=kind, operations=comfy_host.operations(kind), decoder=decoder)
        vae = LoadedVAE(comfy_host.patcher(network, device, home))
        comfy_host.show_text(cls, decoder_text(vae))
        return io.NodeOutput(vae)


class SanaStreamingLoadTextEncoder(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return comfy_host.schema(
            node_id="SanaStreamingLoadTextEncoder",
            display_name="Load SANA-Streaming Text Encoder",
            category=CATEGORY,
            description="Names the Gemma-2-2b-it that reads the prompt. It is loaded only while a prompt is encoded.",
            search_aliases=["sana", "gemma", "gemma 2", "load clip", "text encoder"],
            inputs=[
                comfy_host.widget(
                    io.Combo,
                    "file",
                    options=[NANO, *_text_encoder_names(), TOY, *download_names("text-encoder", TEXT_FOLDERS)],
                    default=NANO,
                    tooltip="In models/text_encoders or models/sana_streaming: a folder as downloaded from Hugging Face "
                    f"(config.json, tokenizer.json, weights), or ComfyUI's single file {SINGLE_FILE}. {BUILT_IN_TOOLTIP}",
                ),
            ],
            hidden=[comfy_host.NODE_ID],
            outputs=[TextEncoder.Output(display_name="text_encoder")],
        )

    @classmethod
    def validate_inputs(cls, file: str | None = None) -> bool | str:
        return _offered(file, "text encoder", TEXT_FOLDERS)

    @classmethod
    def fingerprint_inputs(cls, file: str | None) -> Any:
        return _fingerprint(file, "text encoder", TEXT_FOLDERS)

    @classmethod
    def execute(cls, file: str) -> io.NodeOutput:
        path = _path(cls, file, "text_encoder", "text encoder", TEXT_FOLDERS)
        encoder = GemmaTextEncoder(path, device=comfy_host.text_encoder_device(), cache_dir=default_cache_dir())
        if encoder.warning:
            comfy_host.show_text(cls, encoder.warning)
        return io.NodeOutput(encoder)
