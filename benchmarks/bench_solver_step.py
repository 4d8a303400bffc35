"""A third-order solver update against eager torch and against a plain copy of the state."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from harness import Comparison, Options, main

from pydiffaccel.ops import solver_step


def comparisons(options: Options) -> Iterator[Comparison]:
    shapes = ((16, 3, 64, 64),) if options.quick else ((64, 3, 64, 64), (256, 3, 64, 64))
    for shape in shapes:
        x, *m = (torch.randn(shape, device=options.device) for _ in range(4))
        name = " x ".join(map(str, shape))
        step = lambda x=x, m=m: solver_step(x, m, 0.5, [0.1, 0.2, 0.3])  # noqa: E731
        yield Comparison(
            name, "eager", step, lambda x=x, m=m: 0.5 * x + 0.1 * m[0] + 0.2 * m[1] + 0.3 * m[2], 5 * x.nbytes
        )
        yield Comparison(name, "clone of the state", step, lambda x=x: x.clone(), 5 * x.nbytes)


if __name__ == "__main__":
    main("solver_step", comparisons)
