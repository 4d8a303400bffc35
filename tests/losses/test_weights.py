"""The table of loss weights: formulas, one objective in every prediction type, ends of schedules, refusals."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from pydiffaccel import ContinuousVPSchedule, EDMProcess, FlowProcess, KLProcess, VPProcess, VPSchedule, min_snr_weight
from pydiffaccel.forward import Process
from pydiffaccel.losses.weights import SPACES, WEIGHTINGS, LossWeighting
from pydiffaccel.schedule.slope import noise_slope
from tests.losses.networks import SCHEDULE, TYPES, batch

CONTINUOUS = ContinuousVPSchedule.linear()
ZERO_SNR = SCHEDULE.rescaled_to_zero_terminal_snr()
# Processes on the same levels: what they predict is all that differs.
GROUPS: dict[str, list[Process]] = {
    "chain": [VPProcess(schedule=SCHEDULE, prediction_type=kind) for kind in TYPES],
    "continuous": [VPProcess(schedule=CONTINUOUS, prediction_type=kind) for kind in TYPES],
    "truncated": [KLProcess(SCHEDULE, 3, prediction_type=kind, renormalise=False) for kind in TYPES],
    "edm": [EDMProcess(prediction_type=kind) for kind in ("epsilon", "sample")],
}


def error_of_the_data(process: Process, x_t: Tensor, answer: Tensor, x0: Tensor, t: Tensor) -> Tensor:
    """Solves x_t = alpha x_0 + sigma noise and the answer's definition for x_0."""
    alpha, sigma = (level.unsqueeze(1) for level in process.levels(t))
    found = {
        "epsilon": lambda: (x_t - sigma * answer) / alpha,
        "sample": lambda: answer,
        "v_prediction": lambda: (alpha * x_t - sigma * answer) / (alpha**2 + sigma**2),
        "flow": lambda: (x_t + sigma * answer) / (alpha + sigma),
    }[process.prediction_type]()
    return (found - x0).square().sum(1)


def answer_of_data(process: Process, x_t: Tensor, guess: Tensor, t: Tensor) -> Tensor:
    """What a network answers that takes guess for the data."""
    alpha, sigma = (level.unsqueeze(1) for level in process.levels(t))
    noise = (x_t - alpha * guess) / sigma
    return {
        "epsilon": noise,
        "sample": guess,
        "v_prediction": alpha * noise - sigma * guess,
        "flow": guess - noise,
    }[process.prediction_type]


def counted(name: str, process: Process, t: Tensor, **options: float) -> tuple[str, Tensor]:
    """The table, written out once more: whose error counts how much."""
    alpha, sigma = process.levels(t)
    snr, r = (alpha / sigma) ** 2, sigma / (alpha + sigma)
    if name in SPACES:
        return name, torch.ones_like(snr)
    if name == "change_aware":
        times, slopes = (torch.from_numpy(values) for values in noise_slope(process.schedule))
        near = slopes[(times.unsqueeze(0) - t.unsqueeze(1)).abs().argmin(1)]
        return "epsilon", 0.8 + 0.4 * (near - slopes.min()) / (slopes.max() - slopes.min())
    return {
        "min_snr": lambda: ("sample", snr.clamp(max=5.0)),
        "truncated_snr": lambda: ("sample", snr.clamp(min=1.0)),
        "p2": lambda: ("epsilon", (options.get("p2_k", 1.0) + snr) ** -options.get("p2_gamma", 1.0)),
        "sigma_sqrt": lambda: ("flow", r.clamp(min=1e-3) ** -2),
        "cosmap": lambda: ("flow", 2 / (math.pi * (1 - 2 * r + 2 * r**2))),
    }[name]()


def residuals(process: Process, x_t: Tensor, guess: Tensor, x0: Tensor, t: Tensor) -> dict[str, Tensor]:
    """The squared error of each quantity when the data is taken for guess."""
    alpha, sigma = (level.unsqueeze(1) for level in process.levels(t))
    errors = {}
    noise, found = (x_t - alpha * x0) / sigma, (x_t - alpha * guess) / sigma
    errors["sample"] = guess - x0
    errors["epsilon"] = found - noise
    errors["v_prediction"] = alpha * (found - noise) - sigma * (guess - x0)
    errors["flow"] = (guess - x0) - (found - noise)
    return {kind: error.square().sum(1) for kind, error in errors.items()}


CASES = [
    *[(name, group, {}) for name in WEIGHTINGS for group in GROUPS if (name, group) != ("change_aware", "edm")],
    ("p2", "chain", {"p2_gamma": 0.5, "p2_k": 3.0}),
    ("p2", "continuous", {"p2_gamma": 2.0}),
]


@pytest.mark.parametrize(("name", "group", "options"), CASES)
def test_a_row_is_one_objective_in_every_prediction_type(name: str, group: str, options: dict[str, float]) -> None:
    x0, noise, guess = (batch(9, 4, seed=seed, dtype=torch.float64) for seed in range(3))
    for process in GROUPS[group]:
        t = process.sample_timesteps(9, seed=1, step=0)
        x_t = process.add_noise(x0, noise, t)
        answer = answer_of_data(process, x_t, guess, t)
        assert torch.allclose(error_of_the_data(process, x_t, answer, x0, t), (guess - x0).square().sum(1))
        weight = LossWeighting(process, name, **options)(t)
        assert weight.dtype == torch.float64
        mine = weight * (answer - process.target(x0, noise, t)).square().sum(1)
        kind, factor = counted(name, process, t, **options)
        expected = factor * residuals(process, x_t, guess, x0, t)[kind]
        # The slope of continuous time is interpolated, and taken at the nearest of 4097 times here.
        near = name == "change_aware" and group == "continuous"
        assert torch.allclose(mine, expected, rtol=2e-2 if near else 1e-7)


@pytest.mark.parametrize("name", [name for name in WEIGHTINGS if name != "change_aware"])
def test_flow_matching(name: str) -> None:
    process = FlowProcess()
    x0, noise, guess = (batch(9, 4, seed=seed, dtype=torch.float64) for seed in range(3))
    t = process.sample_timesteps(9, seed=1, step=0)
    x_t = process.add_noise(x0, noise, t)
    answer = answer_of_data(process, x_t, guess, t)
    mine = LossWeighting(process, name)(t) * (answer - process.target(x0, noise, t)).square().sum(1)
    kind, factor = counted(name, process, t)
    assert torch.allclose(mine, factor * residuals(process, x_t, guess, x0, t)[kind], rtol=1e-9)


@pytest.mark.parametrize("group", GROUPS)
def test_the_space_of_the_prediction_is_exactly_one(group: str) -> None:
    for process in (*GROUPS[group], FlowProcess()):
        t = process.sample_timesteps(9, seed=1, step=0)
        weight = LossWeighting(process, process.prediction_type)(t)
        assert torch.equal(weight, torch.ones(9, dtype=torch.float64))
    null = LossWeighting(GROUPS["chain"][0], "change_aware", ceiling=0.5)
    assert torch.equal(null(torch.arange(40)), torch.ones(40, dtype=torch.float64))


def test_truncated_snr_is_the_greater_of_two_errors() -> None:
    # 2202.00512 defines it as the maximum of the squared errors of the data and of the noise.
    x0, noise, guess = (batch(9, 4, seed=seed, dtype=torch.float64) for seed in range(3))
    for process in GROUPS["chain"]:
        t = process.sample_timesteps(9, seed=1, step=0)
        x_t = process.add_noise(x0, noise, t)
        answer = answer_of_data(process, x_t, guess, t)
        mine = LossWeighting(process, "truncated_snr")(t) * (answer - process.target(x0, noise, t)).square().sum(1)
        errors = residuals(process, x_t, guess, x0, t)
        assert torch.allclose(mine, torch.maximum(errors["sample"], errors["epsilon"]), rtol=1e-9)


def test_min_snr_is_the_function() -> None:
    process = VPProcess(schedule=SCHEDULE)
    t = torch.arange(40)
    assert torch.equal(LossWeighting(process, "min_snr", snr_gamma=2.0)(t), min_snr_weight(process, t, 2.0))


def test_sd3_weights_are_those_of_diffusers() -> None:
    utils = pytest.importorskip("diffusers.training_utils")
    t = torch.linspace(0, 0.998, 50, dtype=torch.float64)
    for name in ("sigma_sqrt", "cosmap"):
        expected = utils.compute_loss_weighting_for_sd3(name, 1 - t)
        assert torch.allclose(LossWeighting(FlowProcess(), name)(t).float(), expected.float(), rtol=1e-6)


# Weightings that count an error infinitely where the prediction says nothing about it (no signal, epsilon) or gives it
# without effort (no noise, sample). v is well behaved at both ends.
WITHOUT_SIGNAL = {"epsilon": {"truncated_snr", "sigma_sqrt", "cosmap", "sample", "v_prediction", "flow"}}
WITHOUT_NOISE = {"sample": {"truncated_snr", "sigma_sqrt", "cosmap", "change_aware", "epsilon", "v_prediction", "flow"}}


@pytest.mark.parametrize("name", WEIGHTINGS)
@pytest.mark.parametrize("kind", TYPES)
@pytest.mark.parametrize(
    ("schedule", "refused"),
    [(ZERO_SNR, WITHOUT_SIGNAL), (VPSchedule([1.0, 0.5, 1e-300]), WITHOUT_NOISE)],
    ids=["no signal", "no noise"],
)
def test_ends_are_finite_or_refused(name: str, kind: str, schedule: VPSchedule, refused: dict[str, set[str]]) -> None:
    process = VPProcess(schedule=schedule, prediction_type=kind)
    if name in refused.get(kind, ()):
        with pytest.raises(ValueError, match=f"{name} weights of a network that predicts {kind} are infinite at t = "):
            LossWeighting(process, name)
        return
    weight = LossWeighting(process, name)(torch.arange(schedule.num_train_timesteps))
    assert bool((weight.isfinite() & (weight >= 0)).all())


@pytest.mark.parametrize(
    ("name", "kind", "last"),
    [
        ("min_snr", "v_prediction", 0.0),
        ("truncated_snr", "v_prediction", 1.0),
        ("truncated_snr", "sample", 1.0),
        ("p2", "v_prediction", 0.0),
        ("p2", "epsilon", 1.0),
        ("cosmap", "v_prediction", 2 / math.pi),
        ("sample", "v_prediction", 1.0),
        ("v_prediction", "sample", 1.0),
    ],
)
def test_zero_terminal_snr(name: str, kind: str, last: float) -> None:
    weight = LossWeighting(VPProcess(schedule=ZERO_SNR, prediction_type=kind), name)(torch.tensor([39]))
    assert weight.item() == pytest.approx(last, abs=1e-12)


def test_times_of_a_path() -> None:
    for process in (VPProcess(schedule=SCHEDULE), VPProcess(schedule=CONTINUOUS)):
        t = process.sample_timesteps(12, seed=1, step=0)
        for name in WEIGHTINGS:
            weighting = LossWeighting(process, name)
            assert torch.equal(weighting(t.view(3, 4)), weighting(t).view(3, 4))
            assert weighting(t[:0]).shape == (0,)


@pytest.mark.parametrize(
    ("call", "error", "sentence"),
    [
        (lambda p: LossWeighting("vp", "p2"), TypeError, "process must be a Process, got str"),
        (lambda p: LossWeighting(p, "snr"), ValueError, "a weighting is one of min_snr, .* got 'snr'"),
        (lambda p: LossWeighting(EDMProcess(), "p2"), ValueError, "got prediction type 'edm', whose preconditioning"),
        (
            lambda p: LossWeighting(p, "min_snr", snr_gamma=0),
            ValueError,
            "snr_gamma must be positive and finite, got 0",
        ),
        (lambda p: LossWeighting(p, "p2", p2_gamma=math.inf), ValueError, "p2_gamma must be positive and finite"),
        (lambda p: LossWeighting(p, "p2", p2_k="1"), TypeError, "p2_k must be a number, got str"),
        (
            lambda p: LossWeighting(p, "change_aware", ceiling=0.4),
            ValueError,
            r"ceiling must lie in \[0.5, 1\], got 0.4",
        ),
        (
            lambda p: LossWeighting(FlowProcess(), "change_aware"),
            ValueError,
            "change_aware weights need a noise level whose slope changes, but that of the process 'flow' is 1 at",
        ),
        (
            lambda p: LossWeighting(VPProcess(schedule=ZERO_SNR), "truncated_snr"),
            ValueError,
            "of a network that predicts epsilon are infinite at t = 39, where no signal is left",
        ),
        (
            lambda p: LossWeighting(
                VPProcess(schedule=VPSchedule([1, 0.5]), prediction_type="sample"), "truncated_snr"
            ),
            ValueError,
            "of a network that predicts sample are infinite at t = 0, where no noise is left",
        ),
        (lambda p: LossWeighting(p, "p2")(torch.ones(2)), TypeError, "integer indices"),
        (lambda p: LossWeighting(p, "p2")(torch.tensor([40])), ValueError, r"t must lie in 0 \.\. 39, got 40"),
    ],
)
def test_refusals(call: Callable[[Process], Any], error: type[Exception], sentence: str) -> None:
    with pytest.raises(error, match=sentence):
        call(VPProcess(schedule=SCHEDULE))
