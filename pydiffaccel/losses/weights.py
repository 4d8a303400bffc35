"""The weights of the loss at each time that papers and training scripts use, for every prediction type, in one table.

Each row says how much the squared error of one quantity (data, noise, v, velocity) counts at a time. At one x_t the
errors of all these quantities are one error up to factors of alpha and sigma, which make the row a weight for the loss
of what the network predicts.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from pydiffaccel._tensors import at_hand
from pydiffaccel.forward import Process
from pydiffaccel.losses.min_snr import min_snr_weight
from pydiffaccel.schedule.slope import noise_slope

__all__ = ["SPACES", "WEIGHTINGS", "LossWeighting"]

# What errors can be counted in, and networks predict.
SPACES = ("sample", "epsilon", "v_prediction", "flow")
WEIGHTINGS = ("min_snr", "truncated_snr", "p2", "sigma_sqrt", "cosmap", "change_aware", *SPACES)

# The scripts that sigma_sqrt comes from have no less noise than this; without a bound its mean is infinite.
_LEAST_FRACTION = 1e-3


@dataclass(frozen=True)
class _Term:
    """``factor sigma^(2 noise) alpha^(2 data)``, the factor finite and positive at all noise levels.

    The powers are kept apart so that they cancel before a level that is 0 is divided by.
    """

    factor: Tensor
    noise: float = 0.0
    data: float = 0.0

    def __mul__(self, other: _Term) -> _Term:
        return _Term(self.factor * other.factor, self.noise + other.noise, self.data + other.data)

    def value(self, alpha: Tensor, sigma: Tensor) -> Tensor:
        result = self.factor
        for level, power in ((sigma, self.noise), (alpha, self.data)):
            if power != 0:
                result = result * level.square().pow(power)
        return result


def _of_data(kind: str, alpha: Tensor, sigma: Tensor) -> _Term:
    """The squared error of the data over that of another quantity at the same x_t = alpha x_0 + sigma noise.

    An error e of x_0 goes with alpha / sigma e of the noise, (alpha^2 + sigma^2) / sigma e of v, and
    (alpha + sigma) / sigma e of the velocity x_0 - noise.
    """
    if kind == "epsilon":
        return _Term(torch.ones_like(alpha), 1, -1)
    if kind == "v_prediction":
        return _Term((alpha.square() + sigma.square()).pow(-2), 1)
    if kind == "flow":
        return _Term((alpha + sigma).pow(-2), 1)
    return _Term(torch.ones_like(alpha))


def _counted_in(kind: str, alpha: Tensor, sigma: Tensor) -> _Term:
    """The weight of the data's error under which that of another quantity counts alike at all times."""
    term = _of_data(kind, alpha, sigma)
    return _Term(term.factor.reciprocal(), -term.noise, -term.data)


@dataclass(frozen=True)
class LossWeighting:
    """A factor of the loss at each time of a process, for whatever its network predicts.

    With SNR = alpha^2 / sigma^2 and r = sigma / (alpha + sigma), the squared error of the quantity named second counts

    | name            | error of | counts                                  | source                                 |
    |-----------------|----------|-----------------------------------------|----------------------------------------|
    | min_snr         | data     | min(SNR, snr_gamma)                     | 2303.09556                             |
    | truncated_snr   | data     | max(SNR, 1)                             | 2202.00512                             |
    | p2              | noise    | 1 / (p2_k + SNR)^p2_gamma               | 2204.00227                             |
    | sigma_sqrt      | velocity | r^-2, for r below 0.001 that of 0.001   | diffusers' scripts for SD3             |
    | cosmap          | velocity | 2 / (pi (1 - 2 r + 2 r^2))              | 2403.03206, section 3.1                |
    | change_aware    | noise    | the slope of sigma, rescaled            | after 2405.17403; the rescaling is ours|
    | sample, epsilon, v_prediction, flow | it | 1                         |                                        |

    The error of what the network predicts is each of these errors up to a factor of alpha and sigma, so the weight is
    exact for every prediction type; named as the prediction type itself it is exactly 1. change_aware goes linearly
    from 2 (1 - ceiling) at the least slope of the schedule to 2 ceiling at the greatest.

    Args:
        process: the forward process, for its noise levels and what is predicted.
        name: a row of the table.
        snr_gamma: of min_snr, positive.
        p2_gamma: of p2, positive; 0.5 and 1 in the paper.
        p2_k: of p2, positive.
        ceiling: of change_aware, in [0.5, 1]; 0.5 is no weight.

    Raises:
        TypeError: process is no Process, or a number is none.
        ValueError: an unknown name, a number out of its range, a process of prediction type "edm" (its preconditioning
            is a weight already), change_aware on a noise level that changes at a constant rate, or a weight that is
            infinite at a training index without signal or without noise.
    """

    process: Process
    name: str
    snr_gamma: float = 5.0
    p2_gamma: float = 1.0
    p2_k: float = 1.0
    ceiling: float = 0.6
    _slopes: tuple[Tensor, Tensor] | None = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        if not isinstance(self.process, Process):
            raise TypeError(f"process must be a Process, got {type(self.process).__name__}")
        if self.name not in WEIGHTINGS:
            raise ValueError(f"a weighting is one of {', '.join(WEIGHTINGS)}, got {self.name!r}")
        if self.process.prediction_type not in SPACES:
            raise ValueError(
                f"{self.name} weights are for epsilon, sample, v_prediction and flow, got prediction type "
                f"{self.process.prediction_type!r}, whose preconditioning is a weight already"
            )
        for key in ("snr_gamma", "p2_gamma", "p2_k", "ceiling"):
            value = getattr(self, key)
            if isinstance(value, bool) or not isinstance(value, (int, float)):
                raise TypeError(f"{key} must be a number, got {type(value).__name__}")
            if not (math.isfinite(value) and value > 0):
                raise ValueError(f"{key} must be positive and finite, got {value}")
        if not 0.5 <= self.ceiling <= 1:
            raise ValueError(f"ceiling must lie in [0.5, 1], got {self.ceiling}")
        object.__setattr__(self, "_slopes", self._rescaled_slopes() if self.name == "change_aware" else None)
        if (count := self.process.schedule.num_train_timesteps) is not None:
            self(torch.arange(count))

    def _rescaled_slopes(self) -> tuple[Tensor, Tensor]:
        """Times that the slope is known at, rising, and the weights there."""
        times, slopes = noise_slope(self.process.schedule)
        least, most = slopes.min(), slopes.max()
        if not most - least > 1e-9 * abs(most):
            raise ValueError(
                f"change_aware weights need a noise level whose slope changes, but that of the process "
                f"{self.process.name!r} is {most:g} at all times"
            )
        order = np.argsort(times)
        rescaled = 2 * (1 - self.ceiling + (2 * self.ceiling - 1) * (slopes - least) / (most - least))
        return torch.from_numpy(times[order].copy()), torch.from_numpy(rescaled[order].copy())

    def __call__(self, t: Tensor) -> Tensor:
        """The weights at times t of any shape: float64, on t's device.

        Raises:
            TypeError: t is not of the dtype that the process' times have.
            ValueError: a time is out of range, or a weight infinite (looked for on the CPU alone).
        """
        if self.name == "min_snr":
            return min_snr_weight(self.process, t, self.snr_gamma)
        alpha, sigma = (level.view(t.shape) for level in self.process.levels(t.flatten()))
        kind = self.process.prediction_type
        if self.name == kind:
            return torch.ones_like(alpha)
        weight = (self._of_the_data(t, alpha, sigma) * _of_data(kind, alpha, sigma)).value(alpha, sigma)
        if at_hand(weight):
            infinite = ~weight.isfinite()
            if infinite.any():
                missing = "signal" if alpha[infinite][0] == 0 else "noise"
                raise ValueError(
                    f"{self.name} weights of a network that predicts {kind} are infinite at t = {t[infinite][0]:g}, "
                    f"where no {missing} is left; let it predict something else, or use another weighting"
                )
        return weight

    def _of_the_data(self, t: Tensor, alpha: Tensor, sigma: Tensor) -> _Term:
        """How much the squared error of the data counts."""
        a, s = alpha.square(), sigma.square()
        if self.name == "truncated_snr":
            return _Term(torch.maximum(a, s), -1)
        if self.name == "p2":
            # 1 / (k + a / s)^g = s^g / (k s + a)^g.
            counted = _Term((self.p2_k * s + a).pow(-self.p2_gamma), self.p2_gamma)
            return counted * _counted_in("epsilon", alpha, sigma)
        r = sigma / (alpha + sigma)
        if self.name == "sigma_sqrt":
            return _Term(r.clamp(min=_LEAST_FRACTION).pow(-2)) * _counted_in("flow", alpha, sigma)
        if self.name == "cosmap":
            return _Term(2 / (math.pi * ((1 - r).square() + r.square()))) * _counted_in("flow", alpha, sigma)
        if self.name == "change_aware":
            return _Term(self._slope_weight(t)) * _counted_in("epsilon", alpha, sigma)
        return _counted_in(self.name, alpha, sigma)

    def _slope_weight(self, t: Tensor) -> Tensor:
        assert self._slopes is not None
        times, weights = (values.to(t.device) for values in self._slopes)
        if not t.is_floating_point():
            return weights[t.long()]
        place = ((t.double() - times[0]) / (times[-1] - times[0]) * (len(times) - 1)).clamp(0, len(times) - 1)
        below = place.long().clamp(max=len(times) - 2)
        return torch.lerp(weights[below], weights[below + 1], place - below)
