"""``knn_noise``: the nearest of k Gaussian noises, at a cost independent of k in D."""

from __future__ import annotations

import torch
from torch import Tensor

import pydiffaccel._library  # noqa: F401  registers the operator
from pydiffaccel.ops._checks import check_int, check_samples, check_stream, metric_code


@torch.library.register_fake("diffaccel::knn_noise")
def _knn_noise_fake(x: Tensor, k: int, metric: int, seed: int, step: int, first_sample: int) -> Tensor:
    return x.new_empty(x.shape)


def knn_noise(x: Tensor, k: int, metric: str = "l2", seed: int = 0, step: int = 0, first_sample: int = 0) -> Tensor:
    """Gaussian noise for each sample with the exact law of "the nearest of k fresh noises" (arXiv 2505.18521).

    O(D + k) work a sample: along x only k scalar pairs (a, s), a ~ N(0, 1), s ~ chi^2(D - 1), are drawn and ranked; one
    Gaussian is then given the winner's component along x and norm across it. k = 1 is ``gaussian_noise`` bit for bit.

    Args:
        x: ``[B, *]``, float32, float64, float16 or bfloat16.
        k: candidates, 1 <= k < 2**32.
        metric: ``"l2"`` (the paper; shortens the noise by a few per cent) or ``"dot"`` (keeps its norm).
        seed, step, first_sample: as in ``gaussian_noise``.

    Returns:
        noise like x, contiguous, without gradient.

    Raises:
        TypeError: x is no floating tensor, or a number is no int.
        ValueError: x is a scalar, the metric is unknown, or a number is out of range.
    """
    check_samples("knn_noise", "x", x)
    check_int("knn_noise", "k", k, 1, 2**32)
    check_stream("knn_noise", x.shape[0], seed, step, first_sample)
    code = metric_code("knn_noise", metric)
    out: Tensor = torch.ops.diffaccel.knn_noise(x.detach(), k, code, seed, step, first_sample)
    return out
