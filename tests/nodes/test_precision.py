"""Quantized copies of a model, and profiles: numbers equal the library's, the model stays, Stop stops, files go on."""

import dataclasses
from pathlib import Path

import node_calls as nodes
import pytest
import torch
import toys
from sana_streaming.sana_core.errors import InputError
from sana_streaming.sana_core.precision.apply import apply_plan
from sana_streaming.sana_core.precision.calibration import NUM_PASSES, calibrated
from sana_streaming.sana_core.precision.journal import Journal
from sana_streaming.sana_core.precision.layer import QuantLinear
from sana_streaming.sana_core.precision.plan import Plan, preset, read_plan
from sana_streaming.sana_core.precision.probe import Probe
from sana_streaming.sana_core.training.config import LoraSettings
from sana_streaming.sana_core.training.lora import Lora
from sana_streaming.sana_core.weights.dit import build_dit, official_state
from sana_streaming.sana_core.weights.lora import LoraChoice, apply_loras

PROFILE = {
    "max_latency": 0.0,
    "min_sqnr": 0.0,
    "formats": "fp8 nvfp4",
    "latency": "projected",
    "target": "rtx5090",
    "sizes": "2b",
    "steps": 1,
    "filename_prefix": "sana_streaming/plan",
}


def apply(model, preset="fp8", measure=False, plan=None):
    return nodes.call("Precision", model, preset, measure, plan)


def by_library(model, plan):
    """A copy of the model's network under a plan, calibrated as the node does."""
    from sana_streaming.nodes.precision import copied

    network = copied(model)
    apply_plan(network, calibrated(network, plan))
    return network


def bits(value):
    return value.reshape(-1).view(torch.uint8)


def same_weights(a, b):
    a, b = a.state_dict(), b.state_dict()
    return a.keys() == b.keys() and all(bits(a[key]).equal(bits(b[key])) for key in a)


@pytest.fixture
def clip(host):
    """(source latents, positive) of three chunks."""
    latent, _ = nodes.encode(nodes.vae(), toys.frames(65, 64, 96))
    return latent, nodes.prompts()[0]


@pytest.mark.parametrize("name", ["fp8", "paper-mpq"])
def test_a_quantized_copy(host, name):
    import comfy.utils

    model = nodes.model()
    before = {key: value.clone() for key, value in model.network.state_dict().items()}
    small, text = apply(model, name)
    (bar,) = comfy.utils.ProgressBar.made
    assert bar.values == list(range(bar.total)) and bar.total > NUM_PASSES, "every pass and every layer"
    wanted = by_library(model, preset(name, model.network.config))
    assert same_weights(small.network, wanted)
    assert small.fingerprint == wanted.fingerprint != model.fingerprint
    now = model.network.state_dict()
    assert now.keys() == before.keys() and all(now[key].equal(value) for key, value in before.items())
    held = {value.data_ptr() for value in small.network.state_dict().values()}
    assert held.isdisjoint(value.data_ptr() for value in now.values()), "bytes of its own, for ComfyUI to move"
    assert small.patcher.model is small.network and small.patcher is not model.patcher
    bytes_after = sum(value.numel() * value.element_size() for value in small.network.state_dict().values())
    assert f"become {bytes_after:,}" in text.splitlines()[0]
    assert "fp8 saves memory but no time here: cpu has no fast product in fp8" in text
    assert ("nvfp4 saves memory but no time here" in text) == (name == "paper-mpq")
    assert "input scales: random latents" in text
    assert "speed: nothing is known of" in text
    assert nodes.texts()[-1] == text


def test_what_is_sampled_with_it(host):
    model, vae, (positive, _) = nodes.model(), nodes.vae(), nodes.prompts()
    latent, _ = nodes.encode(vae, toys.frames(33, 64, 96))
    small, _ = apply(model)
    plain = nodes.sample(model, positive, latent)[0]["samples"]
    quantized = nodes.sample(small, positive, latent)[0]["samples"]
    distance = (quantized - plain).norm() / plain.norm()
    assert 1e-4 < distance < 0.2
    assert torch.equal(nodes.sample(model, positive, latent)[0]["samples"], plain)


def test_bf16_is_the_model_itself(host):
    model = nodes.model()
    same, text = apply(model, "bf16")
    assert same is model and "nothing is quantized" in text


def test_without_comfyuis_layers_the_gpu_is_what_counts(host, monkeypatch):
    """The copy is made on the CPU, whose products say nothing of where it will run."""
    from sana_streaming.nodes.precision import build

    model, asked = nodes.model(), set()
    gpu = torch.device("cuda", 0)

    def tried(name, device, *_):
        asked.add(device)
        return Probe(name != "nvfp4", "" if name != "nvfp4" else "the GPU has no such product")

    for module in ("report", "layer"):
        monkeypatch.setattr(f"sana_streaming.sana_core.precision.{module}.probe", tried)
    plan = calibrated(model.network, preset("paper-mpq", model.network.config))
    monkeypatch.setattr(model.patcher, "load_device", gpu)
    _, done = build(model, plan, None, torch.device("cpu"), lambda: None)
    assert asked == {gpu} and done.emulated == {"nvfp4": "the GPU has no such product"}
    assert "nvfp4 saves memory but no time here: the GPU has no such product" in done.lines()


def test_kernels_stay_as_the_loader_has_them(host):
    (model,) = nodes.call("LoadModel", nodes.TOY, "auto", "naive")
    small, _ = apply(model)
    kinds = {module.kernels for module in small.network.modules() if hasattr(module, "kernels")}
    assert kinds == {"naive"}


def test_speed_is_measured_where_it_is_asked_for(host):
    _, text = apply(nodes.model(), "int8", measure=True)
    (said,) = (line for line in text.splitlines() if line.startswith("speed: "))
    assert "times as long as unquantized, measured on" in said and "1920 tokens" in said


@pytest.mark.parametrize("tokens", [2640, None], ids=["tokens", "of before"])
@pytest.mark.parametrize("kind", ["measured", "projected"])
def test_speed_of_a_plan_that_was_profiled(host, kind, tokens):
    measured = {
        "latency_ms": 1.0,
        "unquantized_latency_ms": 4.0,
        "latency": {"kind": kind, "target": "RTX 5090"} | ({"tokens": tokens} if tokens else {}),
    }
    model = nodes.model()
    plan = Plan("auto", {"blocks.0.ffn.in": "int8"}, device="Some GPU", measurements=measured)
    _, text = apply(model, plan=plan)
    where = {"measured": "measured on Some GPU", "projected": "projected for RTX 5090"}[kind]
    where += ", 2640 tokens," if tokens else ""
    assert f"matrices take 0.25 times as long as unquantized, {where} by the profile of this plan; set measure" in text
    assert "input scales" not in text, "int8 has none"


@pytest.mark.parametrize("sizes", ["own", "2b", None])
def test_speed_that_another_networks_matrices_had_here(host, sizes):
    """Is no speed of this network, on whichever device."""
    from sana_streaming.sana_core.benchmark.results import device_name

    latency = {"kind": "measured", "tokens": 2640} | ({"sizes": sizes} if sizes else {})
    measured = {"latency_ms": 1.0, "unquantized_latency_ms": 4.0, "latency": latency}
    name = device_name(torch.device("cpu"))
    _, text = apply(nodes.model(), plan=Plan("auto", {"blocks.0.ffn.in": "int8"}, "", {}, name, measured))
    said = text.splitlines()[-1]
    if sizes == "2b":
        assert f"measured on {name} with matrices of the 2B network, 2640 tokens, by the profile of this plan" in said
        assert said.endswith(f"; set measure to time it on {name}")
    else:
        assert said.endswith(f"measured on {name}, 2640 tokens, by the profile of this plan")


def test_speed_of_a_known_gpu(host, monkeypatch):
    from sana_streaming.nodes import precision_speed

    monkeypatch.setattr(precision_speed, "device_name", lambda device: "NVIDIA GeForce RTX 4090")
    _, text = apply(nodes.model(), "paper-mpq")
    assert "expected from the data sheet of NVIDIA GeForce RTX 4090, not measured" in text


def test_a_plan_from_a_file(host):
    import folder_paths

    model, node = nodes.model(), nodes.node("Precision")
    plan = Plan("mine", {"blocks.1.self.o": "int8"})
    folder = Path(folder_paths.get_output_directory(), "sana_streaming")
    folder.mkdir(parents=True)
    name = "sana_streaming/x.precision.json [output]"
    assert "not in ComfyUI's output folder" in node.validate_inputs(name)
    (folder / "x.precision.json").write_text(plan.to_json())
    (folder / "other.json").write_text("{}")
    offered = node.define_schema().inputs[1].fields["options"]
    assert offered == ["bf16", "fp8", "int8", "paper-mpq", name]
    assert node.validate_inputs(name) is node.validate_inputs("fp8") is node.validate_inputs(None) is True
    assert node.validate_inputs() is True, "ComfyUI says which input is missing"
    before = node.fingerprint_inputs(name, measure=False)
    small, _ = apply(model, name)
    changed = [key for key, layer in small.network.named_modules() if isinstance(layer, QuantLinear)]
    assert changed == ["blocks.1.attn.proj"]
    (folder / "x.precision.json").write_text(plan.to_json() + " ")
    assert node.fingerprint_inputs(name, measure=False) != before


def write_lora(model):
    """A LoRA file with an effect in models/loras."""
    split = build_dit(dict(official_state(model.network)), model.network.config, layout="split")
    lora = Lora(split, LoraSettings(rank=2, alpha=6.0), 1)
    for pair in lora.pairs.values():
        pair.up.data.normal_(0, 0.3, generator=torch.Generator().manual_seed(1))
    path = nodes.models_folder("loras") / "one.safetensors"
    lora.save(path, torch.float32)
    return path


def test_a_lora_before_it_is_quantized_with_the_weights(host):
    from sana_streaming.nodes.precision import copied

    model = nodes.model()
    file = write_lora(model)
    merged = copied(model)
    apply_loras(merged, [LoraChoice(file, 0.7)])
    (changed,) = nodes.call("LoadLora", model, file.name, 0.7)
    small, _ = apply(changed, "int8")
    apply_plan(merged, preset("int8", merged.config))
    want, got = merged.state_dict(), small.network.state_dict()
    assert want.keys() == got.keys()
    apart = [(got[key].float() - want[key].float()).abs().max() for key in want]
    assert max(apart) <= 1, "no more than a rounding of sums in another order"
    assert small.fingerprint == merged.fingerprint
    # Whichever of them ComfyUI has put in force.
    again, _ = apply(changed, "int8")
    assert same_weights(again.network, small.network)
    plain, _ = apply(model, "int8")
    assert not same_weights(plain.network, small.network)


def test_a_plan_of_the_model_with_its_lora_and_without(host):
    model = nodes.model()
    file = write_lora(model)
    (changed,) = nodes.call("LoadLora", model, file.name, 0.7)
    base, mix = model.fingerprint, changed.fingerprint
    plan = preset("int8", model.network.config)
    small, _ = apply(changed, plan=plan)
    for profiled in (base, mix):
        found, _ = apply(changed, plan=dataclasses.replace(plan, model=profiled))
        assert same_weights(found.network, small.network) and found.fingerprint == small.fingerprint
    apply(model, plan=dataclasses.replace(plan, model=base))
    with pytest.raises(InputError, match=f"was measured on the network {mix}, not on this one"):
        apply(model, plan=dataclasses.replace(plan, model=mix))


def test_a_lora_behind_it_without_comfyuis_layers(host):
    model = nodes.model()
    file = write_lora(model)
    small, _ = apply(model, "int8")
    with pytest.raises(InputError, match="connect the LoRA before SANA-Streaming Precision"):
        nodes.call("LoadLora", small, file.name, 1.0)


def test_what_is_refused(host):
    model = nodes.model()
    small, _ = apply(model)
    with pytest.raises(InputError, match="is quantized already"):
        apply(small)
    with pytest.raises(InputError, match="was measured on the network other, not on this one"):
        apply(model, plan=Plan("x", {"blocks.0.ffn.in": "fp8"}, model="other"))
    with pytest.raises(InputError, match=r"names the unit blocks\.9"):
        apply(model, plan=Plan("x", {"blocks.99.ffn.in": "fp8"}))


@pytest.mark.parametrize("after", [0, NUM_PASSES - 1, NUM_PASSES, NUM_PASSES + 3])
def test_stop(host, after):
    """During calibration and during quantization; nothing of it stays."""
    model = nodes.model()
    host.stop_after = after
    with pytest.raises(host.InterruptProcessingException):
        apply(model)
    hooks = [module for module in model.network.modules() if module._forward_pre_hooks]
    assert hooks == []
    apply(model)


def profile(model, clip, **changes):
    latent, positive = clip
    return nodes.node("ProfilePrecision").execute(model, latent, positive, **{**PROFILE, **changes})


def test_profile(host, clip):
    import comfy.utils
    import folder_paths

    model = nodes.model()
    before = {key: value.clone() for key, value in model.network.state_dict().items()}
    done = profile(model, clip)
    plan, chart, text = done.args
    assert all(model.network.state_dict()[key].equal(value) for key, value in before.items())
    assert plan.model == model.fingerprint and set(plan.formats.values()) <= {"fp8", "nvfp4", "bf16"}
    assert plan.measurements["latency"]["kind"] == "projected"
    assert chart.ndim == 4 and len(chart) == 1 and chart.shape[-1] == 3 and chart.dtype == torch.float32
    assert 0 <= chart.min() < 0.2 and chart.max() == 1
    (listed,) = done.ui["sana_plans"]
    file = Path(folder_paths.get_output_directory(), listed["subfolder"], listed["filename"])
    assert read_plan(file) == plan
    *lines, bar, written = text.splitlines()
    assert "of 2640 tokens in matrices of the 2B network, projected from the data sheet of RTX 5090" in lines[0]
    assert bar == "auto: the fastest plan that errs no more than fp8 everywhere" and written == f"wrote {file.name}"
    assert {line.split(":")[0] for line in lines[1:]} == {"fp8", "nvfp4", "paper-mpq", "auto"}
    assert lines[-1].startswith("auto: ")
    assert any(said.startswith("error 1 of") for said in nodes.texts())
    assert any(bar.values for bar in comfy.utils.ProgressBar.made)
    # And on to the next node, over the socket and by the file.
    small, report = apply(model, plan=plan)
    assert "projected for RTX 5090 with matrices of the 2B network, 2640 tokens, by the profile of this plan" in report
    again, _ = apply(model, f"sana_streaming/{file.name} [output]")
    assert same_weights(small.network, again.network)


def test_a_stopped_profile_goes_on(host, clip, monkeypatch):
    import folder_paths

    model = nodes.model()
    fast = {"formats": "fp8", "filename_prefix": ""}
    host.stop_after = 12
    with pytest.raises(host.InterruptProcessingException):
        profile(model, clip, **fast)
    folder = Path(folder_paths.get_output_directory(), "sana_streaming/profiles")
    (journal,) = folder.iterdir()
    known = Journal.read(journal).section("error")
    assert known
    written = []
    save = Journal.save
    monkeypatch.setattr(Journal, "save", lambda self: (written.append(1), save(self))[1])
    plan, _, _ = profile(model, clip, **fast).args
    assert [journal] == list(folder.iterdir()) and not list(folder.parent.glob("plan*"))
    kept = Journal.read(journal).section("error")
    assert len(kept) > len(known) and all(kept[name] == value for name, value in known.items())
    # Another budget asks for nothing more than to check its own plan, and another GPU too.
    written.clear()
    other, _, _ = profile(model, clip, max_latency=0.9, **fast).args
    assert len(written) <= 1
    written.clear()
    profile(model, clip, target="h100", max_latency=0.9, **fast)
    assert len(written) <= 1 and [journal] == list(folder.iterdir())
    # The last line is the chosen plan's, also where that quantizes nothing.
    exact, _, text = profile(model, clip, max_latency=1.0, **fast).args
    assert exact.formats == {} and "auto: " in text.splitlines()[-1] and "nothing quantized" in text.splitlines()[-1]
    assert other.measurements["latency_ms"] <= 0.9 * other.measurements["unquantized_latency_ms"]
    assert plan.measurements["unquantized_latency_ms"] == other.measurements["unquantized_latency_ms"]
    # Another clip is another journal.
    latent, positive = clip
    host.stop_after = 12
    with pytest.raises(host.InterruptProcessingException):
        profile(model, ({**latent, "samples": 2 * latent["samples"]}, positive), **fast)
    assert len(list(folder.iterdir())) == 2


def test_what_a_profile_refuses(host, clip):
    model, (latent, positive) = nodes.model(), clip
    node = nodes.node("ProfilePrecision")
    assert node.validate_inputs("fp8 nvfp4") is node.validate_inputs(None) is node.validate_inputs() is True
    assert "no format is called fp4" in node.validate_inputs("fp8 fp4")
    assert "no format to choose from" in node.validate_inputs(" ")
    with pytest.raises(InputError, match="a latency budget or an error budget, not both"):
        profile(model, clip, max_latency=0.5, min_sqnr=20.0, formats="int8")
    short = {"samples": latent["samples"][:, :, :5]}
    with pytest.raises(InputError, match="give one of 3 chunks or more"):
        profile(model, (short, positive))
    with pytest.raises(InputError, match="quantized already"):
        profile(apply(model)[0], clip)


def test_tooltips_say_where_a_format_saves_memory_only():
    for name, slots in {"Precision": ["preset"], "ProfilePrecision": ["formats"]}.items():
        schema = nodes.node(name).define_schema()
        told = [schema.description, *(slot.fields["tooltip"] for slot in schema.inputs if slot.id in slots)]
        for text in told:
            assert "on Hopper (H100, H200) they save memory only" in text and "fp8 needs compute capability 8.9" in text
