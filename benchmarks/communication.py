"""What ranks exchange in a training step, computed; the table of docs/scaling.md.

python benchmarks/communication.py
"""

from __future__ import annotations

import math
from collections.abc import Callable

BEGIN, END = "<!-- table: begin -->", "<!-- table: end -->"
RANKS = (8, 64, 1024)
IMAGES, ELEMENTS = 64, 3 * 32 * 32  # of a rank in a step; of an image
SMALL, LARGE = 36_000_000, 1_000_000_000  # parameters
FLOAT, INTEGER = 4, 8  # bytes


def all_gather(total: int, ranks: int) -> float:
    """Bytes that each rank receives until all have all of total bytes, of which each had its part."""
    return total * (ranks - 1) / ranks


def all_reduce(size: int, ranks: int) -> float:
    """Bytes that each rank receives in a ring that sums size bytes: a reduce-scatter and an all-gather."""
    return 2 * all_gather(size, ranks)


def ddp(parameters: int, ranks: int) -> float:
    """The sum of all gradients, once in an optimizer step."""
    return all_reduce(FLOAT * parameters, ranks)


def fsdp(parameters: int, ranks: int) -> float:
    """Weights for the forward, again for the backward, and a reduce-scatter of gradients; one accumulation part."""
    return 3 * all_gather(FLOAT * parameters, ranks)


def assignment(batch: int, ranks: int, pool: int | None = None) -> float:
    """``Distributed``: eight numbers of each rank, then the rows of the cost, padded to the longest share."""
    rows = ranks * math.ceil(batch / ranks)
    return all_gather(8 * INTEGER * ranks, ranks) + all_gather(FLOAT * rows * (pool or batch), ranks)


def sent_noise(batch: int, ranks: int) -> float:
    """What it would be instead if data and noise of all rows were gathered."""
    return all_gather(2 * FLOAT * batch * ELEMENTS, ranks)


def _bytes(value: float) -> str:
    for unit in ("B", "kB", "MB", "GB"):
        if value < 999.5 or unit == "GB":
            return f"{value:.3g} {unit}" if value < 999.5 else f"{value:,.0f} {unit}"
        value /= 1000
    raise AssertionError


def table() -> str:
    """Bytes that each rank receives in one optimizer step, a column per number of ranks."""
    rows: dict[str, Callable[[int], float]] = {
        "`ddp`, 36 M parameters": lambda ranks: ddp(SMALL, ranks),
        "`ddp`, 1,000 M parameters": lambda ranks: ddp(LARGE, ranks),
        "`fsdp`, 36 M parameters": lambda ranks: fsdp(SMALL, ranks),
        "`fsdp`, 1,000 M parameters": lambda ranks: fsdp(LARGE, ranks),
        f"`hungarian`, {IMAGES} images a rank": lambda ranks: assignment(IMAGES * ranks, ranks),
        "the same if data and noise were sent": lambda ranks: sent_noise(IMAGES * ranks, ranks),
        "`hungarian`, 4,096 images in all": lambda ranks: assignment(4096, ranks),
        "`none`, `knn`, and those that each rank finds for all rows": lambda ranks: 0,
        "the loss": lambda ranks: all_reduce(FLOAT, ranks),
        "whether to stop": lambda ranks: all_reduce(INTEGER, ranks),
    }
    lines = [
        "| received by each rank | " + " | ".join(f"{ranks:,} ranks" for ranks in RANKS) + " |",
        "|---|" + "---:|" * len(RANKS),
    ]
    lines += [f"| {name} | {' | '.join(_bytes(row(ranks)) for ranks in RANKS)} |" for name, row in rows.items()]
    return "\n".join(lines)


if __name__ == "__main__":
    print(table())
