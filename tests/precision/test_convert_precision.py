"""``convert --precision``: one file in ComfyUI's form, what it says, and what it refuses."""

import json

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file
from sana_streaming.sana_core.cli import main
from sana_streaming.sana_core.precision.calibration import calibrated
from sana_streaming.sana_core.precision.plan import Plan, preset
from sana_streaming.sana_core.precision.report import unit_bytes
from sana_streaming.sana_core.precision.units import units
from sana_streaming.sana_core.weights.dit import load_dit
from sana_streaming.sana_core.weights.nano import nano_folder
from small_dit import CONFIG, velocity, write


@pytest.fixture(scope="module")
def original(tmp_path_factory):
    return write(tmp_path_factory.mktemp("dit"))


def run(capsys, *arguments, code=0):
    capsys.readouterr()
    assert main([str(argument) for argument in arguments]) == code
    said = capsys.readouterr()
    return said.out if code == 0 else said.err


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
@pytest.mark.parametrize("name", ["fp8", "paper-mpq"])
def test_the_file_is_the_network_under_the_plan(original, tmp_path, capsys, name, dtype):
    target = tmp_path / "small.safetensors"
    said = run(
        capsys, "convert", original, target, "--precision", name, "--dtype", {torch.bfloat16: "bf16"}.get(dtype, "fp32")
    )
    plan = calibrated(load_dit(original, dtype=dtype), preset(name, CONFIG))
    want, got = load_dit(original, dtype=dtype, precision=name), load_dit(target, dtype=dtype)
    assert velocity(got).equal(velocity(want)) and got.fingerprint == want.fingerprint
    assert "input scales: random latents of unit variance, two chunks, headroom 2" in said
    assert f"precision {name}: " in said and "no time here" not in said
    with safe_open(target, framework="pt") as file:
        metadata = file.metadata()
    assert Plan.from_dict(json.loads(metadata["precision"])) == plan
    # Wherever ComfyUI would multiply in fp8, it finds a scale for the input.
    state = load_file(target)
    named = {key.removesuffix(".comfy_quant") for key in state if key.endswith(".comfy_quant")}
    assert named and all(f"{layer}.input_scale" in state for layer in named)


def test_bytes_of_the_embedded_network_are_those_of_arithmetic(tmp_path, capsys):
    target = tmp_path / "nano.safetensors"
    run(capsys, "convert", nano_folder() / "dit", target, "--precision", "paper-mpq")
    model, plan = load_dit(nano_folder() / "dit"), preset("paper-mpq", load_dit(nano_folder() / "dit").config)
    state = load_file(target)
    names = {key: value for key, value in state.items() if key.endswith((".comfy_quant", ".input_scale"))}
    held = sum(value.numel() * value.element_size() for key, value in state.items() if key not in names)
    matrices = 2 * sum(unit.parameters for unit in units(model.config))
    # The gate's bias counts once, not for q, k and v as well as in the fused layout.
    split = load_dit(nano_folder() / "dit", layout="split")
    rest = sum(value.numel() * value.element_size() for value in split.state_dict().values()) - matrices
    assert held == rest + unit_bytes(plan, model.config)
    assert len(names) == 2 * sum(plan.format_of(unit) != "bf16" for unit in units(model.config))


def test_plans_from_files_and_what_is_refused(original, tmp_path, capsys):
    target, plan = tmp_path / "small.safetensors", tmp_path / "plan.json"
    plan.write_text(Plan("mine", {"blocks.0.ffn.in": "int8"}).to_json())
    said = run(capsys, "convert", original, target, "--precision", plan)
    assert "precision mine: " in said and "input scales" not in said
    err = run(capsys, "convert", target, tmp_path / "x.safetensors", "--precision", "fp8", code=2)
    assert "is quantized, which cannot be undone or changed" in err
    err = run(capsys, "convert", nano_folder() / "vae", tmp_path / "x.safetensors", "--precision", "fp8", code=2)
    assert "is a VAE; precision plans are for transformers" in err
    plan.write_text(Plan("mine", {"blocks.7.ffn.in": "int8"}).to_json())
    err = run(capsys, "convert", original, tmp_path / "x.safetensors", "--precision", plan, code=2)
    assert "plan mine names the unit blocks.7.ffn.in, which a network of 4 blocks does not have" in err
    assert not (tmp_path / "x.safetensors").exists()


def test_bf16_is_a_plain_conversion(original, tmp_path, capsys):
    for name, more in (("plain", ()), ("same", ("--precision", "bf16"))):
        run(capsys, "convert", original, tmp_path / f"{name}.safetensors", *more)
    assert (tmp_path / "plain.safetensors").read_bytes() == (tmp_path / "same.safetensors").read_bytes()


def test_inspect_speaks_the_original_keys(original, tmp_path, capsys):
    run(capsys, "convert", original, tmp_path / "small.safetensors", "--precision", "paper-mpq")
    shown, plain = (
        json.loads(run(capsys, "inspect", file, "--json")) for file in (tmp_path / "small.safetensors", original)
    )
    assert shown["parameters"] == plain["parameters"] and shown["config"] == plain["config"]
    assert shown["keys"].items() <= plain["keys"].items()
