"""What the groups of training options share."""

from __future__ import annotations

import math
from typing import Any, ClassVar

from pydiffaccel._cli import UsageError

__all__ = ["OptionGroup"]


class OptionGroup:
    """A group of flags. ``TrainOptions`` inherits from all groups and calls the ``check`` of each.

    Attributes:
        FREE: flags that change how a run is carried out but no number of its result: they may differ when it is
            continued.
    """

    FREE: ClassVar[frozenset[str]] = frozenset()

    def check(self) -> None:
        """Raises UsageError where values of this group are out of range."""

    def _is_given(self, name: str) -> bool:
        """Whether an option has another value than its default."""
        return bool(getattr(self, name) != getattr(type(self), name))

    def _at_least(self, **lows: int) -> None:
        """Each named option is None or at least its bound."""
        for name, low in lows.items():
            value: Any = getattr(self, name)
            if value is not None and value < low:
                raise UsageError(f"--{name} must be at least {low}, got {value}")

    def _positive(self, *names: str) -> None:
        """Each named option is None or a positive finite number."""
        for name in names:
            value: Any = getattr(self, name)
            if value is not None and not (math.isfinite(value) and value > 0):
                raise UsageError(f"--{name} must be a positive number, got {value}")

    def _within(self, low: float, high: float, *names: str) -> None:
        """Each named option is None or in [low, high]."""
        for name in names:
            value: Any = getattr(self, name)
            if value is not None and not low <= value <= high:
                raise UsageError(f"--{name} must be in [{low:g}, {high:g}], got {value}")
