"""Against diffusers' schedulers, on the same grid and model: in their own float32, and with their arithmetic in float64.

Their tables are float32 (sigmas, alphas), which is what the first comparison measures. For the second the schedulers'
modules see torch and NumPy through a lens in which float32 is float64, so the very same code runs in double precision.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from pydiffaccel.schedule import FlowSchedule, VPSchedule
from pydiffaccel.solvers import Plan, integrate, make_plan, wrap_model
from pydiffaccel.solvers.point import points_at
from tests.solvers.conftest import MixtureDenoiser

pytest.importorskip("diffusers")

STEPS = (1, 2, 3, 5, 10, 21, 50)
TYPES = ("epsilon", "sample", "v_prediction")
SPACINGS = ("trailing", "leading", "linspace")
# Largest relative difference of the end states: float32 tables, float64 tables.
TOLERANCE = {"float32": 1e-5, "float64": 1e-10}


class Lens:
    """A module in which float32 means float64."""

    def __init__(self, module: Any, double: Any) -> None:
        self._module = module
        self.float32 = double

    def __getattr__(self, name: str) -> Any:
        return getattr(self._module, name)


@pytest.fixture(params=["float32", "float64"])
def precision(request: Any) -> str:
    return str(request.param)


@pytest.fixture
def scheduler(monkeypatch: pytest.MonkeyPatch, precision: str) -> Callable[..., Any]:
    """scheduler(module, class name, steps, **config): one of diffusers', in the precision of the test, timesteps set."""

    def build(module: str, name: str, num_steps: int, **config: Any) -> Any:
        source: Any = importlib.import_module(f"diffusers.schedulers.scheduling_{module}")
        if precision == "float64":
            monkeypatch.setattr(source, "torch", Lens(torch, torch.float64))
            monkeypatch.setattr(source, "np", Lens(np, np.float64))
        result = getattr(source, name)(1000, **config)
        result.set_timesteps(num_steps)
        return result

    return build


def run(theirs: Any, predict: Callable[[Tensor, Tensor], Tensor], x: Tensor, precision: str, **step: Any) -> Tensor:
    x = x.to(getattr(torch, precision))
    for t in theirs.timesteps:
        seen = theirs.scale_model_input(x, t) if hasattr(theirs, "scale_model_input") else x
        x = theirs.step(predict(seen.double(), t).to(x.dtype), t, x, return_dict=False, **step)[0].to(x.dtype)
    return x.double()


def compare(
    plan: Plan, theirs: Any, mixture: MixtureDenoiser, kind: str, x: Tensor, precision: str, start: float = 1.0
) -> float:
    """Largest difference of the end states over the largest value; `start` scales the noise to their convention."""

    def predict(x: Tensor, t: Tensor) -> Tensor:
        return mixture(x, points_at(plan.schedule, [float(t)])[0], kind)

    ours = integrate(plan, wrap_model(lambda x, t: predict(x, t[0]), prediction_type=kind), x)
    expected = run(theirs, predict, start * x, precision)
    assert expected.isfinite().all()
    return float((ours - expected).abs().max() / expected.abs().max())
