"""Plans: presets, JSON, and what is refused."""

import json
from dataclasses import replace

import pytest
from sana_streaming.sana_core.config import DIT_PRESETS, DiTConfig
from sana_streaming.sana_core.errors import InputError
from sana_streaming.sana_core.precision.plan import PRESETS, Plan, choose_plan, preset, read_plan
from sana_streaming.sana_core.precision.report import parameters_by_format, unit_bytes
from sana_streaming.sana_core.precision.units import FUSED_KINDS, KINDS, units
from sana_streaming.sana_core.weights.dit import official_shapes
from small_dit import CONFIG, small_dit

BIG = DiTConfig()


@pytest.mark.parametrize("layout", ["fused", "split"])
def test_units_are_matrices_of_the_network(layout):
    model = small_dit(layout)
    for unit in units(CONFIG):
        linear = model.get_submodule(unit.module_in(layout))
        rows = 4 * unit.rows if layout == "fused" and unit.kind in FUSED_KINDS else unit.rows
        assert linear.weight.shape == (rows, unit.columns)
        if rows == unit.rows:
            assert (linear.bias is not None) == KINDS[unit.kind].bias
    assert len({unit.name for unit in units(CONFIG)}) == CONFIG.depth * len(KINDS)


@pytest.mark.parametrize("name", ["streaming-2b", "bidirectional-2b"])
def test_units_are_the_matrices_of_the_released_networks(name):
    config = DIT_PRESETS[name]
    shapes = official_shapes(config)
    small = ("beta_proj", "gate_proj", "depth_conv")
    matrices = {k for k, s in shapes.items() if k.startswith("blocks.") and k.endswith(".weight") and len(s) > 1}
    assert {f"{unit.module}.weight" for unit in units(config)} == {
        k for k in matrices if not any(s in k for s in small)
    }


def test_published_policy_on_the_released_network():
    plan = preset("paper-mpq", BIG)
    counts = parameters_by_format(plan, BIG)
    # Per block 3 squares and the temporal convolution of three; in 14 blocks the feed-forward matrices of 6 and 3.
    square = 2240**2
    assert counts["nvfp4"] == 20 * 6 * square + 14 * 9 * square == 1_234_329_600
    assert counts["nvfp4"] + counts["fp8"] == 2_007_040_000
    assert counts["nvfp4"] / (counts["nvfp4"] + counts["fp8"]) == pytest.approx(0.615, abs=5e-4)
    assert counts["bf16"] == 20 * square
    assert plan.layout(BIG) == "split"
    # Bytes: half a byte and a scale per 16 in tiles of 128 rows by 4 scales, a byte, two bytes.
    tiles = {(2240, 2240): 18 * 35, (2240, 6720): 18 * 105, (13440, 2240): 105 * 35}
    scales = 512 * (20 * 3 * tiles[2240, 2240] + 20 * tiles[2240, 6720] + 14 * (tiles[13440, 2240] + tiles[2240, 6720]))
    four_bit, eight_bit = 20 * 4 + 14 * 2, 20 * 4 + 6 * 2
    want = counts["nvfp4"] // 2 + scales + 4 * four_bit + counts["fp8"] + 4 * eight_bit + 2 * counts["bf16"]
    assert unit_bytes(plan, BIG) == want == 1_669_177_120
    assert unit_bytes(preset("bf16", BIG), BIG) == 2 * 20 * 21 * square == 4_214_784_000


def test_published_policy_by_block():
    of = {unit.name: preset("paper-mpq", BIG).format_of(unit) for unit in units(BIG)}
    for block in range(20):
        deep = "nvfp4" if block >= 6 else "fp8"
        assert [of[f"blocks.{block}.{kind}"] for kind in KINDS] == [
            *("nvfp4", "nvfp4", "fp8", "bf16", "fp8"),
            *("fp8", "fp8", "nvfp4"),
            *(deep, deep, "nvfp4"),
        ]
    # At other depths the deep blocks are the same share.
    for depth, first in ((4, 1), (10, 3), (1, 0)):
        config = replace(CONFIG, depth=depth, softmax_layers=(depth - 1,))
        plan = preset("paper-mpq", config)
        deep = [unit.block for unit in units(config) if unit.kind == "ffn.in" and plan.format_of(unit) == "nvfp4"]
        assert deep == list(range(first, depth))


@pytest.mark.parametrize("name", PRESETS)
def test_presets_survive_json(name):
    plan = replace(
        preset(name, BIG), model="abc", input_amax={"blocks.2.self.o": 3.5}, device="card", measurements={"a": [1]}
    )
    plan.check(BIG, "abc")
    assert Plan.from_dict(json.loads(plan.to_json())) == plan
    assert plan.layout(BIG) == ("split" if name == "paper-mpq" else "fused")


def test_json_is_readable():
    values = json.loads(preset("paper-mpq", BIG).to_json())
    assert values["format"] == "sana-streaming-precision" and values["version"] == 1
    assert values["formats"]["ffn.in"] == {"0-5": "fp8", "6-19": "nvfp4"}
    assert list(values["formats"]) == [kind for kind in KINDS if kind != "self.gate"]


def test_fused_where_each_block_has_one_format():
    one = {f"blocks.0.{kind}": "int8" for kind in FUSED_KINDS}
    assert Plan("mine", one).layout(CONFIG) == "fused"
    assert Plan("mine", one | {"blocks.2.self.v": "int8"}).layout(CONFIG) == "split"


def test_digest_is_of_what_a_plan_does():
    plan = preset("fp8", CONFIG)
    assert plan.digest() == replace(plan, name="x", device="y", measurements={"z": 1}).digest()
    assert (
        plan.digest() != preset("int8", CONFIG).digest() != replace(plan, input_amax={"blocks.0.self.o": 1.0}).digest()
    )


@pytest.mark.parametrize(
    ("plan", "message"),
    [
        (
            Plan("mine", {"blocks.4.ffn.in": "fp8"}),
            "plan mine names the unit blocks.4.ffn.in, which a network of 4 blocks",
        ),
        (Plan("mine", {"blocks.0.ffn.middle": "fp8"}), "names the unit blocks.0.ffn.middle"),
        (Plan("mine", {}, input_amax={"blocks.9.ffn.in": 1.0}), "names the unit blocks.9.ffn.in"),
        (Plan("mine", {"blocks.0.ffn.in": "int3"}), "gives blocks.0.ffn.in the format int3; there are bf16, fp8"),
        (Plan("mine", {}, model="abc"), r"was measured on the network abc, not on this one \(def\)"),
    ],
)
def test_plans_of_other_networks_are_refused(plan, message):
    with pytest.raises(InputError, match=message):
        plan.check(CONFIG, "def")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"format": "other"}, "is no precision plan"),
        ({"version": 2}, "version 2; this release reads 1"),
        ({"formats": {"ffn.in": {"3-0": "fp8"}}}, "ffn.in"),
        ({"formats": {"ffn.in": {"0-2": "fp8", "2": "fp8"}}}, "give each block once"),
        ({"formats": {"ffn.in": {"all": "fp8"}}}, "ffn.in"),
        ({"formats": {"ffn.in": {"0-99999999999": "fp8"}}}, "ffn.in"),
        ({"formats": {"ffn.in": "fp8"}}, "ffn.in"),
        ({"formats": {"ffn.in": {"0": "int3"}}}, "int3"),
        ({"formats": {"ffn.in": {"0-3": 8}}}, "has 8 for ffn.in in blocks 0-3; give the name of a format"),
        ({"input_amax": {"ffn.in": {"0": -1.0}}}, r"has -1\.0 for ffn.in in blocks 0; give a positive number"),
        ({"input_amax": {"ffn.in": {"0": 0.0}}}, r"has 0\.0 for ffn.in in blocks 0; give a positive number"),
        ({"made_up": {"ffn.in": {"0": 1}}}, "has 1 for ffn.in in blocks 0; give true"),
        ({"name": 3}, "name = 3"),
        ({"extra": 1}, "extra = 1"),
        ({"formats": None}, "formats = None"),
    ],
)
def test_damaged_plans_are_refused(change, message, tmp_path):
    values = preset("fp8", CONFIG).to_dict() | change
    (tmp_path / "plan.json").write_text(json.dumps(values))
    with pytest.raises(InputError, match=message) as error:
        read_plan(tmp_path / "plan.json")
    assert "plan.json" in str(error.value)


def test_choosing(tmp_path):
    assert choose_plan("fp8", CONFIG) == preset("fp8", CONFIG)
    (tmp_path / "mine.json").write_text(preset("int8", CONFIG).to_json())
    assert choose_plan(tmp_path / "mine.json", CONFIG) == preset("int8", CONFIG)
    with pytest.raises(InputError, match="neither a preset"):
        choose_plan("fp7", CONFIG)
