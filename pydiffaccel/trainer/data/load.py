"""Data of every format, by what its path says."""

from __future__ import annotations

import importlib.resources
from collections.abc import Callable
from pathlib import Path

import numpy as np

from pydiffaccel.trainer.data.arrays import ARRAY_SUFFIXES, load_arrays, resized
from pydiffaccel.trainer.data.dataset import DataKind, TrainData
from pydiffaccel.trainer.data.decode import DataError
from pydiffaccel.trainer.data.files import ImageFiles, few, has_images, open_folder, open_zip
from pydiffaccel.trainer.data.hf import PREFIX, open_hf
from pydiffaccel.trainer.data.images import load_images
from pydiffaccel.trainer.data.shards import find_shards, open_shards

__all__ = ["load_data", "load_digits"]

MEMORY_LIMIT = 2 * 2**30  # bytes of decoded images that are kept in memory


def load_digits() -> TrainData:
    """The 1,797 optical digits of the UCI repository that come with the package: gray, 8 x 8, labelled."""
    resource = importlib.resources.files("pydiffaccel") / "data" / "digits.npz"
    with importlib.resources.as_file(resource) as path, np.load(path, allow_pickle=False) as npz:
        return TrainData(
            "UCI optical digits",
            npz["images"][:, None],
            max_value=int(npz["max_value"]),
            labels=npz["labels"].astype(np.int64),
            classes=tuple("0123456789"),
        )


def _digits(resolution: int | None) -> TrainData:
    digits = load_digits()
    if resolution is None:
        return digits
    pixels = digits.batch(np.arange(len(digits))).numpy()
    return TrainData(digits.name, resized(pixels, resolution), labels=digits.labels, classes=digits.classes)


def _open_files(spec: str, key: str | None, label_key: str | None) -> tuple[str, ImageFiles]:
    """The name of a set of encoded images, and its files."""
    if spec.startswith(PREFIX):
        return spec.removeprefix(PREFIX), open_hf(spec, key=key, label_key=label_key)
    path = Path(spec)
    suffix = path.suffix.lower()
    if suffix == ".tar" or (path.is_dir() and find_shards(spec) and not has_images(path)):
        return path.name, open_shards(spec, key=key, label_key=label_key)
    if not path.exists():
        raise DataError(f"{path} does not exist")
    if not path.is_dir() and suffix != ".zip":
        raise DataError(f"{path} is neither a folder of images nor a .zip, .tar, .npz, .npy or .safetensors file")
    if key or label_key:
        raise DataError(
            f"--data_key and --label_key name arrays of an npz or safetensors file, columns of a dataset (hf:) or "
            f"endings in shards (.tar), but the data is {path}"
        )
    return path.name, open_folder(path) if path.is_dir() else open_zip(path)


def load_data(
    path: Path | str | None,
    *,
    key: str | None = None,
    label_key: str | None = None,
    kind: DataKind = "images",
    latent_scale: float = 1.0,
    resolution: int | None = None,
    skip_bad_images: bool = False,
    memory_limit: int = MEMORY_LIMIT,
    cache_dir: Path | None = None,
    threads: int | None = None,
    progress: Callable[[int], None] = lambda done: None,
    report: Callable[[str], None] = lambda message: None,
) -> TrainData:
    """The data at path; None is the packaged digits.

    Args:
        path: a folder or a zip of images; an npy, npz or safetensors file; tar files (``a.tar``, ``a-{000..012}.tar``,
            a pattern, a folder of them); ``hf:PATH`` or ``hf:PATH:SPLIT``.
        key: which array, column or ending holds the samples; needed only where that is not plain.
        label_key: likewise of the classes.
        kind: "images", or "latents": arrays of floats of any range and shape.
        latent_scale: factor on latents.
        resolution: resize the shorter side to it and cut out the centre square.
        skip_bad_images: leave unreadable images out (they are counted in the notes) instead of refusing the set.
        memory_limit: bytes of decoded images to keep in memory.
        cache_dir: larger sets are decoded once into a file below it, which is mapped; by default on demand.
        threads: that decode images; by default one per core, 8 at most.
        progress: told how many images have been looked at.
        report: told about images that turn out unreadable later on, and about the cache.

    Raises:
        DataError: with one sentence that says what is wrong with the data.
    """
    if path is None:
        if kind != "images":
            raise DataError("the packaged digits are no latents; give --data")
        return _digits(resolution)
    path = Path(path)
    if path.suffix.lower() in ARRAY_SUFFIXES and not str(path).startswith(PREFIX):
        if not path.exists():
            raise DataError(f"{path} does not exist")
        return load_arrays(
            path, key=key, label_key=label_key, kind=kind, resolution=resolution, latent_scale=latent_scale
        )
    if kind != "images":
        raise DataError(f"latents are read from {', '.join(ARRAY_SUFFIXES)} files, but the data is {path}")
    name, files = _open_files(str(path), key, label_key)
    loaded = load_images(
        files,
        resolution=resolution,
        skip_bad_images=skip_bad_images,
        memory_limit=memory_limit,
        cache_dir=cache_dir,
        threads=threads,
        progress=progress,
        report=report,
    )
    if files.labels is None:
        return TrainData(name, loaded.pixels, notes=loaded.notes)
    labels, classes = files.labels.numbers[loaded.kept], files.labels.classes
    empty = [classes[i] for i in np.setdiff1d(np.arange(len(classes)), labels)]
    notes = (*loaded.notes, f"{len(empty)} classes have no images: {few(empty)}") if empty else loaded.notes
    return TrainData(name, loaded.pixels, labels=labels, classes=classes, notes=notes)
