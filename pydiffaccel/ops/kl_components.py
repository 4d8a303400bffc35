"""``kl_components``: the M noised inputs of the Karhunen-Loeve component loss."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

import pydiffaccel._library  # noqa: F401  registers the operator
from pydiffaccel.ops._checks import check_samples, check_stream, check_table, check_terms, draws_code


@torch.library.register_fake("diffaccel::kl_components")
def _kl_components_fake(
    x0: Tensor, alpha: Tensor, sigma: Tensor, num_terms: int, seed: int, step: int, first_sample: int, draws: int = 0
) -> tuple[Tensor, Tensor]:
    shape = (x0.shape[0], num_terms, *x0.shape[1:])
    return x0.new_empty(shape), x0.new_empty(shape)


def _setup(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
    ctx.save_for_backward(inputs[1])
    ctx.mark_non_differentiable(output[1])


def _backward(ctx: Any, grad: Tensor, _: Tensor) -> tuple[Tensor | None, ...]:
    (alpha,) = ctx.saved_tensors
    scale = alpha.to(grad.dtype).reshape(-1, *([1] * (grad.dim() - 1)))
    return (grad * scale).sum(1), None, None, None, None, None, None, None


torch.library.register_autograd("diffaccel::kl_components", _backward, setup_context=_setup)


def kl_components(
    x0: Tensor,
    alpha: Tensor,
    sigma: Tensor,
    num_terms: int,
    seed: int,
    step: int = 0,
    first_sample: int = 0,
    draws: str = "iid",
) -> tuple[Tensor, Tensor]:
    """x^(k) = alpha x_0 + sigma Z_k and Z_k for k = 1..M (methods of arXiv 2503.17657, component loss).

    Z_1 is ``gaussian_noise`` bit for bit, and each Z_k is a standard normal whatever ``draws`` says; products and the
    sum are rounded one by one in float32, so M = 1 is the plain forward process. Differentiable in x0.

    Args:
        x0: ``[B, *]``, float32, float64, float16 or bfloat16.
        alpha, sigma: ``[B]``, float32 or float64.
        num_terms: M, 1 <= M <= 2**24.
        seed, step, first_sample: as in ``gaussian_noise``.
        draws: "iid", or "antithetic": Z_2 = -Z_1, Z_4 = -Z_3 and so on, at half the cost of the noise.

    Returns:
        (noised, noise), each ``[B, M, *]`` in x0's dtype.

    Raises:
        TypeError: wrong dtypes.
        ValueError: wrong shapes or devices, M < 1, an unknown draws, a number out of range, or levels on the CPU that
            are not finite.
    """
    check_samples("kl_components", "x0", x0)
    check_table("kl_components", "alpha", alpha, (x0.shape[0],), x0.device)
    check_table("kl_components", "sigma", sigma, (x0.shape[0],), x0.device)
    check_terms("kl_components", num_terms)
    check_stream("kl_components", x0.shape[0], seed, step, first_sample)
    out: tuple[Tensor, Tensor] = torch.ops.diffaccel.kl_components(
        x0, alpha, sigma, num_terms, seed, step, first_sample, draws_code("kl_components", draws)
    )
    return out
