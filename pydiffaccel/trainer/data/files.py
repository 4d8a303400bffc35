"""Image files wherever they lie: found, named, read in place and within bounds. Nothing is ever unpacked."""

from __future__ import annotations

import os
import zipfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from pydiffaccel.trainer.data.decode import BadImage, DataError, guarded, shown

__all__ = [
    "EXTENSIONS",
    "MAX_FILE_BYTES",
    "ImageFiles",
    "Labels",
    "few",
    "has_images",
    "open_folder",
    "open_zip",
    "read_bounded",
]

EXTENSIONS = frozenset({".bmp", ".gif", ".jpeg", ".jpg", ".pgm", ".png", ".ppm", ".tif", ".tiff", ".webp"})
MAX_FILE_BYTES = 2**28  # of one image file, unpacked: no photograph is larger, and a bomb is


@dataclass(frozen=True)
class Labels:
    """A class for each image: numbers int64 ``[N]`` into the names of the classes."""

    numbers: NDArray[np.int64]
    classes: tuple[str, ...]

    @classmethod
    def of(cls, values: Sequence[int] | Sequence[str]) -> Labels:
        """The different values, sorted, are the classes."""
        classes: list[Any] = sorted(set(values))
        number = {value: index for index, value in enumerate(classes)}
        return cls(np.array([number[value] for value in values], np.int64), tuple(map(str, classes)))


@dataclass(frozen=True)
class ImageFiles:
    """Encoded images and how to read them.

    Attributes:
        where: what they are read from, for messages.
        names: one per image, for messages.
        reader: the bytes of image number i; it may raise anything.
        stamp: what tells these images from others, and from a changed version, without reading them (names, sizes,
            times, checksums), piece by piece.
        labels: of all images; None without classes.
        notes: sentences about what was left out.
    """

    where: str
    names: Sequence[str]
    reader: Callable[[int], bytes]
    stamp: Callable[[], Iterable[object]]
    labels: Labels | None = None
    notes: tuple[str, ...] = ()

    def __len__(self) -> int:
        return len(self.names)

    def read(self, index: int) -> bytes:
        """The bytes of one image; BadImage where they cannot be had."""
        return guarded(lambda: self.reader(index))


def few(names: Sequence[str]) -> str:
    """The first three names, for a message."""
    return ", ".join(shown(name) for name in names[:3]) + (", ..." if len(names) > 3 else "")


def read_bounded(stream: BinaryIO, size: int) -> bytes:
    """All of a stream that says to have `size` bytes.

    Raises:
        BadImage: it has more than MAX_FILE_BYTES, whatever it says.
    """
    data = b"" if size > MAX_FILE_BYTES else stream.read(MAX_FILE_BYTES + 1)
    if max(size, len(data)) > MAX_FILE_BYTES:
        raise BadImage(f"its {max(size, len(data)):,} bytes are too many; image files have at most {MAX_FILE_BYTES:,}")
    return data


def _folder_labels(where: str, names: Sequence[str]) -> Labels | None:
    """The class of each image, from its sub-folder; None for a flat set.

    Folders that all images share say nothing and are left out, as `train/` in `train/cat/1.png`.
    """
    parts = [PurePosixPath(name).parts[:-1] for name in names]
    first, last = min(parts), max(parts)
    common = next((i for i, (a, b) in enumerate(zip(first, last, strict=False)) if a != b), min(len(first), len(last)))
    rest = [part[common:] for part in parts]
    flat = [name for name, part in zip(names, rest, strict=True) if not part]
    if len(flat) == len(names):
        return None
    if flat:
        other = next(name for name, part in zip(names, rest, strict=True) if part)
        raise DataError(
            f"{where} holds images both beside and inside class folders ({shown(flat[0])}, {shown(other)}); "
            f"use either one flat folder or one folder per class"
        )
    return Labels.of([part[0] for part in rest])


def _visible(name: str) -> bool:
    return not any((part.startswith(".") and part != ".") or part == "__MACOSX" for part in name.split("/"))


def _leads_out(name: str) -> bool:
    parts = name.replace("\\", "/").split("/")
    return parts[0] == "" or ".." in parts


def _without_images(folders: Iterable[str], images: Iterable[str]) -> list[str]:
    """Of the folders, the topmost that have no image at or below them."""
    direct = {PurePosixPath(folder) for folder in {name.rpartition("/")[0] for name in images}}
    used = direct.union(*(folder.parents for folder in direct))
    empty = {folder for folder in map(PurePosixPath, folders) if _visible(str(folder)) and folder not in used}
    return sorted(str(folder) for folder in empty if folder.parent not in empty)


def _images_of(where: str, found: Sequence[str], folders: Iterable[str]) -> tuple[list[int], list[str]]:
    """Which of the files found are images, by their names, and notes about the rest."""
    images = [i for i, name in enumerate(found) if PurePosixPath(name).suffix.lower() in EXTENSIONS]
    chosen = set(images)
    ignored = sorted(name for i, name in enumerate(found) if i not in chosen)
    if not images:
        inside = f"its {len(ignored)} files are no images, as {shown(ignored[0])}" if ignored else "it is empty"
        raise DataError(f"{where} holds no images: {inside}; known endings are {', '.join(sorted(EXTENSIONS))}")
    notes = []
    if ignored:
        notes.append(f"{len(ignored)} files that are no images were ignored, as {shown(ignored[0])}")
    empty = _without_images(folders, (found[i] for i in images))
    if empty:
        notes.append(f"{len(empty)} folders hold no images and are no classes: {few(empty)}")
    return images, notes


def has_images(path: Path) -> bool:
    """Whether any file at or below a folder has the name of an image."""
    return any(item.suffix.lower() in EXTENSIONS for item in path.rglob("*"))


def open_folder(path: Path) -> ImageFiles:
    """All images at or below a folder, in the order of their names."""
    items = [(item.relative_to(path).as_posix(), item) for item in path.rglob("*")]
    found = sorted(name for name, item in items if item.is_file() and _visible(name))
    rows, notes = _images_of(str(path), found, [name for name, item in items if item.is_dir()])
    names = tuple(found[i] for i in rows)

    def read(index: int) -> bytes:
        with open(f"{path}/{names[index]}", "rb") as stream:
            return read_bounded(stream, os.fstat(stream.fileno()).st_size)

    def stamp() -> Iterator[object]:
        yield str(path.resolve())
        for name in names:
            status = (path / name).stat()
            yield name, status.st_size, status.st_mtime_ns

    return ImageFiles(str(path), names, read, stamp, _folder_labels(str(path), names), tuple(notes))


def open_zip(path: Path) -> ImageFiles:
    """All images in a zip, in the order of their names; members are read in place."""
    try:
        archive = zipfile.ZipFile(path)  # stays open for as long as its images are read
    except (zipfile.BadZipFile, OSError, ValueError, NotImplementedError) as error:
        raise DataError(f"{path} cannot be read as a zip file: {error}") from error
    members = sorted(archive.infolist(), key=lambda info: info.filename)
    outside = [info.filename for info in members if _leads_out(info.filename)]
    members = [info for info in members if _visible(info.filename) and not _leads_out(info.filename)]
    folders = {info.filename for info in members if info.is_dir()}
    members = [info for info in members if not info.is_dir()]
    folders |= {info.filename.rpartition("/")[0] for info in members} - {""}
    if any(info.flag_bits & 1 for info in members):
        raise DataError(f"{path} is encrypted; give a zip without a password")
    rows, notes = _images_of(str(path), [info.filename for info in members], folders)
    if outside:
        notes.append(f"{len(outside)} members whose paths lead out of the archive were ignored, as {shown(outside[0])}")
    images = [members[i] for i in rows]

    def read(index: int) -> bytes:
        with archive.open(images[index]) as stream:
            return read_bounded(stream, images[index].file_size)  # type: ignore[arg-type]

    def stamp() -> Iterator[object]:
        status = path.stat()
        yield str(path.resolve()), status.st_size, status.st_mtime_ns
        for info in images:
            yield info.filename, info.file_size, info.CRC

    names = tuple(info.filename for info in images)
    return ImageFiles(str(path), names, read, stamp, _folder_labels(str(path), names), tuple(notes))
