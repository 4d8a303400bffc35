"""Decoded images in a file that is mapped: written once, by one process, whole or not at all.

An entry is a folder `<key>/` with `pixels.npy` (uint8 ``[N, C, H, W]``) and `manifest.json`. The key is a hash of the
files' names, sizes and times, the resolution and the decoder, so a changed set is another entry.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import hashlib
import json
import os
import shutil
import uuid
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import PIL
from numpy.typing import NDArray

from pydiffaccel.trainer.checkpoint import write_json
from pydiffaccel.trainer.data.decode import DECODER, UInt8, shown
from pydiffaccel.trainer.data.files import ImageFiles

__all__ = ["CacheUnusable", "Cached", "ImageCache", "default_cache_dir"]

FORMAT, VERSION = "pydiffaccel.image_cache", 1
BLOCK = 2**20  # bytes that share a checksum
CHECKED_BLOCKS = 64  # spread over the file, when it is opened: all of a large one would take minutes
SPARE = 2**26  # bytes that stay free on the disk
_FULL = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG})


class CacheUnusable(Exception):
    """The cache cannot be written; the message is why."""


@dataclass(frozen=True)
class Cached:
    """An entry: its pixels, mapped; which of the files they are; notes about these."""

    pixels: UInt8
    kept: NDArray[np.int64]
    notes: tuple[str, ...]


def default_cache_dir() -> Path:
    """Where decoded images are kept: below XDG_CACHE_HOME, by default ~/.cache."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "pydiffaccel" / "images"


def _key(files: ImageFiles, resolution: int | None) -> str:
    digest = hashlib.sha256()
    for part in (FORMAT, VERSION, DECODER, PIL.__version__, resolution, len(files)):
        digest.update(repr(part).encode() + b"\n")
    for piece in files.stamp():
        digest.update(repr(piece).encode("utf-8", "surrogatepass") + b"\n")
    return digest.hexdigest()[:40]


class ImageCache:
    """The entry of one set of images in a cache folder.

    Args:
        folder: the cache; made when it is written to.
        files: the images.
        resolution: what they are resized to.
        report: told about damaged entries and about waiting for another process.
    """

    def __init__(self, folder: Path, files: ImageFiles, resolution: int | None, report: Callable[[str], None]) -> None:
        self._folder, self._report = folder, report
        self._key = _key(files, resolution)
        self._entry = folder / self._key
        self._num_files = len(files)

    def find(self, skip_bad_images: bool) -> Cached | None:
        """The entry; None where there is none, where it is damaged, or where it has images to be refused."""
        if not self._entry.exists():
            return None
        try:
            manifest = json.loads((self._entry / "manifest.json").read_text(encoding="utf-8"))
            if manifest["unreadable"] and not skip_bad_images:
                return None
            pixels = self._pixels(manifest)
            kept = np.delete(np.arange(self._num_files), manifest["left_out"])
            if len(kept) != len(pixels):
                raise ValueError(f"it has {len(pixels)} images instead of {len(kept)}")
            return Cached(pixels, kept, (*map(str, manifest["notes"]), f"decoded images are read from {self._entry}"))
        except (OSError, ValueError, KeyError, TypeError, IndexError) as error:
            self._report(f"the cache {self._entry} is damaged ({error}) and is written again")
            return None

    def _pixels(self, manifest: Mapping[str, Any]) -> UInt8:
        if (manifest["format"], manifest["version"], manifest["key"]) != (FORMAT, VERSION, self._key):
            raise ValueError("its manifest is of something else")
        pixels = np.load(self._entry / "pixels.npy", mmap_mode="r", allow_pickle=False)
        if pixels.dtype != np.uint8 or list(pixels.shape) != manifest["shape"]:
            raise ValueError(f"it holds {pixels.dtype} {list(pixels.shape)} instead of uint8 {manifest['shape']}")
        flat = pixels.reshape(-1)
        sums = manifest["crc32"]
        if len(sums) != -(-flat.size // BLOCK):
            raise ValueError("its checksums are incomplete")
        for block in np.unique(np.linspace(0, len(sums) - 1, CHECKED_BLOCKS).astype(int)).tolist():
            if zlib.crc32(flat[block * BLOCK : (block + 1) * BLOCK]) != sums[block]:
                raise ValueError(f"the checksum of bytes {block * BLOCK:,} to {(block + 1) * BLOCK - 1:,} is wrong")
        found: UInt8 = pixels
        return found

    def fill(
        self,
        chunks: Iterable[UInt8],
        shape: tuple[int, int, int],
        kept: NDArray[np.int64],
        notes: Iterable[str],
        stand_ins: Mapping[str, str],
        progress: Callable[[int], None],
    ) -> Cached:
        """Writes the entry, unless another process just did, and maps it.

        Args:
            chunks: the images in order, uint8 ``[n, C, H, W]`` at a time.
            shape: (C, H, W).
            kept: which of the files the images are.
            notes: what to say about them.
            stand_ins: images that turned out unreadable while chunks were made, with the reasons.
            progress: told how many images are written.

        Raises:
            CacheUnusable: no room, or no permission; nothing is left behind.
        """
        size = len(kept) * int(np.prod(shape))
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
            with self._locked():
                found = self.find(skip_bad_images=True)
                if found is not None:
                    return found
                self._remove_leftovers()
                free = shutil.disk_usage(self._folder).free
                if free < size + SPARE:
                    raise CacheUnusable(
                        f"{self._folder} has no room for {size / 2**30:,.1f} GiB of decoded images "
                        f"({free / 2**30:,.1f} GiB are free; --cache_dir names another folder)"
                    )
                self._write(chunks, (len(kept), *shape), kept, notes, stand_ins, progress)
        except OSError as error:
            reason = "is full" if error.errno in _FULL else f"cannot be written ({error.strerror or error})"
            raise CacheUnusable(f"the cache {self._folder} {reason}") from error
        found = self.find(skip_bad_images=True)
        if found is None:
            raise CacheUnusable(f"the cache {self._entry} cannot be read back")
        return found

    @contextlib.contextmanager
    def _locked(self) -> Iterator[None]:
        """One writer at a time; the system lets go of the lock when its process ends in any way."""
        handle = os.open(self._folder / f"{self._key}.lock", os.O_RDWR | os.O_CREAT, 0o644)
        try:
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                self._report(f"another process decodes these images into {self._folder}; waiting for it")
                fcntl.flock(handle, fcntl.LOCK_EX)
            yield
        finally:
            os.close(handle)

    def _remove_leftovers(self) -> None:
        """Under the lock: what a killed writer left, and an entry that is damaged."""
        for path in [*self._folder.glob(f".{self._key}.*"), self._entry]:
            shutil.rmtree(path, ignore_errors=True)

    def _write(
        self,
        chunks: Iterable[UInt8],
        shape: tuple[int, ...],
        kept: NDArray[np.int64],
        notes: Iterable[str],
        stand_ins: Mapping[str, str],
        progress: Callable[[int], None],
    ) -> None:
        temporary = self._folder / f".{self._key}.{uuid.uuid4().hex}"
        temporary.mkdir()
        try:
            sums = _write_pixels(temporary / "pixels.npy", chunks, shape, progress)
            left_out = np.setdiff1d(np.arange(self._num_files), kept)
            write_json(
                temporary / "manifest.json",
                {
                    "format": FORMAT,
                    "version": VERSION,
                    "key": self._key,
                    "shape": list(shape),
                    "left_out": left_out.tolist(),
                    "unreadable": len(left_out) + len(stand_ins),
                    "notes": [*notes, *_stand_in_note(stand_ins)],
                    "crc32": sums,
                },
            )
            temporary.rename(self._entry)
        except BaseException:
            shutil.rmtree(temporary, ignore_errors=True)
            raise


def _stand_in_note(stand_ins: Mapping[str, str]) -> list[str]:
    if not stand_ins:
        return []
    some = [f"{shown(name)} ({reason})" for name, reason in sorted(stand_ins.items())]
    listing = ", ".join(some[:3]) + (", ..." if len(some) > 3 else "")
    return [f"for {len(some)} unreadable images the next one stands in: {listing}"]


def _write_pixels(
    path: Path, chunks: Iterable[UInt8], shape: tuple[int, ...], progress: Callable[[int], None]
) -> list[int]:
    """The npy file, synced, and the checksum of each block of its data. Written, not mapped: a full disk is then an
    error and no signal."""
    sums, done, pending = [], 0, b""
    with open(path, "wb") as stream:
        header = {"descr": "|u1", "fortran_order": False, "shape": shape}
        np.lib.format.write_array_header_1_0(stream, header)
        for chunk in chunks:
            data = pending + chunk.tobytes()
            whole = len(data) // BLOCK * BLOCK
            sums += [zlib.crc32(data[start : start + BLOCK]) for start in range(0, whole, BLOCK)]
            pending = data[whole:]
            stream.write(data[:whole])
            done += len(chunk)
            progress(done)
        stream.write(pending)
        sums += [zlib.crc32(pending)] if pending else []
        stream.flush()
        os.fsync(stream.fileno())
    return sums
