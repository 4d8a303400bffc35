"""Couplings on natural images: how much nearer their noises are, and what that costs.

Rows give the reduction of sum |x - n|^2 against independent noise, in %, and the milliseconds of a call, noise drawn
and chosen; medians of alternating runs on the same batches. Images are read from --data, by default
../shared/data/cifar10-jpeg/train.zip beside the repository's folder; without them there is nothing to measure.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from harness import environment, wall_clock

import pydiffaccel as da
from pydiffaccel.trainer.data import load_data

DEFAULT = Path(__file__).resolve().parents[2] / "shared" / "data" / "cifar10-jpeg" / "train.zip"


def whole_batches(quick: bool) -> list[tuple[str, int, Callable[[], da.Coupling]]]:
    """(name, batch size, coupling); the first of a batch size is the exact search."""
    cases: list[tuple[str, int, Callable[[], da.Coupling]]] = []
    for batch in (512,) if quick else (512, 1024):
        cases.append(("Hungarian()", batch, da.Hungarian))
        for size in (768, 192, 48):
            cases.append((f"Hungarian(project={size})", batch, lambda size=size: da.Hungarian(project=size)))
        for size in (768, 192):
            random = f'Hungarian(project={size}, projection="random")'
            cases.append((random, batch, lambda size=size: da.Hungarian(project=size, projection="random")))
        cases.append(("Distributed(Hungarian()), one rank", batch, lambda: da.Distributed(da.Hungarian())))
        cases.append(("KNN(4)", batch, lambda: da.KNN(4)))
    return cases


def small_batches() -> list[tuple[str, int, Callable[[], da.Coupling]]]:
    cases: list[tuple[str, int, Callable[[], da.Coupling]]] = []
    for batch in (1, 2, 4, 8):
        cases.append(("Hungarian()", batch, da.Hungarian))
        cases.append(("Hungarian(pool=64)", batch, lambda: da.Hungarian(pool=64)))
        for size in (64, 256):
            cases.append((f"NoiseQueue({size})", batch, lambda size=size: da.NoiseQueue(size)))
            cases.append((f"NoiseQueue({size}, aging=0)", batch, lambda size=size: da.NoiseQueue(size, aging=0)))
    return cases


def measure(
    images: torch.Tensor, name: str, batch: int, coupling: da.Coupling, steps: int, skip: int
) -> dict[str, Any]:
    """Over steps batches, the first `skip` of them unmeasured; `oldest` is the longest that a noise waited."""
    generator = torch.Generator().manual_seed(0)
    near = plain = squares = 0.0
    spent: list[float] = []
    oldest = 0
    for step in range(steps):
        x = images[torch.randint(len(images), (batch,), generator=generator).to(images.device)]
        before = wall_clock(x.device)
        noise = coupling(x, seed=1, step=step)
        spent.append(wall_clock(x.device) - before)
        if isinstance(coupling, da.NoiseQueue):
            (lane,) = coupling.state_dict()["lanes"]
            oldest = max(oldest, step - min(made for _, made, _, _ in lane["waiting"]))
        if step >= skip:
            near += float((x - noise).double().square().sum())
            plain += float((x - da.Independent()(x, seed=1, step=step)).double().square().sum())
            squares += float(noise.double().square().mean()) / (steps - skip)
    return {
        "coupling": name,
        "batch": batch,
        "reduction_percent": 100 * (1 - near / plain),
        "mean_square": squares,
        "milliseconds": 1e3 * statistics.median(spent[min(skip, 3) :]),
        "oldest_steps": oldest,
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=DEFAULT, help=f"images (default {DEFAULT})")
    parser.add_argument("--device", default="cpu", help="cpu or cuda")
    parser.add_argument("--threads", type=int, default=1, help="CPU threads (default 1)")
    parser.add_argument("--quick", action="store_true", help="fewer batches and cases")
    parser.add_argument("--json", type=Path, help="also write the rows here")
    options = parser.parse_args()
    if not options.data.exists():
        print(f"no images at {options.data}: nothing is measured; give --data")
        return 0
    torch.set_num_threads(options.threads)
    data = load_data(options.data)
    device = torch.device(options.device)
    images = data.batch(torch.randperm(len(data), generator=torch.Generator().manual_seed(0))[:8192].numpy(), device)
    print(f"{options.data}, {len(images)} images of shape {list(images.shape[1:])}, {options.threads} thread(s)")
    print(f"{'coupling':46} {'B':>5} {'reduction %':>12} {'mean square':>12} {'ms':>9} {'oldest':>7}")
    rows = []
    small = [] if options.quick else [(case, 1000, 400) for case in small_batches()]
    for (name, batch, make), steps, skip in [(case, 8, 2) for case in whole_batches(options.quick)] + small:
        row = measure(images, name, batch, make(), steps, skip)
        rows.append(row)
        print(
            f"{name:46} {batch:5} {row['reduction_percent']:12.3f} {row['mean_square']:12.4f} "
            f"{row['milliseconds']:9.2f} {row['oldest_steps']:7}"
        )
        sys.stdout.flush()
    if options.json:
        options.json.parent.mkdir(parents=True, exist_ok=True)
        record = {"benchmark": "coupling", **environment(device), "data": options.data.name, "rows": rows}
        options.json.write_text(json.dumps(record, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
