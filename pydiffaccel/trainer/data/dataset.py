"""What is trained on: samples of one shape, as tensors in the model's range."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pydiffaccel.trainer.data.images import LazyImages
from pydiffaccel.trainer.data.mapped import take_rows

__all__ = ["DataKind", "TrainData"]

DataKind = Literal["images", "latents"]


@dataclass(frozen=True)
class TrainData:
    """A set of samples of one shape: images, latents, or anything else of numbers, as trajectories ``[N, T, A]``.

    Attributes:
        name: what the set is called in messages.
        values: ``[N, *]``, in memory, mapped from a file, or decoded on demand; uint8 from 0 to max_value becomes
            [-1, 1], floating point becomes scale * value + shift.
        max_value: the uint8 value that stands for 1.
        labels: int64 ``[N]``, or None.
        classes: names of the classes, empty without labels.
        notes: sentences about what was left out or changed.
        kind: "images" are in [-1, 1] and shown as pictures; "latents" are of any range, and their decoder takes
            x / scale.
        scale, shift: of floating-point values.
    """

    name: str
    values: NDArray[Any] | LazyImages
    max_value: int = 255
    labels: NDArray[np.int64] | None = None
    classes: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    kind: DataKind = "images"
    scale: float = 1.0
    shift: float = 0.0

    def __len__(self) -> int:
        return len(self.values)

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape of one sample; (C, H, W) of images."""
        shape = self.values.shape
        return shape if isinstance(self.values, LazyImages) else shape[1:]

    @property
    def in_memory(self) -> bool:
        """Whether no sample is read from a disk or decoded when it is asked for."""
        return not isinstance(self.values, (LazyImages, np.memmap))

    @property
    def is_pictures(self) -> bool:
        """Whether samples can be shown: gray or colour images."""
        return self.kind == "images" and len(self.shape) == 3 and self.shape[0] in (1, 3)

    def stored(self, indices: NDArray[np.int64]) -> Tensor:
        """Samples ``[len(indices), *]`` as they are stored, uint8 or float32, on the CPU."""
        if isinstance(self.values, LazyImages):
            return torch.from_numpy(self.values.gather(indices))
        raw = take_rows(self.values, indices)
        return torch.from_numpy(raw if raw.dtype == np.uint8 else raw.astype(np.float32, copy=False))

    def scaled(self, stored: Tensor) -> Tensor:
        """What ``stored`` gave, on any device, as float32 in the model's range."""
        if not stored.is_floating_point():
            return stored.float().mul_(2.0 / self.max_value).sub_(1.0)
        return stored if (self.scale, self.shift) == (1.0, 0.0) else stored * self.scale + self.shift

    def batch(self, indices: NDArray[np.int64], device: torch.device | str | None = None) -> Tensor:
        """Samples ``[len(indices), *]``, float32; images are in [-1, 1]."""
        return self.scaled(self.stored(indices).to(device))

    def describe(self) -> str:
        """The set in one line, as "cats.zip: 1,000 colour images, 64 x 64, 2 classes"."""
        classes = f", {len(self.classes)} classes" if self.classes else ""
        if not self.is_pictures:
            scaled = f", scaled by {self.scale:g}" if self.scale != 1 else ""
            what = "latents" if self.kind == "latents" else "samples"
            return f"{self.name}: {len(self):,} {what} of {' x '.join(map(str, self.shape))}{scaled}{classes}"
        channels, height, width = self.shape
        colour = {1: "gray", 3: "colour"}[channels]
        return f"{self.name}: {len(self):,} {colour} images, {height} x {width}{classes}"
