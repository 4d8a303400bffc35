"""Images in a folder or a zip: found, checked, decoded to uint8 and, where they fit, kept in memory."""

from __future__ import annotations

import io
import os
import zipfile
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps

from pydiffaccel._cli import CommandError

EXTENSIONS = frozenset({".bmp", ".gif", ".jpeg", ".jpg", ".pgm", ".png", ".ppm", ".tif", ".tiff", ".webp"})
_GRAY_MODES = frozenset({"1", "L", "LA", "I;16", "I;16L", "I;16B"})
_COLOUR_MODES = frozenset({"RGB", "RGBA", "RGBX", "P", "PA", "CMYK", "YCbCr", "LAB", "HSV"})
_CHUNK = 64

UInt8 = NDArray[np.uint8]
Result = TypeVar("Result")


class DataError(CommandError):
    """The data cannot be used; the message says which part and what to do."""


class BadImage(Exception):
    """One image that cannot be used; the message is the reason."""


@dataclass(frozen=True)
class ImageFiles:
    """Names of images and how to read one: a folder, or a zip read in place."""

    where: str
    names: tuple[str, ...]
    reader: Callable[[str], bytes]
    ignored: tuple[str, ...]

    def read(self, name: str) -> bytes:
        """The file's bytes; BadImage where they cannot be had."""
        return _guarded(lambda: self.reader(name))

    def class_names(self) -> list[str] | None:
        """The class of each image, from its sub-folder; None for a flat set.

        Folders that all images share say nothing and are left out, as `train/` in `train/cat/1.png`.
        """
        parts = [PurePosixPath(name).parts[:-1] for name in self.names]
        first, last = min(parts), max(parts)
        common = next(
            (i for i, (a, b) in enumerate(zip(first, last, strict=False)) if a != b), min(len(first), len(last))
        )
        rest = [part[common:] for part in parts]
        flat = [name for name, part in zip(self.names, rest, strict=True) if not part]
        if len(flat) == len(self.names):
            return None
        if flat:
            other = next(name for name, part in zip(self.names, rest, strict=True) if part)
            raise DataError(
                f"{self.where} holds images both beside and inside class folders ('{flat[0]}', '{other}'); "
                f"use either one flat folder or one folder per class"
            )
        return [part[0] for part in rest]


def _visible(name: str) -> bool:
    return not any(part.startswith(".") or part == "__MACOSX" for part in PurePosixPath(name).parts)


def _split(where: str, found: Sequence[str]) -> tuple[tuple[str, ...], tuple[str, ...]]:
    names = tuple(sorted(name for name in found if PurePosixPath(name).suffix.lower() in EXTENSIONS))
    ignored = tuple(sorted(set(found) - set(names)))
    if not names:
        inside = f"its {len(ignored)} files are no images, as '{ignored[0]}'" if ignored else "it is empty"
        raise DataError(f"{where} holds no images: {inside}; known endings are {', '.join(sorted(EXTENSIONS))}")
    return names, ignored


def open_folder(path: Path) -> ImageFiles:
    """All images at or below a folder, in the order of their names."""
    found = [item.relative_to(path).as_posix() for item in path.rglob("*") if item.is_file()]
    names, ignored = _split(str(path), [name for name in found if _visible(name)])
    return ImageFiles(str(path), names, lambda name: (path / name).read_bytes(), ignored)


def open_zip(path: Path) -> ImageFiles:
    """All images in a zip, in the order of their names; members are read in place."""
    try:
        archive = zipfile.ZipFile(path)  # stays open for as long as its images are read
    except (zipfile.BadZipFile, OSError) as error:
        raise DataError(f"{path} cannot be read as a zip file: {error}") from error
    members = [info for info in archive.infolist() if not info.is_dir() and _visible(info.filename)]
    if any(info.flag_bits & 1 for info in members):
        raise DataError(f"{path} is encrypted; give a zip without a password")
    names, ignored = _split(str(path), [info.filename for info in members])
    return ImageFiles(str(path), names, archive.read, ignored)


def _open(data: bytes) -> Image.Image:
    image = Image.open(io.BytesIO(data))
    if image.mode not in _GRAY_MODES | _COLOUR_MODES:
        raise BadImage(f"pixel mode {image.mode} is not supported")
    return image


def _guarded(action: Callable[[], Result]) -> Result:
    """action's result; everything a damaged file can raise becomes a BadImage with the reason."""
    try:
        return action()
    except BadImage:
        raise
    except Exception as error:  # OSError, SyntaxError, ValueError, struct.error, zlib.error, ...: Pillow has them all
        text = str(error).split(" <", 1)[0] or type(error).__name__
        raise BadImage(text) from error


def decode(data: bytes, resolution: int | None = None) -> UInt8:
    """An image file's pixels, uint8 ``[H, W, 1]`` (gray) or ``[H, W, 3]`` (colour).

    Transparent pixels are put on white; 16-bit gray is reduced to 8 bits; the camera's orientation tag is applied.

    Args:
        data: the file's bytes.
        resolution: where given, the shorter side is resized to it and the centre square cut out.

    Raises:
        BadImage: the bytes are no readable image.
    """

    def action() -> UInt8:
        image = ImageOps.exif_transpose(_open(data))
        if image.mode.startswith("I;16"):
            image = Image.fromarray((np.asarray(image) // 257).astype(np.uint8))
        if image.mode in ("LA", "RGBA", "PA") or "transparency" in image.info:
            layer = image.convert("RGBA")
            white = Image.new("RGBA", layer.size, "white")
            image = Image.alpha_composite(white, layer).convert("L" if image.mode in ("L", "LA") else "RGB")
        image = image.convert("L" if image.mode in _GRAY_MODES else "RGB")
        pixels = np.asarray(resize_and_crop(image, resolution) if resolution else image)
        return pixels if pixels.ndim == 3 else pixels[:, :, None]

    return _guarded(action)


def _header(data: bytes) -> UInt8:
    """Size and channels [H, W, C] after `decode`, from the header alone; the pixels are not read."""

    def action() -> UInt8:
        image = _open(data)
        width, height = image.size
        # Where no tag stands before the pixels of a PNG, Pillow would decode all of them to look behind.
        turned = (image.format != "PNG" or "exif" in image.info) and image.getexif().get(0x0112, 1) >= 5
        if turned:  # orientations 5 to 8 swap the sides
            width, height = height, width
        return np.array([height, width, 1 if image.mode in _GRAY_MODES else 3])

    return _guarded(action)


def resize_and_crop(image: Image.Image, resolution: int) -> Image.Image:
    """The shorter side resized to `resolution` (Lanczos), then the centre square."""
    scale = resolution / min(image.size)
    width, height = (max(resolution, round(side * scale)) for side in image.size)
    if image.size != (width, height):
        image = image.resize((width, height), Image.Resampling.LANCZOS)
    left, top = (width - resolution) // 2, (height - resolution) // 2
    return image if image.size == (resolution,) * 2 else image.crop((left, top, left + resolution, top + resolution))


def _to_channels(pixels: UInt8, channels: int) -> UInt8:
    return pixels if pixels.shape[-1] == channels else np.repeat(pixels, channels, axis=-1)


@dataclass(frozen=True)
class LazyImages:
    """Images decoded when asked for; for sets that do not fit in memory."""

    files: ImageFiles
    shape: tuple[int, int, int]  # C, H, W
    resolution: int | None
    skip_bad_images: bool
    report: Callable[[str], None]
    reported: set[str] = field(default_factory=set)

    def __len__(self) -> int:
        return len(self.files.names)

    def _read(self, index: int) -> UInt8:
        """Image `index`; with skip_bad_images the next readable one stands in, the same one each time."""
        for offset in range(len(self)):
            name = self.files.names[(index + offset) % len(self)]
            try:
                pixels = _to_channels(decode(self.files.read(name), self.resolution), self.shape[0])
                if pixels.shape != (self.shape[1], self.shape[2], self.shape[0]):
                    raise BadImage(f"decodes to {pixels.shape[1]} x {pixels.shape[0]}, unlike its header")
                return pixels
            except BadImage as error:
                if not self.skip_bad_images:
                    raise DataError(
                        f"'{name}' in {self.files.where} cannot be read ({error}); "
                        f"--skip_bad_images leaves such images out"
                    ) from error
                if name not in self.reported:
                    self.reported.add(name)
                    self.report(f"'{name}' cannot be read ({error}); the next image stands in for it")
        raise DataError(f"none of the {len(self)} images in {self.files.where} can be read")

    def gather(self, indices: NDArray[np.int64]) -> UInt8:
        """uint8 ``[len(indices), C, H, W]``."""
        with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:
            batch = np.stack(list(pool.map(self._read, indices.tolist())))
        return np.ascontiguousarray(batch.transpose(0, 3, 1, 2))


@dataclass(frozen=True)
class LoadedImages:
    """What `load_images` found."""

    pixels: UInt8 | LazyImages  # uint8 [N, C, H, W], or the same on demand
    kept: tuple[int, ...]  # which of the files' names the pixels are
    notes: tuple[str, ...]


def load_images(
    files: ImageFiles,
    *,
    resolution: int | None = None,
    skip_bad_images: bool = False,
    memory_limit: int,
    progress: Callable[[int], None] = lambda done: None,
    report: Callable[[str], None] = lambda message: None,
) -> LoadedImages:
    """Read every image once: decode them all where the result fits in memory_limit bytes, else look at headers only.

    Raises:
        DataError: unreadable images (named and counted) without skip_bad_images; images of different size without
            resolution; no readable image at all.
    """
    names = files.names
    whole = False
    for name in names:  # the first readable header tells how large the decoded set will be
        try:
            height, width, channels = _header(files.read(name)).tolist()
            whole = len(names) * channels * (resolution**2 if resolution else height * width) <= memory_limit
            break
        except BadImage:
            continue

    def read_chunk(start: int) -> list[UInt8 | BadImage]:
        out: list[UInt8 | BadImage] = []
        for name in names[start : start + _CHUNK]:
            try:
                data = files.read(name)
                out.append(decode(data, resolution) if whole else _header(data))
            except BadImage as error:
                out.append(error)
        return out

    kept: list[int] = []
    arrays: list[UInt8] = []
    gray: list[bool] = []
    bad: list[str] = []
    first: tuple[str, tuple[int, int]] | None = None
    with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:
        for start, chunk in zip(
            range(0, len(names), _CHUNK), pool.map(read_chunk, range(0, len(names), _CHUNK)), strict=True
        ):
            for index, item in enumerate(chunk, start):
                if isinstance(item, BadImage):
                    bad.append(f"'{names[index]}' ({item})")
                    continue
                height, width, channels = item.shape if whole else item.tolist()
                size = (resolution, resolution) if resolution else (width, height)
                first = first or (names[index], size)
                if size != first[1]:
                    pool.shutdown(cancel_futures=True)
                    raise DataError(
                        f"the images in {files.where} differ in size: '{first[0]}' is {first[1][0]} x {first[1][1]}, "
                        f"'{names[index]}' is {width} x {height}; give --resolution to resize and crop them"
                    )
                kept.append(index)
                gray.append(channels == 1)
                if whole:
                    arrays.append(item)
            progress(min(start + _CHUNK, len(names)))
    if first is None:
        raise DataError(f"none of the {len(names)} images in {files.where} can be read, as {bad[0]}")
    if bad and not skip_bad_images:
        some = ", ".join(bad[:3]) + (", ..." if len(bad) > 3 else "")
        raise DataError(
            f"{len(bad)} of {len(names)} images in {files.where} cannot be read: {some}; "
            f"--skip_bad_images leaves them out"
        )

    notes: list[str] = []
    if files.ignored:
        notes.append(f"{len(files.ignored)} files that are no images were ignored, as '{files.ignored[0]}'")
    if bad:
        notes.append(f"{len(bad)} unreadable images were left out: {', '.join(bad[:3])}{', ...' * (len(bad) > 3)}")
    channels = 1 if all(gray) else 3
    if channels == 3 and any(gray):
        notes.append(f"{sum(gray)} of {len(gray)} images are gray and are used as colour images")
    if whole:
        out = np.empty((len(arrays), channels, *arrays[0].shape[:2]), np.uint8)
        for row, array in enumerate(arrays):
            out[row] = _to_channels(array, channels).transpose(2, 0, 1)
        return LoadedImages(out, tuple(kept), tuple(notes))
    notes.append("the set does not fit in memory; images are decoded when they are needed")
    readable = ImageFiles(files.where, tuple(names[index] for index in kept), files.reader, ())
    shape = (channels, first[1][1], first[1][0])
    return LoadedImages(LazyImages(readable, shape, resolution, skip_bad_images, report), tuple(kept), tuple(notes))
