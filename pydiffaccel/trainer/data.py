"""Training images as tensors in [-1, 1], and the order in which they are visited.

A batch is a pure function of (seed, step): the set is visited in epochs, each a permutation that depends only on the
seed and the epoch's number, so the step is the whole state of the data stream.
"""

from __future__ import annotations

import importlib.resources
import math
import zipfile
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.lib.npyio import NpzFile
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from pydiffaccel.noise import derive_seed
from pydiffaccel.trainer.images import (
    DataError,
    LazyImages,
    load_images,
    open_folder,
    open_zip,
    resize_and_crop,
)

__all__ = ["BatchOrder", "DataError", "ImageData", "load_data", "load_digits"]

MEMORY_LIMIT = 2 * 2**30  # bytes of decoded images that are kept in memory
_IMAGE_KEYS = ("images", "data", "x", "x_train", "samples", "arr_0")
_LABEL_KEYS = ("labels", "label", "y", "y_train", "targets", "arr_1")


@dataclass(frozen=True)
class ImageData:
    """A set of images of one shape.

    Attributes:
        name: what the set is called in messages.
        pixels: uint8 ``[N, C, H, W]`` from 0 to max_value, or float32 in [-1, 1], in memory, mapped from a file, or
            decoded on demand.
        max_value: the uint8 value that stands for 1.
        labels: int64 ``[N]``, or None.
        classes: names of the classes, empty without labels.
        notes: sentences about what was left out or changed.
    """

    name: str
    pixels: NDArray[Any] | LazyImages
    max_value: int = 255
    labels: NDArray[np.int64] | None = None
    classes: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()

    def __len__(self) -> int:
        return len(self.pixels)

    @property
    def shape(self) -> tuple[int, int, int]:
        """(C, H, W) of one image."""
        channels, height, width = self.pixels.shape[-3:]
        return channels, height, width

    def batch(self, indices: NDArray[np.int64], device: torch.device | str | None = None) -> Tensor:
        """Images ``[len(indices), C, H, W]``, float32 in [-1, 1]."""
        lazy = isinstance(self.pixels, LazyImages)
        raw = self.pixels.gather(indices) if isinstance(self.pixels, LazyImages) else self.pixels[indices]
        x = torch.from_numpy(raw if lazy else np.ascontiguousarray(raw)).to(device)
        return x if x.is_floating_point() else x.float() * (2.0 / self.max_value) - 1.0

    def describe(self) -> str:
        channels, height, width = self.shape
        colour = {1: "gray", 3: "colour"}.get(channels, f"{channels}-channel")
        classes = f", {len(self.classes)} classes" if self.classes else ""
        return f"{self.name}: {len(self):,} {colour} images, {height} x {width}{classes}"


class BatchOrder:
    """Which images each step sees: position p of the stream is entry p mod N of epoch p // N's permutation."""

    def __init__(self, num_images: int, seed: int) -> None:
        self._n = num_images
        self._seed = seed
        self._epochs: dict[int, NDArray[np.int64]] = {}

    def _permutation(self, epoch: int) -> NDArray[np.int64]:
        if epoch not in self._epochs:
            # Sorting raw 64-bit words: the bit generator's stream is a promise of NumPy, Generator.permutation is not.
            key = derive_seed(self._seed, f"epoch {epoch}") % 2**64
            order = np.argsort(np.random.Philox(key=key).random_raw(self._n), kind="stable")
            self._epochs = {e: p for e, p in self._epochs.items() if e == epoch - 1} | {epoch: order}
        return self._epochs[epoch]

    def indices(self, first: int, n: int) -> NDArray[np.int64]:
        """Image indices int64 ``[n]`` at positions first .. first + n - 1 of the stream."""
        out = np.empty(n, np.int64)
        done = 0
        while done < n:
            epoch, offset = divmod(first + done, self._n)
            take = min(n - done, self._n - offset)
            out[done : done + take] = self._permutation(epoch)[offset : offset + take]
            done += take
        return out


def load_digits() -> ImageData:
    """The 1,797 optical digits of the UCI repository that come with the package: gray, 8 x 8, labelled."""
    resource = importlib.resources.files("pydiffaccel") / "data" / "digits.npz"
    with importlib.resources.as_file(resource) as path, np.load(path, allow_pickle=False) as npz:
        return ImageData(
            "UCI optical digits",
            npz["images"][:, None],
            max_value=int(npz["max_value"]),
            labels=npz["labels"].astype(np.int64),
            classes=tuple("0123456789"),
        )


def _channels_first(array: NDArray[Any], where: str) -> NDArray[Any]:
    if array.ndim == 3:
        return array[:, None]
    if array.ndim == 4 and array.shape[-1] in (1, 3):
        moved: NDArray[Any] = array.transpose(0, 3, 1, 2)
        return moved
    if array.ndim == 4 and array.shape[1] in (1, 3):
        return array
    raise DataError(
        f"{where} has shape {list(array.shape)}; images must be [N, H, W], [N, H, W, C] or [N, C, H, W] with C 1 or 3"
    )


def _checked_array(array: NDArray[Any], where: str, resolution: int | None) -> NDArray[Any]:
    """uint8 as it is, floats as float32 in [-1, 1], ``[N, C, H, W]``."""
    array = _channels_first(array, where)
    if array.size == 0:
        raise DataError(f"{where} is empty: its shape is {list(array.shape)}")
    if array.dtype != np.uint8:
        if array.dtype.kind != "f":
            raise DataError(f"{where} has dtype {array.dtype}; images must be uint8 or floating point")
        low, high = math.inf, -math.inf
        for start in range(0, len(array), 1024):  # in pieces: the array may be a file larger than the memory
            piece = array[start : start + 1024]
            if not np.isfinite(piece).all():
                raise DataError(f"{where} holds NaN or infinite values, first in images {start} to {start + 1023}")
            low, high = min(low, float(piece.min())), max(high, float(piece.max()))
        if low < -1 or high > 1:
            raise DataError(
                f"{where} holds floats from {low:g} to {high:g}; "
                f"give uint8 from 0 to 255, or floats in [0, 1] or [-1, 1]"
            )
        array = array.astype(np.float32) if low < 0 else array.astype(np.float32) * 2 - 1
    if resolution and array.shape[-2:] != (resolution, resolution):
        array = np.stack([_resized(image, resolution) for image in array])
    return array


def _resized(image: NDArray[Any], resolution: int) -> NDArray[Any]:
    planes = [np.asarray(resize_and_crop(Image.fromarray(plane), resolution)) for plane in image]
    # Lanczos overshoots at edges; Pillow clips uint8 by itself.
    return np.stack(planes) if image.dtype == np.uint8 else np.stack(planes).clip(-1, 1)


def _pick_key(arrays: dict[str, tuple[int, ...]], key: str | None, where: str) -> str:
    listing = ", ".join(f"'{name}' {list(shape)}" for name, shape in arrays.items()) or "nothing"
    if key is not None:
        if key not in arrays:
            raise DataError(f"{where} has no array '{key}'; it holds {listing}")
        return key
    candidates = [name for name, shape in arrays.items() if len(shape) in (3, 4)]
    known = [name for name in _IMAGE_KEYS if name in candidates]
    if len(candidates) == 1 or known:
        return known[0] if known else candidates[0]
    raise DataError(f"{where} holds {listing}; say with --data_key which array holds the images")


def _load_npz(path: Path, key: str | None, resolution: int | None) -> ImageData:
    try:
        npz = np.load(path, allow_pickle=False)
        if not isinstance(npz, NpzFile):
            raise ValueError("it holds a single array, as an npy file does")
        with npz:
            arrays = {name: npz[name] for name in npz.files}
    except (ValueError, OSError, EOFError, zipfile.BadZipFile, zlib.error) as error:
        raise DataError(f"{path} cannot be read as an npz file: {error}") from error
    key = _pick_key({name: array.shape for name, array in arrays.items()}, key, str(path))
    pixels = _checked_array(arrays[key], f"'{key}' in {path}", resolution)
    labels = next(
        (
            arrays[name].astype(np.int64)
            for name in _LABEL_KEYS
            if name in arrays and arrays[name].shape == (len(pixels),) and arrays[name].dtype.kind in "iu"
        ),
        None,
    )
    classes: tuple[str, ...] = ()
    if labels is not None:
        values, labels = np.unique(labels, return_inverse=True)
        classes = tuple(str(value) for value in values)
    return ImageData(path.name, pixels, labels=labels, classes=classes)


def _load_npy(path: Path, resolution: int | None) -> ImageData:
    try:
        array = np.load(path, mmap_mode="r", allow_pickle=False)
        if not isinstance(array, np.ndarray):
            raise ValueError("it holds several arrays, as an npz file does")
    except (ValueError, OSError, EOFError, zipfile.BadZipFile) as error:
        raise DataError(f"{path} cannot be read as an npy file: {error}") from error
    return ImageData(path.name, _checked_array(array, str(path), resolution))


def load_data(
    path: Path | None,
    *,
    key: str | None = None,
    resolution: int | None = None,
    skip_bad_images: bool = False,
    memory_limit: int = MEMORY_LIMIT,
    progress: Callable[[int], None] = lambda done: None,
    report: Callable[[str], None] = lambda message: None,
) -> ImageData:
    """The images at path: a folder, a zip of images, an npz or npy file; None is the packaged digits.

    Args:
        path: where the images are.
        key: which array of an npz holds the images; needed only where that is not plain.
        resolution: resize the shorter side to it and cut out the centre square.
        skip_bad_images: leave unreadable images out (they are counted in the notes) instead of refusing the set.
        memory_limit: bytes of decoded images to keep in memory; larger sets are decoded on demand.
        progress: told how many images have been looked at.
        report: told about images that turn out unreadable later on.

    Raises:
        DataError: with one sentence that says what is wrong with the data.
    """
    if path is None:
        digits = load_digits()
        if resolution is None:
            return digits
        pixels = np.asarray(digits.pixels) * np.float32(2 / digits.max_value) - 1
        return ImageData(
            digits.name, _checked_array(pixels, digits.name, resolution), labels=digits.labels, classes=digits.classes
        )
    if not path.exists():
        raise DataError(f"{path} does not exist")
    suffix = path.suffix.lower()
    if key is not None and suffix != ".npz":
        raise DataError(f"--data_key names an array of an npz file, but the data is {path}")
    if suffix == ".npz":
        return _load_npz(path, key, resolution)
    if suffix == ".npy":
        return _load_npy(path, resolution)
    if not path.is_dir() and suffix != ".zip":
        raise DataError(f"{path} is neither a folder of images nor a .zip, .npz or .npy file")
    files = open_folder(path) if path.is_dir() else open_zip(path)
    names = files.class_names()
    loaded = load_images(
        files,
        resolution=resolution,
        skip_bad_images=skip_bad_images,
        memory_limit=memory_limit,
        progress=progress,
        report=report,
    )
    labels: NDArray[np.int64] | None = None
    classes: tuple[str, ...] = ()
    if names is not None:
        classes = tuple(sorted(set(names)))
        number = {name: index for index, name in enumerate(classes)}
        labels = np.array([number[names[index]] for index in loaded.kept], np.int64)
    return ImageData(path.name, loaded.pixels, labels=labels, classes=classes, notes=loaded.notes)
