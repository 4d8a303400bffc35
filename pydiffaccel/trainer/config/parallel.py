"""Flags of how the arithmetic is carried out: over ranks, compiled, in which memory layout."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

from pydiffaccel.trainer.config.base import OptionGroup

__all__ = ["ParallelOptions"]


@dataclass(frozen=True)
class ParallelOptions(OptionGroup):
    """How the arithmetic is carried out."""

    # The number of ranks is no option either: it changes nothing but the order of sums.
    FREE: ClassVar[frozenset[str]] = frozenset({"parallel"})

    parallel: Literal["ddp", "fsdp"] = "ddp"
    """What each rank under torchrun holds: ddp, the whole network; fsdp, its part of weights, averages and optimizer
    state."""
    compile: bool = False
    """Compile the network with torch.compile; the first step then takes a minute or more."""
    channels_last: bool = False
    """Keep images and convolutions with the channels last in memory, which tensor cores prefer."""
