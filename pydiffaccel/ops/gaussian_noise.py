"""``gaussian_noise``: counter-based standard normal noise."""

from __future__ import annotations

import torch
from torch import Tensor

import pydiffaccel._library  # noqa: F401  registers the operator
from pydiffaccel.ops._checks import check_samples, check_stream


@torch.library.register_fake("diffaccel::gaussian_noise")
def _gaussian_noise_fake(like: Tensor, seed: int, step: int, first_sample: int) -> Tensor:
    return like.new_empty(like.shape)


def gaussian_noise(like: Tensor, seed: int, step: int = 0, first_sample: int = 0) -> Tensor:
    """Standard normal noise with like's shape, dtype and device; contiguous.

    Row j is a pure function of (seed, step, first_sample + j) and the element's position, so any split of a batch over
    calls, threads or ranks gives the same numbers. They are made in float32 (Philox 4x32-10, Box-Muller;
    |z| < 6.8), the same bits on every instruction set; CUDA compiles the same source without contraction. Other dtypes
    hold them rounded (float64: exactly).

    Args:
        like: ``[B, *]``, float32, float64, float16 or bfloat16; its values are not read.
        seed: any int64.
        step: in [0, 2**32).
        first_sample: index of row 0, >= 0; first_sample + B <= 2**32.

    Raises:
        TypeError: like is no floating tensor, or a number is no int.
        ValueError: like is a scalar, or a number is out of range.
    """
    check_samples("gaussian_noise", "like", like)
    check_stream("gaussian_noise", like.shape[0], seed, step, first_sample)
    out: Tensor = torch.ops.diffaccel.gaussian_noise(like.detach(), seed, step, first_sample)
    return out
