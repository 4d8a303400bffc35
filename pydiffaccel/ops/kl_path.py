"""``kl_path``: one smooth Karhunen-Loeve path per sample, at several times."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

import pydiffaccel._library  # noqa: F401  registers the operator
from pydiffaccel.ops._checks import check_samples, check_stream, check_table, check_terms


@torch.library.register_fake("diffaccel::kl_path")
def _kl_path_fake(x0: Tensor, alpha: Tensor, coeff: Tensor, seed: int, step: int, first_sample: int) -> Tensor:
    return x0.new_empty((x0.shape[0], alpha.shape[0], *x0.shape[1:]))


def _setup(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
    ctx.save_for_backward(inputs[1])


def _backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    (alpha,) = ctx.saved_tensors
    scale = alpha.to(grad.dtype).reshape(1, -1, *([1] * (grad.dim() - 2)))
    return (grad * scale).sum(1), None, None, None, None, None


torch.library.register_autograd("diffaccel::kl_path", _backward, setup_context=_setup)


def kl_path(x0: Tensor, alpha: Tensor, coeff: Tensor, seed: int, step: int = 0, first_sample: int = 0) -> Tensor:
    """The path x_{t_s} = alpha_s x_0 + sum_k C[s, k] Z_k at S times, one set of Z per sample (arXiv 2503.17657).

    Z_k is the same stream as in ``kl_sample``: a path at one time is its x_t up to rounding. Z_k is made inside
    the kernel and never stored; where C[s, k] is 0 at all times it is not made at all. Differentiable in x0.

    Args:
        x0: ``[B, *]``, float32, float64, float16 or bfloat16.
        alpha: ``[S]``, float32 or float64.
        coeff: ``[S, M]``, float32 or float64, 1 <= M <= 2**24.
        seed, step, first_sample: as in ``gaussian_noise``.

    Returns:
        ``[B, S, *]`` in x0's dtype.

    Raises:
        TypeError: wrong dtypes.
        ValueError: wrong shapes or devices, M < 1, a number out of range, or a table on the CPU that is not finite.
    """
    check_samples("kl_path", "x0", x0)
    check_table("kl_path", "alpha", alpha, (None,), x0.device)
    check_table("kl_path", "coeff", coeff, (alpha.shape[0], None), x0.device)
    check_terms("kl_path", coeff.shape[1])
    check_stream("kl_path", x0.shape[0], seed, step, first_sample)
    out: Tensor = torch.ops.diffaccel.kl_path(x0, alpha, coeff, seed, step, first_sample)
    return out
