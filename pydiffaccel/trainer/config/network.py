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
    class_conditional: bool = False
    """Tell the network the class of each image; samples then have classes. The data must have them."""
    conditioning_dropout_prob: float = 0.1
    """Under --class_conditional: how often the network is told no class, which guidance needs; 0 is never."""

    def check(self) -> None:
        self._at_least(layers_per_block=1)
        if not 0 <= self.conditioning_dropout_prob < 1:
            raise UsageError(f"--conditioning_dropout_prob must be in [0, 1), got {self.conditioning_dropout_prob}")
        if self.conditioning_dropout_prob != NetworkOptions.conditioning_dropout_prob and not self.class_conditional:
            raise UsageError("--conditioning_dropout_prob needs --class_conditional")
        for channels in self.channels:
            if channels < 8 or channels % 8:
                raise UsageError(f"--channels must be multiples of 8, got {channels}")
