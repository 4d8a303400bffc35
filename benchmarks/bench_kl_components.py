"""The M noised inputs of the component loss, against eager torch."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from harness import Comparison, Options, main
from torch import Tensor

from pydiffaccel.ops import kl_components


def eager(x: Tensor, alpha: Tensor, sigma: Tensor, terms: int) -> tuple[Tensor, Tensor]:
    noise = torch.randn(x.shape[0], terms, x.shape[1], device=x.device)
    return alpha[:, None, None] * x[:, None] + sigma[:, None, None] * noise, noise


def comparisons(options: Options) -> Iterator[Comparison]:
    rows, terms = 64 if options.quick else 256, 10
    x, alpha = torch.randn(rows, 3072, device=options.device), torch.rand(rows, device=options.device)
    yield Comparison(
        f"{rows} x 3072, M = {terms}",
        "eager",
        lambda: kl_components(x, alpha, alpha, terms, 1),
        lambda: eager(x, alpha, alpha, terms),
        (1 + 2 * terms) * x.nbytes,
    )


if __name__ == "__main__":
    main("kl_components", comparisons)
