"""LoRA files as users bring them: names, strengths, several at once, files of another model; and in the commands."""

import copy
import json

import fake_hub
import pytest
import tiny_training
import torch
import toys
import video_files
from safetensors.torch import load_file, save_file
from sana_streaming.sana_core.cli import main
from sana_streaming.sana_core.errors import CheckpointError, InputError
from sana_streaming.sana_core.evaluation.editor import StreamEditor
from sana_streaming.sana_core.streaming.options import StreamOptions
from sana_streaming.sana_core.training.config import LoraSettings
from sana_streaming.sana_core.training.lora import Lora
from sana_streaming.sana_core.weights.dit import build_dit, load_dit, official_state
from sana_streaming.sana_core.weights.lora import LoraChoice, apply_loras, parse_lora
from sana_streaming.sana_core.weights.toy import make_toy_bundle


def write_lora(model, path, seed=0, size=0.3, dtype=torch.float32):
    """A LoRA file with an effect, written by the trainer's own code; the model keeps the LoRA's hooks."""
    lora = Lora(model.requires_grad_(False), LoraSettings(rank=2, alpha=6.0), seed)
    for pair in lora.pairs.values():
        pair.up.data.normal_(0, size, generator=tiny_training.seeded(seed + 7))
    lora.save(path, dtype)
    return path


@pytest.fixture
def model():
    return tiny_training.network().requires_grad_(False)


@pytest.fixture
def file(model, tmp_path):
    return write_lora(copy.deepcopy(model), tmp_path / "snow.safetensors")


def official(model):
    """The model's weights under the release's names, to build others from: merging writes into them."""
    return {key: value.clone() for key, value in official_state(model)}


def weights(model):
    return {key: value.clone() for key, value in model.state_dict().items()}


class TestNames:
    def test_path_with_and_without_strength(self, file):
        assert parse_lora(f"{file}") == LoraChoice(str(file), 1.0)
        assert parse_lora(f"{file}:0.5") == LoraChoice(str(file), 0.5)
        assert parse_lora(f"{file}:-1") == LoraChoice(str(file), -1.0)

    def test_a_file_with_a_colon_in_its_name(self, file):
        odd = file.with_name("a:2")
        file.rename(odd)
        assert parse_lora(str(odd)) == LoraChoice(str(odd), 1.0)
        assert parse_lora(f"{odd}:3") == LoraChoice(str(odd), 3.0)

    def test_addresses(self):
        address = "hf://a/b@v1/c.safetensors"
        assert parse_lora(address) == LoraChoice(address, 1.0)
        assert parse_lora(f"{address}:0.25") == LoraChoice(address, 0.25)

    @pytest.mark.parametrize(
        ("ending", "message"),
        [
            (".gone", "does not exist; give FILE or FILE:STRENGTH, such as"),
            (".gone:1", "does not exist"),
            (":strong", "strength 'strong' is no number"),
            (":inf", "strength 'inf' is no number"),
            (":", "strength '' is no number"),
        ],
    )
    def test_refusals(self, file, ending, message):
        with pytest.raises(InputError, match=message) as error:
            parse_lora(f"{file}{ending}")
        assert f"--lora {file}{ending}" in str(error.value) and "\n" not in str(error.value)

    def test_a_strength_without_a_file_is_refused_as_given(self):
        with pytest.raises(InputError, match="--lora :0.5 does not exist"):
            parse_lora(":0.5")


class TestMerging:
    @pytest.mark.parametrize("layout", ["split", "fused"])
    @pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
    def test_strength_0_is_none_bit_for_bit(self, model, file, layout, dtype):
        plain = build_dit(official(model), model.config, layout=layout, dtype=dtype)
        # Adding 0 would turn it into +0.
        plain.get_submodule("blocks.0.cross_attn.proj").weight.fill_(-0.0)
        before, name = weights(plain), plain.fingerprint
        apply_loras(plain, [LoraChoice(file, 0.0)])
        after = plain.state_dict()
        assert all(value.view(torch.uint8).equal(after[key].view(torch.uint8)) for key, value in before.items())
        assert plain.fingerprint == name

    @pytest.mark.parametrize("layout", ["split", "fused"])
    def test_several_add_up_and_are_rounded_once(self, model, tmp_path, layout):
        files = [write_lora(copy.deepcopy(model), tmp_path / f"{seed}.safetensors", seed) for seed in (0, 1)]
        loras = [LoraChoice(files[0], 0.5), LoraChoice(files[1], -2.0)]
        whole, both = (build_dit(official(model), model.config, layout=layout) for _ in range(2))
        half = build_dit(official(model), model.config, layout=layout, dtype=torch.bfloat16)
        rounded = build_dit(official(half), model.config, layout=layout)
        plain = weights(whole)
        for lora in loras:
            apply_loras(whole, [lora])
        apply_loras(both, loras)
        assert any(not value.equal(plain[key]) for key, value in both.state_dict().items())
        for key, value in whole.state_dict().items():
            torch.testing.assert_close(both.state_dict()[key], value)
        apply_loras(half, loras)
        apply_loras(rounded, loras)
        assert all(value.equal(rounded.state_dict()[key].bfloat16()) for key, value in half.state_dict().items())

    def test_names_of_diffusers(self, model, file, tmp_path):
        renames = {"diffusion_model.": "transformer.", "lora_down": "lora_A", "lora_up": "lora_B"}
        tensors = {key: value for key, value in load_file(file).items() if not key.endswith(".alpha")}
        for old, new in renames.items():
            tensors = {key.replace(old, new): value for key, value in tensors.items()}
        save_file(tensors, tmp_path / "other.safetensors")
        wanted, got = copy.deepcopy(model), copy.deepcopy(model)
        apply_loras(wanted, [LoraChoice(file, 1 / 3)])
        apply_loras(got, [LoraChoice(tmp_path / "other.safetensors")])
        for key, value in wanted.state_dict().items():
            torch.testing.assert_close(got.state_dict()[key], value)

    def test_the_fingerprint_tells_mixes_apart(self, model, file, tmp_path):
        other = write_lora(copy.deepcopy(model), tmp_path / "other.safetensors", 1)
        mixes = [[], [(file, 1.0)], [(file, 0.5)], [(other, 1.0)], [(file, 1.0), (other, 1.0)]]
        names = []
        for mix in mixes * 2:
            network = build_dit(official(model), model.config)
            apply_loras(network, [LoraChoice(*one) for one in mix])
            names.append(network.fingerprint)
        assert len(set(names)) == len(mixes) and names[:5] == names[5:]

    def test_all_fit_or_none_is_merged(self, model, file, tmp_path):
        stranger = write_lora(tiny_training.network(variant="bidirectional"), tmp_path / "other.safetensors")
        before = weights(model)
        with pytest.raises(CheckpointError, match="other.safetensors"):
            apply_loras(model, [LoraChoice(file), LoraChoice(stranger)])
        assert all(value.equal(before[key]) for key, value in model.state_dict().items())


class TestRefusals:
    def refused(self, model, path, change, *expected):
        save_file(change(load_file(path)), path)
        with pytest.raises(CheckpointError) as error:
            apply_loras(model, [LoraChoice(path)])
        message = str(error.value)
        assert "\n" not in message and message.startswith(str(path))
        for part in expected:
            assert part in message, message

    def test_a_layer_that_is_not_there(self, model, file):
        self.refused(
            model,
            file,
            lambda tensors: {key.replace("blocks.1.", "blocks.7."): value for key, value in tensors.items()},
            "changes blocks.7.",
            "lora_up.weight (",
            "which the model does not have; use a LoRA that was made for this model",
        )

    def test_other_sizes(self, model, file):
        self.refused(
            model,
            file,
            lambda tensors: {key: value[:, :3].contiguous() if "_down" in key else value for key, value in tensors.items()},
            "blocks.0.attn.",
            "lora_down.weight (2, 3",
            "do not fit the model's (24, 24)",
        )  # fmt: skip

    def test_another_model(self, model, file):
        name = "transformer.blocks.0.attn1.to_q"
        tensors = {f"{name}.lora_A.weight": torch.zeros(4, 9), f"{name}.lora_B.weight": torch.zeros(9, 4)}
        message = (
            "changes blocks.0.attn1.to_q by lora_up.weight (9, 4) and lora_down.weight (4, 9), which the model does not"
        )
        self.refused(model, file, lambda _: tensors, message)

    @pytest.mark.parametrize(
        ("tensors", "message"),
        [
            ({"diffusion_model.blocks.0.attn.q.diff": torch.zeros(2)}, "has diffusion_model.blocks.0.attn.q.diff (2,)"),
            ({"lora_unet_x.lora_down.weight": torch.zeros(2)}, "has lora_unet_x.lora_down.weight (2,); keys must be"),
            ({"diffusion_model.x.alpha": torch.zeros(1)}, "has x without .lora_down.weight"),
            ({}, "is empty"),
        ],
    )
    def test_other_files(self, model, file, tensors, message):
        self.refused(model, file, lambda _: tensors, message)

    def test_one_layer_under_two_names(self, model, file):
        def twice(tensors):
            return tensors | {f"transformer.{key.split('.', 1)[1]}": value + 1 for key, value in tensors.items()}

        self.refused(model, file, twice, "twice, under two names")

    def test_odd_ranks_and_alphas(self, model, file):
        name = "diffusion_model.blocks.0.attn.v"
        for change in (
            {f"{name}.alpha": torch.ones(2)},
            {f"{name}.lora_down.weight": torch.zeros(0, 24), f"{name}.lora_up.weight": torch.zeros(24, 0)},
            {f"{name}.lora_down.weight": torch.tensor(1.0)},
        ):
            whole = load_file(file)
            self.refused(model, file, lambda tensors, change=change: tensors | change, "changes blocks.0.attn.v by")
            save_file(whole, file)


@pytest.fixture(scope="module")
def toy(tmp_path_factory):
    return make_toy_bundle(tmp_path_factory.mktemp("toy"))


@pytest.fixture(scope="module")
def toy_lora(toy):
    network = load_dit(toy / "dit", layout="split", dtype=torch.float32)
    return write_lora(network, toy.parent / f"{toy.name}-snow.safetensors", size=0.6)


@pytest.fixture(autouse=True)
def _cache(tmp_path_factory, monkeypatch):
    monkeypatch.setenv("SANA_STREAMING_CACHE", str(tmp_path_factory.getbasetemp() / "prompts"))


def test_merged_edits_as_the_trainer_evaluates(toy, toy_lora):
    """Through the whole stream: hooks on the split layout, as in training, against the merged fused layout."""
    vae, prompts = toys.networks()[1], toys.RandomPrompts(64, max_tokens=12, num_tokens=7)
    trained = load_dit(toy / "dit", layout="split", dtype=torch.float32)
    write_lora(trained, toy_lora, size=0.6)
    plain, merged = (load_dit(toy / "dit", dtype=torch.float32) for _ in range(2))
    apply_loras(merged, [LoraChoice(toy_lora)])
    blocks = list(toys.frames(33).split(16))
    edited = []
    for network in (plain, trained, merged):
        editor = StreamEditor(network, vae, prompts, height=64, width=64, options=StreamOptions(steps=2))
        edited.append(torch.cat(list(editor.edit(blocks, "make it snow", 33))).int())
    assert (edited[1] - edited[2]).abs().max() <= 1
    assert (edited[0] - edited[2]).abs().float().mean() > 1


class TestEdit:
    @pytest.fixture
    def clip(self, tmp_path):
        video_files.write_clip(tmp_path / "in.mp4", toys.frames(9, 64, 64))
        return tmp_path / "in.mp4"

    def edit(self, toy, clip, name, *arguments):
        target = clip.with_name(name)
        options = ["--model", toy, "--prompt", "make it snow", "--height", 64, "--width", 64, "--steps", 1]
        options += ["--device", "cpu", "--crf", 0, *arguments]
        assert main([str(part) for part in ("edit", clip, target, *options)]) == 0
        return video_files.read_frames(target)

    def test_strengths_and_the_report(self, toy, toy_lora, clip, tmp_path):
        report = tmp_path / "report.json"
        plain = self.edit(toy, clip, "plain.mp4")
        none = self.edit(toy, clip, "none.mp4", "--lora", f"{toy_lora}:0")
        both = self.edit(
            toy, clip, "both.mp4", "--lora", f"{toy_lora}:0.5", "--lora", f"{toy_lora}:0.5", "--report", report
        )
        once = self.edit(toy, clip, "once.mp4", "--lora", toy_lora)
        assert torch.as_tensor(none).equal(torch.as_tensor(plain))
        assert not torch.as_tensor(once).equal(torch.as_tensor(plain))
        assert (torch.as_tensor(both).int() - torch.as_tensor(once).int()).abs().max() <= 2
        assert json.loads(report.read_text())["weights"]["lora"] == f"{toy_lora}:0.5, {toy_lora}:0.5"

    @pytest.mark.parametrize(
        ("lora", "message"),
        [("gone.safetensors", "--lora gone.safetensors does not exist"), ("in.mp4:x", "strength 'x' is no number")],
    )
    def test_refused_before_weights_are_read(self, clip, capsys, monkeypatch, lora, message):
        monkeypatch.chdir(clip.parent)
        arguments = ["edit", "in.mp4", "out.mp4", "--prompt", "x", "--model", "/nowhere", "--lora", lora]
        assert main(arguments) == 2
        assert message in capsys.readouterr().err

    def test_of_another_model(self, toy, clip, capsys):
        stranger = write_lora(tiny_training.network(), clip.with_name("other.safetensors"))
        options = ["--model", str(toy), "--prompt", "x", "--height", "64", "--width", "64", "--lora", str(stranger)]
        assert main(["edit", str(clip), str(clip.with_name("out.mp4")), *options]) == 2
        assert f"error: {stranger} changes blocks.0.attn" in capsys.readouterr().err
        assert not clip.with_name("out.mp4").exists()

    def test_a_stream_goes_on_with_the_same_loras_only(self, toy, toy_lora, clip, capsys):
        state = clip.with_name("s.safetensors")
        start = ["--model", toy, "--device", "cpu", "--prompt", "x", "--height", 64, "--width", 64, "--lora", toy_lora]
        start += ["--max-frames", 5, "--save-state", state]
        assert main([str(part) for part in ("edit", clip, clip.with_name("a.mp4"), *start)]) == 0
        resume = ["--model", toy, "--device", "cpu", "--resume", state]
        assert main([str(part) for part in ("edit", clip, clip.with_name("b.mp4"), *resume)]) == 2
        assert "transformer of fingerprint" in capsys.readouterr().err
        with_lora = (*resume, "--lora", toy_lora)
        assert main([str(part) for part in ("edit", clip, clip.with_name("b.mp4"), *with_lora)]) == 0


def test_evaluate_names_them(toy, toy_lora, tmp_path, capsys):
    arguments = ["evaluate", "--model", toy, "--clips", 1, "--frames", 17, "--height", 64, "--width", 64, "--steps", 1]
    arguments += ["--loop-frames", 0]
    reports = []
    for name, more in (("a", []), ("b", ["--lora", f"{toy_lora}:0.8"])):
        assert main([str(part) for part in (*arguments, *more, "--json", tmp_path / name)]) == 0
        reports.append(json.loads((tmp_path / name).read_text()))
    assert [report["loras"] for report in reports] == [[], [f"{toy_lora.name}:0.8"]]
    assert reports[0]["model_fingerprint"] != reports[1]["model_fingerprint"]
    assert reports[0]["samples"][0]["psnr"] != reports[1]["samples"][0]["psnr"]
    capsys.readouterr()
    assert main(["evaluate", "--lora", "gone.safetensors"]) == 2
    assert "--lora gone.safetensors does not exist" in capsys.readouterr().err


def test_from_the_hub(file, tmp_path):
    with fake_hub.FakeHub({"me/loras": {"snow.safetensors": file.read_bytes()}}) as hub:
        code = """
from sana_streaming.sana_core.weights.lora import apply_loras, parse_loras
from sana_streaming.sana_core.weights.checkpoint import read_safetensors
from sana_streaming.sana_core.config import DiTConfig
from sana_streaming.sana_core.weights.random_init import random_dit, toy_configs
loras = parse_loras(["hf://me/loras/snow.safetensors:0.5"])
before = None
try: apply_loras(random_dit(toy_configs(64)["dit"], 0), loras)
except InputError as error: result = str(error)
"""
        message = hub.result(tmp_path / "home", code)
        assert hub.contents == ["snow.safetensors"]
    assert message.startswith("hf://me/loras/snow.safetensors changes blocks.0.attn")
