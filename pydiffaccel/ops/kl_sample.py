"""``kl_sample``: truncated Karhunen-Loeve noising at one time per sample."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

import pydiffaccel._library  # noqa: F401  registers the operator
from pydiffaccel.ops._checks import check_samples, check_stream, check_table, check_terms


@torch.library.register_fake("diffaccel::kl_sample")
def _kl_sample_fake(
    x0: Tensor, alpha: Tensor, coeff: Tensor, seed: int, step: int, first_sample: int
) -> tuple[Tensor, Tensor]:
    return x0.new_empty(x0.shape), x0.new_empty(x0.shape)


def _setup(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
    ctx.save_for_backward(inputs[1])
    ctx.mark_non_differentiable(output[1])


def _backward(ctx: Any, grad: Tensor, _: Tensor) -> tuple[Tensor | None, ...]:
    (alpha,) = ctx.saved_tensors
    scale = alpha.to(grad.dtype).reshape(-1, *([1] * (grad.dim() - 1)))
    return grad * scale, None, None, None, None, None


torch.library.register_autograd("diffaccel::kl_sample", _backward, setup_context=_setup)


def kl_sample(
    x0: Tensor, alpha: Tensor, coeff: Tensor, seed: int, step: int = 0, first_sample: int = 0
) -> tuple[Tensor, Tensor]:
    """x_t = alpha x_0 + sum_k c_k Z_k and the unit-variance noise sum_k c_k Z_k / |c| (arXiv 2503.17657).

    Z_k is made inside the kernel and never stored; Z_1 is the stream of ``gaussian_noise``, so with M = 1 the noise is
    ``gaussian_noise`` bit for bit. Where all c_k are 0 the noise is Z_1. Differentiable in x0.

    Args:
        x0: ``[B, *]``, float32, float64, float16 or bfloat16.
        alpha: ``[B]``, float32 or float64: the data's scale at each sample's time.
        coeff: ``[B, M]``, float32 or float64: the coefficients c_k(t) of each sample's time, 1 <= M <= 2**24.
        seed, step, first_sample: as in ``gaussian_noise``.

    Returns:
        (x_t, noise), each like x0.

    Raises:
        TypeError: wrong dtypes.
        ValueError: wrong shapes or devices, M < 1, or a number out of range.
    """
    check_samples("kl_sample", "x0", x0)
    check_table("kl_sample", "alpha", alpha, (x0.shape[0],), x0.device)
    check_table("kl_sample", "coeff", coeff, (x0.shape[0], None), x0.device)
    check_terms("kl_sample", coeff.shape[1])
    check_stream("kl_sample", x0.shape[0], seed, step, first_sample)
    out: tuple[Tensor, Tensor] = torch.ops.diffaccel.kl_sample(x0, alpha, coeff, seed, step, first_sample)
    return out
