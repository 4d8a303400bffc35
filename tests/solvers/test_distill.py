"""Distilled DDIM: the least-squares facts, the grids, and what it gains."""

from __future__ import annotations

import json
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from pydiffaccel.schedule import VPSchedule
from pydiffaccel.solvers import distill_plan, integrate, load_plan, make_plan, wrap_model
from pydiffaccel.solvers.distill import apply_lambdas

from .conftest import MixtureDenoiser

VP = VPSchedule.linear()


def mean_square(x: Tensor) -> float:
    return float(x.square().mean())


def between(first: float, last: float) -> list[float]:
    """Ten steps (one per training index where there are fewer) from first, included, to last."""
    pieces = min(10, int(first - last))
    return [first + (last - first) * piece / pieces for piece in range(pieces)]


@pytest.mark.parametrize("zero", [0.0, -0.0])
def test_zero_lambdas_are_the_base_bit_for_bit(zero: float, mixture: Any, normal: Any) -> None:
    plan = make_plan("ddim", VP, 6)
    same = apply_lambdas(plan, [zero] * 6)
    assert same == plan
    x = normal(0, 4, 8)
    assert torch.equal(integrate(same, mixture, x), integrate(plan, mixture, x))


@pytest.mark.parametrize("grid", ["aligned", "official"])
@pytest.mark.parametrize("spacing", ["trailing", "leading", "log_snr"])
def test_a_teacher_like_the_student_gives_zero_lambdas(grid: str, spacing: str, mixture: Any, normal: Any) -> None:
    plan = make_plan("ddim", VP, 6, spacing=spacing)
    distilled = distill_plan(plan, mixture, normal(0, 16, 8), teacher_multiplier=1, grid=grid)
    assert distilled.metadata["distillation"]["lambdas"] == [0.0] * 6
    assert distilled.evaluations == plan.evaluations


def test_planted_lambdas_are_recovered(mixture: Any, normal: Any) -> None:
    plan = make_plan("ddim", VP, 6)
    planted = [0.02, -0.3, 0.25, 0.0, 0.4, -0.1]
    teacher = apply_lambdas(plan, planted)
    distilled = distill_plan(plan, mixture, normal(0, 32, 8), teacher=teacher)
    report = distilled.metadata["distillation"]
    assert report["lambdas"] == pytest.approx(planted, abs=1e-9)
    assert report["grid"] == "custom"
    assert max(report["step_error_after"]) < 1e-20


@pytest.mark.parametrize("grid", ["aligned", "official"])
def test_residual_is_orthogonal_to_the_correction(grid: str, mixture: Any, normal: Any, record: Any) -> None:
    plan = make_plan("ddim", VP, 6, spacing="leading")
    x = normal(0, 32, 8)
    distilled = distill_plan(plan, mixture, x, grid=grid)
    if grid == "aligned":
        cut = [t for first, last in pairwise(p.t for p in plan.state_points) for t in between(first, last)]
        states = integrate(make_plan("ddim", VP, timesteps=cut), mixture, x, return_trajectory=True)
        met = [states[cut.index(row.point.t)] for row in plan.evaluations[1:]]
    else:
        states = integrate(make_plan("ddim", VP, 60, spacing="leading"), mixture, x, return_trajectory=True)
        met = [states[10 * i] for i in range(1, 6)]
    recorder = record(mixture)
    path = integrate(distilled, recorder, x, return_trajectory=True)
    outputs = [call[3] for call in recorder.calls]
    earlier = [x, *outputs[:-1]]
    for i, target in enumerate(met):
        residual = target - path[i + 1]
        direction = outputs[i] - earlier[i]
        cosine = (residual * direction).sum() / residual.norm() / direction.norm()
        assert abs(float(cosine)) < 1e-9, i


def test_step_errors_never_grow(mixture: Any, normal: Any) -> None:
    report = distill_plan(make_plan("ddim", VP, 8), mixture, normal(0, 32, 8)).metadata["distillation"]
    assert len(report["step_error_before"]) == len(report["step_error_after"]) == len(report["lambdas"]) == 8
    for before, after in zip(report["step_error_before"], report["step_error_after"], strict=True):
        assert after <= before * (1 + 1e-12)
    assert sum(report["step_error_after"]) < 0.8 * sum(report["step_error_before"])


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_gaussian_data_reaches_the_teacher_exactly(isotropic: Any, normal: Any, dtype: torch.dtype) -> None:
    # All states of centred isotropic Gaussian data are multiples of x_T, so one scalar per step is all there is to fit.
    # In float32 the exact denoiser's own constants are rounded too.
    plan = make_plan("ddim", VP, 5)
    x = normal(0, 20, 6, dtype=dtype)
    model = type(isotropic)(isotropic.mean.to(dtype), isotropic.deviation.to(dtype))
    distilled = distill_plan(plan, model, x, held_out=normal(1, 20, 6, dtype=dtype))
    errors = distilled.metadata["distillation"]["held_out"]
    assert errors["error_base"][-1] > 1e-3
    assert max(errors["error_distilled"]) < (1e-24 if dtype == torch.float64 else 1e-8)


def test_other_gaussian_data_comes_near_the_teacher(gaussian: Any, normal: Any) -> None:
    plan = make_plan("ddim", VP, 10)
    distilled = distill_plan(plan, gaussian, normal(0, 100, 4), held_out=normal(1, 500, 4))
    errors = distilled.metadata["distillation"]["held_out"]
    assert errors["error_distilled"][-1] < 0.1 * errors["error_base"][-1]


@pytest.mark.parametrize(("num_steps", "left"), [(5, 0.6), (10, 0.3), (20, 0.05)])
def test_lambdas_hold_on_other_seeds(num_steps: int, left: float, mixture: Any, normal: Any) -> None:
    plan = make_plan("ddim", VP, num_steps)
    held_out = normal(1, 400, 8)
    distilled = distill_plan(plan, mixture, normal(0, 100, 8), held_out=held_out)
    report = distilled.metadata["distillation"]
    errors = report["held_out"]
    assert errors["num_samples"] == 400
    # as good on samples it never saw as on the fitted ones
    assert errors["error_distilled"][-1] < 2 * report["step_error_after"][-1]
    # and closer to the fine solution, not only to its teacher
    fine = integrate(make_plan("ddim", VP, 1000), mixture, held_out)
    base = mean_square(integrate(plan, mixture, held_out) - fine)
    better = mean_square(integrate(distilled, mixture, held_out) - fine)
    assert better < left * base


def test_aligned_beats_official_where_the_grids_do_not_meet(mixture: Any, normal: Any) -> None:
    plan = make_plan("ddim", VP, 10, spacing="leading")
    x, held_out = normal(0, 100, 8), normal(1, 400, 8)
    fine = integrate(make_plan("ddim", VP, 1000), mixture, held_out)
    error = {
        grid: mean_square(integrate(distill_plan(plan, mixture, x, grid=grid), mixture, held_out) - fine)
        for grid in ("aligned", "official")
    }
    assert error["aligned"] < error["official"]


def test_gains_on_the_toy_mixtures(normal: Any) -> None:
    """Twenty narrow clusters in 32 dimensions, "leading" steps. The reference figures are from one unknown draw of the
    mixture; these are means over six. benchmarks/bench_distill.py has twenty, all three numbers of steps and the
    official grid."""
    expected = {5: (0.0332, 0.0116), 10: (0.0175, 0.0022)}
    found = {steps: [0.0, 0.0] for steps in expected}
    for seed in range(6):
        mixture = MixtureDenoiser(0.55 * normal(3 + seed, 20, 32), 0.15)
        x, held_out = normal(1000 + seed, 100, 32), normal(2000 + seed, 150, 32)
        fine = integrate(make_plan("dpm_solver++", VP, 100, order=2), mixture, held_out)
        for steps in expected:
            plan = make_plan("ddim", VP, steps, spacing="leading")
            for place, tested in enumerate((plan, distill_plan(plan, mixture, x))):
                found[steps][place] += mean_square(integrate(tested, mixture, held_out) - fine) / 6
    for steps, figures in expected.items():
        assert found[steps] == pytest.approx(figures, rel=0.25)


def test_official_grid_is_the_published_procedure(normal: Any) -> None:
    """Written out as the authors' code has it: pairing by step count, lambda on the bare difference of outputs."""

    def network(x: Tensor, t: Tensor) -> Tensor:
        return torch.tanh(x + torch.sin(3 * x) * (1 - t[:, None] / 1000))

    num_steps, multiplier = 10, 10
    x_T = normal(0, 64, 3)

    def bar(t: int) -> float:
        return float(VP.alphas_cumprod[t]) if t >= 0 else 1.0

    def step(x: Tensor, output: Tensor, t: int, after: int) -> Tensor:
        x_0 = (x - output * (1 - bar(t)) ** 0.5) / bar(t) ** 0.5
        return bar(after) ** 0.5 * x_0 + (1 - bar(after)) ** 0.5 * output

    def evaluate(x: Tensor, t: int) -> Tensor:
        return network(x, torch.full((len(x),), float(t)))

    fine = list(range(0, 1000, 1000 // (num_steps * multiplier)))
    states = [x_T]
    for t, after in zip(reversed(fine), reversed([-1, *fine[:-1]]), strict=True):
        states.append(step(states[-1], evaluate(states[-1], t), t, after))
    targets = [states[i * multiplier] for i in range(num_steps)] + [states[-1]]
    coarse = list(range(0, 1000, 1000 // num_steps))
    x, earlier, bare, coefficients = x_T, x_T, [], []
    for i, (t, after) in enumerate(zip(reversed(coarse), reversed([-1, *coarse[:-1]]), strict=True)):
        output = evaluate(x, t)
        nxt = step(x, output, t, after)
        direction = output - earlier
        bare.append(float((direction * (targets[i + 1] - nxt)).sum() / direction.square().sum()))
        coefficients.append((1 - bar(after)) ** 0.5 - (bar(after) * (1 - bar(t)) / bar(t)) ** 0.5)
        x, earlier = nxt + bare[-1] * direction, output

    model = wrap_model(network, prediction_type="epsilon")
    plan = make_plan("ddim", VP, num_steps, spacing="leading")
    distilled = distill_plan(plan, model, x_T, teacher_multiplier=multiplier, grid="official")
    expected = [value / b for value, b in zip(bare, coefficients, strict=True)]
    assert distilled.metadata["distillation"]["lambdas"] == pytest.approx(expected, rel=1e-6)
    torch.testing.assert_close(integrate(distilled, model, x_T), x, rtol=0, atol=1e-8)


def test_cost_and_teacher(mixture: Any, normal: Any, record: Any) -> None:
    recorder = record(mixture)
    plan = make_plan("ddim", VP, 5)
    report = distill_plan(plan, recorder, normal(0, 8, 8)).metadata["distillation"]
    assert len(recorder.calls) == report["evaluations_per_sample"] == 55
    assert report["teacher"] == {"solver": "ddim", "num_steps": 50, "nfe": 50}
    assert report["num_samples"] == 8


@pytest.mark.parametrize("grid", ["aligned", "official"])
@pytest.mark.parametrize("spacing", ["trailing", "leading", "linspace", "log_snr"])
def test_teacher_stays_on_trained_indices(grid: str, spacing: str, mixture: Any, normal: Any, record: Any) -> None:
    schedule = VPSchedule.linear(100)
    recorder = record(mixture)
    plan = make_plan("ddim", schedule, 20, spacing=spacing)
    distill_plan(plan, recorder, normal(0, 4, 8), grid=grid)
    times = [point.t for _, point, _, _ in recorder.calls]
    assert min(times) >= 0
    assert len(times) - 20 <= 100


def test_batch_size_changes_what_the_model_sees_only(mixture: Any, normal: Any, record: Any) -> None:
    plan = make_plan("ddim", VP, 4)
    x = normal(0, 10, 8)
    recorder = record(mixture)
    whole = distill_plan(plan, mixture, x, held_out=normal(1, 3, 8)).metadata["distillation"]
    parts = distill_plan(plan, recorder, x, held_out=normal(1, 3, 8), batch_size=4).metadata["distillation"]
    assert max(len(call[0]) for call in recorder.calls) == 4
    assert parts["lambdas"] == pytest.approx(whole["lambdas"], rel=1e-9)
    assert parts["held_out"]["error_base"] == pytest.approx(whole["held_out"]["error_base"], rel=1e-9)


@pytest.mark.parametrize("options", [{}, {"learn_grid": True}, {"parameters": "history"}])
def test_conditions_go_with_their_samples(mixture: Any, normal: Any, options: dict[str, Any]) -> None:
    """A network that is told which centre it is: batches and held-out noise get their own rows."""
    plan = make_plan("ddim", VP, 4)
    x, other = normal(0, 10, 8), normal(1, 3, 8)

    def network(x: Tensor, t: Tensor, centre: Tensor) -> Tensor:
        assert len(centre) == len(x)
        alpha, sigma = float(VP.alpha(t[0].double().numpy())), float(VP.sigma(t[0].double().numpy()))
        best = centre + alpha * 0.09 / (alpha**2 * 0.09 + sigma**2) * (x - alpha * centre)
        return (x - alpha * best) / sigma

    def told(labels: Tensor) -> Any:
        return wrap_model(network, prediction_type="epsilon", condition={"centre": mixture.centres[labels]})

    labels, others = torch.arange(10) % 6, torch.tensor([5, 0, 3])
    made = [
        distill_plan(plan, told(labels), x, held_out=other, held_out_denoiser=told(others), batch_size=size, **options)
        for size in (None, 4)
    ]
    whole, parts = (plan.metadata["distillation"] for plan in made)
    assert parts["step_error_after"] == pytest.approx(whole["step_error_after"], rel=1e-6)
    for name in ("error_base", "error_distilled"):
        assert parts["held_out"][name] == pytest.approx(whole["held_out"][name], rel=1e-6)
    alone = [told(others[row : row + 1]) for row in range(3)]
    ends = [integrate(made[0], model, other[row : row + 1]) for row, model in enumerate(alone)]
    torch.testing.assert_close(torch.cat(ends), integrate(made[0], told(others), other), rtol=0, atol=1e-9)


def test_distilled_plan_is_a_plan(mixture: Any, normal: Any, tmp_path: Path) -> None:
    plan = make_plan("ddim", VP, 5)
    distilled = distill_plan(plan, mixture, normal(0, 32, 8))
    assert (distilled.solver, distilled.nfe, distilled.num_steps) == ("ddim", 5, 5)
    assert distilled.state_points == plan.state_points
    assert [len(row.updates[0].b) for row in distilled.evaluations] == [1, 2, 2, 2, 2]
    distilled.save(tmp_path / "plan.json")
    again = load_plan(tmp_path / "plan.json")
    assert again == distilled
    assert json.loads((tmp_path / "plan.json").read_text())["metadata"]["distillation"]["grid"] == "aligned"
    x = normal(1, 4, 8)
    assert torch.equal(integrate(again, mixture, x), integrate(distilled, mixture, x))
    # Away from the first step, where x_T stands in for an output, the correction is consistent for any lambda.
    assert distilled.consistency_error() < 0.01


def test_one_step_and_a_correction_of_nothing(normal: Any) -> None:
    # A model that returns x itself at the first step: eps - x_T is zero, so no lambda can be told from another.
    model = wrap_model(lambda x, t: x, prediction_type="epsilon")
    report = distill_plan(make_plan("ddim", VP, 1), model, normal(0, 4, 8)).metadata["distillation"]
    assert report["lambdas"] == [0.0]


def test_prediction_type_of_the_model_does_not_matter(normal: Any, mixture: Any) -> None:
    def model(prediction_type: str) -> Any:
        from pydiffaccel.solvers.point import points_at

        def predict(x: Tensor, t: Tensor) -> Tensor:
            return mixture(x, points_at(VP, [float(t[0])])[0], prediction_type)

        return wrap_model(predict, prediction_type=prediction_type)

    x = normal(0, 16, 8)
    plan = make_plan("ddim", VP, 5)
    lambdas = [
        distill_plan(plan, model(kind), x).metadata["distillation"]["lambdas"]
        for kind in ("epsilon", "sample", "v_prediction")
    ]
    assert lambdas[1] == pytest.approx(lambdas[0], rel=1e-6)
    assert lambdas[2] == pytest.approx(lambdas[0], rel=1e-6)


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"plan": make_plan("ddim", VP, 3, eta=0.5)}, r"only deterministic plans can be distilled"),
        ({"plan": apply_lambdas(make_plan("ddim", VP, 3), [0.1, 0.1, 0.1])}, "this ddim plan is already corrected"),
        ({"grid": "shifted"}, "unknown grid 'shifted'; known: aligned, official"),
        ({"parameters": "all"}, "unknown parameters 'all'; known: lambda, history, none"),
        ({"ridge": -1.0}, "ridge must not be negative, got -1.0"),
        ({"ridge": float("nan")}, "ridge must not be negative, got nan"),
        ({"learn_grid": True, "grid": "official"}, 'learn_grid needs grid="aligned"'),
        ({"learn_grid": True, "teacher": make_plan("ddim", VP, 3)}, 'learn_grid needs grid="aligned"'),
        ({"teacher_multiplier": 0}, "teacher_multiplier must be at least 1, got 0"),
        ({"batch_size": 0}, "batch_size must be at least 1, got 0"),
        ({"x_T": torch.empty(0, 8)}, r"the fit needs at least one sample, got x_T of shape \(0, 8\)"),
        ({"held_out": torch.zeros(4, 9)}, r"held_out must be samples like x_T's \(4, 8\), got \(4, 9\)"),
        ({"held_out": torch.zeros(0, 8)}, "held_out must be samples like"),
        ({"held_out_denoiser": wrap_model(torch.tanh, prediction_type="epsilon")}, "held_out_denoiser needs held_out"),
        (
            {"plan": make_plan("ddim", VP, timesteps=[900, 50]), "grid": "official"},
            'grid="official" needs a plan with a named spacing',
        ),
        ({"teacher_solver": "magic"}, "unknown solver 'magic'; known: ddim"),
        ({"teacher_solver": "ddim", "teacher": make_plan("ddim", VP, 3)}, "give teacher or teacher_solver, not both"),
        ({"teacher": make_plan("ddim", VP, 7)}, "but it has no state at t = 666"),
        ({"teacher": make_plan("ddim", VP, 6, eta=1.0)}, "but it adds noise"),
        (
            {"teacher": make_plan("ddim", VP, 3, spacing="leading")},
            "teacher must start where the student does, at t = 999",
        ),
    ],
)
def test_bad_values(change: dict[str, Any], sentence: str, mixture: Any) -> None:
    arguments: dict[str, Any] = {"plan": make_plan("ddim", VP, 3), "x_T": torch.ones(4, 8), **change}
    with pytest.raises(ValueError, match=sentence):
        distill_plan(arguments.pop("plan"), mixture, arguments.pop("x_T"), **arguments)


def test_a_model_of_other_noise_levels(normal: Any) -> None:
    model = wrap_model(lambda x, t: x, prediction_type="epsilon", schedule=VPSchedule.cosine())
    with pytest.raises(ValueError, match=r"the plan is for VPSchedule\(.*, but the model was trained on VPSchedule\("):
        distill_plan(make_plan("ddim", VP, 3), model, normal(0, 4, 8))


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"plan": "ddim"}, "plan must be a Plan, got str"),
        ({"denoiser": torch.tanh}, "denoiser must be a Denoiser"),
        ({"teacher_multiplier": 2.5}, "teacher_multiplier must be an int, got float"),
        ({"batch_size": True}, "batch_size must be an int, got bool"),
        ({"ridge": "1"}, "ridge must be a number, got str"),
        ({"x_T": [1.0]}, "x_T must be a tensor, got list"),
        ({"held_out": [1.0]}, "held_out must be a tensor, got list"),
        ({"teacher": 3}, "teacher must be a Plan, got int"),
        ({"held_out_denoiser": 3}, "held_out_denoiser must be a Denoiser"),
    ],
)
def test_bad_types(change: dict[str, Any], sentence: str, mixture: Any) -> None:
    arguments: dict[str, Any] = {
        "plan": make_plan("ddim", VP, 3),
        "denoiser": mixture,
        "x_T": torch.ones(4, 8),
        **change,
    }
    with pytest.raises(TypeError, match=sentence):
        distill_plan(arguments.pop("plan"), arguments.pop("denoiser"), arguments.pop("x_T"), **arguments)


def test_a_lambda_per_evaluation() -> None:
    with pytest.raises(ValueError, match="a plan of 3 updates takes as many lambdas, got 2"):
        apply_lambdas(make_plan("ddim", VP, 3), [0.1, 0.2])
