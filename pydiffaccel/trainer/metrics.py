"""Measurements of a run: one JSON line per step, a progress display, and time spent in a part of the step."""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TextIO

import torch

from pydiffaccel.trainer.checkpoint import write_file

__all__ = ["MetricsLog", "Progress", "Stopwatch", "read_metrics"]


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """All whole lines of a metrics file, in order; a last line that was cut off is left out."""
    if not path.exists():
        return []
    lines = path.read_bytes().split(b"\n")[:-1]
    return [json.loads(line) for line in lines]


class MetricsLog:
    """metrics.jsonl: appended line by line; on opening, lines of steps after last_step are dropped.

    A killed run may have logged steps that its newest checkpoint does not hold; continued, it does them again.
    """

    def __init__(self, path: Path, last_step: int) -> None:
        rows = read_metrics(path)
        kept = [row for row in rows if row["step"] <= last_step]
        if path.exists():
            write_file(path, b"".join(json.dumps(row).encode() + b"\n" for row in kept))
        self._file = path.open("a", encoding="utf-8")

    def write(self, rows: Sequence[Mapping[str, Any]]) -> None:
        for row in rows:
            self._file.write(json.dumps(row) + "\n")
        self._file.flush()

    def sync(self) -> None:
        """Everything written is on the disk."""
        self._file.flush()
        os.fsync(self._file.fileno())

    def close(self) -> None:
        self._file.close()


class Stopwatch:
    """Seconds spent in a piece of code, summed; on a GPU measured there, without waiting for it at each use."""

    def __init__(self, device: torch.device) -> None:
        self._cuda = device.type == "cuda"
        self._seconds = 0.0
        self._pending: list[tuple[torch.cuda.Event, torch.cuda.Event]] = []

    @contextmanager
    def measure(self) -> Iterator[None]:
        if self._cuda:
            start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            start.record()
            yield
            end.record()
            self._pending.append((start, end))
        else:
            begin = time.perf_counter()
            yield
            self._seconds += time.perf_counter() - begin

    def seconds(self) -> float:
        """The sum so far; waits for the GPU."""
        for start, end in self._pending:
            end.synchronize()
            self._seconds += start.elapsed_time(end) / 1000
        self._pending.clear()
        return self._seconds


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
