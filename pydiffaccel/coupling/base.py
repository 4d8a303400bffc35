"""What every coupling shares: its interface, and wrapping."""

from __future__ import annotations

import json
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from typing import Any, ClassVar

import torch
from torch import Tensor

from pydiffaccel._timing import Timer
from pydiffaccel.coupling._checks import check_noise, checked
from pydiffaccel.coupling.diagnostics import CouplingDiagnostics, diagnose
from pydiffaccel.coupling.pending import PendingNoise, start_drawing

__all__ = ["Coupling", "Wrapper", "check_inner"]


class Coupling(ABC):
    """Noise for data, without gradient and without touching torch's generators.

    Arguments shared by ``__call__`` and ``pair``:
        x: the data that is diffused, ``[B, *]``, floating point. Half precision is compared in float32.
        labels: integer ``[B]``, the class of each sample.
        mask: bool, True where an element is real and False where it is padding; padding never enters a distance. Its
            dimensions are the leading ones of x, each of x's size or 1: ``[B, T]`` masks steps of ``[B, T, A]``.

    Settings are immutable; instances compare and hash by them and survive ``coupling_from_dict(c.to_dict())``. Only a
    coupling that remembers something between steps (``NoiseQueue``) has a state beside them.
    """

    name: ClassVar[str]

    def __call__(
        self,
        x: Tensor,
        *,
        seed: int = 0,
        step: int = 0,
        first_sample: int = 0,
        labels: Tensor | None = None,
        mask: Tensor | None = None,
    ) -> Tensor:
        """Noise of x's shape, dtype and device, drawn as a function of (seed, step, sample index) and x.

        Args:
            seed: any int64.
            step: the training step, 0 .. 2**32 - 1.
            first_sample: index of row 0 in the global batch.

        Raises:
            TypeError: x is no floating-point tensor, labels are not integers, or mask is not bool.
            ValueError: x has no batch dimension, or labels or mask do not fit it.
        """
        x, labels, mask = checked(x, labels, mask)
        with torch.no_grad():
            return self._draw(x, seed, step, first_sample, labels, mask)

    def pair(self, x: Tensor, noise: Tensor, *, labels: Tensor | None = None, mask: Tensor | None = None) -> Tensor:
        """For each row of x one of the noises that the caller drew; which shapes noise may have, the coupling says.

        Raises:
            TypeError, ValueError: as ``__call__``; TypeError also where the noise is no tensor of x's dtype, ValueError
                where it is on another device or does not fit x.
        """
        x, labels, mask = checked(x, labels, mask)
        check_noise(x, noise)
        with torch.no_grad():
            return self._pair(x, noise, labels, mask)

    def start(
        self,
        x: Tensor,
        *,
        seed: int = 0,
        step: int = 0,
        first_sample: int = 0,
        labels: Tensor | None = None,
        mask: Tensor | None = None,
    ) -> PendingNoise:
        """Begins what ``__call__`` with the same arguments does and returns at once; ``.result()`` is its noise.

        For pairing the next batch while the network works on this one. On the CPU a worker thread does it, one call
        after the other in the order of ``start``; on a GPU a side stream. x, labels and mask must not change before
        ``result`` has returned. Whatever goes wrong is raised by ``result``.
        """

        def draw() -> Tensor:
            return self(x, seed=seed, step=step, first_sample=first_sample, labels=labels, mask=mask)

        return start_drawing(draw, [tensor for tensor in (x, labels, mask) if isinstance(tensor, Tensor)])

    def measured(
        self,
        x: Tensor,
        *,
        seed: int = 0,
        step: int = 0,
        first_sample: int = 0,
        labels: Tensor | None = None,
        mask: Tensor | None = None,
    ) -> tuple[Tensor, CouplingDiagnostics]:
        """``__call__`` with the same arguments, and what it did: O(B D) more work, no wait for a GPU."""
        place = {"seed": seed, "step": step, "first_sample": first_sample}
        with Timer(checked(x, labels, mask)[0].device) as timer:
            noise = self(x, **place, labels=labels, mask=mask)
        return noise, diagnose(x, noise, **place, mask=mask, milliseconds=timer.milliseconds)

    def scale_data(self, x: Tensor) -> Tensor:
        """The data as it is diffused: x itself, except under ``Scaled``."""
        return x

    def unscale_data(self, x: Tensor) -> Tensor:
        """Samples of the trained model back in the range of the data: x itself, except under ``Scaled``."""
        return x

    def is_plain(self, step: int) -> bool:
        """Whether the noise of a step is the baseline's, ``gaussian_noise(x, seed, step, first_sample)``."""
        return False

    def state_dict(self) -> dict[str, Any]:
        """What is remembered between steps, JSON-ready; empty for a coupling whose step number says it all."""
        return self.snapshot()()

    def snapshot(self) -> Callable[[], dict[str, Any]]:
        """A function that returns what ``state_dict`` would return now, whatever is paired meanwhile; never waits."""
        return dict

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Puts back what ``state_dict`` returned.

        Raises:
            ValueError: the state is of another kind of coupling, or damaged.
        """
        if state:
            raise ValueError(f"a {self.name} coupling has no state, got one with {sorted(state)}")

    @abstractmethod
    def _draw(
        self, x: Tensor, seed: int, step: int, first_sample: int, labels: Tensor | None, mask: Tensor | None
    ) -> Tensor:
        """``__call__`` after validation; mask has x's shape."""

    @abstractmethod
    def _pair(self, x: Tensor, noise: Tensor, labels: Tensor | None, mask: Tensor | None) -> Tensor:
        """``pair`` after validation; mask has x's shape."""

    @abstractmethod
    def to_dict(self) -> dict[str, Any]:
        """A JSON-ready description; ``coupling_from_dict`` reads it."""

    @classmethod
    def from_fields(cls, values: dict[str, Any]) -> Coupling:
        """The coupling of a description without its name; inner couplings are made already."""
        return cls(**values)

    def __eq__(self, other: object) -> bool:
        return type(other) is type(self) and self.to_dict() == other.to_dict()

    def __hash__(self) -> int:
        return hash(json.dumps(self.to_dict(), sort_keys=True))


class Wrapper(Coupling):
    """A coupling around another one: whatever it does not change is the inner coupling's."""

    @property
    @abstractmethod
    def inner(self) -> Coupling:
        """The coupling that is wrapped."""

    def is_plain(self, step: int) -> bool:
        """As the inner coupling."""
        return self.inner.is_plain(step)

    def _draw(
        self, x: Tensor, seed: int, step: int, first_sample: int, labels: Tensor | None, mask: Tensor | None
    ) -> Tensor:
        return self.inner._draw(x, seed, step, first_sample, labels, mask)

    def _pair(self, x: Tensor, noise: Tensor, labels: Tensor | None, mask: Tensor | None) -> Tensor:
        return self.inner._pair(x, noise, labels, mask)

    def scale_data(self, x: Tensor) -> Tensor:
        """As the inner coupling."""
        return self.inner.scale_data(x)

    def unscale_data(self, x: Tensor) -> Tensor:
        """As the inner coupling."""
        return self.inner.unscale_data(x)

    def snapshot(self) -> Callable[[], dict[str, Any]]:
        """That of the inner coupling."""
        return self.inner.snapshot()

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """That of the inner coupling."""
        self.inner.load_state_dict(state)


def check_inner(coupling: Coupling) -> None:
    """coupling is one."""
    if not isinstance(coupling, Coupling):
        raise TypeError(f"coupling must be a Coupling, got {type(coupling).__name__}")
