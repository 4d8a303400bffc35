"""Batches that are paired as one: the images of several accumulation parts get the noises of a single large batch."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pydiffaccel.coupling import Coupling, PendingNoise, start_drawing
from pydiffaccel.trainer.metrics import Stopwatch

__all__ = ["Images", "Part", "Windows", "interleaved"]


@dataclass(frozen=True)
class Images:
    """Data x ``[B, *]``, scaled, and which images of the data these are, int64 ``[B]``."""

    x: Tensor
    indices: NDArray[np.int64]


@dataclass(frozen=True)
class Part:
    """The images of an accumulation part and their noise, None where they are not coupled.

    milliseconds tells how long its window took to pair, at the part that waited for it; None at all others.
    """

    images: Images
    noise: Tensor | None
    milliseconds: Callable[[], float] | None


@dataclass
class _Window:
    """The positions of some parts, and what is there of them."""

    members: tuple[int, ...]
    images: dict[int, Images] = field(default_factory=dict)
    noise: Tensor | None = None
    pending: PendingNoise | None = None
    state: Callable[[], dict[str, Any]] = dict  # the coupling's, before it was paired

    @property
    def is_whole(self) -> bool:
        return len(self.images) == len(self.members)


class Windows:
    """The parts of a run, asked for one after the other; what each gets is a function of its position alone.

    A position is ``step * parts + part``. Those from w * size to (w + 1) * size - 1 are a window. Its coupled parts are
    paired as one batch when the first of them is asked for, or ahead of it; a part of plain noise is only read. The
    last window may reach beyond the end, so that a longer run is the continuation of a shorter one.

    Images are read once, in the order of their positions. While a window is consumed those of the next are read, at
    each part as many, so that no part waits for many reads; only the first window that is coupled, and one that a run
    continues in, are read at once.

    Args:
        size: parts of a window.
        end: the position at which the run ends.
        is_coupled: whether the part at a position is.
        read: the images of a position.
        pair: the noise of images, row by row; its arguments are the positions and the images of the parts.
        coupling: what pair calls; only its state is used here.
        watch: measures the pairing, or the wait for it.
        ahead: pair a window while the last part of the one before is worked on.
    """

    def __init__(
        self,
        size: int,
        end: int,
        *,
        is_coupled: Callable[[int], bool],
        read: Callable[[int], Images],
        pair: Callable[[Sequence[int], Sequence[Images]], Tensor],
        coupling: Coupling,
        watch: Stopwatch,
        ahead: bool,
    ) -> None:
        self._size, self._end, self._ahead = size, end, ahead
        self._is_coupled, self._read, self._pair = is_coupled, read, pair
        self._coupling, self._watch = coupling, watch
        self._current: _Window | None = None  # with the images of the parts that nobody has asked for yet
        self._next: _Window | None = None

    def part(self, position: int) -> Part:
        """The part at a position."""
        window, milliseconds = self._current, None
        if window is None or position not in window.images:
            window = self._current = self._taken(position)
            milliseconds = self._paired(window) if self._is_coupled(position) else None
        images = window.images[position]
        window.images = {member: later for member, later in window.images.items() if member > position}
        number, count = window.members.index(position), len(window.members)
        noise = window.noise
        if noise is not None and count > 1:
            noise = noise[number::count].contiguous()
        if not window.images:
            self._current = None
        self._prepare(window.members[-1] + 1, count - number)
        return Part(images, noise, milliseconds)

    def forget(self) -> None:
        """Lets go of everything that was read or paired for later parts; the coupling is as it was before."""
        if self._next is not None and self._next.pending is not None:
            with contextlib.suppress(Exception):
                self._next.pending.result()
            self._coupling.load_state_dict(self._next.state())
        self._current = self._next = None

    def state(self) -> dict[str, Any]:
        """The coupling's state before the next part."""
        if self._next is not None and self._next.pending is not None:
            return self._next.state()
        return self._coupling.state_dict()

    def _members(self, position: int) -> tuple[int, ...]:
        """The positions that are paired together with one; a part of plain noise is alone."""
        if not self._is_coupled(position):
            return (position,)
        first = position - position % self._size
        return tuple(member for member in range(first, first + self._size) if self._is_coupled(member))

    def _taken(self, position: int) -> _Window:
        """The window of a position, with its images."""
        window, members = self._next, self._members(position)
        if window is None or window.members != members:
            self.forget()
            window = _Window(members)
        self._next = None
        while not window.is_whole:
            self._read_one(window)
        return window

    def _read_one(self, window: _Window) -> None:
        member = window.members[len(window.images)]
        window.images[member] = self._read(member)

    def _paired(self, window: _Window) -> Callable[[], float]:
        """Sets the window's noise; tells how long that took."""
        if window.pending is None:
            with self._watch.measure() as timer:
                window.noise = self._pair(window.members, list(window.images.values()))
            return timer.milliseconds
        with self._watch.measure():
            window.noise = window.pending.result()
        return window.pending.milliseconds

    def _prepare(self, first: int, left: int) -> None:
        """Reads of the window that begins at first what is due when so many parts come before it, this one counted."""
        if first >= self._end or not self._is_coupled(first):
            return
        if self._next is None:
            self._next = _Window(self._members(first))
        window = self._next
        # What is paired at the first part can be completed there.
        wanted = len(window.members) - (0 if self._ahead else 1)
        for _ in range((wanted - len(window.images)) // left):
            self._read_one(window)
        if self._ahead and window.is_whole and window.pending is None:
            images = list(window.images.values())
            window.state = self._coupling.snapshot()
            window.pending = start_drawing(lambda: self._pair(window.members, images), [part.x for part in images])


def interleaved(parts: Sequence[Tensor]) -> Tensor:
    """Rows ``[B, *]`` of M parts as ``[B * M, *]``: first the first rows of all parts.

    So the rows of a rank stay together: those of all ranks, in their order, are the rows of a single process.
    """
    return parts[0] if len(parts) == 1 else torch.stack(list(parts), 1).flatten(0, 1)
