"""Encoded images as arrays: decoded into memory where they fit, else into a mapped file or whenever they are needed."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from pydiffaccel.trainer.data.cache import Cached, CacheUnusable, ImageCache
from pydiffaccel.trainer.data.decode import BadImage, DataError, UInt8, decode, read_header, shown
from pydiffaccel.trainer.data.files import ImageFiles

__all__ = ["LazyImages", "LoadedImages", "load_images"]

_CHUNK = 64  # images that one thread reads of a set
_GATHERED = 4  # and of a batch


def _to_channels(pixels: UInt8, channels: int) -> UInt8:
    return pixels if pixels.shape[-1] == channels else np.repeat(pixels, channels, axis=-1)


@dataclass(frozen=True)
class LazyImages:
    """Images decoded when asked for; for sets that do not fit in memory.

    Attributes:
        files: where they come from.
        rows: which of the files they are.
        shape: (C, H, W) of each.
        resolution: what `decode` resizes to.
        skip_bad_images: the next readable image stands in for one that is not, the same one each time.
        report: told once about each of these.
        threads: how many decode a batch.
        stand_ins: names of files that others stood in for so far, with the reasons.
    """

    files: ImageFiles
    rows: NDArray[np.int64]
    shape: tuple[int, int, int]
    resolution: int | None
    skip_bad_images: bool
    report: Callable[[str], None]
    threads: int
    stand_ins: dict[str, str] = field(default_factory=dict)
    _pool: list[ThreadPoolExecutor] = field(default_factory=list, repr=False, compare=False)

    def __len__(self) -> int:
        return len(self.rows)

    @property
    def pool(self) -> ThreadPoolExecutor:
        """The decoding threads, started when first needed."""
        if not self._pool:
            self._pool.append(ThreadPoolExecutor(self.threads, "decode"))
        return self._pool[0]

    def decode_row(self, row: int) -> UInt8:
        """Image `row` itself, uint8 ``[C, H, W]``; BadImage where it cannot be read."""
        channels, height, width = self.shape
        pixels = _to_channels(decode(self.files.read(int(self.rows[row])), self.resolution), channels)
        if pixels.shape != (height, width, channels):
            raise BadImage(f"decodes to {pixels.shape[1]} x {pixels.shape[0]}, unlike its header")
        moved: UInt8 = pixels.transpose(2, 0, 1)
        return moved

    def read(self, row: int) -> UInt8:
        """Image `row`, or what stands in for it."""
        for offset in range(len(self)):
            try:
                return self.decode_row((row + offset) % len(self))
            except BadImage as error:
                name = self.files.names[int(self.rows[(row + offset) % len(self)])]
                if not self.skip_bad_images:
                    raise DataError(
                        f"{shown(name)} in {self.files.where} cannot be read ({error}); "
                        f"--skip_bad_images leaves such images out"
                    ) from error
                if name not in self.stand_ins:
                    self.stand_ins[name] = str(error)
                    self.report(f"{shown(name)} cannot be read ({error}); the next image stands in for it")
        raise DataError(f"none of the {len(self)} images in {self.files.where} can be read")

    def gather(self, indices: NDArray[np.int64]) -> UInt8:
        """uint8 ``[len(indices), C, H, W]``."""
        out = np.empty((len(indices), *self.shape), np.uint8)

        def fill(start: int) -> None:
            for place in range(start, min(start + _GATHERED, len(out))):
                out[place] = self.read(int(indices[place]))

        list(self.pool.map(fill, range(0, len(out), _GATHERED)))
        return out

    def chunks(self) -> Iterator[UInt8]:
        """All images in order, uint8 ``[n, C, H, W]`` at a time.

        Raises:
            DataError: unreadable images, counted and named, without skip_bad_images.
        """
        bad: list[str] = []

        def chunk(start: int) -> UInt8:
            out = np.empty((min(_CHUNK, len(self) - start), *self.shape), np.uint8)
            for offset in range(len(out)):
                try:
                    out[offset] = self.read(start + offset) if self.skip_bad_images else self.decode_row(start + offset)
                except BadImage as error:
                    bad.append(f"{shown(self.files.names[int(self.rows[start + offset])])} ({error})")
            return out

        # Few at a time: map() would decode the whole set ahead of a slow disk.
        starts = range(0, len(self), _CHUNK)
        for first in range(0, len(starts), 2 * self.threads):
            yield from self.pool.map(chunk, starts[first : first + 2 * self.threads])
        if bad:
            raise _bad_images(self.files, sorted(bad))


@dataclass(frozen=True)
class LoadedImages:
    """What `load_images` found.

    Attributes:
        pixels: uint8 ``[N, C, H, W]`` in memory or mapped, or the same on demand.
        kept: which of the files the pixels are, int64 ``[N]``.
        notes: sentences about what was left out or changed.
    """

    pixels: UInt8 | LazyImages
    kept: NDArray[np.int64]
    notes: tuple[str, ...]


def _bad_images(files: ImageFiles, bad: list[str]) -> DataError:
    some = ", ".join(bad[:3]) + (", ..." if len(bad) > 3 else "")
    return DataError(
        f"{len(bad)} of {len(files)} images in {files.where} cannot be read: {some}; --skip_bad_images leaves them out"
    )


def _fits(files: ImageFiles, resolution: int | None, memory_limit: int) -> bool:
    """Whether all images decoded fit; the first readable header tells how large they will be."""
    for index in range(len(files)):
        try:
            height, width, channels = read_header(files.read(index))
        except BadImage:
            continue
        return len(files) * channels * (resolution**2 if resolution else height * width) <= memory_limit
    return False


@dataclass
class _Survey:
    """What one pass over the files found, image by image."""

    files: ImageFiles
    resolution: int | None
    kept: list[int] = field(default_factory=list)
    gray: list[bool] = field(default_factory=list)
    bad: list[str] = field(default_factory=list)
    first: tuple[str, tuple[int, int]] | None = None  # name, width and height

    def add(self, index: int, item: tuple[int, int, int] | BadImage) -> None:
        """Image `index`: its (H, W, C), or why it cannot be read."""
        name = self.files.names[index]
        if isinstance(item, BadImage):
            self.bad.append(f"{shown(name)} ({item})")
            return
        height, width, channels = item
        size = (self.resolution, self.resolution) if self.resolution else (width, height)
        self.first = self.first or (name, size)
        if size != self.first[1]:
            raise DataError(
                f"the images in {self.files.where} differ in size: {shown(self.first[0])} is {self.first[1][0]} x "
                f"{self.first[1][1]}, {shown(name)} is {width} x {height}; give --resolution to resize and crop them"
            )
        self.kept.append(index)
        self.gray.append(channels == 1)

    def shape(self, skip_bad_images: bool) -> tuple[int, int, int]:
        """(C, H, W) of the set; DataError where it cannot be used."""
        if self.first is None:
            raise DataError(f"none of the {len(self.files)} images in {self.files.where} can be read, as {self.bad[0]}")
        if self.bad and not skip_bad_images:
            raise _bad_images(self.files, self.bad)
        return 1 if all(self.gray) else 3, self.first[1][1], self.first[1][0]

    def notes(self) -> list[str]:
        notes = []
        if self.bad:
            some = ", ".join(self.bad[:3]) + (", ..." if len(self.bad) > 3 else "")
            notes.append(f"{len(self.bad)} unreadable images were left out: {some}")
        if any(self.gray) and not all(self.gray):
            notes.append(f"{sum(self.gray)} of {len(self.gray)} images are gray and are used as colour images")
        return notes


def load_images(
    files: ImageFiles,
    *,
    resolution: int | None = None,
    skip_bad_images: bool = False,
    memory_limit: int,
    cache_dir: Path | None = None,
    threads: int | None = None,
    progress: Callable[[int], None] = lambda done: None,
    report: Callable[[str], None] = lambda message: None,
) -> LoadedImages:
    """Read every image once: decode them all where the result fits in memory_limit bytes, else look at headers only.

    Files are read by `threads` threads, by default one per core and 8 at most. With cache_dir what does not fit is
    decoded once into a file that is mapped, now and in later calls.

    Raises:
        DataError: unreadable images (named and counted) without skip_bad_images; images of different size without
            resolution; no readable image at all.
    """
    threads = threads or min(8, os.cpu_count() or 1)
    whole = _fits(files, resolution, memory_limit)
    cache = ImageCache(cache_dir, files, resolution, report) if cache_dir is not None and not whole else None
    if cache is not None and (found := cache.find(skip_bad_images)) is not None:
        return _from_cache(files, found)

    def look(start: int) -> list[UInt8 | tuple[int, int, int] | BadImage]:
        out: list[UInt8 | tuple[int, int, int] | BadImage] = []
        for index in range(start, min(start + _CHUNK, len(files))):
            try:
                data = files.read(index)
                out.append(decode(data, resolution) if whole else read_header(data))
            except BadImage as error:
                out.append(error)
        return out

    survey = _Survey(files, resolution)
    arrays: list[UInt8] = []
    starts = range(0, len(files), _CHUNK)
    with ThreadPoolExecutor(threads) as pool:
        for start, chunk in zip(starts, pool.map(look, starts), strict=True):
            for index, item in enumerate(chunk, start):
                try:
                    survey.add(index, item.shape if isinstance(item, np.ndarray) else item)
                except DataError:
                    pool.shutdown(cancel_futures=True)
                    raise
                if isinstance(item, np.ndarray):
                    arrays.append(item)
            progress(min(start + _CHUNK, len(files)))
    shape = survey.shape(skip_bad_images)
    kept = np.array(survey.kept, np.int64)
    notes = (*files.notes, *survey.notes())
    if whole:
        out = np.empty((len(arrays), *shape), np.uint8)
        for row, array in enumerate(arrays):
            out[row] = _to_channels(array, shape[0]).transpose(2, 0, 1)
        return LoadedImages(out, kept, notes)
    lazy = LazyImages(files, kept, shape, resolution, skip_bad_images, report, threads)
    if cache is None:
        return LoadedImages(lazy, kept, (*notes, "the set does not fit in memory; images are decoded when needed"))
    try:
        found = cache.fill(lazy.chunks(), shape, kept, survey.notes(), lazy.stand_ins, progress)
    except CacheUnusable as error:
        return LoadedImages(lazy, kept, (*notes, f"{error}; images are decoded when needed"))
    return _from_cache(files, found)


def _from_cache(files: ImageFiles, found: Cached) -> LoadedImages:
    return LoadedImages(found.pixels, found.kept, (*files.notes, *found.notes))
