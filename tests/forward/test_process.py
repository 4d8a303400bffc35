"""Forward processes: inputs, targets, times and descriptions."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from scipy.stats import chisquare, kstest
from torch import Tensor

from pydiffaccel.forward import EDMProcess, FlowProcess, KLProcess, Process, VPProcess, process_from_dict
from pydiffaccel.schedule import ContinuousVPSchedule, FlowSchedule, VPSchedule

SMALL = VPSchedule.scaled_linear(20)
PROCESSES = [
    VPProcess(),
    VPProcess(schedule=SMALL, prediction_type="sample"),
    VPProcess(schedule=VPSchedule.cosine(50), prediction_type="v_prediction"),
    FlowProcess(),
    EDMProcess(),
    EDMProcess(0.7, 0.1, 0.9, sigma_max=50.0, prediction_type="sample"),
    KLProcess(SMALL, 3),
    KLProcess(SMALL, 2, prediction_type="v_prediction"),
    KLProcess(SMALL, 3, renormalise=False),
    KLProcess(SMALL, 3, "haar", "v_prediction", renormalise=False),
    VPProcess(schedule=ContinuousVPSchedule.linear()),
    VPProcess(schedule=ContinuousVPSchedule.constant(9.0, T=2.5), prediction_type="v_prediction"),
    KLProcess(ContinuousVPSchedule.cosine(), 3),
    KLProcess(ContinuousVPSchedule.cosine(), 3, num_intervals=400, renormalise=False),
    KLProcess(ContinuousVPSchedule.linear(T=0.7, t_min=0.01), 5, "haar", "sample", renormalise=False),
]


def batch(*shape: int, dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    x0, noise = (torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype) for _ in range(2))
    return x0, noise


def test_vp_follows_its_definition() -> None:
    betas = np.linspace(0.01, 0.2, 7)
    alphabar = torch.from_numpy(np.cumprod(1 - betas))
    x0, noise = batch(7, 2, 3)
    t = torch.arange(7).flip(0)
    alpha, sigma = (level[t].view(-1, 1, 1) for level in (alphabar.sqrt(), (1 - alphabar).sqrt()))
    for process in (VPProcess(betas), VPProcess(alphas_cumprod=alphabar)):
        assert torch.allclose(process.add_noise(x0, noise, t), alpha * x0 + sigma * noise, rtol=1e-14)
        assert torch.equal(process.target(x0, noise, t), noise)
    assert torch.equal(VPProcess(betas, prediction_type="sample").target(x0, noise, t), x0)
    velocity = VPProcess(betas, prediction_type="v_prediction").target(x0, noise, t)
    assert torch.allclose(velocity, alpha * noise - sigma * x0, rtol=1e-14)


def test_default_vp_is_that_of_ddpm() -> None:
    process = VPProcess()
    assert process.num_train_timesteps == 1000
    assert np.allclose(process.schedule.betas, np.linspace(1e-4, 0.02, 1000), rtol=1e-12)
    assert process.prediction_type == "epsilon"


def test_flow_follows_its_definition() -> None:
    process = FlowProcess()
    x0, noise = batch(5, 4)
    t = torch.tensor([0.0, 0.25, 0.5, 0.9, 1.0], dtype=torch.float64)
    expected = (1 - t)[:, None] * noise + t[:, None] * x0
    assert torch.allclose(process.add_noise(x0, noise, t), expected, rtol=1e-14)
    assert torch.equal(process.add_noise(x0, noise, t)[0], noise[0])
    assert torch.equal(process.add_noise(x0, noise, t)[-1], x0[-1])
    assert torch.equal(process.target(x0, noise, t), x0 - noise)
    assert isinstance(process.schedule, FlowSchedule)


@pytest.mark.parametrize("process", PROCESSES, ids=repr)
def test_levels_are_those_of_the_schedule(process: Process) -> None:
    t = process.sample_timesteps(40, seed=1, step=0)
    alpha, sigma = process.levels(t)
    assert alpha.dtype == sigma.dtype == torch.float64
    if t.is_floating_point():  # exp of NumPy and of torch
        np.testing.assert_allclose(alpha.numpy(), process.schedule.alpha(t.numpy()), rtol=1e-13)
        np.testing.assert_allclose(sigma.numpy(), process.schedule.sigma(t.numpy()), rtol=1e-12)
    else:
        assert np.array_equal(alpha.numpy(), process.schedule.alpha(t.numpy()))
        assert np.array_equal(sigma.numpy(), process.schedule.sigma(t.numpy()))


@pytest.mark.parametrize("process", PROCESSES, ids=repr)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.float16, torch.bfloat16], ids=str)
def test_arithmetic_is_float32_or_wider(process: Process, dtype: torch.dtype) -> None:
    x0, noise = batch(6, 3, 2, dtype=dtype)
    t = process.sample_timesteps(6, seed=2, step=1)
    wide = torch.float64 if dtype == torch.float64 else torch.float32
    alpha, sigma = (level.to(wide).view(-1, 1, 1) for level in process.levels(t))
    x_t = process.add_noise(x0, noise, t)
    # Two products and a sum, each rounded: bit for bit.
    assert torch.equal(x_t, (alpha * x0.to(wide) + sigma * noise.to(wide)).to(dtype))
    assert process.target(x0, noise, t).dtype == wide
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(process.add_noise(x0, noise, t), x_t)


@pytest.mark.parametrize("process", PROCESSES, ids=repr)
def test_empty_batch_and_vectors(process: Process) -> None:
    t = process.sample_timesteps(0, seed=1, step=0)
    assert process.add_noise(torch.empty(0, 3), torch.empty(0, 3), t).shape == (0, 3)
    t = process.sample_timesteps(2, seed=1, step=0)
    assert process.target(torch.ones(2), torch.ones(2), t).shape == (2,)


def test_noising_is_differentiable_in_the_data() -> None:
    x0, noise = batch(3, 2)
    process, t = VPProcess(schedule=SMALL, prediction_type="v_prediction"), torch.tensor([0, 9, 19])
    x0.requires_grad_()
    (process.add_noise(x0, noise, t) + process.target(x0, noise, t)).sum().backward()
    alpha, sigma = process.levels(t)
    assert torch.allclose(x0.grad, (alpha - sigma)[:, None].expand(3, 2))


def test_the_network_receives_float32_times() -> None:
    t = torch.tensor([0, 7, 999])
    assert torch.equal(VPProcess().model_time(t), torch.tensor([0.0, 7.0, 999.0]))
    flow = FlowProcess().model_time(torch.tensor([0.0, 0.25, 1.0], dtype=torch.float64))
    assert torch.equal(flow, torch.tensor([0.0, 250.0, 1000.0]))
    assert flow.dtype == VPProcess().model_time(t).dtype == torch.float32


@pytest.mark.parametrize("process", PROCESSES, ids=repr)
def test_times_are_a_function_of_seed_step_and_sample(process: Process) -> None:
    state = torch.get_rng_state()
    whole = process.sample_timesteps(50, seed=3, step=4, first_sample=10)
    parts = [process.sample_timesteps(n, seed=3, step=4, first_sample=10 + a) for a, n in ((0, 20), (20, 30))]
    assert torch.equal(whole, torch.cat(parts))
    assert torch.equal(state, torch.get_rng_state())
    assert not torch.equal(whole, process.sample_timesteps(50, seed=4, step=4, first_sample=10))
    assert not torch.equal(whole, process.sample_timesteps(50, seed=3, step=5, first_sample=10))


def test_times_are_uniform() -> None:
    indices = VPProcess(schedule=SMALL).sample_timesteps(20_000, seed=1, step=2)
    assert indices.dtype == torch.int64
    assert chisquare(indices.bincount(minlength=20).numpy()).pvalue > 1e-3
    times = FlowProcess().sample_timesteps(20_000, seed=1, step=2)
    assert times.dtype == torch.float64
    assert 0 <= times.min() < times.max() < 1
    assert kstest(times.numpy(), "uniform").pvalue > 1e-3


@pytest.mark.parametrize("process", PROCESSES, ids=repr)
def test_description_survives_a_round_trip(process: Process) -> None:
    again = process_from_dict(json.loads(json.dumps(process.to_dict())))
    assert again == process
    assert hash(again) == hash(process)
    assert sum(other == process for other in PROCESSES) == 1
    x0, noise = batch(6, 4)
    t = process.sample_timesteps(6, seed=0, step=0)
    assert torch.equal(again.add_noise(x0, noise, t), process.add_noise(x0, noise, t))
    assert torch.equal(again.target(x0, noise, t), process.target(x0, noise, t))


@pytest.mark.parametrize(
    ("make", "error", "sentence"),
    [
        (lambda: VPProcess([0.1], alphas_cumprod=[0.9]), ValueError, "give one of betas, .* got betas and alphas_cump"),
        (lambda: VPProcess([0.1, 1.5]), ValueError, "betas must lie in"),
        (lambda: VPProcess(schedule=FlowSchedule()), TypeError, "a vp process needs a VPSchedule or a Co.*, got Flow"),
        (lambda: VPProcess(prediction_type="flow"), ValueError, "prediction_type of a vp process .* got 'flow'"),
        (lambda: KLProcess(SMALL, 2, "sine"), ValueError, "basis must be 'kl' or 'haar', got 'sine'"),
        (lambda: KLProcess(SMALL, 0), ValueError, "num_terms must be at least 1, got 0"),
        (lambda: KLProcess(SMALL, 2.0), TypeError, "num_terms must be an int, got float"),
        (lambda: KLProcess(FlowSchedule(), 2), TypeError, "a kl process needs a VPSchedule or a Co.*, got Flow"),
        (lambda: KLProcess(SMALL, 2, prediction_type="x"), ValueError, "prediction_type of a kl process .* got 'x'"),
        (lambda: process_from_dict("vp"), TypeError, "a process is described by a dict, got str"),
        (lambda: process_from_dict({"name": "ve"}), ValueError, "unknown process 've'; known: edm, flow, kl, vp"),
        (lambda: process_from_dict({"name": "flow", "x": 1}), ValueError, r"a flow description .* \[\], got \['x'\]"),
        (lambda: process_from_dict({"name": "vp"}), ValueError, "a vp description has the fields"),
        (
            lambda: process_from_dict({"name": "vp", "schedule": {"name": "flow"}, "prediction_type": "epsilon"}),
            ValueError,
            "a vp process needs a vp schedule, got flow",
        ),
    ],
)
def test_bad_settings(make, error: type[Exception], sentence: str) -> None:
    with pytest.raises(error, match=sentence):
        make()


@pytest.mark.parametrize(
    ("process", "t", "error", "sentence"),
    [
        (PROCESSES[1], torch.tensor([0, 20]), ValueError, r"t must lie in 0 \.\. 19, got 20"),
        (PROCESSES[1], torch.tensor([-1, 3]), ValueError, r"t must lie in 0 \.\. 19, got -1"),
        (PROCESSES[1], torch.tensor([0.0, 1.0]), TypeError, "times of a vp process are integer indices, got dtype"),
        (
            PROCESSES[2],
            torch.tensor([0, 1, 2]),
            ValueError,
            r"t must have one time per sample, shape \(2,\), got \(3,\)",
        ),
        (FlowProcess(), torch.tensor([0, 1]), TypeError, "times of a flow process are floating-point numbers, got"),
        (FlowProcess(), torch.tensor([0.5, 1.5]), ValueError, r"t must lie in \[0, 1\], got 1.5"),
        (FlowProcess(), torch.tensor([0.5, torch.nan]), ValueError, r"t must lie in \[0, 1\], got nan"),
    ],
)
def test_bad_times(process: Process, t: Tensor, error: type[Exception], sentence: str) -> None:
    x0, noise = batch(2, 3)
    with pytest.raises(error, match=sentence):
        process.add_noise(x0, noise, t)


def test_bad_batches() -> None:
    process, t = VPProcess(), torch.tensor([1, 2])
    with pytest.raises(TypeError, match=r"x must be a floating-point tensor, got torch\.int64"):
        process.add_noise(torch.ones(2, 3).long(), torch.ones(2, 3), t)
    with pytest.raises(ValueError, match=r"noise must have the shape of x0, \(2, 3\), got \(2, 1\)"):
        process.target(torch.ones(2, 3), torch.ones(2, 1), t)
    with pytest.raises(ValueError, match="x0 must have a batch dimension, got a scalar"):
        process.add_noise(torch.tensor(1.0), torch.tensor(1.0), t)
