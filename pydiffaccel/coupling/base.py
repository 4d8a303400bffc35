"""What every coupling shares: the interface and the checks of its arguments."""

from __future__ import annotations

import json
from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Any, ClassVar

import torch
from torch import Tensor

from pydiffaccel._tensors import compute_dtype

__all__ = ["Coupling", "Wrapper", "check_count", "check_inner", "check_noise", "checked", "checked_labels"]


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
        return {}

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

    def state_dict(self) -> dict[str, Any]:
        """That of the inner coupling."""
        return self.inner.state_dict()

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """That of the inner coupling."""
        self.inner.load_state_dict(state)


def checked(x: Tensor, labels: Tensor | None, mask: Tensor | None) -> tuple[Tensor, Tensor | None, Tensor | None]:
    """Validated arguments: labels on x's device, the mask expanded to x's shape."""
    compute_dtype(x)
    if x.dim() == 0:
        raise ValueError("x must have a batch dimension, got a scalar")
    if labels is not None:
        labels = checked_labels("labels", labels, len(x)).to(x.device)
    if mask is not None:
        if not isinstance(mask, Tensor) or mask.dtype != torch.bool:
            raise TypeError(f"mask must be bool, True at real elements, got {_kind(mask)}")
        leading = x.shape[: mask.dim()]
        sizes_fit = all(size in (1, full) for size, full in zip(mask.shape, leading, strict=False))
        if mask.dim() > x.dim() or not sizes_fit:
            raise ValueError(
                f"mask must have the leading dimensions of x, {tuple(x.shape)}, each or 1, got {tuple(mask.shape)}"
            )
        mask = mask.to(x.device).reshape(*mask.shape, *(1,) * (x.dim() - mask.dim())).expand(x.shape)
    return x, labels, mask


def checked_labels(name: str, labels: Tensor, count: int) -> Tensor:
    """labels, which are count integers."""
    if not isinstance(labels, Tensor) or labels.is_floating_point() or labels.is_complex():
        raise TypeError(f"{name} must be integers, got {_kind(labels)}")
    if labels.shape != (count,):
        raise ValueError(f"{name} must have shape ({count},), got {tuple(labels.shape)}")
    return labels


def check_count(name: str, value: int, low: int = 1) -> None:
    """value is an int of at least low."""
    if isinstance(value, bool) or not isinstance(value, int):
        raise TypeError(f"{name} must be an int, got {type(value).__name__}")
    if value < low:
        raise ValueError(f"{name} must be at least {low}, got {value}")


def check_inner(coupling: Coupling) -> None:
    """coupling is one."""
    if not isinstance(coupling, Coupling):
        raise TypeError(f"coupling must be a Coupling, got {type(coupling).__name__}")


def check_noise(x: Tensor, noise: Tensor) -> None:
    """noise is a tensor of x's dtype on x's device."""
    if not isinstance(noise, Tensor):
        raise TypeError(f"noise must be a tensor, got {type(noise).__name__}")
    if noise.dtype != x.dtype:
        raise TypeError(f"noise must have the dtype of x, {x.dtype}, got {noise.dtype}")
    if noise.device != x.device:
        raise ValueError(f"noise must be on the device of x, {x.device}, got {noise.device}")


def _kind(value: object) -> str:
    return f"dtype {value.dtype}" if isinstance(value, Tensor) else type(value).__name__
