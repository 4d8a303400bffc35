"""Truncated Karhunen-Loeve noising at one time per sample, against eager torch."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from harness import Comparison, Options, main
from torch import Tensor

from pydiffaccel.ops import kl_sample


def eager(x: Tensor, alpha: Tensor, coeff: Tensor) -> tuple[Tensor, Tensor]:
    z = torch.randn(x.shape[0], coeff.shape[1], x.shape[1], device=x.device)
    noise = (coeff[:, :, None] * z).sum(1)
    return alpha[:, None] * x + noise, noise / coeff.norm(dim=1, keepdim=True)


def comparisons(options: Options) -> Iterator[Comparison]:
    rows = 64 if options.quick else 256
    x, alpha = torch.randn(rows, 3072, device=options.device), torch.rand(rows, device=options.device)
    for terms in (1, 10):
        coeff = torch.rand(rows, terms, device=options.device)
        yield Comparison(
            f"{rows} x 3072, M = {terms}",
            "eager",
            lambda c=coeff: kl_sample(x, alpha, c, 1),
            lambda c=coeff: eager(x, alpha, c),
            3 * x.nbytes,
        )


if __name__ == "__main__":
    main("kl_sample", comparisons)
