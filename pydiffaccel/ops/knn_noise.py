"""``knn_noise``: the nearest of k Gaussian noises, at a cost that does not grow with k."""

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

    O(D) work a sample for every k, and no memory but the result. Only two numbers of the winner are needed: a, its
    component along x, and s, its squared length across. One Gaussian is then given both. They are drawn

    * for ``"dot"`` as the quantile of the largest of k normals;
    * for ``"l2"`` and k <= 32 as the best of k pairs, a ~ N(0, 1), s ~ chi^2(D - 1);
    * for ``"l2"`` and k > 32 by thinning an envelope of the least of k noncentral chi-squares and its von Mises-Fisher
      direction (``csrc/core/knn_order.h``): one to three points a sample whatever k, D and |x| are.

    All three are exact in law, not approximations. k = 1 is ``gaussian_noise`` bit for bit. A row's noise is a function
    of the row, k, the metric, seed, step and first_sample + row; instruction set and thread count do not change it.

    Args:
        x: ``[B, *]``, float32, float64, float16 or bfloat16.
        k: candidates, 1 <= k < 2**32.
        metric: ``"l2"`` (the paper; shortens the noise by a few per cent) or ``"dot"`` (keeps its norm).
        seed, step, first_sample: as in ``gaussian_noise``.

    Returns:
        noise like x, contiguous, without gradient. With k > 1 a row of x that holds NaN or infinity, or whose norm is
        above 1e150, gets NaN in all elements; other rows are not affected. A row of zeros has no direction: ``"dot"``
        gives plain noise, ``"l2"`` selects the norm alone.

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
