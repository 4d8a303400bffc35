"""Min-SNR weights: each prediction type's factor, the ends of the schedule, products with other weights."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from pydiffaccel import TimestepCurriculum, diffusion_loss, kl_loss, min_snr_weight
from pydiffaccel.forward import EDMProcess, FlowProcess, KLProcess, Process, VPProcess
from pydiffaccel.schedule import VPSchedule
from tests.losses.networks import SCHEDULE, TYPES, Network, batch

PROCESSES = [*(VPProcess(schedule=SCHEDULE, prediction_type=kind) for kind in TYPES), FlowProcess()]


@pytest.mark.parametrize("gamma", [0.5, 5, 1e9])
def test_each_prediction_type_has_its_formula(gamma: float) -> None:
    t = torch.arange(SCHEDULE.num_train_timesteps)
    bar = torch.tensor(SCHEDULE.alphas_cumprod.tolist(), dtype=torch.float64)
    snr = bar / (1 - bar)
    capped = snr.clamp(max=gamma)
    for kind, expected in (("epsilon", capped / snr), ("sample", capped), ("v_prediction", capped / (snr + 1))):
        weight = min_snr_weight(VPProcess(schedule=SCHEDULE, prediction_type=kind), t, gamma)
        assert weight.dtype == torch.float64
        assert torch.allclose(weight, expected, rtol=1e-12, atol=0)
        assert torch.equal(min_snr_weight(KLProcess(SCHEDULE, 3, prediction_type=kind), t, gamma), weight)


def error_of_the_data(process: Process, x_t: Tensor, answer: Tensor, x0: Tensor, t: Tensor) -> Tensor:
    """Solves x_t = alpha x_0 + sigma noise and the answer's definition for x_0."""
    alpha, sigma = (level.unsqueeze(1) for level in process.levels(t))
    found = {
        "epsilon": lambda: (x_t - sigma * answer) / alpha,
        "sample": lambda: answer,
        "v_prediction": lambda: (alpha * x_t - sigma * answer) / (alpha**2 + sigma**2),
        "flow": lambda: x_t + sigma * answer,
    }[process.prediction_type]()
    return (found - x0).square().sum(1)


@pytest.mark.parametrize("process", PROCESSES, ids=repr)
def test_the_error_of_the_data_counts_min_snr_gamma(process: Process) -> None:
    x0, noise, answer = (batch(9, 4, seed=seed, dtype=torch.float64) for seed in range(3))
    t = process.sample_timesteps(9, seed=1, step=0)
    alpha, sigma = process.levels(t)
    mine = (answer - process.target(x0, noise, t)).square().sum(1) * min_snr_weight(process, t, 5.0)
    error = error_of_the_data(process, process.add_noise(x0, noise, t), answer, x0, t)
    assert torch.allclose(mine, error * (alpha / sigma).square().clamp(max=5.0), rtol=1e-9)


def test_the_ends_are_finite() -> None:
    t = torch.tensor([0, 2])
    for kind, expected in (("epsilon", [0.0, 1.0]), ("sample", [5.0, 0.0]), ("v_prediction", [0.0, 0.0])):
        process = VPProcess(schedule=VPSchedule([1.0, 0.5, 1e-300]), prediction_type=kind)
        assert min_snr_weight(process, t).tolist() == pytest.approx(expected, abs=1e-200)
    assert min_snr_weight(FlowProcess(), torch.tensor([0.0, 1.0])).tolist() == [0.0, 0.0]


def test_times_of_a_path() -> None:
    process = VPProcess(schedule=SCHEDULE)
    t = process.sample_timesteps(12, seed=1, step=0)
    assert torch.equal(min_snr_weight(process, t.view(3, 4)), min_snr_weight(process, t).view(3, 4))
    assert min_snr_weight(process, t[:0]).shape == (0,)


@pytest.mark.parametrize("mode", ["component", "schedule", "recombined"])
def test_it_multiplies_a_curriculum(mode: str) -> None:
    process, curriculum = KLProcess(SCHEDULE, 3), TimestepCurriculum(40, 10, importance=True)
    t, x0 = curriculum.sample(7, 6, seed=1), batch(6, 4)
    both = min_snr_weight(process, t) * curriculum.weights(7, t)
    each = kl_loss(Network(), x0, t, process=process, mode=mode, reduction="none")
    weighted = kl_loss(Network(), x0, t, process=process, mode=mode, weight=both)
    assert weighted.item() == pytest.approx((each * both).mean().item(), rel=1e-6)
    plain = VPProcess(schedule=SCHEDULE)
    each = diffusion_loss(Network(), x0, t, process=plain, noise=batch(6, 4, seed=1), reduction="none")
    weighted = diffusion_loss(Network(), x0, t, process=plain, noise=batch(6, 4, seed=1), weight=both)
    assert weighted.item() == pytest.approx((each * both).mean().item(), rel=1e-6)


@pytest.mark.parametrize(
    ("gamma", "error", "sentence"),
    [
        (0, ValueError, "gamma must be positive and finite, got 0"),
        (float("inf"), ValueError, "gamma must be positive and finite, got inf"),
        (float("nan"), ValueError, "gamma must be positive and finite, got nan"),
        (True, TypeError, "gamma must be a number, got bool"),
        ("5", TypeError, "gamma must be a number, got str"),
    ],
)
def test_bad_gamma(gamma: Any, error: type[Exception], sentence: str) -> None:
    with pytest.raises(error, match=sentence):
        min_snr_weight(VPProcess(), torch.tensor([3]), gamma)


def test_edm_has_a_weight_of_its_own() -> None:
    with pytest.raises(ValueError, match="got prediction type 'edm'"):
        min_snr_weight(EDMProcess(), torch.tensor([3.0]))
