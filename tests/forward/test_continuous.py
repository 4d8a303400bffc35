"""VP and KL processes on continuous time, and KL processes with the noise levels of their truncation."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from scipy.stats import kstest

from pydiffaccel.forward import KLProcess, VPProcess, process_from_dict
from pydiffaccel.schedule import ContinuousVPSchedule, TruncatedVPSchedule, VPSchedule
from pydiffaccel.schedule.kl_terms import kl_terms

CHAIN = VPSchedule.linear(40, 1e-3, 0.3)
CONTINUOUS = {
    "constant": ContinuousVPSchedule.constant(7.0, T=2.0),
    "linear": ContinuousVPSchedule.linear(),
    "cosine": ContinuousVPSchedule.cosine(T=0.5, t_min=0.01),
}
every_continuous = pytest.mark.parametrize("schedule", CONTINUOUS.values(), ids=CONTINUOUS)
every_schedule = pytest.mark.parametrize("schedule", [*CONTINUOUS.values(), CHAIN], ids=[*CONTINUOUS, "chain"])
every_basis = pytest.mark.parametrize("basis", ["kl", "haar"])
Schedules = VPSchedule | ContinuousVPSchedule


@every_continuous
def test_levels_preserve_the_variance_at_any_real_time(schedule: ContinuousVPSchedule) -> None:
    process = VPProcess(schedule=schedule)
    t = torch.linspace(0, schedule.T, 101, dtype=torch.float64)
    alpha, sigma = process.levels(t)
    assert torch.allclose(alpha**2 + sigma**2, torch.ones(101, dtype=torch.float64), rtol=1e-14)
    assert (float(alpha[0]), float(sigma[0])) == (1, 0)
    assert torch.allclose(process.levels(t.float())[1], sigma, atol=1e-5)


@every_continuous
def test_times_are_uniform_from_t_min_and_reach_the_network_scaled(schedule: ContinuousVPSchedule) -> None:
    process = VPProcess(schedule=schedule)
    t = process.sample_timesteps(20_000, seed=1, step=2)
    assert t.dtype == torch.float64
    assert schedule.t_min <= t.min() < t.max() < schedule.T
    assert kstest(t.numpy(), "uniform", (schedule.t_min, schedule.T - schedule.t_min)).pvalue > 1e-3
    seen = process.model_time(torch.tensor([0.0, schedule.T / 2, schedule.T], dtype=torch.float64))
    assert seen.dtype == torch.float32
    assert torch.allclose(seen, torch.tensor([0.0, 500.0, 1000.0]))


@every_schedule
@every_basis
@pytest.mark.parametrize("renormalise", [True, False])
def test_levels_and_terms_of_a_kl_process(schedule: Schedules, basis: str, renormalise: bool) -> None:
    process = KLProcess(schedule, 5, basis, "v_prediction", renormalise=renormalise)
    plain = VPProcess(schedule=schedule)
    t = process.sample_timesteps(60, seed=3, step=4)
    assert torch.equal(t, plain.sample_timesteps(60, seed=3, step=4))
    assert torch.equal(process.model_time(t), plain.model_time(t))
    terms = process.terms(t)
    assert (terms.shape, terms.dtype) == ((60, 5), torch.float64)
    # The terms are the raw coefficients, whatever the levels are.
    assert terms.numpy() == pytest.approx(kl_terms(schedule, 5, basis).coefficients(t.numpy()), abs=1e-13)
    alpha, sigma = process.levels(t)
    assert torch.equal(alpha, plain.levels(t)[0])
    truncated = terms.square().sum(1).sqrt()
    if renormalise:
        assert process.schedule == schedule
        assert torch.equal(sigma, plain.levels(t)[1])
        assert (truncated <= sigma * (1 + 1e-9)).all()
    else:
        assert process.schedule == TruncatedVPSchedule(schedule, 5, basis)
        assert torch.allclose(sigma, truncated, rtol=1e-12)
        assert (sigma <= plain.levels(t)[1] * (1 + 1e-9)).all()
        assert process.schedule.prior_std == pytest.approx(float(process.schedule.sigma(schedule.noisy_end)))
    # x_t and target follow the levels in use.
    x0, noise = torch.randn(2, 60, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    assert torch.equal(process.add_noise(x0, noise, t), alpha[:, None] * x0 + sigma[:, None] * noise)
    assert torch.equal(process.target(x0, noise, t), alpha[:, None] * noise - sigma[:, None] * x0)


@every_schedule
@every_basis
@pytest.mark.parametrize("renormalise", [True, False])
def test_nothing_waits_for_the_device(schedule: Schedules, basis: str, renormalise: bool) -> None:
    # A meta tensor has no values: whatever needed one on the host would raise.
    process = KLProcess(schedule, 5, basis, renormalise=renormalise)
    t = process.sample_timesteps(7, seed=0, step=0, device="meta")
    for result, shape in ((process.terms(t), (7, 5)), *((level, (7,)) for level in process.levels(t))):
        assert (result.shape, result.dtype, result.device.type) == (shape, torch.float64, "meta")


@every_basis
def test_coefficients_of_continuous_time_are_terms_of_t(basis: str) -> None:
    process = KLProcess(CONTINUOUS["linear"], 3, basis)
    assert process.is_continuous
    assert not KLProcess(CHAIN, 3, basis).is_continuous
    with pytest.raises(ValueError, match=r"has no table of coefficients; use terms\(t\)"):
        process.coefficients  # noqa: B018
    with pytest.raises(ValueError, match=r"has no table of noise levels; use terms\(t\)"):
        process.sigma  # noqa: B018
    with pytest.raises(ValueError, match="a kl process on continuous time has no number of training time steps"):
        process.num_train_timesteps  # noqa: B018


def test_descriptions_of_older_runs() -> None:
    new = KLProcess(CHAIN, 3).to_dict()
    old = {key: value for key, value in new.items() if key != "renormalise"}
    assert set(old) == {"name", "schedule", "prediction_type", "num_terms", "basis"}
    assert process_from_dict(json.loads(json.dumps(old))) == KLProcess(CHAIN, 3, renormalise=True)


def test_processes_differ_by_content() -> None:
    linear = CONTINUOUS["linear"]
    processes = [
        KLProcess(linear, 3),
        KLProcess(linear, 3, renormalise=False),
        KLProcess(linear, 3, "haar"),
        KLProcess(linear, 4),
        KLProcess(linear, 3, num_intervals=2000),
        KLProcess(CHAIN, 3),
        VPProcess(schedule=linear),
        VPProcess(schedule=ContinuousVPSchedule.linear(t_min=0.002)),
    ]
    assert len(set(processes)) == len(processes)
    # Where there is no quadrature its intervals change nothing.
    assert KLProcess(linear, 3, "haar", num_intervals=2000) == processes[2]
    assert KLProcess(CHAIN, 3, num_intervals=2000, renormalise=False) == KLProcess(CHAIN, 3, renormalise=False)


def test_more_intervals_change_terms_by_less_than_the_accuracy() -> None:
    t = torch.linspace(0.001, 1, 200, dtype=torch.float64)
    coarse, fine = (KLProcess(CONTINUOUS["linear"], 8, num_intervals=n).terms(t) for n in (1000, 4000))
    assert not torch.equal(coarse, fine)
    assert (coarse - fine).abs().max() < 1e-8


@pytest.mark.parametrize(
    ("make", "error", "sentence"),
    [
        (lambda: KLProcess(CHAIN, 3, renormalise=1), TypeError, "renormalise must be True or False, got 1"),
        (
            lambda: KLProcess(CONTINUOUS["linear"], 400),
            ValueError,
            "num_terms must be at most 318, got 400",
        ),
        (lambda: KLProcess(CONTINUOUS["linear"], 3, "sine"), ValueError, "basis must be 'kl' or 'haar', got 'sine'"),
        (lambda: KLProcess(TruncatedVPSchedule(CHAIN, 2), 3), TypeError, "needs a VPSchedule or a .*, got Truncated"),
        (lambda: VPProcess(schedule=TruncatedVPSchedule(CHAIN, 2)), TypeError, "needs a VPSchedule or a .*, got Trunc"),
        (
            lambda: process_from_dict({**KLProcess(CHAIN, 3).to_dict(), "terms": 3}),
            ValueError,
            r"a kl description has the fields .*, got \[.*'terms'",
        ),
    ],
)
def test_bad_settings(make, error: type[Exception], sentence: str) -> None:
    with pytest.raises(error, match=sentence):
        make()


@pytest.mark.parametrize("method", ["levels", "terms"])
def test_bad_times(method: str) -> None:
    process = KLProcess(CONTINUOUS["constant"], 3)
    for t, error, sentence in (
        (
            torch.tensor([1, 2]),
            TypeError,
            r"times of a kl process on continuous time are floating point, got dtype torch\.int64",
        ),
        (torch.tensor([0.5, 2.5]), ValueError, r"t must lie in \[0, 2\], got 2\.5"),
        (torch.tensor([-0.5]), ValueError, r"t must lie in \[0, 2\], got -0\.5"),
        (torch.tensor([torch.nan]), ValueError, r"t must lie in \[0, 2\], got nan"),
    ):
        with pytest.raises(error, match=sentence):
            getattr(process, method)(t)
    assert np.isfinite(process.terms(torch.tensor([2.0 + 1e-6])).numpy()).all()  # float32's rounding of T


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@every_schedule
@every_basis
@pytest.mark.parametrize("renormalise", [True, False])
def test_the_gpu_computes_what_the_cpu_computes(schedule: Schedules, basis: str, renormalise: bool) -> None:
    process = KLProcess(schedule, 5, basis, renormalise=renormalise)
    t = process.sample_timesteps(50, seed=0, step=0)
    on_cpu, on_gpu = ((process.terms(where), *process.levels(where)) for where in (t, t.cuda()))
    for ours, theirs in zip(on_cpu, on_gpu, strict=True):
        assert torch.allclose(ours, theirs.cpu(), rtol=1e-11, atol=1e-13)
