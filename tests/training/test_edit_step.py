"""Losses of a batch of edits: against the same thing by hand, and what is drawn and run for them."""

import compare
import pytest
import torch
from sana_streaming.sana_core.errors import InputError
from sana_streaming.sana_core.training import edit_step, passes
from sana_streaming.sana_core.training.edit_step import SAMPLED_SHARE, EditBatch, draw_gap, draw_timesteps, edit_losses
from sana_streaming.sana_core.training.losses import sigma_lookup
from sana_streaming.sana_core.training.passes import TIMESTEPS, draw_step
from tiny_training import BATCH, TEXT, NaiveStream, calls, gradients, latents, network, seeded

ATOL = 2e-5
CHUNKS = {1: [1], 2: [2], 3: [3], 4: [4], 5: [5], 6: [3, 3], 7: [4, 3], 8: [5, 3]}


def edits(frames, rows=slice(None)):
    prompts, back = ["snow", "rain"][rows], ["no snow", "no rain"][rows]
    return EditBatch(latents(frames, 1)[rows], latents(frames, 2)[rows], prompts, back)


def reader(model, asked=None):
    """Contexts that depend on each text alone; ``asked`` takes what was wanted."""

    def context(texts):
        if asked is not None:
            asked.append(list(texts))
        rows = [torch.randn(1, 5, TEXT, generator=seeded(sum(text.encode()))) for text in texts]
        return model.prompt_context(torch.cat(rows))

    return context


def losses(model, batch, crr_weight=0.0, seed=4, asked=None):
    return edit_losses(model, reader(model, asked), batch, generator=seeded(seed), crr_weight=crr_weight)


class RowsStream(NaiveStream):
    """A stream whose rows may stand at different timesteps."""

    def call_rows(self, x, timesteps, condition, context):
        model = self.model
        self.model = lambda x, _, *others: model(x, timesteps, *others)
        self.model.positions = model.positions
        try:
            return self.call(x, 0, condition, context)
        finally:
            self.model = model


def flow_by_hand(model, batch, generator, gap=0, laps=0):
    """(loss, clean estimate of the whole clip).

    ``gap`` frames are left out after the first chunk; then the true later chunks go through the state ``laps`` times.
    """
    stream, context = RowsStream(model), reader(model)(batch.prompts)
    timesteps, sigmas = draw_timesteps(BATCH, generator)
    sigma = sigmas.view(-1, 1, 1, 1, 1)
    sizes = CHUNKS[batch.source.shape[2]]
    errors, cleans = [], []
    for source, target in zip(batch.source.split(sizes, 2), batch.target.split(sizes, 2), strict=True):
        eps = torch.randn(target.shape, generator=generator)
        x = (1 - sigma) * target + sigma * eps
        velocity, _ = stream.call_rows(x, timesteps, source, context)
        errors.append(velocity - eps + target)
        cleans.append((x - sigma * velocity).detach())
        if len(cleans) < len(sizes):
            stream.write(cleans[-1], torch.randn(target.shape, generator=generator), source, context)
        if len(cleans) == 1:
            stream.frames += gap
            chunks = list(zip(batch.target.split(sizes, 2), batch.source.split(sizes, 2), strict=True))
            for past, condition in laps * chunks[1:]:
                stream.write(past, torch.randn(past.shape, generator=generator), condition, context)
    return torch.cat(errors, 2).square().mean(), torch.cat(cleans, 2)


@pytest.mark.parametrize("frames", [5, 8])
def test_flow_equals_hand_written_loss(frames):
    """One chunk and two, in value and in every gradient; the rows stand at different timesteps."""
    model, batch = network(), edits(frames)
    assert len(set(draw_timesteps(BATCH, seeded(4))[0].tolist())) == BATCH
    got = losses(model, batch)
    assert got.keys() == {"loss", "flow"} and got["loss"].equal(got["flow"]) and got["loss"].shape == ()
    got["loss"].backward()
    got_gradients = gradients(model)
    expected, _ = flow_by_hand(model, batch, seeded(4))
    expected.backward()
    assert got["flow"].item() == pytest.approx(expected.item(), rel=1e-5)
    for name, gradient in gradients(model).items():
        assert gradient.abs().max() > 0, name
        compare.assert_near(got_gradients[name], gradient, ATOL, name)


@pytest.mark.parametrize("frames", [4, 8])
def test_crr_equals_hand_written_loss(frames):
    """The source, noised in one step, read back from the estimate under the other prompt; the flow term is as without."""
    model, batch = network(), edits(frames)
    got = losses(model, batch, crr_weight=0.7)
    assert got.keys() == {"loss", "flow", "crr"} and got["loss"].equal(got["flow"] + got["crr"])
    assert got["flow"].equal(losses(model, batch)["flow"])

    generator = seeded(4)
    _, edited = flow_by_hand(model, batch, generator)
    timestep = TIMESTEPS[draw_step(generator)]
    sigma = sigma_lookup(torch.tensor(timestep))
    stream, context = NaiveStream(model), reader(model)(batch.reverse_prompts)
    errors = []
    for source, edit in zip(batch.source.split(CHUNKS[frames], 2), edited.split(CHUNKS[frames], 2), strict=True):
        eps = torch.randn(source.shape, generator=generator)
        x = (1 - sigma) * source + sigma * eps
        velocity, _ = stream.call(x, timestep, edit, context)
        errors.append(velocity - eps + source)
        stream.write(x - sigma * velocity, torch.randn(source.shape, generator=generator), edit, context)
    expected = 0.7 * torch.cat(errors, 2).square().mean()
    assert got["crr"].item() == pytest.approx(expected.item(), rel=1e-5)
    got["crr"].backward()
    got_gradients = gradients(model)
    expected.backward()
    for name, gradient in gradients(model).items():
        compare.assert_near(got_gradients[name], gradient, ATOL, name)


def test_chunks_after_a_gap_stand_later():
    """Both directions read positions that many frames on; nothing else changes, and a clip of one chunk stays as it is."""
    model, batch = network(), edits(8)
    found = []
    for seed in range(4, 10):
        generator = seeded(seed)
        gap = draw_gap(20, generator)
        found.append(gap)
        got = edit_losses(model, reader(model), batch, generator=seeded(seed), crr_weight=0, most_gap=20)
        with torch.no_grad():
            expected, _ = flow_by_hand(model, batch, generator, gap)
        assert got["flow"].item() == pytest.approx(expected.item(), rel=1e-5)
    assert len(set(found)) > 2
    starts = []
    positions = model.positions
    model.positions = lambda start, *others: (starts.append(start), positions(start, *others))[1]
    edit_losses(model, reader(model), batch, generator=seeded(4), crr_weight=0.5, most_gap=20)
    gap = draw_gap(20, seeded(4))
    assert gap and starts == [0, 0, 5 + gap, 0, 0, 5 + gap, 5 + gap]


def test_laps_fill_the_state_with_the_true_later_chunks():
    model, batch = network(), edits(8)
    laps = []
    for seed in range(12):
        generator = seeded(seed)
        laps.append(int(torch.randint(4, (), generator=generator)))
        got = edit_losses(model, reader(model), batch, generator=seeded(seed), crr_weight=0, most_laps=3)
        expected, _ = flow_by_hand(model, batch, generator, laps=laps[-1])
        assert got["flow"].item() == pytest.approx(expected.item(), rel=1e-5)
    assert set(laps) == {0, 1, 2, 3}


def test_gaps_are_even_on_a_logarithmic_scale():
    generator = seeded(0)
    gaps = torch.tensor([draw_gap(63, generator) for _ in range(4000)])
    assert gaps.min() == 0 and gaps.max() == 63
    assert (gaps < 7).float().mean().item() == pytest.approx(0.5, abs=0.04)


@pytest.mark.parametrize("frames", CHUNKS)
def test_passes_of_a_clip(frames):
    """Each chunk is denoised once with a gradient; the state is carried on where something reads it, and in reverse always."""
    model, asked = network(), []
    seen, number = calls(model), len(CHUNKS[frames])
    losses(model, edits(frames), asked=asked)
    assert [wanted for _, wanted in seen] == [True, *[False, True] * (number - 1)]
    assert [timestep for timestep, wanted in seen if not wanted] == [0.0] * (number - 1)
    assert asked == [["snow", "rain"]]
    seen.clear()
    got = losses(model, edits(frames), crr_weight=0.5, asked=asked)
    assert [wanted for _, wanted in seen] == [True, *[False, True] * (number - 1), *[True, False] * number]
    assert asked[1:] == [["snow", "rain"], ["no snow", "no rain"]]
    assert all(loss.isfinite() for loss in got.values())


@pytest.mark.parametrize("frames", [5, 8])
def test_without_crr_nothing_more_is_drawn(frames):
    generator, by_hand = seeded(4), seeded(4)
    model, batch = network(), edits(frames)
    edit_losses(model, reader(model), batch, generator=generator, crr_weight=0)
    flow_by_hand(model, batch, by_hand)
    assert generator.get_state().equal(by_hand.get_state())


def test_generator_decides_everything():
    model, batch = network(), edits(6)
    before = torch.get_rng_state()
    with torch.no_grad():
        first, again, other = (losses(model, batch, 0.5, seed) for seed in (4, 4, 5))
    assert first == again
    assert all(first[name] != other[name] for name in first)
    assert before.equal(torch.get_rng_state())


def test_a_row_is_what_it_is_alone(monkeypatch):
    """Given the same noise and its own timestep, nothing of the other rows reaches it."""
    model, weight = network(), 0.5
    timesteps = torch.tensor([961.0, 310.0])

    def run(rows):
        noise = seeded(0)
        monkeypatch.setattr(
            edit_step, "draw_timesteps", lambda count, _: (timesteps[rows], sigma_lookup(timesteps[rows]))
        )
        for module in (edit_step, passes):
            monkeypatch.setattr(
                module, "normal_like", lambda x, _: torch.randn((BATCH, *x.shape[1:]), generator=noise)[rows]
            )
        with torch.no_grad():
            return losses(model, edits(8, rows), weight)

    whole, *alone = run(slice(None)), run(slice(0, 1)), run(slice(1, 2))
    assert abs(alone[0]["flow"] - alone[1]["flow"]) > 0.01
    for name in ("flow", "crr"):
        assert whole[name].item() == pytest.approx(sum(one[name].item() for one in alone) / 2, rel=1e-5)


def test_source_target_and_prompts_have_their_places():
    """Each of them changes the losses that it should change, and the way back changes CRR alone."""
    model, batch = network(), edits(5)
    with torch.no_grad():
        base = losses(model, batch, 0.5)
        other = EditBatch(batch.source, batch.target, batch.prompts, ["no hail", "no fog"])
        swapped = losses(model, other, 0.5)
        assert swapped["flow"] == base["flow"] and swapped["crr"] != base["crr"]
        for changed in (
            EditBatch(batch.target, batch.target, batch.prompts, batch.reverse_prompts),
            EditBatch(batch.source, batch.source, batch.prompts, batch.reverse_prompts),
            EditBatch(batch.source, batch.target, ["hail", "fog"], batch.reverse_prompts),
        ):
            assert losses(model, changed)["flow"] != base["flow"]


@pytest.mark.parametrize(
    ("weight", "words"),
    [(0.5, "needs a reverse prompt"), (-1.0, "out of range"), (float("nan"), "out of range"), (float("inf"), "range")],
)
def test_refused_before_any_pass(weight, words):
    model, batch = network(), edits(5)
    seen = calls(model)
    without = EditBatch(batch.source, batch.target, batch.prompts)
    with pytest.raises(InputError, match=words):
        losses(model, without, weight)
    assert not seen
    assert losses(model, without)["loss"].isfinite()


def test_half_precision_products_are_near_and_reach_every_weight():
    """Products in bfloat16 leave losses, gradients and weights in float32."""
    model, batch = network(), edits(8)
    exact = losses(model, batch, 0.5)
    exact["loss"].backward()
    exact_gradients = gradients(model)
    with torch.autocast("cpu", torch.bfloat16):
        got = losses(model, batch, 0.5)
    got["loss"].backward()
    assert got["loss"] != exact["loss"] and got["loss"].dtype == torch.float32
    for name, loss in exact.items():
        assert got[name].item() == pytest.approx(loss.item(), rel=0.03)
    flat = [
        torch.cat([gradient.flatten() for gradient in found.values()]) for found in (gradients(model), exact_gradients)
    ]
    assert flat[0].dtype == torch.float32
    assert torch.cosine_similarity(*flat, dim=0) > 0.99


def test_timesteps_have_their_shares():
    timesteps, _ = draw_timesteps(20_000, seeded(0))
    each = [(timesteps == timestep).float().mean().item() for timestep in TIMESTEPS]
    assert timesteps.dtype == torch.float32 and timesteps.equal(timesteps.floor())
    assert each == pytest.approx([SAMPLED_SHARE / len(TIMESTEPS)] * len(TIMESTEPS), abs=0.01)
    others = timesteps[~torch.isin(timesteps, torch.tensor(TIMESTEPS))]
    assert others.min() >= 0 and others.max() < 1000
    # The middle of a logit-normal draw, 1/2, after the shift by 3.
    assert others.median().item() == pytest.approx(750, abs=15)


def test_noise_levels_are_those_of_the_timesteps():
    timesteps, sigmas = draw_timesteps(20_000, seeded(0))
    sampled = torch.isin(timesteps, torch.tensor(TIMESTEPS))
    assert sigmas.dtype == torch.float32
    # Cut to a whole number for the network.
    compare.assert_near(1000 * sigmas[~sampled], timesteps[~sampled] + 0.5, 0.501)
    compare.assert_near(1000 * sigmas[sampled], timesteps[sampled], 1.0)
    # A few of the others fall on one of the sampled four.
    assert (sigmas[sampled] == sigma_lookup(timesteps[sampled])).float().mean() > 0.99


def test_the_generator_decides_timesteps():
    first, again, other = (torch.stack(draw_timesteps(64, seeded(seed))) for seed in (0, 0, 1))
    assert first.equal(again) and not first.equal(other)
