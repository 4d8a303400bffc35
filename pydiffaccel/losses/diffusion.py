"""The plain loss of diffusion and flow-matching models."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from pydiffaccel._condition import repeated
from pydiffaccel.forward import Process
from pydiffaccel.losses.common import Model, answer_of, check_reduction, mean_square, reduced

__all__ = ["diffusion_loss"]


def diffusion_loss(
    model: Model,
    x0: Tensor,
    t: Tensor,
    *,
    process: Process,
    noise: Tensor,
    weight: Tensor | None = None,
    condition: Mapping[str, Any] | None = None,
    reduction: str = "mean",
) -> Tensor:
    """Mean squared error between the network's answer and the process' target (DDPM, 2006.11239, equation 14).

    Args:
        model: the network; it receives ``process.model_input`` of ``process.add_noise(x0, noise, t)`` and
            ``process.model_time(t)``.
        x0: data ``[B, *]``, floating point.
        t: times ``[B]`` of the process.
        process: the forward process.
        noise: ``[B, *]``, from a coupling.
        weight: a factor per sample, ``[B]``, as ``min_snr_weight`` or a curriculum's; None is 1.
        condition: further keyword arguments of the network, as class labels; a tensor's first dimension is B, or 1 for
            all samples alike.
        reduction: "mean" over the batch, or "none" for one loss per sample, ``[B]``.

    Returns:
        The loss in float32 (float64 for float64 data), averaged over the elements of a sample.

    Raises:
        TypeError: x0 is no floating-point tensor, condition is no mapping, or the network answers with no tensor.
        ValueError: a shape does not fit, an empty batch under "mean", or an unknown reduction.
    """
    check_reduction(x0, reduction)
    target = process.target(x0, noise, t)
    state = process.model_input(process.add_noise(x0, noise, t), t)
    answer = answer_of(model, state, process.model_time(t), repeated(condition, len(x0), 1))
    return reduced(mean_square(answer.to(target.dtype) - target), weight, reduction)
