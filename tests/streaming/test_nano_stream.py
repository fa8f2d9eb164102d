"""The built-in model in a stream: what its prompts do to the picture, chunk by chunk."""

import pytest
import torch
from sana_streaming.sana_core.models.text_encoder import GemmaTextEncoder
from sana_streaming.sana_core.streaming.edit_stream import EditStream
from sana_streaming.sana_core.video.demo_clip import demo_frames
from sana_streaming.sana_core.weights import nano
from sana_streaming.sana_core.weights.dit import load_dit
from sana_streaming.sana_core.weights.vae import load_vae

pytestmark = [pytest.mark.nano, pytest.mark.slow]

FIRST_CHUNK, CHUNK = 33, 24


def saturation(frames):
    """Mean distance of the strongest from the weakest channel, per frame of uint8 [F, H, W, 3]."""
    return (frames.amax(-1).float() - frames.amin(-1)).mean(dim=(1, 2))


def test_a_prompt_set_in_mid_stream_shows_at_the_next_chunk():
    """The colours stay to the last frame of the chunk before, fall at the first frame of the next and are faint at its end."""
    folder = nano.nano_folder()
    networks = load_dit(folder / "dit", dtype=torch.float32), load_vae(folder / "vae", dtype=torch.float32)
    text = GemmaTextEncoder(folder / "text_encoder")
    source = torch.stack(list(demo_frames(FIRST_CHUNK + CHUNK, nano.HEIGHT, nano.WIDTH)))
    stream = EditStream(*networks, text, prompt="keep the video as it is", height=nano.HEIGHT, width=nano.WIDTH)
    # Some frames of the second chunk wait already when the prompt changes.
    edited = [chunk.frames for chunk in stream.push(source[: FIRST_CHUNK + 5])]
    assert sum(map(len, edited)) == FIRST_CHUNK
    stream.set_prompt("make it black and white")
    edited += [chunk.frames for chunk in stream.push(source[FIRST_CHUNK + 5 :])]
    kept = saturation(torch.cat(edited)) / saturation(source)
    assert len(kept) == FIRST_CHUNK + CHUNK
    assert kept[:FIRST_CHUNK].min() > 0.6
    assert kept[FIRST_CHUNK:].max() < 0.9 * kept[:FIRST_CHUNK].min()
    # What the state holds of the colours fades over the chunk.
    assert kept[FIRST_CHUNK + 8 :].max() < 0.5 and kept[-8:].max() < 0.35
    assert (kept[:-1] - kept[1:]).argmax() == FIRST_CHUNK - 1
