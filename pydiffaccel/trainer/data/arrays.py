"""Arrays of images or latents: npy, npz and safetensors files."""

from __future__ import annotations

import dataclasses
import math
import zipfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.lib.npyio import NpzFile
from numpy.typing import NDArray
from PIL import Image

from pydiffaccel.trainer.data.dataset import DataKind, TrainData
from pydiffaccel.trainer.data.decode import DataError, resize_and_crop, shown
from pydiffaccel.trainer.data.files import Labels

__all__ = ["ARRAY_SUFFIXES", "load_arrays", "resized"]

ARRAY_SUFFIXES = (".npy", ".npz", ".safetensors")
_IMAGE_KEYS = ("images", "data", "x", "x_train", "samples", "arr_0")
_LABEL_KEYS = ("labels", "label", "y", "y_train", "targets", "arr_1")
_PIECE = 1024  # samples that are looked at together: the array may be a file larger than the memory


@dataclass(frozen=True)
class _Arrays:
    """Named arrays of a file: their shapes, and how to read one."""

    shapes: Mapping[str, tuple[int, ...]]
    read: Callable[[str], NDArray[Any]]


def _npy(path: Path) -> _Arrays:
    array = np.load(path, mmap_mode="r", allow_pickle=False)
    if not isinstance(array, np.ndarray):
        raise ValueError("it holds several arrays, as an npz file does")
    return _Arrays({"": array.shape}, lambda name: array)


def _npz(path: Path) -> _Arrays:
    npz = np.load(path, allow_pickle=False)
    if not isinstance(npz, NpzFile):
        raise ValueError("it holds a single array, as an npy file does")
    return _Arrays(dict(_npz_shapes(path)), lambda name: npz[name])


def _npz_shapes(path: Path) -> Iterator[tuple[str, tuple[int, ...]]]:
    """From the headers alone: an archive may hold more than what is asked for."""
    with zipfile.ZipFile(path) as archive:
        for info in archive.infolist():
            with archive.open(info) as stream:
                form = np.lib.format
                first = form.read_magic(stream) == (1, 0)
                shape, _, _ = (form.read_array_header_1_0 if first else form.read_array_header_2_0)(stream)
                yield info.filename.removesuffix(".npy"), shape


def _safetensors(path: Path) -> _Arrays:
    from safetensors import safe_open

    tensors: Any = safe_open(path, framework="pt")

    def read(name: str) -> NDArray[Any]:
        tensor = tensors.get_tensor(name)
        array: NDArray[Any] = (tensor.float() if tensor.is_floating_point() else tensor).numpy()
        return array

    return _Arrays({name: tuple(tensors.get_slice(name).get_shape()) for name in tensors.keys()}, read)  # noqa: SIM118


_READERS = {".npy": _npy, ".npz": _npz, ".safetensors": _safetensors}


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


def _finite_range(array: NDArray[Any], where: str) -> tuple[float, float]:
    low, high = math.inf, -math.inf
    for start in range(0, len(array), _PIECE):
        piece = array[start : start + _PIECE]
        if not np.isfinite(piece).all():
            last = start + len(piece) - 1
            raise DataError(f"{where} holds NaN or infinite values, first in samples {start} to {last}")
        low, high = min(low, float(piece.min())), max(high, float(piece.max()))
    return low, high


def _image_range(array: NDArray[Any], where: str) -> tuple[float, float]:
    """(scale, shift) that bring floating-point images to [-1, 1]."""
    low, high = _finite_range(array, where)
    if low < -1 or high > 1:
        raise DataError(
            f"{where} holds floats from {low:g} to {high:g}; give uint8 from 0 to 255, or floats in [0, 1] or [-1, 1]; "
            f"what is no image is declared by --data_kind latents"
        )
    return (1.0, 0.0) if low < 0 else (2.0, -1.0)


def resized(images: NDArray[Any], resolution: int) -> NDArray[Any]:
    """Images ``[N, C, H, W]``, uint8 or float32 in [-1, 1], with the shorter side resized and the centre cut out."""
    if images.shape[-2:] == (resolution, resolution):
        return images
    out = np.empty((*images.shape[:2], resolution, resolution), images.dtype)
    for image, target in zip(images, out, strict=True):
        for plane, place in zip(image, target, strict=True):
            place[:] = np.asarray(resize_and_crop(Image.fromarray(plane), resolution))
    # Lanczos overshoots at edges; Pillow clips uint8 by itself.
    return out if out.dtype == np.uint8 else out.clip(-1, 1)


def _data(array: NDArray[Any], where: str, kind: DataKind, resolution: int | None, latent_scale: float) -> TrainData:
    """The array as data of a kind; uint8 and mapped arrays stay as they are."""
    if kind == "images":
        array = _channels_first(array, where)
    elif array.ndim < 2:
        raise DataError(f"{where} has shape {list(array.shape)}; latents must be [N, C, H, W] or [N, *]")
    if array.size == 0:
        raise DataError(f"{where} is empty: its shape is {list(array.shape)}")
    wanted = "floating point" if kind == "latents" else "uint8 or floating point"
    if array.dtype.kind != "f" and (array.dtype != np.uint8 or kind == "latents"):
        raise DataError(f"{where} has dtype {array.dtype}; {kind} must be {wanted}")
    scale, shift = latent_scale, 0.0
    if kind == "latents":
        _finite_range(array, where)
    elif array.dtype != np.uint8:
        scale, shift = _image_range(array, where)
    if resolution and array.shape[-2:] != (resolution, resolution):
        if array.dtype != np.uint8:
            array, scale, shift = array.astype(np.float32) * np.float32(scale) + np.float32(shift), 1.0, 0.0
        array = resized(array, resolution)
    elif array.dtype.kind == "f" and not isinstance(array, np.memmap):
        array = array.astype(np.float32, copy=False)
    return TrainData("", array, kind=kind, scale=scale, shift=shift)


def _pick_key(shapes: Mapping[str, tuple[int, ...]], key: str | None, kind: DataKind, where: str) -> str:
    listing = ", ".join(f"{shown(name)} {list(shape)}" for name, shape in shapes.items()) or "nothing"
    if key is not None:
        if key not in shapes:
            raise DataError(f"{where} has no array '{key}'; it holds {listing}")
        return key
    candidates = [name for name, shape in shapes.items() if len(shape) in (3, 4) or (kind == "latents" and shape[1:])]
    known = [name for name in (("latents",) if kind == "latents" else ()) + _IMAGE_KEYS if name in candidates]
    if len(candidates) == 1 or known:
        return known[0] if known else candidates[0]
    raise DataError(f"{where} holds {listing}; say with --data_key which array holds the {kind}")


def _labels(arrays: _Arrays, key: str | None, count: int, where: str) -> Labels | None:
    """The labels named by key, or an array of a usual name that can be labels."""
    for name in _LABEL_KEYS if key is None else (key,):
        if arrays.shapes.get(name) == (count,):
            values = arrays.read(name)
            if values.dtype.kind in "iu":
                return Labels.of(values.tolist())
    if key is None:
        return None
    found = f"an array of shape {list(arrays.shapes[key])}" if key in arrays.shapes else "no such array"
    raise DataError(f"{where} must have integers [{count}] as labels '{key}'; it has {found}")


def load_arrays(
    path: Path,
    *,
    key: str | None = None,
    label_key: str | None = None,
    kind: DataKind = "images",
    resolution: int | None = None,
    latent_scale: float = 1.0,
) -> TrainData:
    """The data in an npy file (mapped), an npz or a safetensors file (read into memory).

    Raises:
        DataError: the file is damaged, or what it holds is no data of this kind.
    """
    suffix = path.suffix.lower()
    if suffix == ".npy" and (key or label_key):
        raise DataError(f"--data_key and --label_key name arrays of a file with several, but {path} holds one")
    try:
        arrays = _READERS[suffix](path)
        key = "" if suffix == ".npy" else _pick_key(arrays.shapes, key, kind, str(path))
        where = f"{shown(key)} in {path}" if key else str(path)
        data = _data(arrays.read(key), where, kind, resolution, latent_scale)
        labels = _labels(arrays, label_key, len(data), str(path))
    except DataError:
        raise
    except MemoryError as error:
        raise DataError(f"{path} does not fit in memory; an npy file is mapped instead of read") from error
    except Exception as error:  # ValueError, OSError, EOFError, BadZipFile, zlib.error, SafetensorError, ...
        article = "a" if suffix == ".safetensors" else "an"
        raise DataError(f"{path} cannot be read as {article} {suffix[1:]} file: {error}") from error
    numbers, classes = (labels.numbers, labels.classes) if labels else (None, ())
    return dataclasses.replace(data, name=path.name, labels=numbers, classes=classes)
