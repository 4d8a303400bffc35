"""Counter-based noise against torch.randn."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from harness import Comparison, Options, main

from pydiffaccel.ops import gaussian_noise


def comparisons(options: Options) -> Iterator[Comparison]:
    for rows, dim in ((256, 3072),) if options.quick else ((256, 3072), (1024, 3072), (64, 64 * 64 * 3)):
        for dtype in (torch.float32, torch.bfloat16):
            x = torch.empty(rows, dim, dtype=dtype, device=options.device)
            yield Comparison(
                f"{rows} x {dim} {str(dtype)[6:]}",
                "torch.randn",
                lambda x=x: gaussian_noise(x, 1),
                lambda x=x: torch.randn_like(x),
                x.nbytes,
            )


if __name__ == "__main__":
    main("gaussian_noise", comparisons)
