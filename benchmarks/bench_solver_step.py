"""A third-order solver update against eager torch and against a plain copy of as many bytes."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from harness import Comparison, Options, main

from pydiffaccel.ops import solver_step

B = [0.1, 0.2, 0.3]


def comparisons(options: Options) -> Iterator[Comparison]:
    shapes = ((16, 3, 64, 64),) if options.quick else ((64, 3, 64, 64), (256, 3, 64, 64))
    for shape in shapes:
        x, *m = (torch.randn(shape, device=options.device) for _ in range(4))
        name, moved = " x ".join(map(str, shape)), 5 * x.nbytes

        def eager(x: torch.Tensor = x, m: list[torch.Tensor] = m) -> torch.Tensor:
            return 0.5 * x + B[0] * m[0] + B[1] * m[1] + B[2] * m[2]

        # A copy reads and writes each byte, so half of the update's bytes are what it copies in the same traffic.
        source = torch.randn(moved // 8, device=options.device)
        target = torch.empty_like(source)
        # The state is overwritten as in a run; b sums to 0.5, so it neither grows nor dies.
        state = x.clone()
        yield Comparison(name, "eager", lambda x=x, m=m: solver_step(x, m, 0.5, B), eager, moved)
        yield Comparison(
            f"{name}, in place", "eager", lambda s=state, m=m: solver_step(s, m, 0.5, B, out=s), eager, moved
        )
        yield Comparison(
            name,
            "clone, same bytes",
            lambda x=x, m=m: solver_step(x, m, 0.5, B),
            lambda source=source: source.clone(),
            moved,
        )
        yield Comparison(
            f"{name}, in place",
            "copy_, same bytes",
            lambda s=state, m=m: solver_step(s, m, 0.5, B, out=s),
            lambda source=source, target=target: target.copy_(source),
            moved,
        )


if __name__ == "__main__":
    main("solver_step", comparisons)
