"""Noise that is being paired while the caller does something else."""

from __future__ import annotations

import os
import threading
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from pydiffaccel._timing import Timer

__all__ = ["PendingNoise", "start_drawing"]


class PendingNoise(ABC):
    """Noise on its way, as ``Coupling.start`` returns it."""

    @abstractmethod
    def done(self) -> bool:
        """Whether ``result`` would return at once."""

    @abstractmethod
    def result(self) -> Tensor:
        """The noise, the same that the call without ``start`` returns; what that raises, this raises.

        On the CPU it waits for the worker thread. On a GPU the host does not wait: the current stream does. May be
        called again.

        Raises:
            RuntimeError: this process was forked off while the noise was on its way.
        """

    @abstractmethod
    def milliseconds(self) -> float:
        """How long the pairing took, in ms, without the time in line; waits for its end."""


def start_drawing(draw: Callable[[], Tensor], inputs: Sequence[Tensor]) -> PendingNoise:
    """Runs draw beside the caller: in a worker thread, or on a side stream where the first input is on a GPU.

    Args:
        draw: returns the noise.
        inputs: the tensors that draw reads; they must not be changed before ``result`` has returned.
    """
    if inputs and inputs[0].is_cuda:  # without a tensor draw says what is wrong
        return _OnStream(draw, inputs)
    return _InThread(draw)


class _Line:
    """Tasks in the order in which they came. The thread that does them lives only while there are any."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._tasks: deque[_InThread] = deque()
        self._works = False

    def add(self, task: _InThread) -> None:
        with self._lock:
            self._tasks.append(task)
            if self._works:
                return
            self._works = True
        # No daemon: at the interpreter's end a task is finished, not cut off inside native code.
        threading.Thread(target=self._work, name="pydiffaccel-pairing").start()

    def _work(self) -> None:
        while True:
            with self._lock:
                if not self._tasks:
                    self._works = False
                    return
                task = self._tasks.popleft()
            task.run()


_line = _Line()


def _after_fork() -> None:
    """The child has neither the parent's thread nor a right to its lock."""
    global _line
    _line = _Line()


os.register_at_fork(after_in_child=_after_fork)


class _InThread(PendingNoise):
    def __init__(self, draw: Callable[[], Tensor]) -> None:
        self._draw: Callable[[], Tensor] | None = draw
        self._noise: Tensor | None = None
        self._error: BaseException | None = None
        self._finished = threading.Event()
        self._process = os.getpid()
        self._timer = Timer(torch.device("cpu"))
        _line.add(self)

    def run(self) -> None:
        assert self._draw is not None
        try:
            with self._timer:
                self._noise = self._draw()
        except BaseException as error:
            self._error = error
        self._draw = None  # lets go of the data
        self._finished.set()

    def done(self) -> bool:
        return self._finished.is_set()

    def result(self) -> Tensor:
        self._wait()
        if self._error is not None:
            raise self._error
        assert self._noise is not None
        return self._noise

    def milliseconds(self) -> float:
        self._wait()
        return self._timer.milliseconds()

    def _wait(self) -> None:
        if os.getpid() != self._process and not self.done():
            raise RuntimeError("this noise was started in the parent process, whose worker thread a fork does not copy")
        self._finished.wait()


# One side stream per device, so that tasks run in the order in which they came.
_streams: dict[torch.device, torch.cuda.Stream] = {}


class _OnStream(PendingNoise):
    def __init__(self, draw: Callable[[], Tensor], inputs: Sequence[Tensor]) -> None:
        self._device = inputs[0].device
        self._noise: Tensor | None = None
        self._error: BaseException | None = None
        self._timer = Timer(self._device)
        side = _streams.setdefault(self._device, torch.cuda.Stream(self._device))
        side.wait_stream(torch.cuda.current_stream(self._device))  # the inputs are ready then
        try:
            with torch.cuda.stream(side), self._timer:
                self._noise = draw()
        except BaseException as error:
            self._error = error
        self._end = side.record_event()
        for tensor in inputs:
            if tensor.is_cuda:
                tensor.record_stream(side)  # its memory is not given away before the side stream is done with it

    def done(self) -> bool:
        return bool(self._end.query())

    def result(self) -> Tensor:
        if self._error is not None:
            raise self._error
        assert self._noise is not None
        current = torch.cuda.current_stream(self._device)
        current.wait_event(self._end)
        self._noise.record_stream(current)
        return self._noise

    def milliseconds(self) -> float:
        return self._timer.milliseconds()
