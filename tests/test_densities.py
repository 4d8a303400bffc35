"""Densities of training times: distributions, draws, weights, what they refuse."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
from scipy.special import expit, logit
from scipy.stats import chisquare, kstest, norm
from torch import Tensor

from pydiffaccel import ContinuousVPSchedule, EDMProcess, FlowProcess, KLProcess, VPProcess, VPSchedule
from pydiffaccel.densities import CosMap, LogitNormal, Mode, NoiseDensity, SpeedDensity, TimeDensity
from pydiffaccel.forward import Process

LINEAR = ContinuousVPSchedule.linear()
LAWS = [LogitNormal(), LogitNormal(-0.7, 0.5), Mode(), Mode(-0.8), Mode(0.0), CosMap()]
CHAINS = [
    VPProcess(schedule=VPSchedule.linear(50, 1e-3, 0.3)),
    VPProcess(schedule=VPSchedule.linear(50, 1e-3, 0.3).rescaled_to_zero_terminal_snr(), prediction_type="sample"),
    VPProcess(schedule=VPSchedule([1.0, 0.9, 0.4, 0.05])),
    KLProcess(VPSchedule.linear(40), 3, renormalise=False),
    VPProcess(betas=[0.5]),
]
CONTINUOUS = [
    FlowProcess(),
    VPProcess(schedule=LINEAR),
    VPProcess(schedule=ContinuousVPSchedule.cosine(T=3.0)),
    KLProcess(LINEAR, 5, renormalise=False),
]
DENSITIES: dict[str, Callable[[Process], TimeDensity]] = {
    **{repr(law): (lambda process, law=law: NoiseDensity(process, law)) for law in LAWS},
    "speed": SpeedDensity,
    "speed late": lambda process: SpeedDensity(process, 2.5, 0.3),
}
CONVERGING = [*CHAINS[:2], *CONTINUOUS[1:3]]
CASES = [
    pytest.param(make, process, id=f"{name}-{process!r}")
    for name, make in DENSITIES.items()
    for process in ([*CHAINS, *CONTINUOUS] if "speed" not in name else CONVERGING)
]


def ends(process: Process) -> tuple[float, float]:
    first, last = sorted((process.schedule.cleanest_time, process.schedule.noisy_end))
    return first, last


def is_chain(process: Process) -> bool:
    return process.schedule.num_train_timesteps is not None


# The laws.


@pytest.mark.parametrize("law", LAWS, ids=repr)
def test_a_law_is_its_own_inverse_and_derivative(law: LogitNormal | Mode | CosMap) -> None:
    r = torch.linspace(0.003, 0.997, 200, dtype=torch.float64)
    u = law.cdf(r)
    inside = 1 - u > 1e-6  # beyond, u is rounded to the next number
    assert torch.allclose(law.quantile(u)[inside], r[inside], rtol=1e-9)
    slope = (law.cdf(r + 1e-6) - law.cdf(r - 1e-6)) / 2e-6
    assert torch.allclose(law.density(r), slope, rtol=1e-6, atol=1e-7)
    assert law.cdf(torch.tensor([0.0, 1.0], dtype=torch.float64)).tolist() == [0, 1]
    assert torch.allclose(law.reflected().density(r), law.density(1 - r), rtol=1e-9)


def test_laws_are_those_of_the_paper() -> None:
    t = np.linspace(0.01, 0.99, 50)
    at = torch.from_numpy(t)
    normal = norm.pdf(logit(t), loc=0.3, scale=0.8) / (t * (1 - t))
    assert np.allclose(LogitNormal(0.3, 0.8).density(at), normal, rtol=1e-12)
    assert np.allclose(CosMap().density(at), 2 / (math.pi - 2 * math.pi * t + 2 * math.pi * t**2), rtol=1e-12)
    assert np.allclose(CosMap().quantile(at), 1 - 1 / (np.tan(math.pi * t / 2) + 1), rtol=1e-12)
    mapped = 1 - t - 1.29 * (np.cos(math.pi / 2 * t) ** 2 - 1 + t)
    assert np.allclose(Mode(1.29).quantile(1 - at), mapped, rtol=1e-12)


# Draws.


@pytest.mark.parametrize(("make", "process"), CASES)
def test_draws_follow_the_density(make: Callable[[Process], TimeDensity], process: Process) -> None:
    density = make(process)
    n = 1000 if isinstance(process, KLProcess) else 4000  # its levels are inverted by bisection
    t = density.sample(4, n, seed=5)
    if is_chain(process):
        p = density.probabilities()
        assert t.dtype == torch.int64
        assert p.dtype == torch.float64
        assert bool((p >= 0).all())
        assert p.sum().item() == pytest.approx(1, abs=1e-12)
        likely = p * n > 5
        counts = t.bincount(minlength=len(p)).double()
        observed = torch.cat([counts[likely], counts[~likely].sum().view(1)])
        expected = torch.cat([p[likely] * n, p[~likely].sum().view(1) * n + 1e-9])
        if len(p) > 1:
            assert chisquare(observed.numpy(), (expected * n / expected.sum()).numpy()).pvalue > 1e-3
        every = torch.arange(len(p))
        assert torch.allclose(density.density(every), len(p) * p, rtol=1e-12)
        return
    assert t.dtype == torch.float64
    first, last = ends(process)
    assert bool(((t >= first) & (t <= last)).all())
    # The integral of the density from the first time is the distribution function.
    grid = torch.linspace(0, 1, 10_001, dtype=torch.float64).square()  # finer where the log-SNR moves fast
    at = first + (last - first) * grid
    values = density.density(at.clamp(first + 1e-12, last - 1e-12))
    below = torch.cat([torch.zeros(1, dtype=torch.float64), torch.cumulative_trapezoid(values, grid)])
    assert below[-1].item() == pytest.approx(1, abs=1e-3)
    assert kstest(np.interp(t.numpy(), at.numpy(), below.numpy()), "uniform").pvalue > 1e-3


@pytest.mark.parametrize("process", CONTINUOUS, ids=repr)
def test_the_fraction_of_noise_has_the_law(process: Process) -> None:
    law = LogitNormal(-0.5, 0.7)
    t = NoiseDensity(process, law).sample(0, 1000, seed=2)
    r = expit(-process.schedule.log_snr(t.numpy()))
    low, high = sorted(expit(-process.schedule.log_snr(list(ends(process)))))
    below = law.cdf(torch.from_numpy(np.array([low, high])))
    u = (law.cdf(torch.from_numpy(r)) - below[0]) / (below[1] - below[0])
    assert kstest(u.numpy(), "uniform").pvalue > 1e-3


def test_a_fine_chain_is_continuous_time() -> None:
    chain = VPSchedule.linear(1000)
    p = NoiseDensity(VPProcess(schedule=chain), LogitNormal()).probabilities()
    levels = torch.sigmoid(-torch.from_numpy(chain.log_snr(np.arange(1000) + 0.5 - (np.arange(1000) == 999))))
    law = LogitNormal().cdf(levels)
    assert torch.allclose(p.cumsum(0)[:999], (law / law[-1])[:999], atol=2e-3)


@pytest.mark.parametrize(("make", "process"), CASES)
def test_a_draw_is_a_function_of_seed_step_and_sample(make: Callable[[Process], TimeDensity], process: Process) -> None:
    density, state = make(process), torch.get_rng_state()
    whole = density.sample(6, 60, seed=2, first_sample=100)
    parts = [density.sample(6, n, seed=2, first_sample=100 + a) for a, n in ((0, 13), (13, 47))]
    assert torch.equal(whole, torch.cat(parts))
    assert torch.equal(state, torch.get_rng_state())
    assert density.sample(6, 0).shape == (0,)
    if not (is_chain(process) and process.schedule.num_train_timesteps == 1):
        assert not torch.equal(whole, density.sample(7, 60, seed=2, first_sample=100))


def test_null_settings_are_the_process_bit_for_bit() -> None:
    place = {"seed": 3, "step": 5, "first_sample": 7}
    for process in CONVERGING:
        plain = process.sample_timesteps(500, **place)
        assert torch.equal(SpeedDensity(process, 1.0).sample(n=500, **place), plain)
        assert not torch.equal(SpeedDensity(process, 1.5).sample(n=500, **place), plain)
    flow = FlowProcess()
    assert torch.equal(NoiseDensity(flow, Mode(0.0)).sample(n=500, **place), flow.sample_timesteps(500, **place))


# Weights.


@pytest.mark.parametrize(("make", "process"), CASES)
def test_importance_weights_restore_the_uniform_mean(make: Callable[[Process], TimeDensity], process: Process) -> None:
    plain = make(process)
    density = (
        NoiseDensity(process, plain.law, importance=True)
        if isinstance(plain, NoiseDensity)
        else SpeedDensity(process, plain.suppression, plain.threshold, importance=True)
    )
    if is_chain(process):
        p, every = density.probabilities(), torch.arange(process.schedule.num_train_timesteps)
        values, w = every.double().square() + 1, density.weights(0, every)
        seen = p > 0
        mean = values.mean() if bool(seen.all()) else values[seen].sum() / len(p)
        assert (p * w * values)[seen].sum().item() == pytest.approx(mean.item(), rel=1e-6)
    else:
        first, last = ends(process)
        t = torch.linspace(first, last, 33, dtype=torch.float64)[1:-1].view(1, 31)
        w = density.weights(0, t)
        assert torch.allclose(w.double() * density.density(t), torch.ones_like(t), rtol=1e-6)
    assert w.dtype == torch.float32
    assert torch.equal(plain.weights(0, plain.sample(0, 3)), torch.ones(3))


def test_weighted_draws_have_the_uniform_mean() -> None:
    for process in (FlowProcess(), VPProcess(schedule=LINEAR)):
        for law in (Mode(), CosMap()):
            density = NoiseDensity(process, law, importance=True)
            t = density.sample(1, 20_000, seed=4)
            first, last = ends(process)
            unit = (t - first) / (last - first)
            weighted = density.weights(1, t).double() * unit.square()
            assert abs(weighted.mean() - 1 / 3) < 4 * weighted.std() / math.sqrt(len(t))
            assert abs(unit.square().mean() - 1 / 3) > 0.004


# Asymmetric sampling.


def test_speed_is_that_of_the_published_code() -> None:
    schedule = VPSchedule.linear()
    slope = np.gradient(schedule.sigma(np.arange(1000)))
    p = np.tanh(1e6 * (slope - 1e-4)) + 1.5
    clear = np.abs(slope - 1e-4) > 5e-6  # that code goes over the border smoothly, within two dozen indices
    density = SpeedDensity(VPProcess(schedule=schedule))
    assert clear.sum() > 970
    assert np.allclose((density.probabilities() / density.probabilities()[-1])[clear], (p / p[-1])[clear], rtol=1e-3)
    assert 600 < density.border < 700
    continuous = SpeedDensity(VPProcess(schedule=ContinuousVPSchedule.linear()))
    assert continuous.border == pytest.approx(density.border / 1000, abs=0.01)
    # A chain of other length on the same levels has the same border.
    coarse = SpeedDensity(VPProcess(schedule=VPSchedule.linear(250, 4e-4, 0.08)))
    assert coarse.border * 4 == pytest.approx(density.border, abs=12)


@pytest.mark.parametrize(
    ("call", "error", "sentence"),
    [
        (lambda: NoiseDensity("flow", CosMap()), TypeError, "process must be a Process, got str"),
        (lambda: NoiseDensity(FlowProcess(), "mode"), TypeError, "law must be LogitNormal, Mode or CosMap, got str"),
        (lambda: NoiseDensity(EDMProcess(), CosMap()), ValueError, "an edm process has a log-normal one of its own"),
        (lambda: SpeedDensity(EDMProcess()), ValueError, "an edm process has a log-normal one of its own"),
        (lambda: NoiseDensity(CHAINS[0], LogitNormal(90, 0.1)), ValueError, "lies outside of the process' noise"),
        (lambda: LogitNormal(math.nan), ValueError, "mean must be finite, got nan"),
        (lambda: LogitNormal(0, 0), ValueError, "std must be positive and finite, got 0"),
        (lambda: Mode(2), ValueError, r"scale must lie in \[-1, 2 / \(pi - 2\)\] = \[-1, 1.7519\], got 2"),
        (lambda: SpeedDensity(CHAINS[0], 0.5), ValueError, "suppression must be at least 1 and finite, got 0.5"),
        (lambda: SpeedDensity(CHAINS[0], 5, 0), ValueError, "threshold must be positive and finite, got 0"),
        (lambda: SpeedDensity(FlowProcess()), ValueError, "needs a noise level that converges, but sigma of the"),
        (lambda: SpeedDensity(CHAINS[0], 5, 1e9), ValueError, "and no time is above the threshold 1e\\+09"),
        (lambda: SpeedDensity(CHAINS[0], 5, 1e-9), ValueError, "and the noisiest time is above the threshold 1e-09"),
        (lambda: NoiseDensity(FlowProcess(), CosMap()).sample(-1, 2), ValueError, "step must be at least 0, got -1"),
        (lambda: SpeedDensity(CHAINS[0], 1).sample(-1, 2), ValueError, "step must be at least 0, got -1"),
        (
            lambda: NoiseDensity(FlowProcess(), CosMap()).probabilities(),
            ValueError,
            "on continuous time has no probabilities of indices",
        ),
        (lambda: NoiseDensity(FlowProcess(), CosMap()).weights(0, torch.arange(3)), TypeError, "floating-point times"),
        (lambda: NoiseDensity(CHAINS[0], CosMap()).density(torch.ones(3)), TypeError, "integer indices, got dtype"),
    ],
)
def test_bad_input(call: Callable[[], Tensor], error: type[Exception], sentence: str) -> None:
    with pytest.raises(error, match=sentence):
        call()
