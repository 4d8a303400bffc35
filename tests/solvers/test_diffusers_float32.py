"""In float32, ours and diffusers' schedulers beside the exact result, and whose rounding it is.

Near pure noise data prediction divides by alpha (0.006 at index 999), so rounding the network's answers to float32 and
nothing else moves the end of a run of few steps by up to 5e-4. That much no float32 sampler can know better. Beyond
it theirs has the rounding of its float32 tables, which shows in DEIS.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor

from pydiffaccel.solvers import Denoiser, Plan, Point, integrate, wrap_model
from pydiffaccel.solvers.point import points_at

pytest.importorskip("diffusers")
from tests.solvers.diffusers_cases import CASES, Case, in_float64

STEPS = (1, 2, 3, 5, 10)
# What the unavoidable part is multiplied with: four roundings or so where that part counts one, and their spread.
SHARE, REST = 10.0, 1e-6
Predict = Callable[[Tensor, float], Tensor]


@dataclass(frozen=True)
class Rounded(Denoiser):
    """Exact but for one rounding: the answer, in the type that the table combines, is a float32."""

    inner: Denoiser

    def __call__(self, x: Tensor, point: Point, output_type: str) -> Tensor:
        return self.inner(x, point, output_type).float().double()


@dataclass(frozen=True)
class Errors:
    """Relative distances of end states to the exact ones.

    Attributes:
        rounding: of the exact run whose answers alone are rounded to float32.
        ours, theirs: of float32 runs.
        theirs_exact_tables: of a float32 run of theirs with tables computed in float64.
        between: ours to theirs.
    """

    rounding: float
    ours: float
    theirs: float
    theirs_exact_tables: float
    between: float


def their_run(theirs: Any, predict: Predict, x: Tensor, start: float) -> Tensor:
    state = x / start
    for t in theirs.timesteps:
        output = predict(theirs.scale_model_input(state, t).double(), float(t)).float()
        state = theirs.step(output, t, state, return_dict=False)[0].float()
    return state.double()


def errors(case: Case, num_steps: int, kind: str, mixture: Any, x: Tensor) -> Errors | None:
    spacing = case.spacings[0]
    if not case.meets(num_steps, spacing) or (pair := case.pair(num_steps, spacing, kind)) is None:
        return None

    def predict_of(plan: Plan) -> Predict:
        return lambda x, t: mixture(x, points_at(plan.schedule, [t])[0], kind)

    def run(plan: Plan, state: Tensor, dtype: torch.dtype, rounded: bool = False) -> Tensor:
        predict = predict_of(plan)
        model = wrap_model(lambda x, t: predict(x.double(), float(t[0])).to(dtype).to(x), prediction_type=kind)
        return integrate(plan, Rounded(model) if rounded else model, state).double()

    (theirs, plan), single, double = pair, torch.float32, torch.float64
    start = plan.start.alpha if case.scaled else 1.0
    exact = run(plan, x.double(), double)
    size = float(exact.abs().max())

    def error(state: Tensor, truth: Tensor = exact) -> float:
        return float((state - truth).abs().max()) / size

    ours, other = run(plan, x, single), their_run(theirs, predict_of(plan), x, start)
    with in_float64(case.module):
        precise = case.pair(num_steps, spacing, kind)
        assert precise is not None
        theirs_exact, plan_exact = precise
        mixed = their_run(theirs_exact, predict_of(plan_exact), x, start)
    return Errors(
        rounding=max(error(run(plan, x.double(), double, True)), error(run(plan, x.double(), single))),
        ours=error(ours),
        theirs=error(other),
        theirs_exact_tables=error(mixed, run(plan_exact, x.double(), double)),
        between=error(ours, other),
    )


def combines_noise(case: Case) -> bool:
    """Whether noise predictions of several noise levels are subtracted from each other."""
    return case.options.get("prediction") == "noise" or case.solver in ("pndm", "dpm_solver")


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.label)
@pytest.mark.filterwarnings("ignore::FutureWarning")
def test_ours_is_as_exact_as_float32_answers_allow(case: Case, mixture: Any, normal: Any) -> None:
    x = normal(0, 5, 8, dtype=torch.float32)
    for kind in case.types:
        for num_steps in STEPS:
            found = errors(case, num_steps, kind, mixture, x)
            if found is None:
                continue
            bound = SHARE * found.rounding + REST
            assert found.ours < bound, (kind, num_steps, found)
            assert found.theirs_exact_tables < bound, (kind, num_steps, found)
            if case.solver != "deis":
                assert found.theirs < 2 * bound, (kind, num_steps, found)
            if num_steps > 2 and not combines_noise(case):
                assert found.between < (5e-5 if case.solver == "deis" else 1e-5), (kind, num_steps, found)


def test_their_tables_are_what_limits_deis(mixture: Any, normal: Any) -> None:
    (case,) = (case for case in CASES if case.label == "deis3")
    found = errors(case, 50, "epsilon", mixture, normal(0, 5, 8, dtype=torch.float32))
    assert found is not None
    assert found.theirs > 20 * max(found.ours, found.theirs_exact_tables), found
    assert max(found.ours, found.theirs_exact_tables) < 1e-6, found
