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
        yield Comparison(
            f"{rows} x 3072, own k = {k}",
            "eager",
            lambda own=own: knn_select(x, own),
            lambda own=own: (x[:, None] - own).square().sum(2).argmin(1),
            x.nbytes + own.nbytes,
        )
    pool = torch.randn(64, 3072, device=options.device)
    yield Comparison(
        f"{rows} x 3072, shared k = 64",
        "torch.cdist",
        lambda: knn_select(x, pool),
        lambda: torch.cdist(x, pool).argmin(1),
        x.nbytes + pool.nbytes,
    )


if __name__ == "__main__":
    main("knn_select", comparisons)
