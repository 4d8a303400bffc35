"""Flags that say what the data is."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, Literal

from pydiffaccel._cli import UsageError
from pydiffaccel.trainer.config.base import OptionGroup

__all__ = ["DataOptions"]


@dataclass(frozen=True)
class DataOptions(OptionGroup):
    """The data."""

    FREE: ClassVar[frozenset[str]] = frozenset({"cache_images", "cache_dir", "dataloader_num_workers"})

    data: Path | None = None
    """A folder of images (flat, or one sub-folder per class), a zip of images, a .npz, .npy or .safetensors file, tar
    shards (a-{000..012}.tar, a pattern, a folder), or hf:PATH[:SPLIT]; by default the packaged digits."""
    data_key: str | None = None
    """Which array of a file, column of a dataset or ending in shards holds the samples."""
    label_key: str | None = None
    """Likewise of the classes."""
    data_kind: Literal["images", "latents"] = "images"
    """Latents are arrays of floats of any range, [N, C, H, W]."""
    latent_scale: float = 1.0
    """Factor on latents, as the model that made them declares it: 0.18215 for Stable Diffusion's."""
    resolution: int | None = None
    """Resize the shorter side of every image to this and cut out the centre square."""
    random_flip: bool = False
    """Show every image as its mirror image half of the time."""
    skip_bad_images: bool = False
    """Leave unreadable images out instead of stopping."""
    cache_images: bool = True
    """Decode images that do not fit in memory once, into a file; otherwise at every use."""
    cache_dir: Path | None = None
    """Where that file is; by default $XDG_CACHE_HOME/pydiffaccel/images, or below ~/.cache."""
    dataloader_num_workers: int | None = None
    """Threads that decode the images of the next step during this one; by default one per core, 8 at most. 0 decodes in
    the step itself."""

    def check(self) -> None:
        self._at_least(resolution=1, dataloader_num_workers=0)
        self._positive("latent_scale")
        if self.cache_dir is not None and not self.cache_images:
            raise UsageError(f"--cache_dir {self.cache_dir} names a cache, but --no_cache_images asks for none")
        if self.data_kind == "latents":
            for name, value in (("resolution", self.resolution), ("random_flip", self.random_flip)):
                if value:
                    raise UsageError(f"--{name} is for images; --data_kind is latents")
        elif self.latent_scale != 1:
            raise UsageError(f"--latent_scale {self.latent_scale:g} needs --data_kind latents")

    @property
    def data_name(self) -> str:
        """A name for the data that can be a folder's."""
        if self.data is None:
            return "digits"
        name = re.sub(r"-*[][{}*?:]+-*", "-", self.data.stem.removeprefix("hf:")).strip("-")
        return "data" if name in ("", ".", "..") else name
