"""Exact assignment against SciPy and the peers that are installed (lap, lapx), on a ready float32 cost."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch
from harness import Comparison, Options, main
from scipy.optimize import linear_sum_assignment

from pydiffaccel.ops import hungarian


def gmm(rows: int) -> torch.Tensor:
    """-<x, n> of a mixture of ten smooth random images (1/f spectrum) and Gaussian noise, D = 3072."""
    generator = np.random.default_rng(0)
    frequency = np.hypot(np.fft.fftfreq(32)[:, None], np.fft.fftfreq(32)[None]) + 1 / 32
    spectrum = (
        generator.standard_normal((10, 3, 32, 32)) + 1j * generator.standard_normal((10, 3, 32, 32))
    ) / frequency
    modes = np.fft.ifft2(spectrum).real.reshape(10, -1)
    modes = modes / modes.std(1, keepdims=True) * 0.5
    x = modes[generator.integers(10, size=rows)] + 0.1 * generator.standard_normal((rows, 3072))
    noise = generator.standard_normal((rows, 3072))
    return torch.from_numpy(-(x.clip(-1, 1) @ noise.T)).float()


def peers() -> dict[str, Callable[[np.ndarray], Any]]:
    found: dict[str, Callable[[np.ndarray], Any]] = {"scipy": linear_sum_assignment}
    try:
        import lap

        found["lap.lapjv"] = lambda cost: lap.lapjv(cost.astype(np.float64), return_cost=False)
    except ImportError:
        print("lap is not installed: that peer is left out")
    return found


def comparisons(options: Options) -> Iterator[Comparison]:
    generator = torch.Generator().manual_seed(0)
    for rows in (64, 128) if options.quick else (128, 512, 1024):
        families = {
            "gmm": gmm(rows),
            "uniform": torch.rand(rows, rows, generator=generator),
            "integer 0..9": torch.randint(10, (rows, rows), generator=generator).float(),
        }
        for family, cost in families.items():
            ready, array = cost.to(options.device), cost.numpy()
            for peer, solve in peers().items():
                yield Comparison(
                    f"{family}, B = {rows}", peer, lambda c=ready: hungarian(c), lambda s=solve, a=array: s(a)
                )
    batch = torch.rand(8 if options.quick else 64, 256, 256, generator=generator)
    ready = batch.to(options.device)
    yield Comparison(
        f"{len(batch)} x 256 x 256 uniform",
        "scipy in a loop",
        lambda: hungarian(ready),
        lambda: [linear_sum_assignment(item) for item in batch.numpy()],
    )


if __name__ == "__main__":
    main("hungarian", comparisons)
