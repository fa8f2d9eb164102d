"""Streams that are put away and taken up again."""

from pathlib import Path

import node_calls as nodes
import pytest
import torch
import toys
from sana_streaming.sana_core.errors import InputError
from sana_streaming.sana_core.video.reader import VideoReader

CLIP = toys.frames(100, 64, 96)


def read(video):
    with VideoReader(video.file) as reader:
        return torch.stack(list(reader))


def part(networks, positive, state=None, **changes):
    """(video, state) of a part of the clip, one state through all three nodes."""
    model, vae = networks
    latent, state = nodes.encode(vae, CLIP, total_frames=100, **({"state": state} if state else {}), **changes)
    edited, state = nodes.sample(model, positive, latent, state=state)
    video, state = nodes.decode_video(vae, edited, state=state)
    return read(video), state


def test_going_on_from_a_file_equals_a_run_without_a_break(host):
    positive, _ = nodes.prompts()
    whole, _ = part((nodes.model(), nodes.vae()), positive)
    first, state = part((nodes.model(), nodes.vae()), positive, max_frames=40)
    before = {name: value.clone() for name, value in state.tensors().items()}
    saved = nodes.node("SaveState").execute(state, "night/scene")
    (listed,) = saved.ui["sana_states"]
    assert listed == {"filename": "scene_00001_.safetensors", "subfolder": "night", "type": "output"}
    assert saved.args == (state,)
    assert all(torch.equal(value, before[name]) for name, value in state.tensors().items())
    # Everything anew, as after a restart.
    name = "night/scene_00001_.safetensors [output]"
    assert nodes.node("LoadState").define_schema().inputs[0].fields["options"] == [name]
    assert nodes.node("LoadState").validate_inputs(name) is True
    (again,) = nodes.call("LoadState", name)
    assert nodes.texts()[-1] == "40 of 100 frames at 96x64 taken in, 7 of them wait for their chunk to fill"
    second, _ = part((nodes.model(), nodes.vae()), positive, again, start_frame=40)
    assert torch.equal(torch.cat([first, second]), whole)


def test_a_second_state_does_not_replace_the_first(host):
    _, state = nodes.encode(nodes.vae(), CLIP, max_frames=40, total_frames=100)
    for number in (1, 2):
        (listed,) = nodes.node("SaveState").execute(state, "state").ui["sana_states"]
        assert listed["filename"] == f"state_{number:05}_.safetensors"


def test_files_of_the_input_folder(host):
    import folder_paths

    _, state = nodes.encode(nodes.vae(), CLIP, max_frames=40, total_frames=100)
    folder = Path(folder_paths.get_input_directory(), "streams")
    folder.mkdir(parents=True)
    state.save(folder / "one.safetensors")
    node = nodes.node("LoadState")
    assert node.define_schema().inputs[0].fields["options"] == ["streams/one.safetensors"]
    for name in ("streams/one.safetensors", "streams/one.safetensors [input]"):
        assert nodes.call("LoadState", name)[0].num_waiting == 7
    before = node.fingerprint_inputs("streams/one.safetensors")
    state.frames_in += 1
    state.save(folder / "one.safetensors")
    assert node.fingerprint_inputs("streams/one.safetensors") != before


@pytest.mark.parametrize("name", ["/etc/passwd", "../x.safetensors", "", "gone.safetensors", "../x [output]"])
def test_names_that_lead_outside(host, name):
    message = nodes.node("LoadState").validate_inputs(name)
    assert "is not in ComfyUI's" in message
    with pytest.raises(InputError, match="is not in ComfyUI's"):
        nodes.call("LoadState", name)


def test_a_file_of_something_else(host):
    import folder_paths
    from safetensors.torch import save_file

    folder = Path(folder_paths.get_input_directory())
    folder.mkdir()
    save_file({"x": torch.ones(1)}, folder / "x.safetensors")
    with pytest.raises(InputError, match="is not a saved stream state"):
        nodes.call("LoadState", "x.safetensors")


def test_a_stream_that_has_ended_says_so(host):
    _, state = part((nodes.model(), nodes.vae()), nodes.prompts()[0])
    nodes.node("SaveState").execute(state, "state")
    assert nodes.texts()[-1].endswith("; the stream has ended, nothing can follow")
