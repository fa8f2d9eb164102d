"""Files of the official script in ``edit``: latents out and in, embedded prompts in, in both modes."""

import signal

import clips
import pytest
import torch
import toys
import video_files
from sana_streaming.sana_core.cli import main
from sana_streaming.sana_core.commands import edit_networks, edit_progress
from sana_streaming.sana_core.exchange import PromptPair, save_text_embeds
from sana_streaming.sana_core.models.prompt import DEFAULT_NEGATIVE_PROMPT, PromptEmbedding, prompt_text
from sana_streaming.sana_core.models.text_encoder import GemmaTextEncoder
from sana_streaming.sana_core.video.reader import VideoReader
from sana_streaming.sana_core.weights.toy import make_toy_bundle

PROMPT, NEGATIVE = "make it snow", "blur"
STREAM, SHORT = "long_streaming", "bidirectional_short"
MODES = [STREAM, SHORT]
FRAMES = 42


@pytest.fixture(scope="module")
def toy(tmp_path_factory):
    """A folder with a bundle for each mode, a clip, and embedded prompts."""
    folder = tmp_path_factory.mktemp("toy")
    for mode, variant in zip(MODES, ("streaming", "bidirectional"), strict=True):
        make_toy_bundle(folder / mode, variant=variant)
    video_files.write_clip(folder / "clip.mp4", toys.frames(9))
    torch.save(torch.zeros(3, 16, 2, 2, 2), folder / "two.pt")
    torch.save(torch.zeros(3, 8, 2, 2, 2), folder / "narrow.pt")
    torch.save({"samples": torch.zeros(3)}, folder / "dict.pt")
    rows = PromptEmbedding.from_rows(torch.zeros(3, 32), 300)
    save_text_embeds(folder / "narrow_embeds.pt", PromptPair(rows, rows))
    rows = PromptEmbedding.from_rows(torch.zeros(3, 64), 300)
    save_text_embeds(folder / "embeds.pt", PromptPair(rows, rows))
    return folder


@pytest.fixture(autouse=True)
def _cache(tmp_path_factory, monkeypatch):
    monkeypatch.setenv("SANA_STREAMING_CACHE", str(tmp_path_factory.getbasetemp() / "prompts"))


def edit(mode, toy, target, *more, source=None, model=None):
    source = source or clips.clip("carphone_pristine.mp4")
    command = ["edit", source, target, "--mode", mode, "--model", model or toy / mode, "--size", "64x64", *more]
    return main(list(map(str, command)))


def read(path):
    with VideoReader(path) as reader:
        return torch.stack(list(reader))


@pytest.mark.parametrize("more", [[], ["--cfg-scale", 3, "--negative-prompt", NEGATIVE]], ids=["plain", "guided"])
@pytest.mark.parametrize("mode", MODES)
def test_latents_out_and_in_again(mode, toy, tmp_path, more, capsys):
    """Frames and chunks of several kinds: 42 frames are padded to 49, in chunks of 4 and 3 latent frames."""
    first, again = tmp_path / "first.pt", tmp_path / "again.pt"
    more = ["--prompt", PROMPT, "--max-frames", FRAMES, "--steps", 2, "--crf", 0, *more]
    assert edit(mode, toy, tmp_path / "a.mkv", *more, "--seed", 7, "--save-latent", first) == 0
    assert f"latents    {first}" in capsys.readouterr().out
    given = torch.load(first, weights_only=True)
    assert given.shape == (3, 16, 7, 2, 2) and given.dtype == torch.float32
    more += ["--input-latent", first, "--save-latent", again]
    # Frames of the clip only count: a picture that is black gives the same.
    black = video_files.write_clip(tmp_path / "black.mp4", torch.zeros(FRAMES, 64, 64, 3, dtype=torch.uint8))
    assert edit(mode, toy, tmp_path / "b.mkv", *more, source=black) == 0
    assert torch.equal(torch.load(again, weights_only=True), given)
    assert torch.equal(read(tmp_path / "a.mkv"), read(tmp_path / "b.mkv"))


@pytest.mark.parametrize("mode", MODES)
def test_the_noise_and_the_source_of_the_file_are_used(mode, toy, tmp_path):
    results = []
    for index in (None, 0, 1):
        latents = torch.randn(3, 16, 2, 2, 2, generator=torch.Generator().manual_seed(1))
        latents[2] = float(index or 0)
        if index is not None:
            latents[index] += 1
        torch.save(latents, tmp_path / "in.pt")
        more = ["--prompt", PROMPT, "--max-frames", 9, "--steps", 2, "--input-latent", tmp_path / "in.pt"]
        assert edit(mode, toy, tmp_path / "o.mp4", *more, "--save-latent", tmp_path / "out.pt") == 0
        saved = torch.load(tmp_path / "out.pt", weights_only=True)
        assert torch.equal(saved[:2], latents[:2])
        results.append(saved[2])
    assert not torch.equal(results[0], results[1]) and not torch.equal(results[0], results[2])


@pytest.mark.parametrize("guided", [False, True], ids=["plain", "guided"])
@pytest.mark.parametrize("mode", MODES)
def test_embedded_prompts_equal_the_prompt(mode, toy, tmp_path, monkeypatch, guided):
    negative, score = (DEFAULT_NEGATIVE_PROMPT, 10) if mode == SHORT else ("", 0)
    with GemmaTextEncoder(toy / mode / "text_encoder") as text:
        pair = PromptPair(text.encode(prompt_text(PROMPT, score)), text.encode_negative(negative))
    save_text_embeds(tmp_path / "embeds.pt", pair)
    more = ["--max-frames", 9, "--steps", 2, "--cfg-scale", 3 if guided else 1, "--save-latent"]
    assert edit(mode, toy, tmp_path / "a.mp4", *more, tmp_path / "a.pt", "--prompt", PROMPT) == 0
    # No text encoder is needed, nor a prompt.
    model = tmp_path / "bundle"
    model.mkdir()
    for name in ("dit", "vae"):
        (model / name).symlink_to(toy / mode / name)
    monkeypatch.setattr(edit_networks, "GemmaTextEncoder", None)
    more += [tmp_path / "b.pt", "--input-text-embed", tmp_path / "embeds.pt"]
    assert edit(mode, toy, tmp_path / "b.mp4", *more, model=model) == 0
    first, second = (torch.load(tmp_path / name, weights_only=True) for name in ("a.pt", "b.pt"))
    assert torch.equal(first, second)


def test_a_stream_that_is_stopped_keeps_its_chunks(toy, tmp_path, monkeypatch):
    bar = edit_progress.ChunkBar
    on_progress = bar.on_progress

    def pressing(self, progress):
        if (progress.chunk, progress.stage) == (1, "denoise"):
            signal.raise_signal(signal.SIGINT)
        on_progress(self, progress)

    monkeypatch.setattr(bar, "on_progress", pressing)
    more = ["--prompt", PROMPT, "--max-frames", FRAMES, "--steps", 2, "--save-latent", tmp_path / "l.pt"]
    assert edit(STREAM, toy, tmp_path / "a.mp4", *more) == 130
    assert torch.load(tmp_path / "l.pt", weights_only=True).shape == (3, 16, 4, 2, 2)
    assert len(read(tmp_path / "a.mp4")) == 25


WHOLE, KEPT = "latents are those of a whole clip", "a saved stream keeps its prompt as text"
BAD = [
    ("gone", MODES, {"--input-latent": "gone.pt"}, "gone.pt does not exist"),
    ("not latents", MODES, {"--input-latent": "dict.pt"}, "holds a dict"),
    ("another length", MODES, {"--input-latent": "two.pt", "--max-frames": 1}, "2 latent frames, the clip of 1"),
    ("another width", MODES, {"--input-latent": "narrow.pt"}, "have 8 channels, the model 16"),
    ("another size", MODES, {"--input-latent": "two.pt", "--size": "96x64"}, "of 2x2, the clip is of 2x3"),
    ("seed", MODES, {"--input-latent": "two.pt", "--seed": 0}, "--seed does not go with --input-latent"),
    ("noise", [STREAM], {"--input-latent": "two.pt", "--noise": "clip"}, "--noise does not go with --input-latent"),
    ("no embeds", MODES, {"--input-text-embed": "two.pt"}, "holds a Tensor"),
    ("narrow embeds", MODES, {"--input-text-embed": "narrow_embeds.pt"}, "gives 32 channels, the model takes 64"),
    (
        "two encoders",
        MODES,
        {"--input-text-embed": "embeds.pt", "--text-encoder": "clip.mp4"},
        "--text-encoder does not go with --input-text-embed: it takes the place of the text encoder",
    ),
    (
        "two negative prompts",
        MODES,
        {"--input-text-embed": "embeds.pt", "--negative-prompt": "x"},
        "--negative-prompt does not go with --input-text-embed",
    ),
    ("score", MODES, {"--input-text-embed": "embeds.pt", "--motion-score": 3}, "--motion-score does not go with"),
    ("file of prompts", [STREAM], {"--input-text-embed": "embeds.pt", "--prompt-file": "p.json"}, "it is one prompt"),
    ("state and latents", [STREAM], {"--save-latent": "l.pt", "--save-state": "s.safetensors"}, WHOLE),
    ("state and given", [STREAM], {"--input-latent": "two.pt", "--save-state": "s.safetensors"}, WHOLE),
    ("state and embeds", [STREAM], {"--input-text-embed": "embeds.pt", "--save-state": "s.safetensors"}, KEPT),
    ("no folder", MODES, {"--save-latent": "nowhere/l.pt"}, "there is no folder nowhere"),
    ("over the video", MODES, {"--save-latent": "out.mp4"}, "are the same file"),
    ("over the given", MODES, {"--save-latent": "two.pt", "--input-latent": "two.pt"}, "are the same file"),
]
CASES = [(mode, changes, message) for _, modes, changes, message in BAD for mode in modes]


@pytest.mark.parametrize(
    ("mode", "changes", "message"), CASES, ids=[f"{case[0]}, {mode}" for case in BAD for mode in case[1]]
)
def test_bad_input(toy, capsys, monkeypatch, mode, changes, message):
    monkeypatch.chdir(toy)
    before = sorted(toy.iterdir())
    options = {"--model": mode, "--size": "64x64", "--prompt": PROMPT, "--steps": 2, **changes}
    command = ["edit", "clip.mp4", "out.mp4", "--mode", mode, *(str(part) for pair in options.items() for part in pair)]
    assert main(command) == 2
    errors = capsys.readouterr().err
    assert message in errors
    assert errors.startswith("error: ") and errors.count("\n") == 1
    assert sorted(toy.iterdir()) == before
