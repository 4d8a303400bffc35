"""``kl_sample``: truncated Karhunen-Loeve noising at one time or several times per sample."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

import pydiffaccel._library  # noqa: F401  registers the operator
from pydiffaccel.ops._checks import check_samples, check_stream, check_table, check_tensor, check_terms


@torch.library.register_fake("diffaccel::kl_sample")
def _kl_sample_fake(
    x0: Tensor, alpha: Tensor, coeff: Tensor, seed: int, step: int, first_sample: int
) -> tuple[Tensor, Tensor]:
    shape = (*alpha.shape, *x0.shape[1:])
    return x0.new_empty(shape), x0.new_empty(shape)


def _setup(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
    ctx.save_for_backward(inputs[1])
    ctx.mark_non_differentiable(output[1])


def _backward(ctx: Any, grad: Tensor, _: Tensor) -> tuple[Tensor | None, ...]:
    (alpha,) = ctx.saved_tensors
    scaled = grad * alpha.to(grad.dtype).reshape(*alpha.shape, *([1] * (grad.dim() - alpha.dim())))
    return scaled.sum(1) if alpha.dim() == 2 else scaled, None, None, None, None, None


torch.library.register_autograd("diffaccel::kl_sample", _backward, setup_context=_setup)


def kl_sample(
    x0: Tensor, alpha: Tensor, coeff: Tensor, seed: int, step: int = 0, first_sample: int = 0
) -> tuple[Tensor, Tensor]:
    """x_t = alpha x_0 + sum_k c_k Z_k and the unit-variance noise sum_k c_k Z_k / |c| (arXiv 2503.17657).

    At S times per sample all share the sample's Z_k, and each time equals the one-time form bit for bit. Z_k is made
    inside the kernel and never stored; where c_k is 0 at all times of a sample it is not made at all. Z_1 is the stream
    of ``gaussian_noise``, so with M = 1 the noise is ``gaussian_noise`` bit for bit. Where all c_k of a time are 0 its
    noise is Z_1. Differentiable in x0.

    Args:
        x0: ``[B, *]``, float32, float64, float16 or bfloat16.
        alpha: ``[B]`` or ``[B, S]``, float32 or float64: the data's scale at each sample's time or times.
        coeff: ``[B, M]`` or ``[B, S, M]``, float32 or float64: the coefficients c_k(t) there, 1 <= M <= 2**24.
        seed, step, first_sample: as in ``gaussian_noise``.

    Returns:
        (x_t, noise), each ``[B, *]`` or ``[B, S, *]`` in x0's dtype.

    Raises:
        TypeError: wrong dtypes.
        ValueError: wrong shapes or devices, M < 1, a number out of range, or a table on the CPU that is not finite.
    """
    check_samples("kl_sample", "x0", x0)
    check_tensor("kl_sample", "alpha", alpha)
    rows = x0.shape[0]
    check_table("kl_sample", "alpha", alpha, (rows, None) if alpha.dim() == 2 else (rows,), x0.device)
    check_table("kl_sample", "coeff", coeff, (*alpha.shape, None), x0.device)
    check_terms("kl_sample", coeff.shape[-1])
    check_stream("kl_sample", rows, seed, step, first_sample)
    out: tuple[Tensor, Tensor] = torch.ops.diffaccel.kl_sample(x0, alpha, coeff, seed, step, first_sample)
    return out
