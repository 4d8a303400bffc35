"""What the losses share: the call of the network, the mean square, the reduction over a batch."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol

from torch import Tensor

__all__ = ["Model", "answer_of", "check_reduction", "mean_square", "reduced"]

REDUCTIONS = ("mean", "none")


class Model(Protocol):
    """A network ``model(x_t, time, **condition)`` with x_t ``[B, *]`` and time float32 ``[B]``.

    It answers with a tensor of x_t's shape, or an object that holds one as ``.sample`` (diffusers).
    """

    def __call__(self, *args: Any, **condition: Any) -> object: ...


def answer_of(model: Model, x_t: Tensor, time: Tensor, condition: Mapping[str, Any]) -> Tensor:
    """The network's answer as a tensor of x_t's shape.

    Raises:
        TypeError: it answers with no tensor.
        ValueError: the answer has another shape.
    """
    output = model(x_t, time, **condition)
    tensor = output if isinstance(output, Tensor) else getattr(output, "sample", None)
    if not isinstance(tensor, Tensor):
        raise TypeError(f"the model must answer with a tensor or an object with .sample, got {type(output).__name__}")
    if tensor.shape != x_t.shape:
        # Subtraction would broadcast silently.
        raise ValueError(
            f"the model must answer in the shape of its input, {tuple(x_t.shape)}, got {tuple(tensor.shape)}"
        )
    return tensor


def mean_square(difference: Tensor) -> Tensor:
    """Mean square of each row, ``[rows]``."""
    return difference.square().flatten(1).mean(1)


def check_reduction(x0: Tensor, reduction: str) -> None:
    if reduction not in REDUCTIONS:
        raise ValueError(f"reduction must be 'mean' or 'none', got {reduction!r}")
    if reduction == "mean" and x0.dim() and len(x0) == 0:
        raise ValueError("x0 must hold at least one sample for reduction 'mean'")


def reduced(losses: Tensor, weight: Tensor | None, reduction: str) -> Tensor:
    """losses ``[B]``, or ``[B, S]`` at S times of each sample, weighted; averaged over times, then as reduction says.

    Raises:
        ValueError: weight is neither ``[B]`` nor of the losses' shape.
    """
    if weight is not None:
        if weight.shape not in (losses.shape, losses.shape[:1]):
            shapes = " or ".join(str(tuple(shape)) for shape in dict.fromkeys((losses.shape[:1], losses.shape)))
            raise ValueError(f"weight must have shape {shapes}, got {tuple(weight.shape)}")
        if weight.dim() < losses.dim():
            weight = weight.unsqueeze(1)
        losses = losses * weight.to(losses)
    if losses.dim() == 2:
        losses = losses.mean(1)
    return losses.mean() if reduction == "mean" else losses
