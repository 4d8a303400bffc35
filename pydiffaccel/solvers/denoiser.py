"""From a network to the output a solver wants: state, time convention, dtype, prediction type and guidance."""

from __future__ import annotations

import inspect
import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from pydiffaccel._condition import check_mapping, expanded, rows, sliced
from pydiffaccel.ops.solver_step import solver_step
from pydiffaccel.schedule import Schedule
from pydiffaccel.solvers.point import PREDICTION_TYPES, Point, output_parts

__all__ = ["MODEL_PREDICTION_TYPES", "Denoiser", "conversion", "model_conversion", "model_input_scale", "wrap_model"]

MODEL_PREDICTION_TYPES = (*PREDICTION_TYPES, "denoised", "edm")
_TIMES = ("index", "sigma", "unit", "edm")
_DEFAULT_TIMES = {"denoised": "sigma", "edm": "edm"}
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

    def conditioned(
        self, condition: Mapping[str, Any] | None, unconditional: Mapping[str, Any] | None, guidance_scale: float
    ) -> Denoiser:
        """The same model with these inputs and this guidance (see ``wrap_model``).

        Raises:
            TypeError: this denoiser takes no conditioning.
        """
        raise TypeError(f"{type(self).__name__} takes no condition and no guidance; denoisers of wrap_model do")

    def rows(self, first: int, last: int) -> Denoiser:
        """The denoiser of the samples first .. last - 1 of a batch: itself, unless it holds inputs of each sample."""
        return self


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


def model_conversion(have: str, want: str, point: Point, sigma_data: float = 0.5) -> tuple[float, float]:
    """``conversion``, where `have` may be of ``MODEL_PREDICTION_TYPES``.

    "denoised" is a data prediction. "edm" is the raw network F of 2206.00364, equation 7, at the noise level
    s = sigma / alpha of the state x / alpha: x_0 = c_skip x / alpha + c_out F, with
    c_skip = sigma_data^2 / (s^2 + sigma_data^2) and c_out = s sigma_data / sqrt(s^2 + sigma_data^2).
    """
    if have == "denoised":
        return conversion("sample", want, point)
    if have != "edm":
        return conversion(have, want, point)
    c, d = conversion("sample", want, point)
    level = _noise_to_signal(point)
    square = level**2 + sigma_data**2
    return c + d * sigma_data**2 / square / point.alpha, d * level * sigma_data / math.sqrt(square)


def model_input_scale(have: str, point: Point, sigma_data: float = 0.5) -> float:
    """What the state is multiplied with for a model of this prediction type: 1, or for "denoised" and "edm" what
    makes it x_0 + s noise, and for "edm" also c_in = 1 / sqrt(s^2 + sigma_data^2)."""
    if have not in _DEFAULT_TIMES:
        return 1.0
    level = _noise_to_signal(point)
    return 1.0 / point.alpha if have == "denoised" else 1.0 / (point.alpha * math.hypot(level, sigma_data))


def _noise_to_signal(point: Point) -> float:
    if point.alpha == 0:
        raise ValueError(f"the noise level sigma / alpha is infinite at t = {point.t:g}, where alpha is 0")
    return point.sigma / point.alpha


@dataclass(frozen=True)
class _ModelDenoiser(Denoiser):
    model: Callable[..., Any]
    prediction_type: str
    time: str
    time_scale: float
    dtype: torch.dtype | None
    sigma_data: float
    learned_sigma: bool
    time_keyword: str | None
    condition: Mapping[str, Any] = field(default_factory=dict)
    unconditional: Mapping[str, Any] | None = None
    guidance_scale: float = 1.0
    schedule: Schedule | None = None

    def __call__(self, x: Tensor, point: Point, output_type: str) -> Tensor:
        scale = model_input_scale(self.prediction_type, point, self.sigma_data)
        seen = (x if scale == 1.0 else x * scale).to(self._input_dtype(x))
        if self.guidance_scale == 1.0:
            answers = [self._evaluate(seen, point, expanded(self.condition, len(x)))]
            weights = [1.0]
        else:
            assert self.unconditional is not None
            inputs = _joined(self.unconditional, self.condition, len(x))
            both = self._evaluate(torch.cat([seen, seen]), point, inputs)
            answers = [both[: len(x)], both[len(x) :]]
            weights = [1.0 - self.guidance_scale, self.guidance_scale]
        c, d = model_conversion(self.prediction_type, output_type, point, self.sigma_data)
        if c == 0.0 and d == 1.0 and len(answers) == 1:
            return answers[0].to(x.dtype)
        return solver_step(x, answers, c, [d * weight for weight in weights])

    def conditioned(
        self, condition: Mapping[str, Any] | None, unconditional: Mapping[str, Any] | None, guidance_scale: float
    ) -> Denoiser:
        """See ``Denoiser.conditioned``."""
        _check_guidance(condition, unconditional, guidance_scale)
        return replace(
            self,
            condition=dict(condition or {}),
            unconditional=None if unconditional is None else dict(unconditional),
            guidance_scale=float(guidance_scale),
        )

    def rows(self, first: int, last: int) -> Denoiser:
        """See ``Denoiser.rows``: the rows of every tensor of conditions that has more than one."""
        unconditional = None if self.unconditional is None else sliced(self.unconditional, first, last)
        return replace(self, condition=sliced(self.condition, first, last), unconditional=unconditional)

    def _evaluate(self, seen: Tensor, point: Point, inputs: Mapping[str, Any]) -> Tensor:
        # torch.full writes the constant on the device: no copy from the host, no synchronisation.
        t = torch.full((len(seen),), self._model_time(point), dtype=torch.float32, device=seen.device)
        named = {self.time_keyword: t} if self.time_keyword else {}
        answer: Any = self.model(seen, *(() if named else (t,)), **named, **inputs)
        raw: Any = answer if isinstance(answer, Tensor) else getattr(answer, "sample", answer)
        if not isinstance(raw, Tensor):
            raise TypeError(f"the model must return a tensor or an object with .sample, got {type(raw).__name__}")
        expected = tuple(seen.shape)
        if self.learned_sigma:
            expected = (expected[0], 2 * expected[1], *expected[2:])
        if tuple(raw.shape) != expected:
            what = "twice the state's channels" if self.learned_sigma else "the state's shape"
            raise ValueError(f"at t = {point.t:g} the model must return {what} {expected}, got {tuple(raw.shape)}")
        return raw[:, : seen.shape[1]] if self.learned_sigma else raw

    def _model_time(self, point: Point) -> float:
        if self.time == "index":
            value = point.t
        elif self.time == "unit":
            value = point.unit
        elif point.alpha == 0:
            raise ValueError(f'time="{self.time}" is infinite at t = {point.t:g}, where alpha is 0')
        elif self.time == "sigma":
            value = point.sigma / point.alpha
        else:
            value = math.log(point.sigma / point.alpha) / 4
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
    time: str | None = None,
    time_scale: float = 1.0,
    dtype: torch.dtype | None = None,
    schedule: Schedule | None = None,
    sigma_data: float = 0.5,
    learned_sigma: bool | None = None,
    condition: Mapping[str, Any] | None = None,
    unconditional: Mapping[str, Any] | None = None,
    guidance_scale: float = 1.0,
) -> Denoiser:
    """A denoiser for ``integrate`` from a network.

    Args:
        model: called as ``model(x, t, **condition)`` with the state ``[B, *]`` and its time ``[B]``; returns the
            prediction ``[B, *]`` or an object that holds it as ``.sample`` (diffusers' networks). Where its ``forward``
            has a parameter "timestep" that is not the second one (diffusers' transformers), t is passed by that name.
            It stays in the mode (train, eval) it is in.
        prediction_type: what it predicts: "epsilon", "sample", "v_prediction" (alpha noise - sigma x_0) or
            "flow" (x_0 - noise) from the state itself. "denoised" is a denoiser D(x_0 + s noise, s) of the data, as
            those of EDM and k-diffusion; "edm" the raw network F(c_in (x_0 + s noise), log(s) / 4) inside EDM's
            preconditioning (2206.00364, table 1), as ``EDMProcess`` trains it. Both also run on VP and flow plans:
            s is sigma / alpha there, and the state is divided by alpha for them.
        time: what t is: "index", the schedule's own time (VP: the training index, real-valued, never rounded; flow:
            0 noise .. 1 data; EDM: sigma); "unit", that time rescaled to [0, 1] (VP: (index + 1) / T); "sigma",
            s = sigma / alpha; "edm", log(s) / 4. By default "sigma" for "denoised", "edm" for "edm", else "index".
        time_scale: factor on t, as 1000 for flow networks trained on 1000 t.
        dtype: what x is cast to for the model; by default the dtype of the model's parameters, or x's own if it has
            none. t is float32 whatever the dtypes are: half precision cannot tell 1000 training indices apart.
        schedule: the noise levels that it was trained on (``process.schedule``): ``integrate`` refuses plans for
            others. Without it any plan is taken, also one for levels that a truncated KL process does not have.
        sigma_data: standard deviation of the data in EDM's preconditioning.
        learned_sigma: the model returns ``[B, 2 C, *]`` for a state ``[B, C, *]``; its second half, the variance, is
            left out. By default read from a diffusers network's config, where out_channels is twice in_channels.
        condition: further keyword arguments of the model (labels, text embeddings, ...). A tensor's first dimension is
            the batch, or 1 for all samples alike.
        unconditional: the same for classifier-free guidance (2207.12598); keys that it lacks are condition's.
        guidance_scale: w in unconditional + w (conditional - unconditional), from one call on a doubled batch. At 1
            (no guidance) the unconditional model is not evaluated, and the result is that without it, bit for bit.

    Raises:
        TypeError: the model is not callable, dtype is no floating dtype, or a condition is no mapping.
        ValueError: unknown prediction_type or time, a time_scale that is zero or not finite, a sigma_data that is not
            positive, a guidance_scale that is not finite, or guidance without unconditional inputs.
    """
    if not callable(model):
        raise TypeError(f"model must be callable, got {type(model).__name__}")
    if prediction_type not in MODEL_PREDICTION_TYPES:
        raise ValueError(f"unknown prediction type {prediction_type!r}; known: {', '.join(MODEL_PREDICTION_TYPES)}")
    time = _DEFAULT_TIMES.get(prediction_type, "index") if time is None else time
    if time not in _TIMES:
        raise ValueError(f"unknown time {time!r}; known: {', '.join(_TIMES)}")
    if not math.isfinite(time_scale) or time_scale == 0:
        raise ValueError(f"time_scale must be finite and not 0, got {time_scale}")
    if not (math.isfinite(sigma_data) and sigma_data > 0):
        raise ValueError(f"sigma_data must be positive and finite, got {sigma_data}")
    if dtype is not None and dtype not in _MODEL_DTYPES:
        raise TypeError(f"dtype must be a floating dtype, got {dtype}")
    if learned_sigma is None:
        config = getattr(model, "config", None)
        channels, answered = getattr(config, "in_channels", None), getattr(config, "out_channels", None)
        learned_sigma = isinstance(channels, int) and answered == 2 * channels
    plain = _ModelDenoiser(
        model,
        prediction_type,
        time,
        float(time_scale),
        dtype,
        float(sigma_data),
        bool(learned_sigma),
        _time_keyword(model),
        schedule=schedule,
    )
    return plain.conditioned(condition, unconditional, guidance_scale)


def _time_keyword(model: Callable[..., Any]) -> str | None:
    """ "timestep", if that is the name of a parameter which is not the second one."""
    called = getattr(model, "_orig_mod", model)  # behind torch.compile
    try:
        signature = inspect.signature(called.forward if isinstance(called, torch.nn.Module) else called)
    except (TypeError, ValueError):  # builtins
        return None
    names = list(signature.parameters)
    return "timestep" if "timestep" in names and names.index("timestep") != 1 else None


def _check_guidance(
    condition: Mapping[str, Any] | None, unconditional: Mapping[str, Any] | None, guidance_scale: float
) -> None:
    for name, value in (("condition", condition), ("unconditional", unconditional)):
        check_mapping(name, value)
    if isinstance(guidance_scale, bool) or not isinstance(guidance_scale, (int, float)):
        raise TypeError(f"guidance_scale must be a number, got {type(guidance_scale).__name__}")
    if not math.isfinite(guidance_scale):
        raise ValueError(f"guidance_scale must be finite, got {guidance_scale}")
    if guidance_scale != 1.0 and unconditional is None:
        raise ValueError(f"guidance_scale {guidance_scale:g} needs unconditional inputs beside the condition")
    unknown = sorted(set(unconditional or {}) - set(condition or {}))
    if unknown:
        raise ValueError(f"unconditional has {unknown[0]!r}, which the condition lacks")


def _joined(first: Mapping[str, Any], second: Mapping[str, Any], samples: int) -> dict[str, Any]:
    """Both inputs for a batch that holds the samples twice."""
    result = {}
    for name, value in second.items():
        other = first.get(name, value)
        if isinstance(value, Tensor) and isinstance(other, Tensor) and value.dim() and other.dim():
            result[name] = torch.cat([rows(name, other, samples), rows(name, value, samples)])
        elif other is value or (type(other) is type(value) and not isinstance(value, Tensor) and other == value):
            result[name] = value
        else:
            raise ValueError(f"{name!r} differs between condition and unconditional, so both must be tensors of rows")
    return result
