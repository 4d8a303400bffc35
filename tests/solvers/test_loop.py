"""What the loop leaves alone and what it refuses: devices, memory, the caller's tensors, bad answers, guidance."""

from __future__ import annotations

from collections import Counter
from itertools import pairwise
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from pydiffaccel.schedule import FlowSchedule, VPSchedule
from pydiffaccel.solvers import Denoiser, Evaluation, Plan, Point, Update, integrate, make_plan, wrap_model
from pydiffaccel.solvers.point import points_at

VP = VPSchedule.linear()
FLOW = FlowSchedule()
MODEL = wrap_model(lambda x, t: torch.tanh(x) * (1 + t[:, None] / 1000), prediction_type="v_prediction")
# What reads a value on the host, or decides a shape from values: each would wait for a device.
HOST_READS = {"_local_scalar_dense", "item", "equal", "is_nonzero", "nonzero", "masked_select", "unique"}


def heun(schedule: FlowSchedule, times: list[float]) -> Plan:
    """Two stages per step on flow time: an older base, two outputs."""
    points = points_at(schedule, times)
    rows: list[Evaluation] = []
    state = 0
    for here, after in pairwise(points):
        h = after.t - here.t
        rows.append(Evaluation(here, "flow", (Update(after, base=state, a=1.0, b=(h,)),)))
        rows.append(Evaluation(after, "flow", (Update(after, base=state, a=1.0, b=(h / 2, h / 2)),)))
        state += 2
    return Plan("heun", schedule, len(times) - 1, points[0], tuple(rows))


def corrected(schedule: FlowSchedule, times: list[float]) -> Plan:
    """A predictor and, at its output, a corrector of the same state: two updates after one evaluation."""
    points = points_at(schedule, times)
    rows: list[Evaluation] = []
    state = 0
    for step, (here, after) in enumerate(pairwise(points)):
        h = after.t - here.t
        predictor = Update(after, base=state, a=1.0, b=(h,))
        if step == 0:
            rows.append(Evaluation(here, "flow", (predictor,)))
            continue
        before = here.t - points[step - 1].t
        corrector = Update(here, base=max(0, state - 1), a=1.0, b=(before / 2, before / 2))
        state += 1
        rows.append(Evaluation(here, "flow", (corrector, Update(after, base=state, a=1.0, b=(h,)))))
        state += 1
    return Plan("corrected", schedule, len(times) - 1, points[0], tuple(rows))


PLANS = {
    "ddim": make_plan("ddim", VP, 6),
    "ddim-eta": make_plan("ddim", VP, 6, eta=1.0),
    "dpm_solver++": make_plan("dpm_solver++", VP, 6),
    "euler": make_plan("euler", FLOW, 6),
    "heun": heun(FLOW, [0.0, 0.25, 0.6, 1.0]),
    "corrected": corrected(FLOW, [0.0, 0.25, 0.6, 0.8, 1.0]),
}
FLOW_MODEL = wrap_model(lambda x, t: torch.tanh(x) * (1 + t[:, None]), prediction_type="flow")


def denoiser_for(plan: Plan) -> Denoiser:
    return FLOW_MODEL if plan.schedule == FLOW else MODEL


class Log(TorchDispatchMode):
    def __init__(self) -> None:
        super().__init__()
        self.calls: Counter[str] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.calls[func.__name__.split(".")[0]] += 1
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("name", PLANS)
def test_no_step_reads_a_value(normal: Any, name: str) -> None:
    plan = PLANS[name]
    with Log() as log:
        integrate(plan, denoiser_for(plan), normal(0, 3, 4, dtype=torch.float32), seeds=[1, 2, 3])
    assert log.calls["tanh"] == plan.nfe
    assert not HOST_READS & set(log.calls)


@pytest.mark.parametrize("name", PLANS)
def test_runs_where_there_are_no_values(name: str) -> None:
    """On the meta device whatever would wait for a value raises, as inside a CUDA graph."""
    plan = PLANS[name]
    x = torch.empty(3, 4, device="meta")
    result = integrate(plan, denoiser_for(plan), x, seeds=[1, 2, 3], check_finite=False)
    assert result.device.type == "meta"
    assert result.shape == (3, 4)
    with pytest.raises((RuntimeError, NotImplementedError), match="meta"):  # the one read at the end
        integrate(plan, denoiser_for(plan), x, seeds=[1, 2, 3])


def test_operations_per_step_do_not_grow(normal: Any) -> None:
    counts = []
    for steps in (4, 8, 12):
        with Log() as log:
            integrate(make_plan("dpm_solver++", VP, steps), MODEL, normal(0, 3, 4), check_finite=False)
        counts.append(log.calls.total())
    assert counts[2] - counts[1] == counts[1] - counts[0] <= 4 * 12


@pytest.mark.parametrize("trajectory", [False, True])
@pytest.mark.parametrize("name", PLANS)
def test_inplace_gives_the_same_bits(normal: Any, name: str, trajectory: bool) -> None:
    plan = PLANS[name]
    x = normal(0, 3, 4, dtype=torch.float32)
    expected = integrate(plan, denoiser_for(plan), x, seeds=[1, 2, 3], return_trajectory=trajectory)
    given = x.clone()
    result = integrate(plan, denoiser_for(plan), given, seeds=[1, 2, 3], return_trajectory=trajectory, inplace=True)
    assert torch.equal(result, expected)
    assert not result.is_inference()
    assert torch.equal(given, x) == trajectory  # the trajectory holds the start


@pytest.mark.parametrize("name", ["ddim", "dpm_solver++", "euler"])
def test_inplace_needs_no_memory_for_states(normal: Any, name: str) -> None:
    x = normal(0, 3, 4, dtype=torch.float32)
    result = integrate(PLANS[name], denoiser_for(PLANS[name]), x, inplace=True)
    assert result.data_ptr() == x.data_ptr()


@pytest.mark.parametrize("view", [lambda x: x, lambda x: x.flip(0), lambda x: x.view(-1).view(3, 4)])
@pytest.mark.parametrize("name", ["dpm_solver++", "heun", "corrected"])
def test_inplace_with_a_model_that_returns_its_input(normal: Any, name: str, view: Any) -> None:
    plan = PLANS[name]
    denoiser = wrap_model(lambda x, t: view(x), prediction_type="flow" if plan.schedule == FLOW else "sample")
    x = normal(0, 3, 4, dtype=torch.float32)
    assert torch.equal(integrate(plan, denoiser, x.clone(), inplace=True), integrate(plan, denoiser, x))


def test_inplace_with_strided_and_half_input(normal: Any) -> None:
    strided = normal(0, 4, 3, dtype=torch.float32).T
    half = normal(0, 3, 4, dtype=torch.bfloat16)
    for x in (strided, half):
        expected = integrate(PLANS["ddim"], MODEL, x)
        assert torch.equal(integrate(PLANS["ddim"], MODEL, x.clone(), inplace=True), expected)


def test_noise_of_ones_own(normal: Any) -> None:
    plan, x = PLANS["ddim-eta"], normal(0, 3, 4)
    numbers = []

    def noise(like: Tensor, number: int) -> Tensor:
        numbers.append(number)
        return torch.zeros_like(like)

    result = integrate(plan, MODEL, x, noise=noise)
    assert numbers == [1, 2, 3, 4, 5]  # the step to the data adds none
    assert torch.equal(result, integrate(plan, MODEL, x, noise=lambda like, _: 0.0 * like))
    with pytest.raises(ValueError, match="give seeds or noise, not both"):
        integrate(plan, MODEL, x, noise=noise, seeds=[1, 2, 3])


class Labelled(nn.Module):
    """A linear model with a label; keeps the size of every batch."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(5, 4, dtype=torch.float64)
        self.batches: list[int] = []

    def forward(self, x: Tensor, t: Tensor, label: Tensor, scale: float = 1.0) -> Tensor:
        assert len(x) == len(t) == len(label)
        self.batches.append(len(x))
        return torch.tanh(x + self.table(label)) * scale


@pytest.fixture
def labelled() -> Labelled:
    torch.manual_seed(0)
    return Labelled()


LABELS, NONE = torch.tensor([1, 2, 3]), torch.tensor([0])


def test_scale_one_is_the_conditional_model_bit_for_bit(normal: Any, labelled: Labelled) -> None:
    plan, x = PLANS["dpm_solver++"], normal(0, 3, 4)
    plain = wrap_model(lambda x, t: labelled(x, t, LABELS), prediction_type="epsilon")
    denoiser = wrap_model(labelled, prediction_type="epsilon")
    expected = integrate(plan, plain, x)
    labelled.batches.clear()
    guided = integrate(plan, denoiser, x, condition={"label": LABELS}, unconditional={"label": NONE})
    assert torch.equal(guided, expected)
    assert labelled.batches == [3] * plan.nfe


@pytest.mark.parametrize("scale", [0.0, 2.5, -1.0])
@pytest.mark.parametrize("prediction_type", ["epsilon", "sample", "v_prediction"])
def test_guidance_is_one_call_on_both(normal: Any, labelled: Labelled, scale: float, prediction_type: str) -> None:
    plan, x = PLANS["ddim"], normal(0, 3, 4)

    def by_hand(x: Tensor, t: Tensor) -> Tensor:
        unconditional = labelled(x, t, NONE.expand(3), scale=0.5)
        return unconditional + scale * (labelled(x, t, LABELS, scale=0.5) - unconditional)

    expected = integrate(plan, wrap_model(by_hand, prediction_type=prediction_type), x)
    labelled.batches.clear()
    denoiser = wrap_model(
        labelled,
        prediction_type=prediction_type,
        condition={"label": LABELS, "scale": 0.5},
        unconditional={"label": NONE},
        guidance_scale=scale,
    )
    torch.testing.assert_close(integrate(plan, denoiser, x), expected, rtol=1e-12, atol=1e-12)
    assert labelled.batches == [6] * plan.nfe


def test_rows_of_a_conditioned_denoiser(normal: Any, labelled: Labelled) -> None:
    plan, x = PLANS["ddim"], normal(0, 3, 4)
    whole = wrap_model(
        labelled,
        prediction_type="epsilon",
        condition={"label": LABELS, "scale": 0.5},
        unconditional={"label": NONE},
        guidance_scale=2.0,
    )
    parts = [integrate(plan, whole.rows(first, first + 1), x[first : first + 1]) for first in range(3)]
    torch.testing.assert_close(torch.cat(parts), integrate(plan, whole, x), rtol=1e-12, atol=1e-12)
    plain = Constant(lambda x, p: x)
    assert plain.rows(0, 2) is plain


def test_conditions_that_do_not_fit(normal: Any, labelled: Labelled) -> None:
    plan, x = PLANS["ddim"], normal(0, 3, 4)
    denoiser = wrap_model(labelled, prediction_type="epsilon")
    labels = {"label": LABELS}
    with pytest.raises(ValueError, match="the condition 'label' holds 2 rows for a batch of 3"):
        integrate(plan, denoiser, x, condition={"label": LABELS[:2]})
    with pytest.raises(ValueError, match="guidance_scale 3 needs unconditional inputs beside the condition"):
        integrate(plan, denoiser, x, condition=labels, guidance_scale=3.0)
    with pytest.raises(ValueError, match="guidance_scale must be finite, got nan"):
        integrate(plan, denoiser, x, condition=labels, unconditional=labels, guidance_scale=float("nan"))
    with pytest.raises(TypeError, match="guidance_scale must be a number, got str"):
        integrate(plan, denoiser, x, condition=labels, guidance_scale="3")  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="condition must be a mapping of the model's keyword arguments, got Tensor"):
        integrate(plan, denoiser, x, condition=LABELS)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="unconditional has 'text', which the condition lacks"):
        integrate(plan, denoiser, x, condition=labels, unconditional={"text": NONE}, guidance_scale=2.0)
    with pytest.raises(ValueError, match="'scale' differs between condition and unconditional"):
        integrate(
            plan,
            denoiser,
            x,
            condition={**labels, "scale": 1.0},
            unconditional={"scale": 2.0},
            guidance_scale=2.0,
        )


class Constant(Denoiser):
    def __init__(self, answer: Any) -> None:
        self.answer = answer

    def __call__(self, x: Tensor, point: Point, output_type: str) -> Any:
        return self.answer(x, point)


def test_a_denoiser_without_conditions_says_so(normal: Any) -> None:
    with pytest.raises(TypeError, match="Constant takes no condition and no guidance; denoisers of wrap_model do"):
        integrate(PLANS["ddim"], Constant(lambda x, p: x), normal(0, 3, 4), guidance_scale=2.0)


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("wrapped", [False, True])
def test_values_that_are_not_finite_name_the_evaluation(normal: Any, bad: float, wrapped: bool) -> None:
    plan, x = PLANS["ddim"], normal(0, 3, 4)
    third = plan.evaluations[2].point.t

    def model(x: Tensor, t: float) -> Tensor:
        answer = torch.tanh(x)
        if t <= third:
            answer[1, 2] = bad
        return answer

    denoiser: Denoiser = Constant(lambda x, point: model(x, point.t))
    if wrapped:
        denoiser = wrap_model(lambda x, t: model(x, float(t[0])), prediction_type="epsilon")
    sentence = rf"at evaluation 3 of 6 \(t = {third:g}\) the model returned values that are not finite"
    with pytest.raises(ValueError, match=sentence):
        integrate(plan, denoiser, x)
    assert not integrate(plan, denoiser, x, check_finite=False).isfinite().all()


def test_other_answers_name_the_evaluation(normal: Any) -> None:
    plan, x = PLANS["ddim"], normal(0, 3, 4)
    with pytest.raises(
        ValueError, match=r"at evaluation 1 of 6 \(t = 999\) the denoiser must return the state's shape"
    ):
        integrate(plan, Constant(lambda x, p: x[:2]), x)
    with pytest.raises(
        TypeError, match=r"at evaluation 1 of 6 \(t = 999\) the denoiser must return a tensor, got list"
    ):
        integrate(plan, Constant(lambda x, p: [x]), x)
    with pytest.raises(ValueError, match=r"at t = 999 the model must return the state's shape \(3, 4\), got \(3, 5\)"):
        integrate(plan, wrap_model(lambda x, t: x.new_zeros(3, 5), prediction_type="epsilon"), x)


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("inplace", [False, True])
@pytest.mark.parametrize("name", PLANS)
def test_cuda_graph(normal: Any, name: str, inplace: bool) -> None:
    plan = PLANS[name]
    x = normal(0, 3, 4, dtype=torch.float32).cuda()
    expected = integrate(plan, denoiser_for(plan), x, seeds=[1, 2, 3])
    given = x.clone()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = integrate(plan, denoiser_for(plan), given, seeds=[1, 2, 3], inplace=inplace)
    given.copy_(x)
    graph.replay()
    torch.cuda.synchronize()
    assert torch.equal(captured, expected)
