"""Data sets and the size of the training on them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from pydiffaccel.noise import derive_seed
from pydiffaccel.trainer.data import BatchOrder, TrainData, load_data, load_digits

__all__ = ["NAMES", "SETS", "DataSet"]

CIFAR_FOLDER = Path(__file__).resolve().parents[3] / "shared" / "data" / "cifar10-jpeg"

NAMES = {
    "digits": "digits",
    "cifar16": "CIFAR-10, 16 x 16 gray",
    "cifar8": "CIFAR-10, 8 x 8 gray",
    "cifar32": "CIFAR-10, 32 x 32",
}


@dataclass(frozen=True)
class DataSet:
    """One data set and how much each cell may spend on it.

    Attributes:
        name: as the command line spells it.
        about: for the page.
        channels: of the U-Net's levels.
        steps: optimizer steps of a batch of 128 images; a cell of another batch sees as many images, one of several
            evaluations per image makes as many evaluations.
        checkpoints: shares of the steps after which samples are judged.
        evaluations: network evaluations of the sampler at each of them: Euler for flow matching, DDIM for the others.
        num_samples: behind each figure.
        flags: further options of all cells.
    """

    name: str
    about: str
    channels: tuple[int, ...]
    steps: int
    checkpoints: tuple[float, ...]
    evaluations: tuple[int, ...]
    num_samples: int
    flags: Mapping[str, Any] = field(default_factory=dict)

    def load(self, folder: Path = CIFAR_FOLDER) -> tuple[TrainData, TrainData]:
        """Images to train on, and images that are kept for the evaluation.

        Raises:
            DataError: there are no images at folder.
        """
        if self.name == "digits":
            return _split(load_digits(), 1200)
        train, test = (load_data(folder / f"{part}.zip") for part in ("train", "test"))
        if self.name == "cifar32":
            return train, test
        size = 8 if self.name == "cifar8" else 16
        return _small_gray(train, size), _small_gray(test, size)


def _split(data: TrainData, first: int) -> tuple[TrainData, TrainData]:
    order = BatchOrder(len(data), derive_seed(0, "evidence split")).indices(0, len(data))
    pixels, labels = np.asarray(data.values), np.asarray(data.labels)
    train, test = order[:first], order[first:]
    return (
        replace(data, values=pixels[train], labels=labels[train]),
        replace(data, values=pixels[test], labels=labels[test]),
    )


def _small_gray(data: TrainData, size: int) -> TrainData:
    """Luminance (ITU-R 601), averaged over squares of pixels, uint8."""
    pixels = np.asarray(data.values).astype(np.float32)
    gray = np.tensordot(np.array([0.299, 0.587, 0.114], np.float32), pixels, axes=(0, 1))
    n, height, width = gray.shape
    small = gray.reshape(n, size, height // size, size, width // size).mean((2, 4))
    return replace(data, name=f"{data.name}, {size} x {size} gray", values=small.round().astype(np.uint8)[:, None])


SETS = {
    "digits": DataSet(
        "digits",
        "UCI optical digits, 8 x 8 gray: 1,200 to train on, 597 for the evaluation",
        (16, 24),
        600,
        (1 / 12, 1 / 6, 1 / 3, 2 / 3, 1),
        (4, 10, 20),
        1000,
    ),
    "cifar16": DataSet(
        "cifar16",
        "CIFAR-10 as 16 x 16 gray images: 50,000 to train on, 10,000 for the evaluation",
        (16, 24),
        400,
        (1 / 8, 1 / 4, 1 / 2, 1),
        (4, 20),
        1000,
    ),
    # The same images in a quarter of the dimensions: whether that is what a coupling loses by.
    "cifar8": DataSet(
        "cifar8",
        "CIFAR-10 as 8 x 8 gray images: 50,000 to train on, 10,000 for the evaluation",
        (16, 24),
        400,
        (1 / 8, 1 / 4, 1 / 2, 1),
        (4, 20),
        1000,
    ),
    "cifar32": DataSet(
        "cifar32",
        "CIFAR-10, 32 x 32 colour: 50,000 to train on, 10,000 for the evaluation",
        (128, 256, 256),
        3000,
        (0.1, 0.25, 0.5, 1.0),
        (4, 10, 20),
        2500,
        {
            "learning_rate": 2e-4,
            "lr_warmup_steps": 300,
            "ema_decay": 0.999,
            "layers_per_block": 2,
            "mixed_precision": "bf16",
            "channels_last": True,
            "compile": True,
        },
    ),
}
