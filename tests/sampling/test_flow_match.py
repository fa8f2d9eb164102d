import compare
import golden_files
import pytest
import torch
from sana_streaming.sana_core.errors import InputError
from sana_streaming.sana_core.sampling.flow_match import euler_step, streaming_schedule


@pytest.mark.golden
def test_official_schedules():
    golden = golden_files.load_json("text/flowmatch.json")
    for case in golden["schedules"]:
        schedule = streaming_schedule(case["steps"], case["shift"])
        assert list(schedule.timesteps) == pytest.approx(case["used_timesteps"], abs=golden["tolerance"])
        assert list(schedule.sigmas) == pytest.approx(case["used_sigmas"], abs=golden["tolerance"] / 1000)
        assert [int(t) for t in schedule.timesteps] == case["model_timestep_seen"]


@pytest.mark.golden
def test_schedules_of_the_official_sampler():
    case, tensors = golden_files.load("dit/streaming_sampler.safetensors")
    for run in case["runs"]:
        schedule = streaming_schedule(run["steps"], case["flow_shift"])
        compare.assert_near(torch.tensor(schedule.timesteps), tensors[f"{run['name']}.timesteps"], 1e-3, run["name"])
        compare.assert_near(torch.tensor(schedule.sigmas), tensors[f"{run['name']}.sigmas"], 1e-6, run["name"])


def test_one_step_and_none():
    assert streaming_schedule(1).timesteps == (1000.0,)
    with pytest.raises(InputError, match="steps 0"):
        streaming_schedule(0)


def test_rounding_forms_the_product_in_the_dtype_of_v():
    """-0.039 * 0.75 = -0.02925 would take 1 to 0.97075, so to 0.97265625; as bfloat16 it is -0.029296875, which takes 1
    half way between two bfloat16 values, so to the even one, 0.96875."""
    x, v = torch.tensor([1.0, 1.0, 0.5, 1.0]), torch.tensor([0.75, 6.75, -7.875, 0.0])
    rounded = euler_step(x, v.bfloat16(), 1.0, 0.961, round_latents=True)
    assert rounded.tolist() == [0.96875, 0.734375, 0.8046875, 1.0]
    # The same numbers as float32 velocities are multiplied in float32.
    assert euler_step(x, v, 1.0, 0.961, round_latents=True).tolist() == [0.97265625, 0.73828125, 0.80859375, 1.0]
    # Without rounding the dtype of v makes no difference.
    assert torch.equal(euler_step(x, v.bfloat16(), 1.0, 0.961), euler_step(x, v, 1.0, 0.961))


def test_rounding_gives_bfloat16_values():
    x, v = torch.randn(2, 3, generator=torch.Generator().manual_seed(0)), torch.ones(2, 3, dtype=torch.bfloat16)
    rounded = euler_step(x, v, 1.0, 0.961, round_latents=True)
    assert rounded.dtype == torch.float32
    assert torch.equal(rounded, rounded.bfloat16().float())
    plain = euler_step(x, v, 1.0, 0.961)
    assert not torch.equal(plain, plain.bfloat16().float())
    compare.assert_near(rounded, plain, 0.01)
