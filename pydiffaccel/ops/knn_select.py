"""``knn_select``: the nearest of explicit candidates."""

from __future__ import annotations

import torch
from torch import Tensor

import pydiffaccel._library  # noqa: F401  registers the operator
from pydiffaccel.ops._checks import check_floating, check_samples, metric_code


@torch.library.register_fake("diffaccel::knn_select")
def _knn_select_fake(x: Tensor, candidates: Tensor, metric: int) -> Tensor:
    return x.new_empty(x.shape[:1], dtype=torch.int64)


def knn_select(x: Tensor, candidates: Tensor, metric: str = "l2") -> Tensor:
    """Index of the candidate nearest to each sample (arXiv 2505.18521), without a ``[B, k, D]`` temporary.

    A shared pool takes one matrix product, by blocks of samples that hold at most 2**22 products (16 * k for a huge
    pool; a 16-bit pool is widened to float32 by 4096 elements at a time). The product only leaves out candidates that
    cannot win, by a bound on its rounding errors; the others are scored one by one. So the answer is the one that
    scoring all would give, at every matmul precision of torch.

    Args:
        x: ``[B, *]``, float32, float64, float16 or bfloat16.
        candidates: ``[B, k, *]``, or ``[k, *]`` shared by all samples; x's dtype and device; k >= 1.
        metric: ``"l2"`` (least squared distance) or ``"dot"`` (greatest inner product).

    Returns:
        int64 ``[B]``; the first of equals. A candidate whose score is NaN never wins against one whose is not; 0 if no
        score is finite.

    Raises:
        TypeError: no floating tensors, or dtypes differ.
        ValueError: shapes or devices do not fit, k = 0, or the metric is unknown.
    """
    check_samples("knn_select", "x", x)
    check_floating("knn_select", "candidates", candidates)
    code = metric_code("knn_select", metric)
    if candidates.dtype != x.dtype:
        raise TypeError(f"knn_select: candidates must have x's dtype {x.dtype}, got {candidates.dtype}")
    if candidates.device != x.device:
        raise ValueError(f"knn_select: candidates must be on {x.device}, got {candidates.device}")
    shared = candidates.dim() == x.dim() and candidates.shape[1:] == x.shape[1:]
    own = candidates.dim() == x.dim() + 1 and candidates.shape[0] == x.shape[0] and candidates.shape[2:] == x.shape[1:]
    if not (shared or own):
        raise ValueError(
            f"knn_select: candidates must be [B, k, *] or [k, *] for x {list(x.shape)}, got {list(candidates.shape)}"
        )
    if candidates.shape[0 if shared else 1] == 0:
        raise ValueError(f"knn_select: needs at least one candidate, got shape {list(candidates.shape)}")
    out: Tensor = torch.ops.diffaccel.knn_select(x.detach(), candidates.detach(), code)
    return out
