"""Flags that say what the images are."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from pydiffaccel.trainer.config.base import OptionGroup

__all__ = ["DataOptions"]


@dataclass(frozen=True)
class DataOptions(OptionGroup):
    """The images."""

    data: Path | None = None
    """A folder of images (flat, or one sub-folder per class), a zip of images, a .npz or a .npy file; by default the
    packaged digits."""
    data_key: str | None = None
    """Which array of an npz file holds the images."""
    resolution: int | None = None
    """Resize the shorter side of every image to this and cut out the centre square."""
    skip_bad_images: bool = False
    """Leave unreadable images out instead of stopping."""

    def check(self) -> None:
        self._at_least(resolution=1)
