"""Streamed normal equations against eager torch in float64."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from harness import Comparison, Options, main
from torch import Tensor

from pydiffaccel.ops import solver_gram


def eager(directions: list[Tensor], residual: Tensor) -> tuple[Tensor, Tensor]:
    flat = torch.stack([d.double().flatten() for d in directions])
    return flat @ flat.T, flat @ residual.double().flatten()


def comparisons(options: Options) -> Iterator[Comparison]:
    rows = 20 if options.quick else 100
    residual = torch.randn(rows, 3, 32, 32, device=options.device)
    for count in (1, 4):
        directions = [torch.randn_like(residual) for _ in range(count)]
        yield Comparison(
            f"{rows} x 3072, J = {count}",
            "eager",
            lambda d=directions: solver_gram(d, residual),
            lambda d=directions: eager(d, residual),
            (count + 1) * residual.nbytes,
        )


if __name__ == "__main__":
    main("solver_gram", comparisons)
