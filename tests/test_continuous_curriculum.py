"""The curriculum on continuous time: where its Gaussian lies, its draws and its weights."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from scipy.stats import chisquare, kstest, truncnorm

from pydiffaccel import ContinuousVPSchedule, EDMProcess, FlowProcess, KLProcess, VPProcess, VPSchedule
from pydiffaccel.curriculum import ContinuousCurriculum
from pydiffaccel.forward import Process

LINEAR = ContinuousVPSchedule.linear()
PROCESSES = [
    FlowProcess(),
    VPProcess(schedule=LINEAR),
    VPProcess(schedule=ContinuousVPSchedule.cosine(T=3.0)),
    KLProcess(LINEAR, 5, renormalise=False),
]


def index_of(process: Process, t: torch.Tensor) -> np.ndarray:
    """The index of DDPM's chain with the log-SNR of t, moved to the chain's ends from beyond."""
    chain = VPSchedule.linear()
    ends = chain.log_snr([chain.noisy_end, 0.0])
    return chain.time_of_log_snr(np.clip(process.schedule.log_snr(t.numpy()), *ends))


@pytest.mark.parametrize("process", PROCESSES, ids=repr)
def test_at_full_weight_the_index_of_the_same_log_snr_is_gaussian(process: Process) -> None:
    curriculum = ContinuousCurriculum(process, 10, mu=0.4, width=0.1)
    t = curriculum.sample(10, 5000, seed=3)
    assert t.dtype == torch.float64
    index = index_of(process, t)
    # As far as the process' own times reach over the chain.
    ends = sorted((process.schedule.cleanest_time, process.schedule.noisy_end))
    reach = np.sort(index_of(process, torch.tensor(ends, dtype=torch.float64)))
    law = truncnorm(*((reach - 400) / 100), loc=400, scale=100)
    assert kstest(index, law.cdf).pvalue > 1e-3


@pytest.mark.parametrize("process", PROCESSES, ids=repr)
@pytest.mark.parametrize("step", [0, 4, 25])
def test_draws_follow_the_probabilities(process: Process, step: int) -> None:
    curriculum = ContinuousCurriculum(process, 10, width=0.2)
    p = curriculum.probabilities(step)
    assert bool((p >= 0).all())
    assert p.sum().item() == pytest.approx(1, abs=1e-12)
    first, last = sorted((process.schedule.cleanest_time, process.schedule.noisy_end))
    t = curriculum.sample(step, 20_000, seed=1)
    assert bool(((t >= first) & (t < last)).all())
    cells = ((t - first) / (last - first) * len(p)).long()
    merged = p.view(64, -1).sum(1)
    counts = torch.bincount(cells * 64 // len(p), minlength=64).double()
    likely = merged * 20_000 > 5
    rest = torch.tensor([float(counts[~likely].sum())]), torch.tensor([float(merged[~likely].sum()) * 20_000])
    observed, expected = torch.cat([counts[likely], rest[0]]), torch.cat([merged[likely] * 20_000, rest[1] + 1e-9])
    assert chisquare(observed.numpy(), (expected * observed.sum() / expected.sum()).numpy()).pvalue > 1e-3


@pytest.mark.parametrize("process", PROCESSES, ids=repr)
def test_without_weight_it_is_the_process_bit_for_bit(process: Process) -> None:
    own = process.sample_timesteps(100, seed=1, step=7, first_sample=5)
    assert torch.equal(ContinuousCurriculum(process, 10, max_weight=0.0).sample(7, 100, seed=1, first_sample=5), own)
    late = ContinuousCurriculum(process, 10)
    assert torch.equal(late.sample(0, 100, seed=1), process.sample_timesteps(100, seed=1, step=0))
    assert not torch.equal(late.sample(7, 100, seed=1, first_sample=5), own)


def test_draws_are_a_function_of_the_sample() -> None:
    curriculum = ContinuousCurriculum(FlowProcess(), 10)
    whole = curriculum.sample(5, 12, seed=2)
    assert torch.equal(curriculum.sample(5, 4, seed=2, first_sample=8), whole[8:])


def test_importance_weights_restore_the_uniform_mean() -> None:
    curriculum = ContinuousCurriculum(FlowProcess(), 10, max_weight=0.8, importance=True)
    for step in (0, 5, 10):
        t = curriculum.sample(step, 40_000, seed=4)
        weighted = curriculum.weights(step, t).double() * t.square()
        assert abs(weighted.mean() - 1 / 3) < 4 * weighted.std() / math.sqrt(len(t))
    assert abs(curriculum.sample(10, 40_000, seed=4).square().mean() - 1 / 3) > 0.02
    pairs = curriculum.sample(10, 8, seed=4).view(4, 2)
    assert curriculum.weights(10, pairs).shape == (4, 2)
    assert torch.equal(ContinuousCurriculum(FlowProcess(), 10).weights(10, pairs), torch.ones(4, 2))


@pytest.mark.parametrize("process", PROCESSES, ids=repr)
@pytest.mark.parametrize(("mu", "width", "most"), [(0.3, 0.3, 1.0), (0.9, 0.1, 0.7), (-0.2, 0.5, 0.4)])
def test_identities_of_the_distribution(process: Process, mu: float, width: float, most: float) -> None:
    curriculum = ContinuousCurriculum(process, 8, mu=mu, width=width, max_weight=most, importance=True)
    last, values = 0.0, torch.linspace(0, 2, 4096, dtype=torch.float64).square()
    first, end = sorted((process.schedule.cleanest_time, process.schedule.noisy_end))
    middles = first + (end - first) * (torch.arange(4096, dtype=torch.float64) + 0.5) / 4096
    for step in range(10):
        p = curriculum.probabilities(step)
        assert bool((p >= 0).all())
        assert p.sum().item() == pytest.approx(1, abs=1e-12)
        distance = float((p - 1 / 4096).abs().sum() / 2)
        assert distance >= last - 1e-12
        last = distance
        # Unbiased wherever something is drawn, which is everywhere below weight 1.
        seen = p > 0
        assert bool(seen.all()) or curriculum.mixing(step) == 1
        weighted = (p * curriculum.weights(step, middles) * values)[seen].sum().item()
        assert weighted == pytest.approx((values[seen].sum() / 4096).item(), rel=1e-6)
    assert last > 0.01


def test_it_moves_away_from_uniform() -> None:
    curriculum = ContinuousCurriculum(FlowProcess(), 8)
    distances = [float((curriculum.probabilities(step) - 1 / 4096).abs().sum() / 2) for step in range(12)]
    assert distances[0] < 1e-12
    assert distances[:9] == sorted(distances[:9])
    assert distances[8] == distances[11] > 0.1
    # A narrow Gaussian lies at the time with the log-SNR of index 300.
    centre = FlowProcess().schedule.time_of_log_snr(VPSchedule.linear().log_snr(300.0))
    t = ContinuousCurriculum(FlowProcess(), 8, width=0.01).sample(8, 1000)
    assert abs(float(t.median()) - float(centre)) < 0.003


@pytest.mark.parametrize(
    ("call", "error", "sentence"),
    [
        (lambda: ContinuousCurriculum("flow", 10), TypeError, "process must be a Process, got str"),
        (
            lambda: ContinuousCurriculum(VPProcess(), 10),
            ValueError,
            "continuous time, got the process 'vp' on a vp schedule",
        ),
        (
            lambda: ContinuousCurriculum(EDMProcess(), 10),
            ValueError,
            "uniform times on continuous time, got the process 'edm'",
        ),
        (lambda: ContinuousCurriculum(FlowProcess(), 0), ValueError, "total_steps must be at least 1, got 0"),
        (lambda: ContinuousCurriculum(FlowProcess(), 1, width=-1), ValueError, "width must be positive and finite"),
        (lambda: ContinuousCurriculum(FlowProcess(), 1, mu=9, width=0.1), ValueError, "lies outside of the process'"),
        (lambda: ContinuousCurriculum(FlowProcess(), 1).sample(-1, 2), ValueError, "step must be at least 0, got -1"),
        (lambda: ContinuousCurriculum(FlowProcess(), 1).weights(0, torch.arange(3)), TypeError, "floating-point times"),
    ],
)
def test_bad_input(call, error: type[Exception], sentence: str) -> None:
    with pytest.raises(error, match=sentence):
        call()
