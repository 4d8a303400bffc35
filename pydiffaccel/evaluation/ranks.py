"""Work that the ranks of an evaluation share."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import numpy as np

from pydiffaccel.evaluation._arrays import Array
from pydiffaccel.trainer.parallel import Ranks

__all__ = ["gather_rows", "once"]

Result = TypeVar("Result")


def gather_rows(ranks: Ranks, action: Callable[[], Sequence[Array]]) -> Array:
    """The rows ``[n, F]`` that action gives on each rank, one after the other, on every rank.

    Raises:
        CommandError: on every rank, where action raises on one of them.
    """
    with ranks.together():
        mine = list(action())
    return np.concatenate([part for parts in ranks.exchange(mine) for part in parts])


def once(ranks: Ranks, action: Callable[[], Result]) -> Result:
    """What action gives on the main rank, on every rank.

    Raises:
        CommandError: on every rank, where action raises.
    """
    found: Any = None
    with ranks.together():
        if ranks.is_main:
            found = action()
    result: Result = ranks.exchange(found)[0]
    return result
