"""Plans on networks: what is quantized, what is saved and read again, what is shared, tried and measured."""

import json
from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file, save_file
from sana_streaming.sana_core.errors import CheckpointError, InputError
from sana_streaming.sana_core.precision import calibration
from sana_streaming.sana_core.precision import layer as quantized_layers
from sana_streaming.sana_core.precision import report as reports
from sana_streaming.sana_core.precision.apply import apply_plan, calibrate, network_bytes, split_attention, trial
from sana_streaming.sana_core.precision.calibration import NUM_PASSES, calibrated, made_up_passes
from sana_streaming.sana_core.precision.formats import FORMATS
from sana_streaming.sana_core.precision.layer import QuantLinear
from sana_streaming.sana_core.precision.plan import Plan, preset
from sana_streaming.sana_core.precision.probe import Probe
from sana_streaming.sana_core.precision.report import unit_bytes
from sana_streaming.sana_core.precision.units import FUSED_KINDS, units
from sana_streaming.sana_core.weights.convert import convert
from sana_streaming.sana_core.weights.dit import load_dit, official_state, save_dit, to_official
from sana_streaming.sana_core.weights.random_init import random_dit
from small_dit import CONFIG, distance, small_dit, velocity, write

MIXED = Plan(
    "mixed",
    {
        **{f"blocks.{block}.{kind}": "fp8" for block in range(4) for kind in ("self.q", "self.k", "self.v")},
        "blocks.0.ffn.in": "mxfp8",
        "blocks.1.ffn.out": "nvfp4",
        "blocks.2.cross.o": "int8-hadamard",
        "blocks.3.ffn.temporal": "int8",
    },
)
PLANS = {name: preset(name, CONFIG) for name in ("fp8", "int8", "paper-mpq")} | {"mixed": MIXED}


def layers(model):
    return {name: layer for name, layer in model.named_modules() if isinstance(layer, QuantLinear)}


def equal_weights(one, other):
    first, second = one.state_dict(), other.state_dict()
    assert first.keys() == second.keys()
    return all(first[key].view(torch.uint8).equal(second[key].view(torch.uint8)) for key in first if first[key].dim())


@pytest.fixture(scope="module")
def original(tmp_path_factory):
    return write(tmp_path_factory.mktemp("dit"))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("name", PLANS)
def test_apply_save_load_gives_the_same_bits(original, tmp_path, name, dtype):
    plan = PLANS[name] if name == "int8" else calibrated(load_dit(original), PLANS[name])
    loaded = load_dit(original, dtype=dtype, precision=plan)
    applied = load_dit(original, dtype=dtype)
    said = apply_plan(applied, plan)
    assert said.layout == applied.layout == loaded.layout == plan.layout(CONFIG)
    save_dit(applied, tmp_path)
    read = load_dit(tmp_path, dtype=dtype)
    want = velocity(applied)
    assert want.isfinite().all() and 1e-4 < distance(want, velocity(load_dit(original, dtype=dtype))) < 0.2
    for other in (loaded, read):
        assert equal_weights(other, applied) and velocity(other).equal(want)
        assert other.fingerprint == applied.fingerprint != load_dit(original).fingerprint
        assert not other.training and not any(parameter.requires_grad for parameter in other.parameters())


def test_what_is_quantized_and_how_much_it_weighs(original, tmp_path):
    plan = calibrated(load_dit(original), PLANS["paper-mpq"])
    model = load_dit(original, dtype=torch.bfloat16)
    before = network_bytes(model)
    said = apply_plan(model, plan)
    named = {unit.module: plan.format_of(unit) for unit in units(CONFIG) if plan.format_of(unit) != "bf16"}
    assert {name: layer.kind.name for name, layer in layers(model).items()} == named
    # Matrices, the rest in 2 bytes, an input scale of 4 bytes and the name of the format for each layer.
    matrices = sum(unit.parameters for unit in units(CONFIG))
    split = load_dit(original, dtype=torch.bfloat16, layout="split")
    rest = network_bytes(split) - 2 * matrices
    names = sum(layer.comfy_quant.numel() for layer in layers(model).values())
    after = rest + unit_bytes(plan, CONFIG) + 4 * len(named) + names
    assert (said.bytes_before, said.bytes_after) == (before, after) and network_bytes(model) == after < 0.62 * before
    file = save_dit(model, tmp_path)
    assert sum(value.numel() * value.element_size() for value in load_file(file).values()) == after
    assert sum(said.parameters.values()) == matrices
    assert said.lines()[0].startswith(f"precision paper-mpq: {before:,} bytes become {after:,}; matrices: nvfp4 ")
    assert said.emulated.keys() == {"fp8", "nvfp4"} and said.dynamic == 0


def test_a_preset_is_one_network_whatever_calibrates_it(original, monkeypatch):
    """Made-up scales differ in their last bits between devices; measured ones are part of the plan."""
    plan, model = PLANS["fp8"], load_dit(original)
    complete = calibrated(model, plan)
    assert complete.digest() == plan.digest() and complete.made_up == {unit.name for unit in units(CONFIG)}
    nudged = replace(complete, input_amax={name: 1.001 * value for name, value in complete.input_amax.items()})
    assert nudged.digest() == plan.digest() != replace(nudged, made_up=frozenset()).digest()
    # A plan that knows some of them.
    partly = replace(plan, input_amax={"blocks.0.ffn.in": 7.0})
    found = calibrated(model, partly)
    assert found.digest() == partly.digest() != plan.digest() and "blocks.0.ffn.in" not in found.made_up
    prints = []
    for each in (plan, complete, nudged):
        applied = load_dit(original)
        apply_plan(applied, each)
        prints.append(applied.fingerprint)
    assert len(set(prints)) == 1 and prints[0] != model.fingerprint
    assert Plan.from_dict(json.loads(found.to_json())) == found


def test_loading_under_a_preset_is_loading_the_file_that_convert_writes(original, tmp_path):
    convert(original, tmp_path / "x.safetensors", torch.float32, precision="fp8")
    written, loaded = (
        load_dit(tmp_path / "x.safetensors", dtype=torch.float32),
        load_dit(original, dtype=torch.float32, precision="fp8"),
    )
    assert equal_weights(written, loaded) and velocity(written).equal(velocity(loaded))
    assert written.fingerprint == loaded.fingerprint
    assert all(layer.input_scale is not None for layer in layers(loaded).values())


def test_reports_say_how_many_layers_lack_the_product(original, monkeypatch):
    def some(name, device, rows, columns, dtype):
        return Probe(rows == columns, "" if rows == columns else f"the product of [{rows}, {columns}] is off")

    monkeypatch.setattr(reports, "probe", some)
    said = apply_plan(load_dit(original), replace(PLANS["int8"], formats=dict(PLANS["int8"].formats)))
    # Of each block qkvg, kv and the feed-forward matrices are not square.
    assert said.emulated == {"int8": "in 20 of 32 layers, as the product of [384, 96] is off"}
    assert "int8 saves memory but no time here: in 20 of 32 layers, as the product of [384, 96] is off" in said.lines()
    monkeypatch.setattr(reports, "probe", lambda *_: Probe(False, "no"))
    assert apply_plan(load_dit(original), PLANS["int8"]).emulated == {"int8": "no"}


def test_products_are_tried_where_the_network_will_run(original, tmp_path, monkeypatch):
    """A host keeps it elsewhere."""
    asked = set()
    for module in (reports, quantized_layers):
        monkeypatch.setattr(module, "probe", lambda name, device, *_: asked.add(device) or Probe(True))
    model = load_dit(original)
    apply_plan(model, PLANS["int8"], runs_on=torch.device("cuda"))
    assert asked == {torch.device("cuda")}
    asked.clear()
    load_dit(save_dit(model, tmp_path), runs_on=torch.device("cuda"))
    assert asked == {torch.device("cuda")}


def test_an_input_of_zeros_has_no_scale(original):
    plan = PLANS["fp8"].with_amax({"blocks.0.ffn.in": 0.0, "blocks.1.ffn.in": float("inf"), "blocks.2.ffn.in": 2.0})
    assert plan.input_amax == {"blocks.2.ffn.in": 2.0} and Plan.from_dict(json.loads(plan.to_json())) == plan
    assert apply_plan(load_dit(original), plan).dynamic == 31


def test_reports_of_what_does_not_fit(original):
    plan = Plan("mine", {"blocks.0.self.o": "int8-hadamard", "blocks.1.self.o": "fp8"})
    said = apply_plan(load_dit(original), plan)
    assert said.unrotated == () and said.dynamic == 1
    config = replace(CONFIG, hidden_size=40)
    said = apply_plan(random_dit(config, 0), plan)
    assert said.unrotated == ("blocks.0.attn.proj",)
    assert "no Hadamard rotation fits 1 layers, such as blocks.0.attn.proj" in said.lines()


def test_without_a_plan_nothing_changes(original):
    plain = load_dit(original)
    same = load_dit(original, precision="bf16")
    assert not layers(same) and equal_weights(plain, same) and same.fingerprint == plain.fingerprint
    assert velocity(small_dit("split")).equal(velocity(small_dit("split")))


def test_only_once_and_only_its_own_network(original, tmp_path):
    model = load_dit(original, precision="fp8")
    with pytest.raises(InputError, match="quantized already"):
        apply_plan(model, PLANS["fp8"])
    with pytest.raises(InputError, match="quantized already"):
        calibrate(model, lambda: None)
    with pytest.raises(InputError, match="the network is quantized"):
        dict(official_state(model))
    file = save_dit(model, tmp_path)
    with pytest.raises(InputError, match=r"model\.safetensors is quantized already"):
        load_dit(file, precision="fp8")
    with pytest.raises(InputError, match="measured on the network abc"):
        load_dit(original, precision=replace(PLANS["fp8"], model="abc"))
    with pytest.raises(InputError, match=r"blocks\.4\.ffn\.in"):
        load_dit(original, precision=Plan("mine", {"blocks.4.ffn.in": "fp8"}))
    load_dit(original, precision=replace(PLANS["fp8"], model=load_dit(original).fingerprint))


def test_splitting_changes_no_number(original):
    fused, split = load_dit(original), load_dit(original)
    split_attention(split)
    assert split.layout == "split" and equal_weights(split, load_dit(original, layout="split"))
    assert distance(velocity(split), velocity(fused)) < 1e-5


@pytest.mark.parametrize("how", ["simulated", "dequantized"])
def test_one_input_for_all_that_read_it(original, monkeypatch, how):
    kind, made = type(FORMATS["fp8"]), []
    quantize = kind.quantize_input
    monkeypatch.setattr(kind, "quantize_input", lambda *a: made.append(a[1].shape) or quantize(*a))
    plan = calibrated(load_dit(original), PLANS["mixed"])
    model = load_dit(original)
    apply_plan(model, plan, how=how)
    shared = velocity(model)
    # Of each block's q, k and v only the first quantizes.
    assert len(made) == (4 if how == "simulated" else 0)

    def each(self, u):
        return self.q(u), self.k(u), self.v(u), self.output_gate(u)

    for block in model.blocks:
        monkeypatch.setattr(type(block.attn), "project", each)
    assert velocity(model).equal(shared)
    assert len(made) == (16 if how == "simulated" else 0)


def test_what_was_fused_is_not_kept(original):
    model = load_dit(original)
    apply_plan(model, PLANS["paper-mpq"])
    gate = model.get_submodule("blocks.0.attn.output_gate").weight
    assert gate.untyped_storage().nbytes() == gate.numel() * gate.element_size()


def test_compiled_code_takes_it_whole(original):
    model = load_dit(original, precision=calibrated(load_dit(original), PLANS["paper-mpq"]))
    for layer in layers(model).values():
        layer.how = "simulated"
    attn, u = model.blocks[0].attn, torch.randn(1, 2, 15, CONFIG.hidden_size, dtype=model.dtype)
    with torch.inference_mode():
        compiled = torch.compile(attn.project, backend="eager", fullgraph=True)
        assert all(one.equal(other) for one, other in zip(compiled(u), attn.project(u), strict=True))


def test_trial_leaves_no_trace(original):
    model = load_dit(original, layout="split")
    want, state = velocity(model), dict(model.named_modules())
    with trial(model, PLANS["paper-mpq"]):
        tried = velocity(model)
        assert len(layers(model)) == 40
    assert not layers(model) and velocity(model).equal(want) and dict(model.named_modules()) == state
    with trial(model, PLANS["paper-mpq"], how="dequantized"):
        # Inputs count too.
        assert distance(velocity(model), want) < distance(tried, want)
    with pytest.raises(RuntimeError, match="stop"), trial(model, PLANS["int8"]):
        raise RuntimeError("stop")
    assert not layers(model)
    with pytest.raises(InputError, match="split layout only"), trial(load_dit(original), PLANS["int8"]):
        pass


@pytest.mark.parametrize("layout", ["fused", "split"])
def test_calibration_sees_every_input(layout):
    model = small_dit(layout)
    seen = calibrate(model, lambda: made_up_passes(model))
    assert seen.keys() == {unit.name for unit in units(CONFIG)} and all(value > 0 for value in seen.values())
    for block in range(4):
        assert len({seen[f"blocks.{block}.{kind}"] for kind in FUSED_KINDS}) == 1
    units_of = Plan("all", dict.fromkeys(seen, "fp8"))
    assert calibrated(model, units_of).input_amax == seen
    with pytest.raises(InputError, match="calibration never ran blocks"):
        calibrate(model, lambda: None)


def test_calibrated_scales_are_stored_with_headroom(original):
    model = load_dit(original)
    seen = calibrate(model, lambda: made_up_passes(model))
    # Of the four that read one input the largest counts, where footage showed more than the made-up latents.
    known = {"blocks.0.ffn.in": 7.0, "blocks.1.self.k": 1e3}
    plan = calibrated(model, replace(PLANS["fp8"], input_amax=known))
    assert plan.input_amax == seen | known
    apply_plan(model, plan)
    scales = {name: layer.input_scale.item() for name, layer in layers(model).items()}
    assert scales["blocks.0.mlp.inverted_conv.conv"] == pytest.approx(2 * 7.0 / 448)
    assert scales["blocks.1.attn.qkvg"] == pytest.approx(2 * 1e3 / 448)
    assert scales["blocks.3.attn.qkvg"] == pytest.approx(2 * seen["blocks.3.self.v"] / 448)
    assert calibrated(model, plan) is plan and calibrated(model, PLANS["int8"]) is PLANS["int8"]


def test_calibration_at_a_start_is_told_and_never_in_float16(original, monkeypatch, caplog):
    """In which CPUs take many times as long."""
    passes, dtypes = calibration.made_up_passes, []
    monkeypatch.setattr(
        calibration, "made_up_passes", lambda model, *rest: dtypes.append(model.dtype) or passes(model, *rest)
    )
    model = load_dit(original, dtype=torch.float16, precision="fp8")
    assert model.dtype == torch.float16 and dtypes == [torch.bfloat16]
    (said,) = (record.getMessage() for record in caplog.records if "input scales" in record.getMessage())
    assert f"{NUM_PASSES} passes on the CPU" in said and "convert" in said and "\n" not in said
    # As near to those of float32 as bfloat16's rounding lets them be.
    want, got = (layers(load_dit(original, dtype=dtype, precision="fp8")) for dtype in (torch.float32, torch.float16))
    for name, layer in want.items():
        assert got[name].input_scale.item() == pytest.approx(layer.input_scale.item(), rel=0.05)
    assert dtypes[1:] == [torch.float32, torch.bfloat16]
    # Where a host keeps the weights, and where none is lacking.
    whole = load_dit(original, dtype=torch.float16)
    complete = calibrated(whole, PLANS["fp8"], torch.device("cpu"))
    assert dtypes.pop() == torch.float16
    caplog.clear()
    load_dit(original, precision=complete)
    load_dit(original, precision="int8")
    assert len(dtypes) == 3 and "input scales" not in caplog.text


def test_an_fp8_file_never_leaves_the_input_scale_to_the_reader(original):
    """ComfyUI takes 1.0 where there is none, unless the layer says that it multiplies in full precision."""
    for plan, stored in ((PLANS["fp8"], False), (calibrated(load_dit(original), PLANS["fp8"]), True)):
        model = load_dit(original)
        apply_plan(model, plan)
        for layer in layers(model).values():
            conf = json.loads(bytes(layer.comfy_quant.tolist()))
            assert (layer.input_scale is not None) == stored
            assert conf == {"format": "float8_e4m3fn"} | ({} if stored else {"full_precision_matrix_mult": True})


def test_a_change_of_dtype_is_none_of_the_format(original):
    model = load_dit(original, precision=calibrated(load_dit(original), PLANS["mixed"]))
    want = {name: layer.quantized_weight for name, layer in layers(model).items()}
    model.to(torch.bfloat16)
    for name, layer in layers(model).items():
        assert layer.weight.dtype == want[name].tensors["weight"].dtype and layer.weight_scale.dtype != torch.bfloat16
        assert layer.bias is None or layer.bias.dtype == torch.bfloat16


def test_files_hold_linears_or_convolutions(original, tmp_path):
    file = save_dit(load_dit(original, precision=MIXED), tmp_path)
    want, state = load_dit(file), load_file(file)
    linear = state["blocks.1.mlp.inverted_conv.conv.weight"]
    assert linear.dim() == 2 and state["blocks.0.mlp.inverted_conv.conv.weight"].dtype == torch.float8_e4m3fn
    shaped = {
        key: to_official(key, value, CONFIG) if f"{key.rpartition('.')[0]}.comfy_quant" not in state else value
        for key, value in state.items()
    }
    assert shaped["blocks.1.mlp.inverted_conv.conv.weight"].dim() == 4
    save_file({key: value.contiguous() for key, value in shaped.items()}, file)
    assert equal_weights(load_dit(tmp_path), want)


def without(key):
    return lambda state: state.pop(key)


OUT = "blocks.1.attn.proj"
DAMAGES = {
    "no scale": (
        without(f"{OUT}.weight_scale"),
        f"{OUT} is stored as float8_e4m3fn with weight; it needs weight, weight_scale",
    ),
    "no weight": (without(f"{OUT}.weight"), "it needs weight, weight_scale"),
    "no bias": (without(f"{OUT}.bias"), f"{OUT} has no bias"),
    "no name": (without(f"{OUT}.comfy_quant"), OUT),
    "other format": (
        lambda s: s.update({f"{OUT}.comfy_quant": torch.tensor(list(b'{"format": "int3"}'), dtype=torch.uint8)}),
        "is stored as 'int3', which cannot be read; formats are float8_e4m3fn, int8_tensorwise, mxfp8, nvfp4",
    ),
    "no JSON": (lambda s: s.update({f"{OUT}.comfy_quant": torch.zeros(3, dtype=torch.uint8)}), "is not a JSON object"),
    "other size": (lambda s: s.update({f"{OUT}.weight": s[f"{OUT}.weight"][1:]}), "holds 9124 bytes, a weight"),
    "no unit": (
        lambda s: s.update({"final_layer.linear.comfy_quant": s[f"{OUT}.comfy_quant"].clone()}),
        "quantizes final_layer.linear, which is no unit",
    ),
    "missing": (
        without("final_layer.linear.weight"),
        "does not fit the network of its config: final_layer.linear.weight",
    ),
    "surplus": (lambda s: s.update({"more.weight": torch.zeros(2)}), "more.weight"),
    "misshapen": (lambda s: s.update({"final_layer.linear.bias": torch.zeros(2)}), "final_layer.linear.bias"),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_damaged_files_are_refused(original, tmp_path, damage):
    file = save_dit(load_dit(original, precision="fp8"), tmp_path)
    change, message = DAMAGES[damage]
    state = load_file(file)
    change(state)
    save_file({key: value.contiguous() for key, value in state.items()}, file)
    with pytest.raises(CheckpointError) as error:
        load_dit(file)
    assert message in str(error.value) and "\n" not in str(error.value)


def test_a_file_without_config_is_refused(original, tmp_path):
    save_file(load_file(save_dit(load_dit(original, precision="fp8"), tmp_path)), tmp_path / "x.safetensors")
    with pytest.raises(CheckpointError, match="quantized transformer without its config"):
        load_dit(tmp_path / "x.safetensors")
