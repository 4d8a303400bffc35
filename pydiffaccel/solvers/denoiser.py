"""From a network to the output a solver wants: time convention, dtype and prediction type."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from pydiffaccel.ops.solver_step import solver_step
from pydiffaccel.schedule import Schedule
from pydiffaccel.solvers.point import PREDICTION_TYPES, Point, output_parts

__all__ = ["Denoiser", "conversion", "wrap_model"]

_TIMES = ("index", "sigma", "unit")
_MODEL_DTYPES = (torch.float16, torch.bfloat16, torch.float32, torch.float64)


class Denoiser(ABC):
    """What ``integrate`` evaluates. ``wrap_model`` makes one from a network; subclass it for anything else.

    Attributes:
        schedule: the noise levels that the model was trained on: ``integrate`` refuses a plan for others. None where
            they are not known.
    """

    schedule: Schedule | None = None

    @abstractmethod
    def __call__(self, x: Tensor, point: Point, output_type: str) -> Tensor:
        """The model's prediction at the state x, as the given prediction type.

        Args:
            x: the state ``[B, *]``, float32 or float64.
            point: its noise level.
            output_type: one of "epsilon", "sample", "v_prediction", "flow".

        Returns:
            ``[B, *]`` in x's dtype and on x's device.
        """


def conversion(have: str, want: str, point: Point) -> tuple[float, float]:
    """(c, d) such that the prediction of type `want` is c x + d raw, where raw is of type `have` and x the state.

    With x = alpha x_0 + sigma noise and raw = p x_0 + q noise this is exact for every model, not an approximation.

    Raises:
        ValueError: unknown type, or raw does not determine the other one at this level (noise prediction where
            alpha = 0, data prediction where sigma = 0).
    """
    alpha, sigma = point.alpha, point.sigma
    p, q = output_parts(have, alpha, sigma)
    p_want, q_want = output_parts(want, alpha, sigma)
    if have == want:
        return 0.0, 1.0
    determinant = alpha * q - sigma * p
    if determinant == 0:
        raise ValueError(
            f"a prediction of type {have!r} does not determine {want!r} at t = {point.t:g}, where alpha = {alpha:g}"
            f" and sigma = {sigma:g}"
        )
    return (p_want * q - q_want * p) / determinant, (alpha * q_want - sigma * p_want) / determinant


@dataclass(frozen=True)
class _ModelDenoiser(Denoiser):
    model: Callable[..., Any]
    prediction_type: str
    time: str
    time_scale: float
    dtype: torch.dtype | None
    schedule: Schedule | None = None

    def __call__(self, x: Tensor, point: Point, output_type: str) -> Tensor:
        # torch.full writes the constant on the device: no copy from the host, no synchronisation.
        t = torch.full((x.shape[0],), self._model_time(point), dtype=torch.float32, device=x.device)
        answer: Any = self.model(x.to(self._input_dtype(x)), t)
        raw: Any = answer if isinstance(answer, Tensor) else getattr(answer, "sample", answer)
        if not isinstance(raw, Tensor):
            raise TypeError(f"the model must return a tensor or an object with .sample, got {type(raw).__name__}")
        if raw.shape != x.shape:
            raise ValueError(f"the model must return the state's shape {tuple(x.shape)}, got {tuple(raw.shape)}")
        if self.prediction_type == output_type:
            return raw.to(x.dtype)
        c, d = conversion(self.prediction_type, output_type, point)
        return solver_step(x, [raw], c, [d])

    def _model_time(self, point: Point) -> float:
        if self.time == "index":
            value = point.t
        elif self.time == "unit":
            value = point.unit
        elif point.alpha == 0:
            raise ValueError(f'time="sigma" is infinite at t = {point.t:g}, where alpha is 0')
        else:
            value = point.sigma / point.alpha
        return self.time_scale * value

    def _input_dtype(self, x: Tensor) -> torch.dtype:
        if self.dtype is not None:
            return self.dtype
        if isinstance(self.model, torch.nn.Module):
            for parameter in self.model.parameters():
                if parameter.dtype in _MODEL_DTYPES:
                    return parameter.dtype
        return x.dtype


def wrap_model(
    model: Callable[..., Any],
    *,
    prediction_type: str,
    time: str = "index",
    time_scale: float = 1.0,
    dtype: torch.dtype | None = None,
    schedule: Schedule | None = None,
) -> Denoiser:
    """A denoiser for ``integrate`` from a network.

    Args:
        model: called as ``model(x, t)`` with the state ``[B, *]`` and its time ``[B]``; returns the prediction
            ``[B, *]`` or an object that holds it as ``.sample`` (diffusers). Any further input (labels, text) is bound
            by the caller, as in ``lambda x, t: unet(x, t, labels)``. It stays in the mode (train, eval) it is in.
        prediction_type: what it predicts: "epsilon", "sample", "v_prediction" (alpha noise - sigma x_0) or
            "flow" (x_0 - noise).
        time: what t is: "index", the schedule's own time (VP: the training index, real-valued, never rounded; flow:
            0 noise .. 1 data); "unit", that time rescaled to [0, 1] (VP: (index + 1) / T); "sigma", sigma / alpha.
        time_scale: factor on t, as 1000 for flow networks trained on 1000 t.
        dtype: what x is cast to for the model; by default the dtype of the model's parameters, or x's own if it has
            none. t is float32 whatever the dtypes are: half precision cannot tell 1000 training indices apart.
        schedule: the noise levels that it was trained on, if ``integrate`` shall refuse plans for others.

    Raises:
        TypeError: the model is not callable, or dtype is no floating dtype.
        ValueError: unknown prediction_type or time, or a time_scale that is zero or not finite.
    """
    if not callable(model):
        raise TypeError(f"model must be callable, got {type(model).__name__}")
    if prediction_type not in PREDICTION_TYPES:
        raise ValueError(f"unknown prediction type {prediction_type!r}; known: {', '.join(PREDICTION_TYPES)}")
    if time not in _TIMES:
        raise ValueError(f"unknown time {time!r}; known: {', '.join(_TIMES)}")
    if not math.isfinite(time_scale) or time_scale == 0:
        raise ValueError(f"time_scale must be finite and not 0, got {time_scale}")
    if dtype is not None and dtype not in _MODEL_DTYPES:
        raise TypeError(f"dtype must be a floating dtype, got {dtype}")
    return _ModelDenoiser(model, prediction_type, time, float(time_scale), dtype, schedule)
