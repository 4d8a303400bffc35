"""Measurements of a run: one JSON line per step, a progress display, and time spent in a part of the step."""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from io import FileIO
from pathlib import Path
from typing import Any, TextIO

import torch
from torch import Tensor

from pydiffaccel._timing import Timer
from pydiffaccel.coupling import CouplingDiagnostics
from pydiffaccel.trainer.checkpoint import write_file

__all__ = ["MetricsLog", "Progress", "Stopwatch", "coupling_figures", "read_metrics", "write_metrics"]


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """All whole lines of a metrics file, in order; lines that a crash cut off or damaged are left out."""
    if not path.exists():
        return []
    rows = []
    for line in path.read_bytes().split(b"\n")[:-1]:
        with contextlib.suppress(ValueError):
            row = json.loads(line)
            if isinstance(row, dict) and "step" in row:
                rows.append(row)
    return rows


def write_metrics(path: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    """A metrics file of these lines; it appears whole or not at all."""
    write_file(path, b"".join(json.dumps(row).encode() + b"\n" for row in rows))


class MetricsLog:
    """metrics.jsonl: appended line by line; on opening, lines of steps after last_step are dropped.

    With writes=False, on ranks that only look, the file stays as it is.

    A killed run may have logged steps that its newest checkpoint does not hold; continued, it does them again.

    Attributes:
        skipped: the lines of skipped steps that it ended with on opening.
    """

    def __init__(self, path: Path, last_step: int, *, writes: bool = True) -> None:
        self._file: FileIO | None = None
        rows = [row for row in read_metrics(path) if row["step"] <= last_step]
        self.skipped = list(itertools.takewhile(lambda row: row.get("skipped", False), reversed(rows)))[::-1]
        if not writes:
            return
        if path.exists():
            write_metrics(path, rows)
        self._file = path.open("ab", buffering=0)  # whole lines in one write: nothing is left over after an error

    def write(self, rows: Sequence[Mapping[str, Any]]) -> None:
        """Appends the rows.

        Raises:
            OSError: they cannot be written.
        """
        if self._file is None:
            return
        content = memoryview(b"".join(json.dumps(row).encode() + b"\n" for row in rows))
        try:
            while content:
                content = content[self._file.write(content) :]
        except OSError as error:
            raise OSError(error.errno, error.strerror, self._file.name) from error  # a failed write names no file

    def sync(self) -> None:
        """Everything written is on the disk."""
        if self._file is not None:
            os.fsync(self._file.fileno())

    def close(self) -> None:
        if self._file is not None:
            self._file.close()


class Stopwatch:
    """Seconds spent in a piece of code, summed; on a GPU measured there, without waiting for it at each use."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._seconds = 0.0
        self._pending: list[Timer] = []

    @contextlib.contextmanager
    def measure(self) -> Iterator[Timer]:
        with Timer(self._device) as timer:
            yield timer
        self._pending.append(timer)

    def seconds(self) -> float:
        """The sum so far; waits for the GPU."""
        self._seconds += sum(timer.milliseconds() for timer in self._pending) / 1000
        self._pending.clear()
        return self._seconds


def coupling_figures(
    steps: Sequence[Sequence[CouplingDiagnostics]], mean: Callable[[Tensor], Tensor] = lambda figures: figures
) -> list[dict[str, float]]:
    """What the couplings of each step did, as numbers for the log: means over the step's parts, ms summed.

    One transfer from the device for all of them. A step of plain noise has none.

    Args:
        steps: the figures of the parts of each step, those of a rank's rows.
        mean: takes figures to their means over all ranks.
    """
    parts = [part for step in steps for part in step]
    if not parts:
        return [{} for _ in steps]
    stacked = torch.stack([torch.stack([part.cost_reduction, part.mean_square]) for part in parts], 1)
    reductions, squares = (iter(figures) for figures in mean(stacked).tolist())
    rows = []
    for step in steps:
        row = {}
        if step:
            row["cost_reduction"] = sum(next(reductions) for _ in step) / len(step)
            row["noise_mean_square"] = sum(next(squares) for _ in step) / len(step)
            row["coupling_ms"] = sum(part.milliseconds() for part in step if part.milliseconds is not None)
        rows.append(row)
    return rows


class Progress:
    """A tqdm bar on a terminal; elsewhere a line every few seconds of work."""

    def __init__(self, total: int, done: int, unit: str, *, stream: TextIO | None = None, interval: float = 15.0):
        self._stream = stream or sys.stderr
        self._total, self._done, self._first = total, done, done
        self._unit = unit
        self._interval = interval
        self._start = self._last = time.monotonic()
        self._bar: Any = None
        if self._stream.isatty():
            from tqdm import tqdm

            self._bar = tqdm(total=total, initial=done, unit=unit, file=self._stream, dynamic_ncols=True)

    def advance(self, done: int, figures: Mapping[str, str] | None = None) -> None:
        """done of the total are finished; figures are shown beside."""
        figures = figures or {}
        if self._bar is not None:
            self._bar.set_postfix(figures, refresh=False)
            self._bar.update(done - self._done)
            self._done = done
            return
        self._done = done
        now = time.monotonic()
        if now - self._last < self._interval and done < self._total:
            return
        self._last = now
        rest = (now - self._start) * (self._total - done) / max(1, done - self._first)
        shown = "  ".join(f"{name} {value}" for name, value in figures.items())
        print(
            f"{self._unit} {done:,}/{self._total:,}  {shown}  ETA {int(rest) // 60}:{int(rest) % 60:02d}",
            file=self._stream,
            flush=True,
        )

    def close(self) -> None:
        if self._bar is not None:
            self._bar.close()
