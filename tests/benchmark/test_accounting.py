"""The list of operations against the counts of whole networks, the time a card takes for them, and the page made of it."""

import importlib.util
import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from sana_streaming.sana_core.benchmark import counts
from sana_streaming.sana_core.benchmark.accounting import (
    CARDS,
    PEAK,
    REALISTIC,
    Card,
    Shares,
    chunk_stages,
    part_seconds,
    project,
)
from sana_streaming.sana_core.benchmark.counts import Part, Tokens, Work, total
from sana_streaming.sana_core.benchmark.predictions import Prediction, predictions
from sana_streaming.sana_core.benchmark.sizes import SIZES
from sana_streaming.sana_core.benchmark.traffic import Traffic
from sana_streaming.sana_core.benchmark.vae_parts import decode_parts, encode_parts
from sana_streaming.sana_core.config import VAEConfig
from sana_streaming.sana_core.weights.random_init import toy_configs

ROOT = Path(__file__).parents[2]
SIZE = SIZES["704x1280"]
CARD = Card("card", bf16=1000.0, eight_bit=4000.0, memory=100.0, link=10.0)


def stage(name):
    return next(each for each in chunk_stages(SIZE) if each.name == name)


def test_the_transformer_is_all_there():
    """Five passes as counts.py has them; of the released description, 11.62 TFLOP, what is formed once per prompt and the
    literal form of the delta rule come on top."""
    config, tokens = SIZE.dit, Tokens(3, 22, 40, 2)
    one = counts.pass_work(config, tokens, cached_frames=8, text_tokens=300)
    got = total(stage("DiT").parts)
    assert (got.flops, got.bytes) == (5 * one.flops, 5 * one.bytes)
    width, text, dim, per_frame = 2240, 300, 112, 880
    prompt = 2 * text * width * (20 * 2 * width + 2304 + width)
    literal = 15 * 2 * 3 * 20 * (6 * dim**2 * per_frame + 6 * dim * per_frame)
    rule = 15 * counts.gdn_work(config, tokens).flops
    assert one.flops + prompt + literal - rule == pytest.approx(11.62e12, rel=0.0005)


def test_products_of_a_pass_by_kind():
    """TFLOP of a pass, from the shapes of the layers alone."""
    parts = [replace(part, work=replace(part.work, calls=part.work.calls // 5)) for part in stage("DiT").parts]
    flops = {part.name: part.work.calls * part.work.flops / 1e12 for part in parts}
    expected = {"q, k, v, gate": 2.1195, "MixFFN in, SiLU": 3.1792, "MixFFN out": 1.5896, "softmax attention": 1.1449}
    expected |= {"cross-attention": 0.1419, "MixFFN temporal, residual": 1.5896, "MixFFN depthwise, gate": 0.0128}
    expected |= {"cross-attention q": 0.5299, "attention output, residual": 0.5299}
    assert {name: flops[name] for name in expected} == pytest.approx(expected, rel=0.005)
    rule = [part.work.flops for part in parts if part.name.startswith("GDN") and part.kind == "attention"]
    assert sum(rule) == counts.gdn_work(SIZE.dit, Tokens(3, 22, 40, 2)).flops


@pytest.mark.parametrize("config", [VAEConfig(decoder_causal=True), toy_configs(32)["vae"]], ids=["public", "toy"])
@pytest.mark.parametrize("latents", [1, 3])
def test_convolutions_are_those_of_the_network(config, latents):
    """Arithmetic on the config against the layers themselves, run without storage."""
    height, width = 3 * config.spatial_factor, 5 * config.spatial_factor
    networks = counts.vae_work(config, height, width, latents, torch.bfloat16)
    for parts_of, expected in zip((encode_parts, decode_parts), networks, strict=True):
        parts = parts_of(config, height, width, latents, 2)
        assert total(part for part in parts if part.kind == "convolution") == expected
        assert not total(part for part in parts if part.kind != "convolution").flops


def test_stages_of_the_vae():
    """TFLOP and shares per stage, counted with other code."""
    encode, decode = ({part.name: 0.0 for part in stage(name).parts} for name in ("encode", "decode"))
    for found, name in ((encode, "encode"), (decode, "decode")):
        for part in stage(name).parts:
            found[part.name] += part.work.calls * part.work.flops / 1e12
    assert sum(encode.values()) == pytest.approx(63.0, rel=0.001)
    assert sum(decode.values()) == pytest.approx(27.1, rel=0.001)
    for found, name, expected in (
        (encode, "encode: down 2, 512 channels, 12 x 88 x 160", 28.7),
        (encode, "encode: down 1, 256 channels, 24 x 88 x 160", 14.4),
        (encode, "encode: down 0, 128 channels, 24 x 176 x 320", 9.6),
        (encode, "encode: middle, 2048 channels, 3 x 22 x 40", 2.4),
        (decode, "decode: up 2, 128 channels, 24 x 176 x 320", 12.0),
        (decode, "decode: up-sampler 2", 2.4),
        (decode, "decode: middle, 1024 channels, 3 x 22 x 40", 1.5),
    ):
        assert found[name] == pytest.approx(expected, rel=0.01), name


def test_elementwise_steps_of_the_vae_by_hand():
    """The decoder on 3 x 4 x 6: norms write behind two frames and within a border, the skip is read once."""
    config = toy_configs(32)["vae"]
    factor, channels = config.spatial_factor, config.decoder_block_out_channels[-1]
    parts = decode_parts(config, 4 * factor, 6 * factor, 3, 2)
    middle = [part.work for part in parts if part.name.startswith("decode: middle") and part.kind == "elementwise"]
    layers = config.decoder_layers_per_block[-1]
    norm, skip = 2 * channels * 5 * (4 * 6 + 6 * 8), 2 * channels * 3 * 4 * 6
    assert config.decoder_spatial_padding_mode == "reflect"
    assert middle == [Work(norm, 0, 2 * layers), Work(skip, 0, layers)]
    (shuffle,) = (part.work for part in parts if part.name == "decode: up-sampler 0" and part.kind == "elementwise")
    # Convolution and sum over 6 x 8 x 12 in half the channels, and the shortcut over 3 x 4 x 6 in all of them.
    assert config.decoder_upsample_type[-1] == "spatiotemporal" and config.upsample_factor[-1] == 2
    assert shuffle == Work(2 * (2 * (channels // 2) * 6 * 8 * 12 + channels * 3 * 4 * 6), 0)
    no_shortcut = replace(config, upsample_residual=(False,) * len(config.upsample_residual))
    parts = decode_parts(no_shortcut, 4 * factor, 6 * factor, 3, 2)
    (shuffle,) = (part.work for part in parts if part.name == "decode: up-sampler 0" and part.kind == "elementwise")
    assert shuffle == Work(2 * 2 * (channels // 2) * 6 * 8 * 12, 0)


def test_pixels_cross_the_link_once_each_way():
    for name in ("frames in", "frames out"):
        kinds = {part.kind: part.work for part in stage(name).parts}
        assert kinds == {"transfer": Work(24 * 704 * 1280 * 3, 0), "elementwise": Work(3 * 24 * 704 * 1280 * 3, 0)}


@pytest.mark.parametrize(
    ("kind", "work", "floor", "assumed", "eight_bit"),
    [
        ("matmul", Work(100, 4000), 4.0, 8.0, 2.0),
        ("matmul", Work(400, 4000, calls=3), 12.0, 24.0, 15.0),
        ("convolution", Work(100, 4000), 4.0, 4.0, 4.0),
        ("elementwise", Work(400, 1000), 4.0, 5.0, 5.0),
        ("transfer", Work(10, 0), 1.0, 1.25, 1.25),
    ],
)
def test_time_is_the_longer_of_moving_and_computing(kind, work, floor, assumed, eight_bit):
    part, shares = Part("x", kind, work), Shares(0.8, {"matmul": 0.5})
    assert part_seconds(part, CARD, PEAK) == pytest.approx(floor)
    assert part_seconds(part, CARD, shares) == pytest.approx(assumed)
    assert part_seconds(part, CARD, shares, eight_bit=True) == pytest.approx(eight_bit)


@pytest.mark.parametrize("card", CARDS, ids=lambda card: card.name)
def test_no_projection_is_below_its_floor(card):
    floor, assumed, eight_bit = (
        project(card, PEAK, SIZE),
        project(card, REALISTIC, SIZE),
        project(card, REALISTIC, SIZE, eight_bit=True),
    )
    assert floor.rate > assumed.rate and eight_bit.rate > assumed.rate
    assert floor.seconds == pytest.approx(sum(floor.stage_seconds.values()))
    assert floor.dit_rate == pytest.approx(24 / floor.stage_seconds["DiT"]) and floor.frames == 24
    # The work of a chunk at the peak, to which what memory bounds adds a little.
    assert 147.3e12 / card.bf16 < floor.seconds < 1.2 * 147.3e12 / card.bf16


def test_traffic_is_counted_operation_by_operation():
    x, row = torch.empty(4, 6, device="meta"), torch.empty(6, dtype=torch.float16, device="meta")
    with Traffic() as traffic:
        (x * x).view(24)
        x + row.expand(4, 6)
        x.transpose(0, 1).contiguous()
        torch.empty_like(x)
    assert traffic.by_name == {
        "aten.mul": 4 * 24 + 4 * 24,
        "aten.add": 4 * 24 + 2 * 6 + 4 * 24,
        "aten.clone": 4 * 24 + 4 * 24,
    }
    assert traffic.bytes == sum(traffic.by_name.values())


def test_predictions():
    found = {each.row: each for each in predictions()}
    stream = 2 * 2640 * 2240
    norm = found["norm_modulate"]
    # LayerNorm, product and sum each read and write the stream; statistics and rows of modulation come on top.
    assert norm.calls == 5 * 41 and norm.eager_bytes / norm.calls == pytest.approx(6 * stream, rel=0.002)
    assert norm.fused_bytes / norm.calls == pytest.approx(2 * stream, rel=0.002)
    assert norm.saved_seconds(CARDS[1]) == pytest.approx((norm.eager_bytes - norm.fused_bytes) / (0.8 * 1.79e12))
    residual = found["gated_residual"]
    assert residual.calls == 5 * 40 and residual.eager_bytes / residual.calls == pytest.approx(5 * stream, rel=0.002)
    assert found["gdn_fused"].calls == 75 and found["mix_ffn_middle"].calls == 100
    for each in found.values():
        assert each.eager_bytes > each.fused_bytes > 0
    elementwise = total(part for part in stage("encode").parts if part.kind == "elementwise")
    assert found["vae_encode"].fused_bytes == elementwise.bytes


def test_a_saving_is_measured_where_both_forms_were():
    prediction = Prediction("row", "what", 4, 2, 1)
    timings = {"eager": {"median_ms": 3.0}, "triton": {"median_ms": 1.0}}
    results = {"rows": {"row@704x1280": {"timings": timings}}}
    assert prediction.measured_ms(results, SIZE) == 8.0
    assert prediction.measured_ms(results, SIZES["384x640"]) is None
    del timings["triton"]
    assert prediction.measured_ms(results, SIZE) is None


@pytest.fixture(scope="module")
def script():
    spec = importlib.util.spec_from_file_location("bench_accounting", ROOT / "benchmarks" / "accounting.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_page_of_the_repository_is_up_to_date(script):
    """`python benchmarks/accounting.py` brings it up to date."""
    text = (ROOT / "docs" / "performance.md").read_text(encoding="utf-8")
    assert script.with_section(text, script.section(ROOT / "benchmarks" / "results")) == text
    assert (ROOT / "docs" / script.PICTURE).read_bytes().startswith(b"\x89PNG")


def test_every_table_stands_under_a_heading_that_says_projection(script):
    body = script.section(ROOT / "benchmarks" / "results")
    for line_before, line in zip(body.splitlines(), body.splitlines()[1:], strict=False):
        assert not line.startswith("#") or line.startswith(f"### {script.HEADING}: "), line_before
    assert body.startswith(f"### {script.HEADING}") and body.count("\n| --- |") == 3


def test_the_picture_shows_every_operation_once(script):
    for card in CARDS:
        for shares in (PEAK, REALISTIC):
            assert sum(script.segment_seconds(card, shares).values()) == pytest.approx(
                project(card, shares, SIZE).seconds
            )


def test_what_a_gpu_measured_comes_into_the_page(script, tmp_path):
    kept = ROOT / "benchmarks" / "results" / "cpu"
    for name, change in (("cpu", {}), ("a-gpu", {"device": "A GPU"})):
        values = json.loads((kept / "bench.json").read_text()) | change
        record = values["rows"]["norm_modulate@256x448"] | {"size": "704x1280"}
        timing = record["timings"]["eager"]
        record["timings"] = {"eager": timing | {"median_ms": 0.3}, "triton": timing | {"median_ms": 0.1}}
        values["rows"] = {"norm_modulate@704x1280": record}
        (tmp_path / name).mkdir()
        (tmp_path / name / "bench.json").write_text(json.dumps(values))
    (tmp_path / "cpu" / "video_files.json").write_text((kept / "video_files.json").read_text())
    rows = {cells[0]: cells[-1] for cells in script.predictions_table(tmp_path)}
    assert rows["`norm_modulate`"] == "41 ms (A GPU)"
    assert rows["`gated_residual`"] == script.NOT_MEASURED
