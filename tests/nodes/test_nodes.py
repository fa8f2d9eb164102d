"""Every node, run: numbers equal the library's, states go on, Stop stops, wrong wiring gets a sentence."""

from fractions import Fraction
from pathlib import Path

import clips
import pytest
import torch
import toys
import video_files
from sana_streaming.sana_core.cli import main
from sana_streaming.sana_core.errors import InputError
from sana_streaming.sana_core.streaming.edit_stream import EditStream
from sana_streaming.sana_core.video.reader import VideoReader, probe
from sana_streaming.sana_core.weights.dit import load_dit
from sana_streaming.sana_core.weights.toy import make_toy_bundle
from sana_streaming.sana_core.weights.vae import load_vae

NANO = "nano (built in)"
TOY = "toy (random weights)"
SIZE = {"width": 96, "height": 64}
SAMPLING = {"seed": 3, "steps": 2, "num_cached_blocks": 2, "sink_token": True, "cfg_scale": 1.0, "noise": "clip"}


@pytest.fixture(autouse=True)
def _names(host):
    """The modules exist only beside the stand-ins."""
    import sana_streaming.nodes as pack
    from comfy_api import latest

    globals().update({node.__name__: node for node in pack.NODES}, latest=latest)


@pytest.fixture
def loaded(host):
    """(model, vae, positive, negative) of the toy."""
    (model,) = SanaStreamingLoadModel.execute(TOY, "auto", "auto").args
    (vae,) = SanaStreamingLoadVAE.execute(TOY, "auto").args
    (encoder,) = SanaStreamingLoadTextEncoder.execute(TOY).args
    positive, negative = SanaStreamingPrompt.execute(encoder, "make it snow", "blurry", 0).args
    return model, vae, positive, negative


def encode(vae, source, **changes):
    settings = {**SIZE, "start_frame": 0, "max_frames": 0, "total_frames": 0, "last_part": False, **changes}
    return SanaStreamingEncodeVideo.execute(vae, source, **settings).args


def sample(model, positive, latent, **changes):
    return SanaStreamingSampler.execute(model, positive, latent, **{**SAMPLING, **changes}).args


def decode_images(vae, latent):
    return SanaStreamingDecodeImages.execute(vae, latent).args[0]


def decode_video(vae, latent, **changes):
    return SanaStreamingDecodeVideo.execute(vae, latent, **{"fps": 0.0, "crf": 0, **changes}).args


def edit_video(model, vae, positive, video, **changes):
    settings = {**SIZE, **SAMPLING, "start_frame": 0, "max_frames": 0, "fps": 0.0, "crf": 0, **changes}
    return SanaStreamingEditVideo.execute(model, vae, positive, video, **settings)


def file_video(path, **window):
    return latest.VideoFromFile(str(path), **window)


def read(path):
    with VideoReader(path) as reader:
        return torch.stack(list(reader))


@pytest.fixture(scope="module")
def by_cli(tmp_path_factory):
    """Frames of a real clip, edited by the command line with the settings above, and the clip."""
    folder = tmp_path_factory.mktemp("cli")
    source, target = clips.clip("carphone_pristine.mp4"), folder / "out.mkv"
    toy = make_toy_bundle(folder / "toy")
    size = ["--height", "64", "--width", "96"]
    options = ["--prompt", "make it snow", "--steps", "2", "--seed", "3", "--max-frames", "60", "--crf", "0"]
    assert main(["edit", str(source), str(target), "--model", str(toy), *size, *options]) == 0
    return source, read(target)


def test_edit_video_equals_the_command_line(loaded, by_cli, host):
    model, vae, positive, _ = loaded
    source, expected = by_cli
    video, _ = edit_video(model, vae, positive, file_video(source), max_frames=60).args
    assert torch.equal(read(video.file), expected)
    assert probe(video.file).frame_rate == probe(source).frame_rate
    names, needed = host.loaded[-1]
    assert names == ["SanaStreamingDiT", "CausalVAE"]
    assert needed > 1_000_000


def test_three_nodes_equal_the_one(loaded, by_cli):
    model, vae, positive, _ = loaded
    source, expected = by_cli
    latent, state = encode(vae, file_video(source), max_frames=60)
    assert latent["sana_latent_space"] == vae.network.fingerprint
    assert latent["samples"].shape == (1, 16, 9, 2, 3)
    edited, state = sample(model, positive, latent, state=state)
    images = decode_images(vae, edited)
    assert images.shape == (60, 64, 96, 3)
    assert 0 <= images.min() <= images.max() <= 1
    video, state = decode_video(vae, edited, state=state)
    assert torch.equal(read(video.file), expected)
    assert (state.frames_in, state.frames_out, state.finished) == (60, 60, True)


def test_an_endless_stream_ends_with_its_last_part(loaded):
    model, vae, positive, _ = loaded
    clip = toys.frames(70, 64, 96)
    first, encoded = encode(vae, clip, max_frames=40, total_frames=-1)
    edited, sampled = sample(model, positive, first)
    _, decoded = decode_video(vae, edited)
    rest = {"start_frame": 40, "total_frames": -1, "state": encoded}
    last, encoded = encode(vae, clip, **rest, last_part=True)
    assert last["samples"].shape[2] == 5
    edited, sampled = sample(model, positive, last, state=sampled)
    video, decoded = decode_video(vae, edited, state=decoded)
    assert len(read(video.file)) == 37
    for state in (encoded, sampled, decoded):
        assert not state.encoder or state is not encoded
        assert state.nbytes < 1_000_000
    assert (encoded.tensors(), sampled.dit, decoded.decoder) == ({}, None, {})
    with pytest.raises(InputError, match="a clip length of None, not 48"):
        encode(vae, clip, start_frame=22, state=rest["state"])


@pytest.mark.parametrize("wiring", ["one chain", "side by side"])
def test_two_parts_over_the_state_sockets_equal_one(loaded, wiring):
    """7 frames beyond a chunk wait in the state; the parts together equal one run, before H.264."""
    model, vae, positive, _ = loaded
    clip = toys.frames(100, 64, 96).float() / 255
    whole, _ = encode(vae, clip)
    expected, _ = sample(model, positive, whole)
    expected = decode_images(vae, expected)

    first, encoded = encode(vae, clip, max_frames=40, total_frames=100)
    edited, sampled = sample(model, positive, first, **({"state": encoded} if wiring == "one chain" else {}))
    video, decoded = decode_video(vae, edited, **({"state": sampled} if wiring == "one chain" else {}))
    before = [value.clone() for state in (encoded, sampled, decoded) for value in state.tensors().values()]
    chain = {} if wiring == "side by side" else {"encode": decoded}
    second, encoded2 = encode(vae, clip, start_frame=40, total_frames=100, state=chain.get("encode", encoded))
    edited2, sampled2 = sample(model, positive, second, state=encoded2 if chain else sampled)
    video2, decoded2 = decode_video(vae, edited2, state=sampled2 if chain else decoded)
    parts = torch.cat([read(video.file), read(video2.file)])
    reference = expected.mul(255).floor()
    with_whole = decode_video(vae, sample(model, positive, whole)[0])[0]
    assert torch.equal(parts, read(with_whole.file))
    assert len(parts) == len(reference) == 100
    after = [value for state in (encoded, sampled, decoded) for value in state.tensors().values()]
    assert all(torch.equal(a, b) for a, b in zip(before, after, strict=True)), "an input state was changed"
    assert decoded2.frames_out == 100


def test_a_video_made_of_pictures_is_not_encoded_first(loaded):
    model, vae, positive, _ = loaded
    pictures = toys.frames(30, 80, 120).float() / 255
    sound = {"waveform": torch.zeros(1, 2, 48_000), "sample_rate": 48_000}
    video = latest.VideoFromComponents(latest.VideoComponents(pictures, Fraction(24), sound))
    edited, _ = edit_video(model, vae, positive, video).args
    info = probe(edited.file)
    assert (info.num_frames, info.frame_rate, info.has_audio) == (30, Fraction(24), True)
    latent, _ = encode(vae, pictures)
    assert torch.equal(latent["samples"], encode(vae, video)[0]["samples"])


def test_a_trimmed_video_gives_its_window(loaded, tmp_path):
    _, vae, _, _ = loaded
    path = video_files.write_clip(tmp_path / "clip.mp4", toys.frames(50, 64, 96))
    for window, frames in (((0.0, 0.2), 5), ((0.0, 0.28), 7), ((0.5, 0.52), 13), ((0.05, 0.0), 48)):
        latent, _ = encode(vae, file_video(path, start_time=window[0], duration=window[1]))
        assert latent["sana_stream"].num_frames == frames, window
    whole, _ = encode(vae, file_video(path), start_frame=25, max_frames=10)
    window, _ = encode(vae, file_video(path, start_time=0.8, duration=1.0), start_frame=5, max_frames=10)
    assert torch.equal(whole["samples"], window["samples"])


def test_sound_goes_along(loaded):
    _, vae, _, _ = loaded
    latent, _ = encode(vae, toys.frames(33, 64, 96).float() / 255)
    sound = {"waveform": torch.rand(1, 1, 200_000) - 0.5, "sample_rate": 44_100}
    video, _ = decode_video(vae, latent, audio=sound, fps=25.0)
    info = probe(video.file)
    assert (info.has_audio, info.frame_rate) == (True, Fraction(25))
    assert info.duration == pytest.approx(33 / 25, abs=0.05)


def test_progress_and_previews(loaded):
    import comfy.utils

    model, vae, positive, _ = loaded
    comfy.utils.ProgressBar.made.clear()
    video = latest.VideoFromComponents(latest.VideoComponents(toys.frames(81, 64, 96), Fraction(25)))
    edit_video(model, vae, positive, video)
    (bar,) = comfy.utils.ProgressBar.made
    # Three chunks of encode, 2 steps, the pass at t = 0 and decode; the last chunk needs no pass at 0.
    assert bar.total == bar.values[-1] == 14
    assert sorted(set(bar.values)) == list(range(15))
    assert len(bar.previews) == 3
    kind, picture, size = bar.previews[0]
    assert (kind, picture.size, size) == ("JPEG", (96, 64), 512)


@pytest.mark.parametrize("units", [0, 1, 3, 5, 7])
def test_stop(loaded, host, units, monkeypatch):
    """Stop in the middle: ComfyUI's own exception, the finished chunks play, the stream's memory is let go of."""
    import sana_streaming.nodes.editor as module

    model, vae, positive, _ = loaded
    made = []
    monkeypatch.setattr(module, "EditStream", lambda *a, **k: made.append(EditStream(*a, **k)) or made[-1])
    video = latest.VideoFromComponents(latest.VideoComponents(toys.frames(81, 64, 96), Fraction(25)))
    host.stop_after = units
    with pytest.raises(host.InterruptProcessingException):
        edit_video(model, vae, positive, video)
    assert not made[0].state.tensors()
    import folder_paths

    files = list(Path(folder_paths.get_temp_directory()).glob("*.mp4"))
    assert [probe(f).num_frames for f in files] == ([33] if units >= 5 else [])


def test_stop_in_the_sampler_and_the_decoder(loaded, host):
    model, vae, positive, _ = loaded
    latent, _ = encode(vae, toys.frames(81, 64, 96))
    host.stop_after = 4
    with pytest.raises(host.InterruptProcessingException):
        sample(model, positive, latent)
    host.stop_after = 1
    with pytest.raises(host.InterruptProcessingException):
        decode_video(vae, latent)
    host.stop_after = 1
    with pytest.raises(host.InterruptProcessingException):
        encode(vae, toys.frames(81, 64, 96))


def test_guidance(loaded):
    model, vae, positive, negative = loaded
    latent, _ = encode(vae, toys.frames(33, 64, 96))
    plain, _ = sample(model, positive, latent)
    guided, _ = sample(model, positive, latent, cfg_scale=3.0, negative=negative)
    assert not torch.equal(plain["samples"], guided["samples"])
    with pytest.raises(InputError, match="needs a negative prompt"):
        sample(model, positive, latent, cfg_scale=3.0)


def test_latents_from_elsewhere(loaded):
    """Plain ComfyUI latents without our keys are a whole clip."""
    model, vae, positive, _ = loaded
    latent, _ = encode(vae, toys.frames(41, 64, 96))
    edited, _ = sample(model, positive, {"samples": latent["samples"], "noise_mask": None})
    assert torch.equal(edited["samples"], sample(model, positive, latent)[0]["samples"])
    assert "noise_mask" in edited
    assert len(decode_images(vae, {"samples": edited["samples"]})) == 41


def test_the_weights_stay_out_of_ours(loaded):
    """Layers come from ComfyUI's operations, so that it can offload and patch them."""
    import comfy.ops

    model, vae, _, _ = loaded
    for network, kinds in ((model.network, ("Linear", "Conv2d")), (vae.network, ("Conv3d",))):
        layers = [m for m in network.modules() if type(m).__name__ in kinds]
        assert layers
        assert all(isinstance(m, tuple(getattr(comfy.ops.disable_weight_init, k) for k in kinds)) for m in layers)


class TestWrongWiring:
    def test_no_model_file(self):
        for node, folder in (
            (SanaStreamingLoadModel, "diffusion_models"),
            (SanaStreamingLoadVAE, "vae"),
            (SanaStreamingLoadTextEncoder, "text_encoders"),
        ):
            message = node.validate_inputs("gone.safetensors")
            assert "gone.safetensors" in message
            assert f"models/{folder}" in message
            assert node.validate_inputs(TOY) is True

    def test_latents_of_another_space(self, loaded):
        from sana_streaming.nodes.sockets import LoadedVAE
        from sana_streaming.sana_core.weights.random_init import random_vae

        model, vae, positive, _ = loaded
        latent, _ = encode(vae, toys.frames(17, 64, 96))
        other = LoadedVAE(type(vae.patcher)(random_vae(toys.CONFIGS["vae"], 9), vae.device, vae.device))
        with pytest.raises(InputError, match=f"of space {vae.space}, this VAE decodes space {other.space}"):
            decode_images(other, latent)
        with pytest.raises(InputError, match="3 channels, this VAE decodes 16"):
            decode_images(vae, {"samples": torch.zeros(1, 3, 2, 2, 3)})
        with pytest.raises(InputError, match="these are latents of 3 channels, the model takes 16"):
            sample(model, positive, {"samples": torch.zeros(1, 3, 2, 2, 3)})
        with pytest.raises(InputError, match=r"shape \(1, 16, 4, 4\)"):
            sample(model, positive, {"samples": torch.zeros(1, 16, 4, 4)})

    def test_state_of_another_place(self, loaded):
        model, vae, positive, _ = loaded
        clip = toys.frames(100, 64, 96)
        first, encoded = encode(vae, clip, max_frames=57, total_frames=-1)
        _, sampled = sample(model, positive, first)
        with pytest.raises(InputError, match="goes on with chunk 2"):
            sample(model, positive, first, state=sampled)
        with pytest.raises(InputError, match="width 96, not 64"):
            encode(vae, clip, start_frame=57, total_frames=-1, state=encoded, width=64)
        with pytest.raises(InputError, match="made with seed 3, not 99"):
            second, _ = encode(vae, clip, start_frame=57, total_frames=-1, state=encoded)
            sample(model, positive, second, state=sampled, seed=99)

    def test_latents_from_the_middle_without_a_state(self, loaded):
        _, vae, _, _ = loaded
        clip = toys.frames(100, 64, 96)
        _, encoded = encode(vae, clip, max_frames=57, total_frames=-1)
        second, _ = encode(vae, clip, start_frame=57, total_frames=-1, state=encoded)
        with pytest.raises(InputError, match="begin with chunk 2, the decoder goes on with chunk 0"):
            decode_video(vae, second)

    def test_state_of_another_shape(self, loaded):
        model, vae, positive, _ = loaded
        clip = toys.frames(100, 64, 96)
        first, _ = encode(vae, clip, max_frames=57, total_frames=-1)
        _, sampled = sample(model, positive, first)
        _, encoded = encode(vae, clip, max_frames=57, total_frames=-1, width=64, height=96)
        second, _ = encode(vae, clip, start_frame=57, total_frames=-1, width=64, height=96, state=encoded)
        with pytest.raises(InputError, match="height 64, not 96"):
            sample(model, positive, second, state=sampled)

    @pytest.mark.parametrize("name", ["/etc/passwd", "../secret.safetensors", "a/../../b.pth", ".", "", "C:\\\\x"])
    def test_names_that_lead_outside(self, name):
        for node in (SanaStreamingLoadModel, SanaStreamingLoadVAE, SanaStreamingLoadTextEncoder):
            assert "is in none of ComfyUI's folders" in node.validate_inputs(name)
            with pytest.raises(InputError, match="is in none of"):
                node.fingerprint_inputs(name, *["auto"] * (node.fingerprint_inputs.__func__.__code__.co_argcount - 2))
            assert node.validate_inputs(None) is True

    def test_state_of_another_model(self, loaded):
        from sana_streaming.nodes.sockets import LoadedModel
        from sana_streaming.sana_core.weights.random_init import random_dit

        model, vae, positive, _ = loaded
        clip = toys.frames(100, 64, 96)
        first, encoded = encode(vae, clip, max_frames=57, total_frames=-1)
        _, sampled = sample(model, positive, first)
        second, _ = encode(vae, clip, start_frame=57, total_frames=-1, state=encoded)
        network = random_dit(model.network.config, seed=5)
        other = LoadedModel(type(model.patcher)(network, model.device, model.device))
        with pytest.raises(InputError, match="transformer of fingerprint"):
            sample(other, positive, second, state=sampled)

    def test_empty_prompt(self, host):
        (encoder,) = SanaStreamingLoadTextEncoder.execute(TOY).args
        with pytest.raises(InputError, match="the prompt is empty"):
            SanaStreamingPrompt.execute(encoder, "  ", "", 0)

    def test_five_frames(self, loaded, caplog):
        """Legal, and said: padded to 9, trimmed to 5 again."""
        model, vae, positive, _ = loaded
        with caplog.at_level("INFO"):
            latent, _ = encode(vae, toys.frames(5, 64, 96))
        assert "5 frames are padded with the last one to 9" in caplog.text
        assert len(decode_images(vae, sample(model, positive, latent)[0])) == 5

    def test_frames(self, loaded):
        _, vae, _, _ = loaded
        clip = toys.frames(20, 64, 96)
        with pytest.raises(InputError, match="start_frame 20 is not in the 20 frames"):
            encode(vae, clip, start_frame=20)
        with pytest.raises(InputError, match="20 frames fill no chunk of 33"):
            encode(vae, clip, total_frames=-1)
        with pytest.raises(InputError, match="width 100 is not a multiple of 32; use width 96"):
            encode(vae, clip, width=100)

    def test_text_encoder_of_another_width(self, loaded):
        model, vae, _, _ = loaded
        latent, _ = encode(vae, toys.frames(9, 64, 96))
        with pytest.raises(InputError, match="gives 99 channels, the model takes 64"):
            sample(model, [[torch.zeros(1, 5, 99), {}]], latent)


LOADERS = ("SanaStreamingLoadModel", "SanaStreamingLoadVAE", "SanaStreamingLoadTextEncoder")


def test_nano_is_offered_first_and_the_toy_still(host):
    for name in LOADERS:
        slot = globals()[name].define_schema().inputs[0]
        assert (slot.id, slot.fields["options"][:2]) == ("file", [NANO, TOY])
        assert slot.fields["default"] == NANO
        assert all(globals()[name].validate_inputs(value) is True for value in (None, TOY))


def test_nano_is_loaded_from_the_package(host, tmp_path, monkeypatch):
    from sana_streaming.sana_core.weights import nano

    folder = make_toy_bundle(tmp_path / "standin", seed=5)
    nano.write_manifest(folder, "toy")
    monkeypatch.setattr(nano, "FOLDER", folder)
    for name in LOADERS:
        assert globals()[name].validate_inputs(NANO) is True
    (model,) = SanaStreamingLoadModel.execute(NANO, "auto", "auto").args
    (vae,) = SanaStreamingLoadVAE.execute(NANO, "auto").args
    (encoder,) = SanaStreamingLoadTextEncoder.execute(NANO).args
    assert model.network.fingerprint == load_dit(folder, dtype=torch.float32).fingerprint
    assert vae.network.fingerprint == load_vae(folder / "vae", dtype=torch.float32).fingerprint
    assert encoder.folder == folder / "text_encoder"
    (folder / "dit" / "model.safetensors").unlink()
    for name in LOADERS:
        assert "lacks dit/model.safetensors; install" in globals()[name].validate_inputs(NANO)


def test_demo_clip(host):
    (video,) = SanaStreamingDemoClip.execute(96, 64, 30, 5).args
    info = probe(video.file)
    assert (info.num_frames, info.width, info.height, info.frame_rate) == (30, 96, 64, Fraction(24))
    shown = read(video.file).float()
    assert shown.std() > 20
    assert (shown[1:] - shown[:-1]).abs().mean() > 0.5
