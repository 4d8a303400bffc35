"""Sinkhorn beside the exact assignment: how much nearer the noises are, and what that costs.

Rows give the reduction of sum |x - n|^2 against independent noise in %, the share of the exact reduction, and the
milliseconds of a call with drawing the noise: the best of alternating runs on different batches, two at B = 16384.
`gmm` is a mixture of ten smooth random images; CIFAR images are read from --data, by default
../shared/data/cifar10-jpeg/train.zip beside the repository's folder, and left out where there are none.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from harness import environment, wall_clock

import pydiffaccel as da
from pydiffaccel.trainer.data import load_data

DEFAULT = Path(__file__).resolve().parents[2] / "shared" / "data" / "cifar10-jpeg" / "train.zip"
Draw = Callable[[torch.Tensor, int], torch.Tensor]


def gmm(rows: int) -> torch.Tensor:
    """``[rows, 3, 32, 32]`` around ten images of a 1/f spectrum, pixel deviation 0.5, clipped to [-1, 1]."""
    generator = np.random.default_rng(0)
    frequency = np.hypot(np.fft.fftfreq(32)[:, None], np.fft.fftfreq(32)[None]) + 1 / 32
    real, imaginary = generator.standard_normal((2, 10, 3, 32, 32))
    modes = np.fft.ifft2((real + 1j * imaginary) / frequency).real
    modes *= 0.5 / modes.std((1, 2, 3), keepdims=True)
    x = modes[generator.integers(10, size=rows)] + 0.1 * generator.standard_normal((rows, 3, 32, 32))
    return torch.from_numpy(x.clip(-1, 1)).float()


def of(coupling: da.Coupling) -> Draw:
    return lambda x, step: coupling(x, seed=1, step=step)


def in_chunks(size: int) -> Draw:
    """The exact assignment of `size` rows at a time: what costs less without this coupling."""

    def draw(x: torch.Tensor, step: int) -> torch.Tensor:
        chunks = zip(range(0, len(x), size), x.split(size), strict=True)
        return torch.cat([da.Hungarian()(chunk, seed=1, step=step, first_sample=start) for start, chunk in chunks])

    return draw


def cases(family: str, batch: int, quick: bool) -> Iterator[tuple[str, Draw]]:
    """(name, what draws the noise); the exact search comes first."""
    yield "Hungarian()", of(da.Hungarian())
    yield f"Hungarian(), {batch // 4} rows at a time", in_chunks(batch // 4)
    yield "Sinkhorn()", of(da.Sinkhorn())
    for size in (768, 192):
        yield f"Sinkhorn(project={size})", of(da.Sinkhorn(project=size))
    if family == "cifar" and batch == 4096 and not quick:
        yield "Sinkhorn(candidates=8)", of(da.Sinkhorn(candidates=8))
        for epsilon in (1.0, 0.1, 0.03):
            yield f"Sinkhorn({epsilon})", of(da.Sinkhorn(epsilon))
        yield "Sinkhorn(0.3, 4, stride=1)", of(da.Sinkhorn(0.3, 4, stride=1))
        for epsilon, iterations in ((0.3, 10), (0.1, 10), (0.03, 20)):
            coupling = da.Sinkhorn(epsilon, iterations, "sampled", project=768)
            yield f'Sinkhorn({epsilon}, {iterations}, "sampled", project=768)', of(coupling)


def measure(images: torch.Tensor, batch: int, draws: dict[str, Draw], runs: int) -> list[dict[str, Any]]:
    generator = torch.Generator().manual_seed(0)
    rows = {name: {"spent": [], "near": 0.0, "distinct": 0.0} for name in draws}
    plain = 0.0
    for step in range(runs):
        x = images[torch.randperm(len(images), generator=generator)[:batch].to(images.device)]
        plain += float((x - da.Independent()(x, seed=1, step=step)).double().square().sum())
        for name, draw in draws.items():
            before = wall_clock(x.device)
            noise = draw(x, step)
            rows[name]["spent"].append(wall_clock(x.device) - before)
            rows[name]["near"] += float((x - noise).double().square().sum())
            rows[name]["distinct"] += len(noise.flatten(1)[:, :2].unique(dim=0)) / batch / runs
    exact = plain - next(iter(rows.values()))["near"]
    return [
        {
            "batch": batch,
            "coupling": name,
            "reduction_percent": 100 * (plain - row["near"]) / plain,
            "share_of_exact": (plain - row["near"]) / exact,
            "distinct_noises": row["distinct"],
            "milliseconds": 1e3 * min(row["spent"]),
        }
        for name, row in rows.items()
    ]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=DEFAULT, help=f"images (default {DEFAULT})")
    parser.add_argument("--device", default="cpu", help="cpu or cuda")
    parser.add_argument("--threads", type=int, default=1, help="CPU threads (default 1)")
    parser.add_argument("--quick", action="store_true", help="B = 1024 only")
    parser.add_argument("--json", type=Path, help="also write the rows here")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    device = torch.device(options.device)
    families = {"gmm": gmm(1024 if options.quick else 8192).to(device)}
    if options.data.exists():
        data = load_data(options.data)
        families["cifar"] = data.batch(
            torch.randperm(len(data), generator=torch.Generator().manual_seed(0))[:20000].numpy(), device
        )
    else:
        print(f"no images at {options.data}: they are left out; give --data")
    rows = []
    print(f"{'data':6} {'B':>6} {'coupling':46} {'reduction %':>12} {'of exact':>9} {'distinct':>9} {'ms':>9}")
    for family, images in families.items():
        for batch, runs in ((1024, 5), (4096, 3), (16384, 2))[: 1 if options.quick else 3]:
            if batch > len(images):
                continue
            for row in measure(images, batch, dict(cases(family, batch, options.quick)), runs):
                rows.append({"data": family, **row})
                print(
                    f"{family:6} {batch:6} {row['coupling']:46} {row['reduction_percent']:12.3f} "
                    f"{row['share_of_exact']:9.2%} {row['distinct_noises']:9.1%} {row['milliseconds']:9.1f}"
                )
            sys.stdout.flush()
    if options.json:
        options.json.parent.mkdir(parents=True, exist_ok=True)
        record = {"benchmark": "sinkhorn", **environment(device), "rows": rows}
        options.json.write_text(json.dumps(record, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
