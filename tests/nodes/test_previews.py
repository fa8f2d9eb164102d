"""What the Sampler shows of latents, by preview method and by what ComfyUI has: on stand-ins of its decoder."""

import sys
from types import ModuleType

import node_calls as nodes
import numpy as np
import pytest
import torch
from PIL import Image

CLIP = torch.linspace(0, 1, 96)[None, None, :, None].expand(57, 64, 96, 3).contiguous()


def previews():
    """Pictures of the last progress bar."""
    import comfy.utils

    return [np.asarray(picture) for _, picture, _ in comfy.utils.ProgressBar.made[-1].previews]


def use(method):
    from comfy.cli_args import LatentPreviewMethod, args

    args.preview_method = LatentPreviewMethod(method)


@pytest.fixture(scope="module")
def networks():
    return nodes.model(), nodes.vae()


@pytest.fixture
def positive():
    return nodes.prompts()[0]


class Decoder:
    """Draws everything in one colour, and may fail."""

    def __init__(self, error=None):
        self.taesd, self.error, self.seen = object(), error, []

    def decode_latent_to_preview_image(self, preview_format, latents):
        self.seen.append(latents)
        if self.error is not None:
            raise self.error
        return preview_format, Image.new("RGB", (32, 16), (200, 100, 50)), 512


@pytest.fixture
def decoder(monkeypatch):
    """ComfyUI with a small decoder of LTX-2's latents, which it uses as 0.33 does."""
    decoder, asked = Decoder(), []

    class LTXAV:
        taesd_decoder_name = None

    def get_previewer(device, latent_format):
        asked.append(latent_format.taesd_decoder_name)
        return decoder

    formats, module = ModuleType("comfy.latent_formats"), ModuleType("latent_preview")
    formats.LTXAV = LTXAV
    module.VIDEO_TAES, module.get_previewer = ["taehv", "taeltx_2"], get_previewer
    monkeypatch.setitem(sys.modules, "comfy.latent_formats", formats)
    monkeypatch.setitem(sys.modules, "latent_preview", module)
    decoder.asked = asked
    return decoder


def sampled(networks, positive, *, space="ltx2", look=True, **changes):
    """Pictures of sampling two chunks."""
    latent, _ = nodes.encode(networks[1], CLIP)
    latent = {**latent, "sana_latent_space": space}
    if not look:
        del latent["sana_look"]
    nodes.sample(networks[0], positive, latent, **changes)
    return previews()


def is_drawn_by(decoder, pictures):
    return len(pictures) == 2 and all(picture.shape == (16, 32, 3) for picture in pictures) and bool(decoder.seen)


def test_none_draws_nothing(networks, positive, decoder):
    use("none")
    assert sampled(networks, positive) == []
    assert sampled(networks, positive, look=False) == []
    assert decoder.asked == decoder.seen == []


def test_the_small_decoder_where_it_is_asked_for(networks, positive, decoder):
    use("taesd")
    assert is_drawn_by(decoder, sampled(networks, positive))
    assert decoder.asked == ["taeltx_2"]
    assert [latents.shape for latents in decoder.seen] == [(1, 16, 1, 2, 3)] * 2


def test_the_model_is_there_again_after_each_picture(networks, positive, decoder, host):
    use("taesd")
    sampled(networks, positive)
    # Once at the beginning and once between the two chunks, then without what is carried from the one to the other.
    first, again = (size for names, size in host.loaded if names == ["SanaStreamingDiT"])
    assert 0 < again < first
    use("auto")
    host.loaded.clear()
    sampled(networks, positive)
    assert [size for names, size in host.loaded if names == ["SanaStreamingDiT"]] == [first]


@pytest.mark.parametrize(
    ("method", "changes"),
    [("auto", {}), ("latent2rgb", {}), ("taesd", {"space": "nano"}), ("taesd", {"cuda_graph": True})],
)
def test_a_linear_map_elsewhere(networks, positive, decoder, method, changes):
    """cuda_graph records weights that must stay where they are."""
    use(method)
    assert [picture.shape for picture in sampled(networks, positive, **changes)] == [(16, 24, 3)] * 2
    assert decoder.seen == []


def test_what_was_encoded_without_previews_has_them_later(networks, positive, decoder):
    use("none")
    latent, _ = nodes.encode(networks[1], CLIP)
    use("latent2rgb")
    nodes.sample(networks[0], positive, latent)
    assert len(previews()) == 2


@pytest.mark.parametrize("cuda_graph", [False, True])
def test_comfyuis_own_map_for_latents_from_elsewhere(networks, positive, decoder, cuda_graph):
    del decoder.taesd
    use("auto")
    assert is_drawn_by(decoder, sampled(networks, positive, look=False, cuda_graph=cuda_graph))
    assert decoder.asked == [None if cuda_graph else "taeltx_2"]
    # Ours was made for these latents, and is preferred.
    decoder.seen.clear()
    assert [picture.shape for picture in sampled(networks, positive)] == [(16, 24, 3)] * 2
    use("taesd")
    assert [picture.shape for picture in sampled(networks, positive)] == [(16, 24, 3)] * 2
    assert decoder.seen == []


def test_a_decoder_that_fails_does_not_end_the_run(networks, positive, decoder, host, caplog):
    use("taesd")
    decoder.error = RuntimeError("expected 128 channels")
    assert [picture.shape for picture in sampled(networks, positive)] == [(16, 24, 3)] * 2
    assert len(decoder.seen) == 1
    # It may have sent the model away before it failed.
    assert [names for names, _ in host.loaded].count(["SanaStreamingDiT"]) == 2
    assert "expected 128 channels" in caplog.text


def test_stop_while_a_picture_is_drawn(networks, positive, decoder, host):
    use("taesd")
    decoder.error = host.InterruptProcessingException()
    with pytest.raises(host.InterruptProcessingException):
        sampled(networks, positive)


@pytest.mark.parametrize("lacks", ["latent_preview", "comfy.latent_formats"])
def test_an_older_comfyui_has_the_linear_map(networks, positive, decoder, monkeypatch, lacks):
    monkeypatch.setitem(sys.modules, lacks, ModuleType(lacks))
    use("taesd")
    assert [picture.shape for picture in sampled(networks, positive)] == [(16, 24, 3)] * 2
    assert sampled(networks, positive, look=False) == []


def test_the_size_of_previews_is_the_users(networks, positive):
    import comfy.cli_args
    import comfy.utils

    comfy.cli_args.args.preview_size = 99
    sampled(networks, positive, space="nano")
    assert {size for *_, size in comfy.utils.ProgressBar.made[-1].previews} == {99}
