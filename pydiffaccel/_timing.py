"""How long a piece of work takes on the device that does it."""

from __future__ import annotations

import time

import torch

__all__ = ["Timer"]


class Timer:
    """The time between entering and leaving a ``with`` block; on a GPU that of its current stream, without waiting."""

    def __init__(self, device: torch.device) -> None:
        self._cuda = device.type == "cuda"
        self._device = device
        self._begin = self._end = 0.0
        self._events: tuple[torch.cuda.Event, torch.cuda.Event] | None = None

    def __enter__(self) -> Timer:
        if self._cuda:
            self._events = (torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True))
            self._events[0].record(torch.cuda.current_stream(self._device))
        else:
            self._begin = time.perf_counter()
        return self

    def __exit__(self, *exc: object) -> None:
        if self._events is not None:
            self._events[1].record(torch.cuda.current_stream(self._device))
        else:
            self._end = time.perf_counter()

    def milliseconds(self) -> float:
        """The time, in ms; waits for the end on a GPU."""
        if self._events is None:
            return 1000 * (self._end - self._begin)
        self._events[1].synchronize()
        return float(self._events[0].elapsed_time(self._events[1]))
