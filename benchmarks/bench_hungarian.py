"""Exact assignment of a ready float32 cost: against SciPy and the peers that are installed (lap, lapx).

On a GPU: against our own CPU solver, the copies included.
"""

from __future__ import annotations

import importlib
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


def images(rows: int) -> torch.Tensor:
    """-<x, n> of images of their own each, smooth and of different brightness: rows compete for the same noises."""
    generator = np.random.default_rng(1)
    frequency = np.hypot(np.fft.fftfreq(32)[:, None], np.fft.fftfreq(32)[None]) + 1 / 32
    shape = (rows, 3, 32, 32)
    spectrum = (generator.standard_normal(shape) + 1j * generator.standard_normal(shape)) / frequency**1.5
    modes = np.fft.ifft2(spectrum).real.reshape(rows, -1)
    x = modes / modes.std(1, keepdims=True) * 0.5 + 0.5 * generator.standard_normal((rows, 1))
    return torch.from_numpy(-(x.clip(-1, 1) @ generator.standard_normal((rows, 3072)).T)).float()


def families(rows: int) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    uniform = torch.rand(rows, rows, generator=generator)
    left, right = torch.rand(2, rows, 2, generator=generator)
    return {
        "gmm": gmm(rows),
        "images": images(rows),
        "uniform": uniform,
        "integer 0..9": (10 * uniform).floor(),
        "constant": torch.full((rows, rows), 2.5),
        "log-normal": (3 * torch.randn(rows, rows, generator=generator)).exp(),
        "points": torch.cdist(left, right) ** 2,
        "outer product": torch.outer(left[:, 0], right[:, 0]),
    }


def peers() -> dict[str, Callable[[np.ndarray], Any]]:
    """float32 in, columns out; peers that solve float64 only convert, as their users must."""
    found: dict[str, Callable[[np.ndarray], Any]] = {"scipy": linear_sum_assignment}
    try:
        import lap

        found["lap.lapjv"] = lambda cost: lap.lapjv(cost.astype(np.float64), return_cost=False)
    except ImportError:
        print("lap is not installed: that peer is left out")
    # lapx installs into the same package as lap: its modules are taken by name.
    for module, function, options in (
        ("lap._lapjv_rh", "lapjvh", {"return_cost": False}),
        ("lap._lapjvx", "lapjvx", {"return_cost": False}),
        ("lap._lapjvs", "lapjvs", {}),
    ):
        try:
            solve = getattr(importlib.import_module(module), function)
        except ImportError:
            print(f"lapx is not installed: {function} is left out")
            continue
        found[f"lapx {function}"] = lambda cost, s=solve, o=options: s(cost.astype(np.float64), **o)
    return found


def against_the_host(options: Options) -> Iterator[Comparison]:
    """On a GPU: against copying the cost to the host, our CPU solver there, and copying the answer back."""

    def baseline(cost: torch.Tensor) -> torch.Tensor:
        return hungarian(cost.cpu()).to(cost.device)

    def comparison(case: str, cost: torch.Tensor) -> Comparison:
        ready = cost.to(options.device)
        return Comparison(case, "copy to the host, CPU solver", lambda: hungarian(ready), lambda: baseline(ready))

    for rows in (128, 1024) if options.quick else (128, 512, 1024, 2048, 4096, 8192):
        for family, cost in families(rows).items():
            if rows <= 1024 or family in ("gmm", "images", "uniform", "integer 0..9"):
                yield comparison(f"{family}, B = {rows}", cost)
    generator = torch.Generator().manual_seed(0)
    for shape in (
        ((64, 256, 256),) if options.quick else ((4096, 16, 16), (64, 256, 256), (208, 300, 300), (16, 1024, 1024))
    ):
        yield comparison(f"{' x '.join(map(str, shape))} uniform", torch.rand(shape, generator=generator))
    yield comparison("1024 x 2048 uniform", torch.rand(1024, 2048, generator=generator))


def comparisons(options: Options) -> Iterator[Comparison]:
    if options.device.type == "cuda":
        yield from against_the_host(options)
        return
    for rows in (64, 128) if options.quick else (64, 128, 512, 1024, 2048):
        for family, cost in families(rows).items():
            array = cost.numpy()
            for peer, solve in peers().items():
                yield Comparison(
                    f"{family}, B = {rows}", peer, lambda c=cost: hungarian(c), lambda s=solve, a=array: s(a)
                )
    batch = torch.rand(8 if options.quick else 64, 256, 256, generator=torch.Generator().manual_seed(0))
    for peer, solve in peers().items():
        yield Comparison(
            f"{len(batch)} x 256 x 256 uniform",
            f"{peer} in a loop",
            lambda: hungarian(batch),
            lambda s=solve: [s(item) for item in batch.numpy()],
        )


if __name__ == "__main__":
    main("hungarian", comparisons)
