"""``solver_step``: one solver update in one pass over memory."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

import pydiffaccel._library  # noqa: F401  registers the operator
from pydiffaccel.ops._checks import check_floating

MAX_OUTPUTS = 16


@torch.library.register_fake("diffaccel::solver_step")
def _solver_step_fake(x: Tensor, outputs: list[Tensor], a: float, b: list[float]) -> Tensor:
    return x.new_empty(x.shape)


@torch.library.register_fake("diffaccel::solver_step.out")
def _solver_step_out_fake(x: Tensor, outputs: list[Tensor], a: float, b: list[float], *, out: Tensor) -> None:
    return None


def _setup(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
    _, outputs, ctx.a, ctx.b = inputs
    ctx.dtypes = [m.dtype for m in outputs]


def _backward(ctx: Any, grad: Tensor) -> tuple[Any, ...]:
    outputs = [(grad * b).to(dtype) for b, dtype in zip(ctx.b, ctx.dtypes, strict=True)]
    return grad * ctx.a, outputs, None, None


torch.library.register_autograd("diffaccel::solver_step", _backward, setup_context=_setup)


def solver_step(
    x: Tensor, outputs: Sequence[Tensor], a: float, b: Sequence[float], *, out: Tensor | None = None
) -> Tensor:
    """a x + sum_j b_j outputs_j in one pass; float32 accumulation (float64 for float64 x). Differentiable.

    Args:
        x: ``[*]``, float32, float64, float16 or bfloat16: the state.
        outputs: at most 16 tensors of x's shape and device, in any floating dtype: stored model outputs.
        a, b: the coefficients, finite.
        out: where the result goes: contiguous, of x's shape, dtype and device. It may be x or one of the outputs, but
            not overlap one in any other way. Then nothing is differentiable.

    Returns:
        the next state (``out`` where given), in x's dtype, contiguous. Sums run left to right, products rounded, as
        eager code would.

    Raises:
        TypeError: x or an output is no floating tensor.
        ValueError: shapes or devices differ, or the counts of outputs and coefficients do; or out is not contiguous,
            unlike x, or given while a gradient is recorded.
    """
    check_floating("solver_step", "x", x)
    if len(outputs) != len(b):
        raise ValueError(f"solver_step: {len(outputs)} outputs need as many coefficients, got {len(b)}")
    if len(outputs) > MAX_OUTPUTS:
        raise ValueError(f"solver_step: at most {MAX_OUTPUTS} outputs, got {len(outputs)}")
    for j, output in enumerate(outputs):
        check_floating("solver_step", f"outputs[{j}]", output)
        if output.shape != x.shape:
            raise ValueError(f"solver_step: outputs[{j}] must have x's shape {list(x.shape)}, got {list(output.shape)}")
        if output.device != x.device:
            raise ValueError(f"solver_step: outputs[{j}] must be on {x.device}, got {output.device}")
    factors = [float(value) for value in b]
    if out is not None:
        _check_out(x, outputs, out)
        torch.ops.diffaccel.solver_step.out(x, list(outputs), float(a), factors, out=out)
        return out
    result: Tensor = torch.ops.diffaccel.solver_step(x, list(outputs), float(a), factors)
    return result


def _check_out(x: Tensor, outputs: Sequence[Tensor], out: Tensor) -> None:
    check_floating("solver_step", "out", out)
    if out.shape != x.shape or out.dtype != x.dtype or out.device != x.device or not out.is_contiguous():
        raise ValueError(
            f"solver_step: out must be contiguous, {x.dtype} of shape {list(x.shape)} on {x.device}, got {out.dtype} of"
            f" shape {list(out.shape)} on {out.device}, strides {list(out.stride())}"
        )
    if torch.is_grad_enabled() and any(tensor.requires_grad for tensor in (x, out, *outputs)):
        raise ValueError("solver_step: out cannot be given while a gradient is recorded")
