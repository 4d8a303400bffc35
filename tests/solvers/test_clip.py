"""Predicted data clipped to its range at every evaluation."""

from __future__ import annotations

import math
from itertools import product
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from pydiffaccel.schedule import EDMSchedule, FlowSchedule, Schedule, VPSchedule
from pydiffaccel.solvers import Denoiser, clip_denoised, integrate, make_plan, wrap_model
from pydiffaccel.solvers.denoiser import conversion
from pydiffaccel.solvers.make import FAMILIES
from pydiffaccel.solvers.point import PREDICTION_TYPES, output_parts, points_at

VP, FLOW, EDM = VPSchedule.linear(), FlowSchedule(), EDMSchedule()
ZERO_SNR = VPSchedule.scaled_linear(100).rescaled_to_zero_terminal_snr()
DTYPES = [torch.float32, torch.float64]
LEVELS = [(VP, 999.0), (VP, 400.25), (VP, 0.0), (FLOW, 0.25), (FLOW, 0.9), (EDM, 3.0)]


def wild(have: str, schedule: Schedule = VP) -> Denoiser:
    """A model whose data is mostly far outside of [-1, 1]."""
    return wrap_model(lambda x, t: 3 * torch.sin(5 * x) + 0.1, prediction_type=have, schedule=schedule)


class OneImage(Denoiser):
    """The perfect model of one image, with rounding: its answer is of type `have` before it is converted."""

    def __init__(self, image: Tensor, have: str) -> None:
        self.image, self.have = image, have

    def __call__(self, x: Tensor, point: Any, output_type: str) -> Tensor:
        p, q = output_parts(self.have, point.alpha, point.sigma)
        raw = p * self.image + (q * (x - point.alpha * self.image) / point.sigma if q else 0 * x)
        c, d = conversion(self.have, output_type, point)
        return c * x + d * raw


# --- the null setting


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_no_limit_is_the_denoiser_bit_for_bit(normal: Any, dtype: torch.dtype) -> None:
    denoiser, plan, x = wild("epsilon"), make_plan("ddim", VP, 4), normal(0, 3, 5, dtype=dtype)
    null = clip_denoised(denoiser, math.inf)
    assert null is denoiser
    assert torch.equal(integrate(plan, null, x), integrate(plan, denoiser, x))
    assert not torch.equal(integrate(plan, clip_denoised(denoiser), x), integrate(plan, denoiser, x))


@pytest.mark.parametrize("have", PREDICTION_TYPES)
@pytest.mark.parametrize("schedule", [VP, FLOW, EDM], ids=lambda schedule: schedule.kind)
def test_a_perfect_model_of_data_inside_is_not_changed(normal: Any, schedule: Schedule, have: str) -> None:
    image = normal(5, 4, 6).tanh()
    model = OneImage(image, have)
    for solver in [name for name, family in FAMILIES.items() if schedule.kind in family.spacings]:
        if have == "epsilon" and schedule.kind == "flow":
            plan = make_plan(solver, schedule, timesteps=[0.01, 0.2, 0.5, 0.8], end=1.0)
        else:
            plan = make_plan(solver, schedule, 5)
        x = plan.start.alpha * image + plan.start.sigma * normal(1, 4, 6)
        plain, clipped = integrate(plan, model, x), integrate(plan, clip_denoised(model), x)
        torch.testing.assert_close(clipped, plain, rtol=0, atol=1e-8)
        torch.testing.assert_close(clipped, image, rtol=0, atol=1e-8)


# --- the range


@pytest.mark.parametrize("limit", [1.0, 0.25, 4])
@pytest.mark.parametrize(("have", "want"), list(product(PREDICTION_TYPES, PREDICTION_TYPES)))
@pytest.mark.parametrize(("schedule", "t"), LEVELS)
def test_data_is_clamped_and_then_converted(
    normal: Any, schedule: Schedule, t: float, have: str, want: str, limit: float
) -> None:
    (point,) = points_at(schedule, [t])
    x = normal(0, 40, 6)
    denoiser = wild(have, schedule)
    clipped = clip_denoised(denoiser, limit)
    free = denoiser(x, point, "sample")
    data = clipped(x, point, "sample")
    assert float(free.abs().max()) > 1  # there is something to clip at least at the limits up to 1
    assert torch.equal(data, free.clamp(-limit, limit))
    p, q = output_parts(want, point.alpha, point.sigma)
    expected = p * data + q * (x - point.alpha * data) / point.sigma
    torch.testing.assert_close(clipped(x, point, want), expected, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_samples_stay_in_the_range_and_in_their_dtype(normal: Any, dtype: torch.dtype) -> None:
    """A deterministic run ends with the data of its last evaluation."""
    x, plan = normal(0, 50, 6, dtype=dtype), make_plan("ddim", VP, 4)
    free, clipped = (integrate(plan, model, x) for model in (wild("epsilon"), clip_denoised(wild("epsilon"), 0.5)))
    assert clipped.dtype == dtype
    assert float(free.abs().max()) > 1
    assert float(clipped.abs().max()) <= 0.5 + 1e-6


def test_the_inner_answer_is_not_written_to(normal: Any) -> None:
    answer = 3 * normal(0, 4, 6)
    before = answer.clone()
    denoiser = clip_denoised(wrap_model(lambda x, t: answer, prediction_type="sample"))
    for want in PREDICTION_TYPES:
        denoiser(normal(1, 4, 6), points_at(VP, [500.0])[0], want)
    assert torch.equal(answer, before)


# --- what is passed on


class Labelled(nn.Module):
    def forward(self, x: Tensor, t: Tensor, label: Tensor) -> Tensor:
        assert len(x) == len(label)
        return x + label[:, None]


LABELS = torch.tensor([-3.0, 0.2, 0.6], dtype=torch.float64)
NONE = torch.tensor([0.1], dtype=torch.float64)


def test_conditions_rows_and_schedule_are_passed_on(normal: Any) -> None:
    (point,) = points_at(VP, [300.0])
    x = 0.1 * normal(0, 3, 4)
    told = clip_denoised(wrap_model(Labelled(), prediction_type="sample", schedule=VP)).conditioned(
        {"label": LABELS}, None, 1.0
    )
    whole = told(x, point, "sample")
    assert torch.equal(whole, (x + LABELS[:, None]).clamp(-1, 1))
    assert torch.equal(torch.cat([told.rows(i, i + 1)(x[i : i + 1], point, "sample") for i in range(3)]), whole)
    assert told.schedule is VP
    with pytest.raises(ValueError, match="but the model was trained on VPSchedule"):
        integrate(make_plan("euler", FLOW, 3), told, x)
    with pytest.raises(TypeError, match="OneImage takes no condition and no guidance"):
        integrate(make_plan("ddim", VP, 2), clip_denoised(OneImage(x, "sample")), x, guidance_scale=2.0)


def test_guidance_is_clipped_after_it_is_combined(normal: Any) -> None:
    (point,) = points_at(VP, [300.0])
    x = 0.1 * normal(0, 3, 4)
    labels = {"label": LABELS[[1, 1, 2]]}  # each prediction alone is inside
    guided = clip_denoised(wrap_model(Labelled(), prediction_type="sample")).conditioned(labels, {"label": NONE}, 5.0)
    combined = x + (NONE + 5.0 * (labels["label"] - NONE))[:, None]
    assert float(combined.max()) > 1.5
    torch.testing.assert_close(guided(x, point, "sample"), combined.clamp(-1, 1), rtol=0, atol=1e-12)


# --- singular levels and refusals


@pytest.mark.parametrize("have", ["sample", "v_prediction"])
def test_pure_noise_of_zero_terminal_snr(normal: Any, have: str) -> None:
    x = normal(0, 3, 4)
    for solver in ("ddim", "dpm_solver++"):
        plan = make_plan(solver, ZERO_SNR, 3)
        assert plan.start.alpha == 0
        assert float(integrate(plan, clip_denoised(wild(have, ZERO_SNR), 0.5), x).abs().max()) <= 0.5 + 1e-12


def test_levels_that_determine_nothing(normal: Any) -> None:
    x = normal(0, 3, 4)
    with pytest.raises(ValueError, match="type 'epsilon' does not determine 'sample' at t = 99, where alpha = 0"):
        integrate(make_plan("ddim", ZERO_SNR, 3), clip_denoised(wild("epsilon", ZERO_SNR)), x)
    with pytest.raises(ValueError, match="type 'sample' does not determine 'epsilon' at t = 1, where alpha = 1"):
        clip_denoised(wild("flow", FLOW))(x, points_at(FLOW, [1.0])[0], "epsilon")


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("have", PREDICTION_TYPES)
def test_an_infinite_answer_does_not_become_a_valid_one(normal: Any, bad: float, have: str) -> None:
    def model(x: Tensor, t: Tensor) -> Tensor:
        answer = torch.zeros_like(x)
        answer[1, 2] = bad
        return answer

    with pytest.raises(ValueError, match="not finite"):
        integrate(make_plan("ddim", VP, 3), clip_denoised(wrap_model(model, prediction_type=have)), normal(0, 3, 4))


@pytest.mark.parametrize("limit", [0, 0.0, -1.0, math.nan, -math.inf])
def test_bad_limits(limit: float) -> None:
    with pytest.raises(ValueError, match=f"limit must be above 0, got {limit}"):
        clip_denoised(wild("epsilon"), limit)


@pytest.mark.parametrize("limit", ["1", None, True, torch.tensor(1.0)])
def test_limits_that_are_no_numbers(limit: Any) -> None:
    with pytest.raises(TypeError, match="limit must be a number, got "):
        clip_denoised(wild("epsilon"), limit)


def test_bad_denoisers(normal: Any) -> None:
    with pytest.raises(TypeError, match=r"denoiser must be a Denoiser \(see wrap_model\), got function"):
        clip_denoised(lambda x, t: x)  # type: ignore[arg-type]

    class Wrong(Denoiser):
        def __call__(self, x: Tensor, point: Any, output_type: str) -> Any:
            return (x,)

    with pytest.raises(TypeError, match="the denoiser must return a tensor, got tuple"):
        integrate(make_plan("ddim", VP, 2), clip_denoised(Wrong()), normal(0, 3, 4))
