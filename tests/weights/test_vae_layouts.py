"""The layouts that an LTX-2 VAE comes in: all give the same network, and later models are refused by name and by shape."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import safetensors
import torch
from safetensors.torch import save_file
from sana_streaming.sana_core.config import VAEConfig
from sana_streaming.sana_core.errors import CheckpointError
from sana_streaming.sana_core.models.causal_vae import CausalVAE
from sana_streaming.sana_core.weights.checkpoint import shapes
from sana_streaming.sana_core.weights.vae import CONFIG_NAME, INDEX_NAME, WEIGHTS_NAME, load_vae, save_vae
from sana_streaming.sana_core.weights.vae_layouts import check_sizes, diffusers_names, infer_config, is_original
from torch import Tensor
from vae_files import LATER, original

# Three levels with every kind of sampler and other counts on the two sides.
SMALL = VAEConfig(
    latent_channels=4,
    block_out_channels=(8, 16, 16),
    layers_per_block=(1, 0, 2, 1),
    downsample_type=("spatial", "temporal", "spatiotemporal"),
    decoder_block_out_channels=(8, 16, 16),
    decoder_layers_per_block=(1, 2, 0, 1),
    decoder_upsample_type=("spatial", "temporal", "spatiotemporal"),
    upsample_residual=(True, True, True),
    upsample_factor=(2, 2, 1),
    patch_size=2,
)
# What is in a whole LTX-2 checkpoint beside the video VAE.
OTHERS = {
    "model.diffusion_model.patchify_proj.weight": torch.ones(2, 2).to(torch.float8_e4m3fn),
    "audio_vae.encoder.conv_in.conv.weight": torch.ones(3),
    "vocoder.conv_pre.weight": torch.ones(3),
}
# The config of LTX-2's own files, as far as it matters.
ORIGINAL_CONFIG: dict[str, Any] = {
    "_class_name": "CausalVideoAutoencoder",
    "encoder_blocks": [["res_x", {"num_layers": 1}]],
    "causal_decoder": False,
    "encoder_spatial_padding_mode": "zeros",
    "decoder_spatial_padding_mode": "reflect",
    "scaling_factor": 1.0,
}


@pytest.fixture
def vae() -> CausalVAE:
    torch.manual_seed(0)
    vae = CausalVAE(SMALL)
    vae.latents_mean.normal_()
    return vae


@pytest.fixture
def folder(vae: CausalVAE, tmp_path: Path) -> Path:
    save_vae(vae, tmp_path / "saved")
    return tmp_path / "saved"


def assert_same(got: CausalVAE, expected: CausalVAE, folder: Path, config: VAEConfig = SMALL) -> None:
    assert got.config == config
    state = expected.state_dict()
    assert got.state_dict().keys() == state.keys()
    assert all(torch.equal(value, state[key]) for key, value in got.state_dict().items())
    assert got.fingerprint == load_vae(folder).fingerprint


def test_the_published_table_at_full_size() -> None:
    state = CausalVAE(VAEConfig(), device="meta").state_dict()
    files = original(state, VAEConfig())
    assert {
        "encoder.down_blocks.0.res_blocks.3.conv1.conv.weight",
        "encoder.down_blocks.7.conv.conv.bias",
        "encoder.down_blocks.8.res_blocks.1.conv2.conv.weight",
        "decoder.up_blocks.0.res_blocks.0.conv1.conv.weight",
        "decoder.up_blocks.5.conv.conv.weight",
        "decoder.up_blocks.6.res_blocks.4.conv2.conv.bias",
    } <= files.keys()
    assert is_original(files)
    assert not is_original(state)
    names = diffusers_names(files)
    assert len(names) == len(state) == 184
    renamed = {name: files[key] for key, name in names.items()}
    assert shapes(renamed) == shapes(state)
    assert infer_config(shapes(renamed), "file") == VAEConfig()
    check_sizes(infer_config(shapes(renamed), "file"), "file", decoder=True)


@pytest.mark.parametrize("prefix", ["", "vae."], ids=["alone", "in a checkpoint"])
@pytest.mark.parametrize("config", [None, {"transformer": {}}, {"vae": ORIGINAL_CONFIG}], ids=["none", "other", "own"])
def test_original_files(vae: CausalVAE, folder: Path, tmp_path: Path, prefix: str, config: Any) -> None:
    tensors = original(vae.state_dict(), SMALL, prefix) | (OTHERS if prefix else {})
    metadata = None if config is None else {"config": json.dumps(config)}
    save_file(tensors, tmp_path / "ltx.safetensors", metadata=metadata)
    # A config beside it belongs to something else.
    (tmp_path / CONFIG_NAME).write_text("{}")
    loaded = load_vae(tmp_path / "ltx.safetensors", dtype=torch.float32)
    assert_same(loaded, vae, folder)
    assert not loaded.decodes_causally
    assert load_vae(tmp_path / "ltx.safetensors", decoder="causal").decodes_causally


def test_only_the_video_vae_of_a_checkpoint_is_read(
    vae: CausalVAE, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save_file(original(vae.state_dict(), SMALL, "vae.") | OTHERS, tmp_path / "ltx.safetensors")
    read = []

    class Recorder:
        def __init__(self, *args: Any, **kwargs: Any) -> None:
            self.file = safe_open(*args, **kwargs)

        def __enter__(self) -> "Recorder":
            self.file.__enter__()
            return self

        def __exit__(self, *error: Any) -> None:
            self.file.__exit__(*error)

        def __getattr__(self, name: str) -> Any:
            return getattr(self.file, name)

        def get_tensor(self, key: str) -> Tensor:
            read.append(key)
            return self.file.get_tensor(key)

    safe_open = safetensors.safe_open
    monkeypatch.setattr(safetensors, "safe_open", Recorder)
    load_vae(tmp_path / "ltx.safetensors")
    assert len(read) == len(vae.state_dict()) + 1
    assert all(key.startswith("vae.") for key in read)


@pytest.mark.parametrize(
    ("key", "value", "field"),
    [
        ("causal_decoder", True, "decoder_causal"),
        ("encoder_spatial_padding_mode", "reflect", "encoder_spatial_padding_mode"),
        ("decoder_spatial_padding_mode", "zeros", "decoder_spatial_padding_mode"),
        ("scaling_factor", 0.5, "scaling_factor"),
    ],
)
def test_what_shapes_do_not_tell_comes_from_the_original_config(
    vae: CausalVAE, folder: Path, tmp_path: Path, key: str, value: Any, field: str
) -> None:
    path = tmp_path / "ltx.safetensors"
    tensors = original(vae.state_dict(), SMALL)
    save_file(tensors, path, metadata={"config": json.dumps({"vae": {**ORIGINAL_CONFIG, key: value}})})
    assert_same(load_vae(path, dtype=torch.float32), vae, folder, replace(SMALL, **{field: value}))
    save_file(tensors, path, metadata={"config": json.dumps({"vae": {**ORIGINAL_CONFIG, key: "other"}})})
    with pytest.raises(CheckpointError, match=field):
        load_vae(path)


@pytest.mark.parametrize("decoder", ["causal", "chunk_tile"])
def test_a_file_without_config_is_read_by_its_shapes_when_its_decoder_is_said(
    vae: CausalVAE, folder: Path, decoder: Any
) -> None:
    whole = folder.joinpath(CONFIG_NAME).read_text()
    (folder / CONFIG_NAME).unlink()
    loaded = load_vae(folder, dtype=torch.float32, decoder=decoder)
    with pytest.raises(CheckpointError, match="say which decoder it has, causal or chunk_tile"):
        load_vae(folder)
    # A config that leaves it open does as well.
    values = {key: value for key, value in json.loads(whole).items() if key != "decoder_causal"}
    (folder / CONFIG_NAME).write_text(json.dumps(values))
    assert load_vae(folder, decoder=decoder).config == loaded.config
    (folder / CONFIG_NAME).write_text(whole)
    assert_same(loaded, vae, folder, replace(SMALL, decoder_causal=decoder == "causal"))


def test_chunk_tile_can_be_chosen_for_a_causal_decoder(vae: CausalVAE, folder: Path) -> None:
    values = {**SMALL.to_dict(), "decoder_causal": True}
    (folder / CONFIG_NAME).write_text(json.dumps(values))
    assert load_vae(folder).decodes_causally
    assert_same(load_vae(folder, dtype=torch.float32, decoder="chunk_tile"), vae, folder)


@pytest.mark.parametrize("inside", ["", "vae"])
def test_sharded_folders(vae: CausalVAE, folder: Path, tmp_path: Path, inside: str) -> None:
    target = tmp_path / "sharded" / inside
    target.mkdir(parents=True)
    state = vae.state_dict()
    keys = sorted(state)
    shards = {"a-00001-of-00002.safetensors": keys[::2], "a-00002-of-00002.safetensors": keys[1::2]}
    for name, part in shards.items():
        save_file({key: state[key] for key in part}, target / name)
    index = {"weight_map": {key: name for name, part in shards.items() for key in part}}
    (target / INDEX_NAME).write_text(json.dumps(index))
    (target / CONFIG_NAME).write_text(json.dumps(SMALL.to_dict()))
    for path in (tmp_path / "sharded", target / INDEX_NAME):
        assert_same(load_vae(path, dtype=torch.float32), vae, folder)
    (target / "a-00002-of-00002.safetensors").unlink()
    with pytest.raises(CheckpointError, match="a-00002-of-00002.safetensors does not exist"):
        load_vae(target)


def test_a_torch_file_with_its_config_beside(vae: CausalVAE, folder: Path) -> None:
    torch.save(vae.state_dict(), folder / "vae.pth")
    assert_same(load_vae(folder / "vae.pth", dtype=torch.float32), vae, folder)


class TestLaterModels:
    def test_by_name(self, vae: CausalVAE, tmp_path: Path) -> None:
        tensors = {"vae.decoder.conv_in_x_t.weight": torch.ones(2)} | original(vae.state_dict(), SMALL, "vae.")
        save_file(tensors, tmp_path / "ltx-2.5.safetensors")
        with pytest.raises(CheckpointError, match=r"ltx-2\.5.*later LTX model.*conv_in_x_t.*use the VAE of LTX-2"):
            load_vae(tmp_path / "ltx-2.5.safetensors")

    @pytest.mark.parametrize("layout", ["original", "diffusers"])
    def test_by_shape(self, tmp_path: Path, layout: str) -> None:
        other = CausalVAE(LATER)
        save_vae(other, tmp_path)
        if layout == "original":
            # Without a single residual block the name of one is what is left to tell the layout.
            tensors = original(other.state_dict(), LATER)
            tensors["decoder.up_blocks.0.res_blocks.0.conv1.conv.bias"] = torch.ones(8)
            save_file(tensors, tmp_path / WEIGHTS_NAME)
        with pytest.raises(
            CheckpointError, match=r"block_out_channels is \(8, 8, 8, 8\), LTX-2 has .*LTX-2\.3 and later"
        ):
            load_vae(tmp_path)

    @pytest.mark.parametrize(
        "change",
        [
            {"decoder_layers_per_block": (4, 5, 5, 5)},
            {"decoder_spatial_padding_mode": "zeros"},
            {"layers_per_block": (4, 6, 4, 2, 2)},
        ],
        ids=lambda change: next(iter(change)),
    )
    def test_every_size_counts(self, change: dict[str, Any]) -> None:
        with pytest.raises(CheckpointError, match=f"file is not the VAE of LTX-2: {next(iter(change))} is"):
            check_sizes(replace(VAEConfig(), **change), "file", decoder=True)

    def test_a_smaller_decoder_that_says_what_it_is_may_differ(self) -> None:
        check_sizes(replace(VAEConfig(), decoder_layers_per_block=(1, 1, 1, 1)), "file", decoder=False)

    def test_other_networks(self, vae: CausalVAE, tmp_path: Path) -> None:
        path = tmp_path / "other.safetensors"
        save_file(OTHERS, path)
        with pytest.raises(CheckpointError, match=r"other\.safetensors holds no video VAE: none of its 3 tensors"):
            load_vae(path)
        tensors = original(vae.state_dict(), SMALL)
        del tensors["encoder.conv_out.conv.weight"]
        save_file(tensors, path)
        with pytest.raises(CheckpointError, match=r"encoder\.conv_out\.conv\.weight is missing"):
            load_vae(path)
        tensors = original(vae.state_dict(), SMALL)
        tensors["encoder.down_blocks.1.conv.conv.weight"] = torch.ones(8, 4, 3, 3, 3)
        save_file(tensors, path)
        with pytest.raises(CheckpointError, match=r"samplers merge \[1, 2, 8\] positions"):
            load_vae(path)
