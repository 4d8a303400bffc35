"""Clipping: a denoiser whose predicted data stays in the range of the data."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from pydiffaccel.ops.solver_step import solver_step
from pydiffaccel.schedule import Schedule
from pydiffaccel.solvers.denoiser import Denoiser, conversion
from pydiffaccel.solvers.point import Point

__all__ = ["clip_denoised"]


def clip_denoised(denoiser: Denoiser, limit: float = 1.0) -> Denoiser:
    """The denoiser with the data that its answer implies clamped to [-limit, limit] before it becomes any other type.

    The data is x_0 = c x + d answer (``conversion`` to "sample"), with guidance after it is combined. The released
    code of denoising diffusion models (2006.11239) clips it while sampling; 2205.11487, section 2.3, calls that static
    thresholding. For the data of a state of factor s (``Scaled``) the limit is s. Not for latents, which have no range.

    Where x_0 is inside, the answer changes by rounding at most. Values that are not finite stay, so that ``integrate``
    still refuses them.

    Args:
        denoiser: any; its conditions, rows and schedule are passed on.
        limit: above 0; infinity returns the denoiser itself.

    Returns:
        A denoiser. Its calls raise a ValueError where the answer does not determine the data (noise prediction where
        alpha = 0), or the data not what is asked for (anything but "sample" where sigma = 0).

    Raises:
        TypeError: no denoiser, or a limit that is no number.
        ValueError: limit is not above 0.
    """
    if not isinstance(denoiser, Denoiser):
        raise TypeError(f"denoiser must be a Denoiser (see wrap_model), got {type(denoiser).__name__}")
    if isinstance(limit, bool) or not isinstance(limit, (int, float)):
        raise TypeError(f"limit must be a number, got {type(limit).__name__}")
    if not limit > 0:  # NaN too
        raise ValueError(f"limit must be above 0, got {limit}")
    return denoiser if limit == math.inf else _Clipped(denoiser, float(limit), denoiser.schedule)


@dataclass(frozen=True)
class _Clipped(Denoiser):
    inner: Denoiser
    limit: float
    schedule: Schedule | None = None

    def __call__(self, x: Tensor, point: Point, output_type: str) -> Tensor:
        c, d = conversion("sample", output_type, point)
        data: Any = self.inner(x, point, "sample")
        if not isinstance(data, Tensor):
            raise TypeError(f"at t = {point.t:g} the denoiser must return a tensor, got {type(data).__name__}")
        # An infinite answer must not become a valid one.
        clipped = torch.where(data.isfinite(), data.clamp(-self.limit, self.limit), data)
        return clipped.to(x.dtype) if (c, d) == (0.0, 1.0) else solver_step(x, [clipped], c, [d])

    def conditioned(
        self, condition: Mapping[str, Any] | None, unconditional: Mapping[str, Any] | None, guidance_scale: float
    ) -> Denoiser:
        """See ``Denoiser.conditioned``."""
        return clip_denoised(self.inner.conditioned(condition, unconditional, guidance_scale), self.limit)

    def rows(self, first: int, last: int) -> Denoiser:
        """See ``Denoiser.rows``."""
        return clip_denoised(self.inner.rows(first, last), self.limit)
