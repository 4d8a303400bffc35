"""Flags of the network."""

from __future__ import annotations

from dataclasses import dataclass

from pydiffaccel._cli import UsageError
from pydiffaccel.trainer.config.base import OptionGroup

__all__ = ["NetworkOptions"]


@dataclass(frozen=True)
class NetworkOptions(OptionGroup):
    """The network."""

    channels: tuple[int, ...] = ()
    """Channels of each level of the U-Net, as 32 64 64; by default fitted to the images' size."""
    layers_per_block: int = 1
    """Residual layers per level of the U-Net."""

    def check(self) -> None:
        self._at_least(layers_per_block=1)
        for channels in self.channels:
            if channels < 8 or channels % 8:
                raise UsageError(f"--channels must be multiples of 8, got {channels}")
