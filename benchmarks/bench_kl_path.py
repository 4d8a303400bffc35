"""Karhunen-Loeve paths at several times, against eager torch."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from harness import Comparison, Options, main
from torch import Tensor

from pydiffaccel.ops import kl_path


def eager(x: Tensor, alpha: Tensor, coeff: Tensor) -> Tensor:
    z = torch.randn(x.shape[0], coeff.shape[1], x.shape[1], device=x.device)
    return alpha[None, :, None] * x[:, None] + torch.einsum("sm,bmd->bsd", coeff, z)


def comparisons(options: Options) -> Iterator[Comparison]:
    rows, times, terms = 32 if options.quick else 128, 8, 10
    x = torch.randn(rows, 3072, device=options.device)
    alpha, coeff = torch.rand(times, device=options.device), torch.rand(times, terms, device=options.device)
    yield Comparison(
        f"{rows} x 3072, S = {times}, M = {terms}",
        "eager",
        lambda: kl_path(x, alpha, coeff, 1),
        lambda: eager(x, alpha, coeff),
        (1 + times) * x.nbytes,
    )


if __name__ == "__main__":
    main("kl_path", comparisons)
