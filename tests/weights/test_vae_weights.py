"""Reading and writing VAE files: every accepted form, and every refusal with its remedy."""

import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from sana_streaming.sana_core.config import VAEConfig
from sana_streaming.sana_core.errors import CheckpointError, InputError
from sana_streaming.sana_core.models.causal_vae import CausalVAE
from sana_streaming.sana_core.weights.vae import CONFIG_NAME, WEIGHTS_NAME, load_vae, save_vae

SMALL = VAEConfig(
    latent_channels=4,
    block_out_channels=(8, 16),
    layers_per_block=(1, 1, 1),
    downsample_type=("spatial", "spatiotemporal"),
    decoder_block_out_channels=(8, 16),
    decoder_layers_per_block=(1, 1, 1),
    decoder_upsample_type=("spatial", "spatiotemporal"),
    upsample_residual=(True, True),
    upsample_factor=(2, 2),
    patch_size=2,
    decoder_causal=True,
)
# What diffusers writes for the public LTX-2 VAE.
PUBLIC: dict[str, Any] = {
    "_class_name": "AutoencoderKLLTX2Video",
    "_diffusers_version": "0.37.0",
    "block_out_channels": [256, 512, 1024, 2048],
    "decoder_block_out_channels": [256, 512, 1024],
    "decoder_causal": False,
    "decoder_inject_noise": [False, False, False, False],
    "decoder_layers_per_block": [5, 5, 5, 5],
    "decoder_spatial_padding_mode": "reflect",
    "decoder_spatio_temporal_scaling": [True, True, True],
    "down_block_types": ["LTX2VideoDownBlock3D"] * 4,
    "downsample_type": ["spatial", "temporal", "spatiotemporal", "spatiotemporal"],
    "encoder_causal": True,
    "encoder_spatial_padding_mode": "zeros",
    "in_channels": 3,
    "latent_channels": 128,
    "layers_per_block": [4, 6, 6, 2, 2],
    "out_channels": 3,
    "patch_size": 4,
    "patch_size_t": 1,
    "resnet_norm_eps": 1e-6,
    "scaling_factor": 1,
    "spatial_compression_ratio": 32,
    "spatio_temporal_scaling": [True, True, True, True],
    "temporal_compression_ratio": 8,
    "timestep_conditioning": False,
    "upsample_factor": [2, 2, 2],
    "upsample_residual": [True, True, True],
}


@pytest.fixture
def vae() -> CausalVAE:
    torch.manual_seed(0)
    vae = CausalVAE(SMALL)
    vae.latents_mean.normal_()
    return vae


@pytest.fixture
def folder(vae: CausalVAE, tmp_path: Path) -> Path:
    save_vae(vae, tmp_path / "vae")
    return tmp_path / "vae"


def assert_same(vae: CausalVAE, other: CausalVAE) -> None:
    state, expected = vae.state_dict(), other.state_dict()
    assert vae.config == other.config
    assert state.keys() == expected.keys()
    assert all(torch.equal(state[key], expected[key]) for key in expected)


def rewrite(folder: Path, change: Any, metadata: dict[str, str] | None = None) -> Path:
    """Lets ``change`` edit the state dict of the file in ``folder``."""
    state = load_file(folder / WEIGHTS_NAME)
    change(state)
    save_file(state, folder / WEIGHTS_NAME, metadata=metadata)
    return folder / WEIGHTS_NAME


def test_the_public_config_is_the_default() -> None:
    config = VAEConfig.from_dict(PUBLIC)
    assert config == VAEConfig()
    assert (config.spatial_factor, config.temporal_factor) == (32, 8)
    assert type(config.scaling_factor) is float
    assert VAEConfig.from_dict(json.loads(json.dumps(config.to_dict()))) == config


def test_both_spellings_of_the_upsample_types() -> None:
    kinds = ["spatial", "spatiotemporal"]
    plain = {key: value for key, value in SMALL.to_dict().items() if key != "upsample_type"}
    for spelling in ({"decoder_upsample_type": kinds}, {"upsample_type": kinds[::-1]}):
        assert VAEConfig.from_dict({**plain, **spelling}) == SMALL
    both = {**plain, "decoder_upsample_type": kinds, "upsample_type": kinds}
    with pytest.raises(CheckpointError, match="remove one"):
        VAEConfig.from_dict(both)
    three = {**PUBLIC, "decoder_upsample_type": None, "gradient_checkpointing": True}
    assert VAEConfig.from_dict(three).decoder_upsample_type == ("spatiotemporal",) * 3


def test_decoder_causal_is_never_guessed() -> None:
    with pytest.raises(CheckpointError, match="lacks decoder_causal"):
        VAEConfig.from_dict({key: value for key, value in PUBLIC.items() if key != "decoder_causal"})


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("timestep_conditioning", True),
        ("decoder_inject_noise", [False, False, True, False]),
        ("decoder_inject_noise", True),
        ("spatio_temporal_scaling", [True, False, True, True]),
        ("decoder_spatio_temporal_scaling", [True, True, False]),
        ("downsample_type", ["conv", "temporal", "spatiotemporal", "spatiotemporal"]),
        ("downsample_type", ["spatial"]),
        ("upsample_type", ["spatial", "spatiotemporal", "nearest"]),
        ("decoder_upsample_type", ["spatial", "spatiotemporal", "spatiotemporal"]),
        ("patch_size_t", 2),
        ("patch_size", 0),
        ("patch_size", "4"),
        ("encoder_causal", False),
        ("decoder_causal", None),
        ("encoder_spatial_padding_mode", "circular"),
        ("block_out_channels", [256, 512, 1024, 3072]),
        ("block_out_channels", [250, 512, 1024, 2048]),
        ("block_out_channels", []),
        ("decoder_block_out_channels", [256, 512, 1536]),
        ("decoder_block_out_channels", 256),
        ("upsample_factor", [2, 2, 3]),
        ("layers_per_block", [4, 6, 6, 2]),
        ("latent_channels", 0),
        ("in_channels", 4),
        ("scaling_factor", 0),
        ("use_attention", True),
    ],
)
def test_other_networks_are_refused_by_key_and_value(key: str, value: Any) -> None:
    with pytest.raises(CheckpointError) as caught:
        VAEConfig.from_dict({**PUBLIC, key: value})
    # Both spellings of the upsample types are reported under one of the two names.
    assert key.removeprefix("decoder_") in str(caught.value)
    shown = value[-1] if isinstance(value, list) and value else value
    assert str(shown).strip("[]") in str(caught.value)
    assert "\n" not in str(caught.value)


def test_options_that_are_off_are_passed_over() -> None:
    assert VAEConfig.from_dict({**PUBLIC, "use_attention": False, "extra": None}) == VAEConfig()


def test_folder_subfolder_and_file_give_the_same(vae: CausalVAE, folder: Path) -> None:
    for path in (folder, str(folder), folder.parent, folder / WEIGHTS_NAME):
        loaded = load_vae(path, dtype=torch.float32)
        assert_same(loaded, vae)
        assert loaded.fingerprint == load_vae(folder).fingerprint != ""
        assert not loaded.training
        assert not any(parameter.requires_grad for parameter in loaded.parameters())


@pytest.mark.parametrize("nested", [False, True])
def test_config_in_the_metadata_comes_first(vae: CausalVAE, folder: Path, nested: bool) -> None:
    config = vae.config.to_dict()
    text = json.dumps({"vae": config, "transformer": {}} if nested else config)
    path = rewrite(folder, lambda state: None, {"config": text})
    (folder / CONFIG_NAME).write_text(json.dumps(PUBLIC))
    assert_same(load_vae(path, dtype=torch.float32), vae)


@pytest.mark.parametrize("stored", [torch.float32, torch.float16, torch.bfloat16])
def test_dtypes(vae: CausalVAE, folder: Path, stored: torch.dtype) -> None:
    path = rewrite(folder, lambda state: state.update({key: value.to(stored) for key, value in state.items()}))
    assert load_vae(path).dtype == torch.bfloat16
    loaded = load_vae(path, dtype=torch.float32)
    assert {value.dtype for value in loaded.state_dict().values()} == {torch.float32}
    expected = {key: value.to(stored).float() for key, value in vae.state_dict().items()}
    assert all(torch.equal(value, expected[key]) for key, value in loaded.state_dict().items())


def test_saving_over_the_loaded_file(vae: CausalVAE, folder: Path) -> None:
    loaded = load_vae(folder, dtype=torch.float32)
    save_vae(loaded, folder)
    assert_same(load_vae(folder, dtype=torch.float32), vae)
    assert_same(loaded, vae)
    assert sorted(path.name for path in folder.iterdir()) == [CONFIG_NAME, WEIGHTS_NAME]


def test_fingerprint_tells_weights_apart(folder: Path) -> None:
    before = load_vae(folder).fingerprint
    rewrite(folder, lambda state: state["decoder.conv_out.conv.bias"].add_(1))
    assert load_vae(folder).fingerprint != before
    assert CausalVAE(SMALL).fingerprint == ""


def test_causal_decoder_by_choice(folder: Path) -> None:
    (folder / CONFIG_NAME).write_text(json.dumps({**SMALL.to_dict(), "decoder_causal": False}))
    assert not load_vae(folder).decodes_causally
    assert load_vae(folder, decoder="causal").decodes_causally
    with pytest.raises(InputError, match=r"'tiles'.*auto.*causal"):
        load_vae(folder, decoder="tiles")  # type: ignore[arg-type]


def test_operations_reach_the_network(folder: Path) -> None:
    class Operations:
        class Conv3d(torch.nn.Conv3d):
            pass

    loaded = load_vae(folder, operations=Operations)
    convs = [module for module in loaded.modules() if isinstance(module, torch.nn.Conv3d)]
    assert {type(conv) for conv in convs} == {Operations.Conv3d}
    assert not any(conv.weight.is_meta for conv in convs)


def test_wrong_keys_are_reported_at_once(folder: Path) -> None:
    def spoil(state: dict[str, torch.Tensor]) -> None:
        for key in [key for key in state if key.startswith("encoder.")][:12]:
            del state[key]
        state["decoder.conv_shortcut.weight"] = torch.zeros(1)
        state["latents_std"] = torch.ones(5)

    path = rewrite(folder, spoil)
    with pytest.raises(CheckpointError) as caught:
        load_vae(folder)
    message = str(caught.value)
    assert str(path) in message
    assert "12 missing" in message
    assert message.count("encoder.") == 10
    assert "1 surplus: decoder.conv_shortcut.weight" in message
    assert "1 misshapen: latents_std (5,), expected (4,)" in message


def test_quantized_weights_are_refused(folder: Path) -> None:
    key = "decoder.conv_in.conv.weight"
    rewrite(folder, lambda state: state.update({key: state[key].to(torch.float8_e4m3fn)}))
    with pytest.raises(CheckpointError, match=rf"1 tensors.*{re.escape(key)} torch.float8_e4m3fn"):
        load_vae(folder)


def test_a_file_without_config_says_where_it_looked(folder: Path) -> None:
    (folder / CONFIG_NAME).unlink()
    with pytest.raises(
        CheckpointError, match=rf"without config.json.*metadata.*{re.escape(str(folder / CONFIG_NAME))}"
    ):
        load_vae(folder)


@pytest.mark.parametrize("text", ["{", "[]"])
@pytest.mark.parametrize("inside", [False, True])
def test_a_damaged_config_is_named(folder: Path, text: str, inside: bool) -> None:
    (folder / CONFIG_NAME).write_text(text)
    rewrite(folder, lambda state: None, {"config": text} if inside else None)
    with pytest.raises(CheckpointError, match=re.escape(str(folder))):
        load_vae(folder)


def test_damaged_and_missing_files_are_named(folder: Path, tmp_path: Path) -> None:
    path = folder / WEIGHTS_NAME
    whole = path.read_bytes()
    for damaged in (whole[: len(whole) // 2], b"not a weight file", b""):
        path.write_bytes(damaged)
        with pytest.raises(CheckpointError, match=re.escape(str(path))):
            load_vae(folder)
    path.unlink()
    with pytest.raises(CheckpointError, match=rf"no VAE weights.*{re.escape(str(path))}"):
        load_vae(folder)
    with pytest.raises(CheckpointError, match="absent"):
        load_vae(tmp_path / "absent.safetensors")
