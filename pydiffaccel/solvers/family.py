"""What a solver family is: a name, what it runs on, and the function that writes its table."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from pydiffaccel.solvers.table import Table, TableWriter

__all__ = ["Builder", "Family", "choice", "flag", "number"]

# (writer over the grid, order, options) -> the table
Builder = Callable[[TableWriter, int, Mapping[str, Any]], Table]


@dataclass(frozen=True)
class Family:
    """A solver family, as ``make_plan`` knows it.

    Attributes:
        name: what ``make_plan`` is asked for.
        build: writes the table for a grid of points.
        spacings: default time grid per ``Schedule.kind``; the keys are the schedules that the family runs on.
        orders: the orders it has; the first is the default.
        options: further keyword arguments of ``make_plan`` and their defaults.
    """

    name: str
    build: Builder
    spacings: Mapping[str, str]
    orders: tuple[int, ...] = (1,)
    options: Mapping[str, Any] = field(default_factory=dict)


def number(options: Mapping[str, Any], name: str, first: float, last: float) -> float:
    """The option as a float in [first, last]; TypeError or ValueError otherwise."""
    value = options[name]
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise TypeError(f"{name} must be a number, got {type(value).__name__}")
    if not first <= value <= last:
        raise ValueError(f"{name} must lie in [{first:g}, {last:g}], got {value}")
    return float(value)


def flag(options: Mapping[str, Any], name: str) -> bool:
    """The option as a bool; TypeError otherwise."""
    value = options[name]
    if not isinstance(value, bool):
        raise TypeError(f"{name} must be True or False, got {value!r}")
    return value


def choice(options: Mapping[str, Any], name: str, known: tuple[str, ...]) -> str:
    """The option as one of the known strings; ValueError otherwise."""
    value = options[name]
    if not isinstance(value, str) or value not in known:
        raise ValueError(f"unknown {name} {value!r}; known: {', '.join(known)}")
    return value
