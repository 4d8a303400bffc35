"""Nearest of explicit candidates against eager torch."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from harness import Comparison, Options, main

from pydiffaccel.ops import knn_select


def comparisons(options: Options) -> Iterator[Comparison]:
    rows = 32 if options.quick else 256
    x = torch.randn(rows, 3072, device=options.device)
    for k in (4, 16):
        own = torch.randn(rows, k, 3072, device=options.device)
        moved = x.nbytes + own.nbytes
        yield Comparison(
            f"{rows} x 3072, own k = {k}",
            "eager",
            lambda own=own: knn_select(x, own),
            lambda own=own: (x[:, None] - own).square().sum(2).argmin(1),
            moved,
        )
        yield Comparison(
            f"{rows} x 3072, own k = {k}",
            "einsum",
            lambda own=own: knn_select(x, own),
            lambda own=own: (own.square().sum(2) - 2 * torch.einsum("bkd,bd->bk", own, x)).argmin(1),
            moved,
        )
    for samples, k, elements in (
        (rows, 64, 3072),
        (4 * rows, 64, 3072),
        (4 * rows, 4 * rows, 3072),
        (4 * rows, 1024, 64),
    ):
        data = torch.randn(samples, elements, device=options.device)
        pool = torch.randn(k, elements, device=options.device)
        yield Comparison(
            f"{samples} x {elements}, shared k = {k}",
            "torch.cdist",
            lambda data=data, pool=pool: knn_select(data, pool),
            lambda data=data, pool=pool: torch.cdist(data, pool).argmin(1),
            data.nbytes + pool.nbytes,
        )


if __name__ == "__main__":
    main("knn_select", comparisons)
