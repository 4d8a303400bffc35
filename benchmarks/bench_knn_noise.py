"""Nearest-of-k noise against the published recipe (draw k noises, measure, keep the nearest) and the plain noise."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from harness import Comparison, Options, main
from torch import Tensor

from pydiffaccel.ops import gaussian_noise, knn_noise


def recipe(x: Tensor, k: int) -> Tensor:
    noise = torch.randn(x.shape[0], k, x.shape[1], device=x.device, dtype=x.dtype)
    nearest = (x[:, None] - noise).norm(dim=2).argmin(1)
    return noise[torch.arange(len(x), device=x.device), nearest]


def comparisons(options: Options) -> Iterator[Comparison]:
    rows = 128 if options.quick else 1024
    x = torch.randn(rows, 3072, device=options.device)
    moved = 2 * x.nbytes
    for k in (4, 64):
        case = f"{rows} x 3072, k = {k}"
        yield Comparison(case, "recipe", lambda k=k: knn_noise(x, k), lambda k=k: recipe(x, k), moved)
    for metric in ("l2", "dot"):
        for k in (4, 64, 10**4, 10**6):
            yield Comparison(
                f"{rows} x 3072, {metric}, k = {k}",
                "gaussian_noise",
                lambda k=k, metric=metric: knn_noise(x, k, metric),
                lambda: gaussian_noise(x, 1),
                moved,
            )
    for k in (64, 10**6):
        yield Comparison(
            f"{rows} x 3072, l2, k = {k}",
            "knn_noise, k = 4",
            lambda k=k: knn_noise(x, k),
            lambda: knn_noise(x, 4),
            moved,
        )


if __name__ == "__main__":
    main("knn_noise", comparisons)
