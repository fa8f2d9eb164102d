"""A VAE whose decoder is not causal: frames come late, all of them come, and the nodes say so."""

from dataclasses import replace

import node_calls as nodes
import pytest
import torch
import toys
from sana_streaming.sana_core.errors import InputError
from sana_streaming.sana_core.models import chunk_tile
from sana_streaming.sana_core.video.reader import VideoReader, probe
from sana_streaming.sana_core.weights.random_init import random_vae

CLIP = toys.frames(57, 64, 96)


@pytest.fixture(scope="module")
def network():
    return random_vae(replace(toys.CONFIGS["vae"], decoder_causal=False))


def one_shot(network, latents):
    pixels, state = chunk_tile.decode(network, latents)
    return torch.cat([pixels, chunk_tile.flush(network, state)], 2)[0].movedim(1, 0)


def read(video):
    with VideoReader(video.file) as reader:
        return torch.stack(list(reader))


def test_images_and_video_are_the_librarys(host, network):
    vae = nodes.vae(network)
    latent, state = nodes.encode(vae, CLIP[:50])
    images = nodes.decode_images(vae, latent)
    expected = one_shot(network, latent["samples"])[:50]
    assert torch.equal(images, ((expected + 1) / 2).clamp(0, 1).movedim(1, -1))
    video, state = nodes.decode_video(vae, latent, state=state)
    assert len(read(video)) == 50
    assert (state.decoder, state.frames_out) == ({}, 50)
    assert nodes.texts()[-1] == "50 frames\ndecoder chunk_tile: frames come 3 latent frames (24 frames) late"


def test_one_node_equals_three(host, network):
    model, vae = nodes.model(), nodes.vae(network)
    positive, _ = nodes.prompts()
    edited, _ = nodes.sample(model, positive, nodes.encode(vae, CLIP)[0])
    video, _ = nodes.decode_video(vae, edited)
    whole = nodes.edit_video(model, vae, positive, CLIP.float() / 255)
    assert torch.equal(read(whole), read(video))
    assert nodes.texts()[-1].endswith("decoder chunk_tile: frames come 3 latent frames (24 frames) late")


def test_parts_over_the_state_socket(host, network):
    """Frames of the first part that wait come with the second; sound begins where the frames do."""
    vae = nodes.vae(network)
    whole, _ = nodes.encode(vae, CLIP)
    expected = read(nodes.decode_video(vae, whole)[0])
    first, encoded = nodes.encode(vae, CLIP, max_frames=33, total_frames=57)
    assert first["samples"].shape[2] == 5
    video, decoded = nodes.decode_video(vae, first)
    assert nodes.texts()[-1].startswith("17 frames; 16 wait in the state for the next part\n")
    kept = {name: value.clone() for name, value in decoded.tensors().items()}
    second, _ = nodes.encode(vae, CLIP, start_frame=33, total_frames=57, state=encoded)
    rest, after = nodes.decode_video(vae, second, state=decoded)
    assert torch.equal(torch.cat([read(video), read(rest)]), expected)
    assert after.frames_out == 57
    assert all(torch.equal(kept[name], value) for name, value in decoded.tensors().items())
    with pytest.raises(InputError, match="begin with chunk 1, the decoder goes on with chunk 0"):
        nodes.decode_video(vae, second)
    # Pictures of a part are all of its pictures: nothing is left for a next one.
    assert len(nodes.decode_images(vae, first)) == 33


def test_sound_begins_with_the_frames_that_waited(host, network, monkeypatch):
    from sana_streaming.nodes import decode

    vae, starts, writer = nodes.vae(network), [], decode.VideoWriter
    monkeypatch.setattr(decode, "VideoWriter", lambda *a, **n: starts.append(n["audio_start"]) or writer(*a, **n))
    sound = {"waveform": torch.zeros(1, 1, 200_000), "sample_rate": 44_100}
    first, encoded = nodes.encode(vae, CLIP, max_frames=33, total_frames=57)
    second, _ = nodes.encode(vae, CLIP, start_frame=33, total_frames=57, state=encoded)
    _, decoded = nodes.decode_video(vae, first, audio=sound)
    video, _ = nodes.decode_video(vae, second, audio=sound, state=decoded)
    # 16 frames per second, where pictures have no rate of their own.
    assert starts == [0.0, 17 / 16]
    assert probe(video.file).has_audio


def test_too_few_latents_for_a_frame(host, network):
    vae = nodes.vae(network)
    # 9 latent frames begin with a chunk of 3, which completes nothing.
    first, _ = nodes.encode(vae, CLIP, max_frames=17, total_frames=65)
    with pytest.raises(InputError, match="3 latent frames complete no frame with decoder chunk_tile"):
        nodes.decode_video(vae, first)


def test_a_state_of_the_other_decoder(host, network):
    vae = nodes.vae(network)
    first, encoded = nodes.encode(vae, CLIP, max_frames=33, total_frames=57)
    second, _ = nodes.encode(vae, CLIP, start_frame=33, total_frames=57, state=encoded)
    _, decoded = nodes.decode_video(vae, first)
    causal = random_vae(replace(toys.CONFIGS["vae"], decoder_causal=True))
    causal.fingerprint = network.fingerprint
    with pytest.raises(InputError, match="made with the decoder chunk_tile, not causal"):
        nodes.decode_video(nodes.vae(causal), {**second, "sana_latent_space": network.fingerprint}, state=decoded)


def test_the_loader_offers_it_last(host):
    slot = nodes.node("LoadVAE").define_schema().inputs[1]
    assert slot.fields["options"] == ["auto", "causal", "chunk_tile"]
    (late,), (causal,) = (nodes.call("LoadVAE", nodes.TOY, decoder) for decoder in ("chunk_tile", "auto"))
    assert not late.network.decodes_causally
    assert causal.network.decodes_causally
    assert nodes.texts() == [
        "decoder chunk_tile: frames come 3 latent frames (24 frames) late",
        "decoder causal: frames come with their latents",
    ]
