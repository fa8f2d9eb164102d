import pytest
from sana_streaming.sana_core.errors import InputError
from sana_streaming.sana_core.examples import example_run, list_examples
from sana_streaming.sana_core.models.prompt import DEFAULT_NEGATIVE_PROMPT

SOURCES = {
    "local": "hf://Efficient-Large-Model/SANA-Streaming/source/00_local_editing_source.mp4",
    "background": "hf://Efficient-Large-Model/SANA-Streaming/source/05_background_editing_source.mp4",
    "style": "hf://Efficient-Large-Model/SANA-Streaming/source/09_style_transfer_source.mp4",
}
# The official script's defaults in its two modes.
DEFAULTS = {
    "long_streaming": {
        "preset": "streaming-2b",
        "negative_prompt": "",
        "motion_score": 0,
        "max_frames": 969,
        "steps": 4,
        "cfg_scale": 1.0,
        "num_cached_blocks": 2,
        "sink_token": True,
    },
    "bidirectional_short": {
        "preset": "bidirectional-2b",
        "negative_prompt": DEFAULT_NEGATIVE_PROMPT,
        "motion_score": 10,
        "max_frames": 81,
        "steps": 50,
        "cfg_scale": 6.0,
        "num_cached_blocks": None,
        "sink_token": None,
    },
}
SHARED = {"height": 704, "width": 1280, "fps": 16, "flow_shift": 8.0, "seed": 0}


def test_the_examples_are_those_of_the_release():
    assert {example.name: example.source for example in list_examples()} == SOURCES
    prompts = [example.prompt for example in list_examples()]
    assert all(prompts) and len(set(prompts)) == 3


@pytest.mark.parametrize("mode", DEFAULTS)
@pytest.mark.parametrize("example", list_examples(), ids=lambda example: example.name)
def test_an_example_runs_with_the_releases_settings(example, mode):
    expected = DEFAULTS[mode] | SHARED | {"name": example.name, "mode": mode}
    assert example_run(example.name, mode).to_dict() == expected | {"video": example.source, "prompt": example.prompt}


@pytest.mark.parametrize("mode", DEFAULTS)
def test_a_clip_of_ones_own_keeps_its_rate_and_where_it_can_its_length(mode):
    release, own = example_run("style", mode).to_dict(), example_run("style", mode, video="my.mp4").to_dict()
    changed = {"video": "my.mp4", "fps": None}
    if mode == "long_streaming":
        changed["max_frames"] = None
    assert own == release | changed


def test_streaming_is_the_default():
    assert example_run("local") == example_run("local", "long_streaming")


def test_unknown_names_are_refused():
    with pytest.raises(InputError, match="no example 'water'; use one of local, background, style"):
        example_run("water")
    with pytest.raises(InputError, match="mode 'fast' is unknown; use one of long_streaming, bidirectional_short"):
        example_run("local", "fast")
