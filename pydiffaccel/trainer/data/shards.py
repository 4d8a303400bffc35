"""WebDataset shards: tar files of name.jpg with name.cls or name.json beside it, read in place by their offsets."""

from __future__ import annotations

import json
import os
import re
import tarfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from glob import glob
from pathlib import Path, PurePosixPath

from pydiffaccel.trainer.data.decode import BadImage, DataError, shown
from pydiffaccel.trainer.data.files import EXTENSIONS, MAX_FILE_BYTES, ImageFiles, Labels

__all__ = ["find_shards", "open_shards"]

MAX_SHARDS = 100_000
MAX_LABEL_BYTES = 2**20
LABEL_FIELDS = ("label", "cls", "class", "class_id", "class_name", "target")
_RANGE = re.compile(r"\{(\d+)\.\.(\d+)\}")


def find_shards(spec: str) -> list[Path]:
    """The tar files that a spec names: one file, a folder of them, ``a-{000..012}.tar``, or a pattern with ``*``.

    Raises:
        DataError: there are none, or one that is named is missing.
    """
    if Path(spec).is_dir():
        return sorted(path for path in Path(spec).iterdir() if path.suffix == ".tar" and path.is_file())
    ranges = _RANGE.search(spec)
    if ranges is None:
        found = [Path(spec)] if Path(spec).exists() else sorted(Path(name) for name in glob(spec))
    else:
        first, last = ranges[1], ranges[2]
        if not 0 <= int(last) - int(first) < MAX_SHARDS:
            raise DataError(f"{spec}: a range of shards runs upwards and names at most {MAX_SHARDS:,}")
        found = []
        for number in range(int(first), int(last) + 1):
            # Leading zeros are part of the names: {000..012} is 000, 001, ...
            found += find_shards(f"{spec[: ranges.start()]}{number:0{len(first)}d}{spec[ranges.end() :]}")
    if not found:
        raise DataError(f"{spec} does not exist")
    return found


@dataclass(frozen=True, slots=True)
class _Member:
    """Bytes of a tar file."""

    shard: int
    name: str
    offset: int
    size: int


@dataclass(slots=True)
class _Sample:
    """Members that share a name up to the first point, by what follows it."""

    parts: dict[str, _Member] = field(default_factory=dict)


def _key(name: str) -> tuple[str, str]:
    """("a/b", "seg.png") of "a/b.seg.png"."""
    folder, _, base = name.rpartition("/")
    stem, _, ending = base.partition(".")
    return f"{folder}/{stem}" if folder else stem, ending.lower()


def _scan(shard: int, path: Path) -> Iterator[_Member]:
    """All files of a tar; links, devices and folders are passed over: nothing is extracted."""
    try:
        with open(path, "rb") as stream, tarfile.open(fileobj=stream, mode="r:") as archive:
            while (member := archive.next()) is not None:
                archive.members = []  # type: ignore[attr-defined]  # ours is the index; theirs would hold every header of a large file
                base = PurePosixPath(member.name).name
                if member.isreg() and not member.issparse() and not base.startswith("."):
                    yield _Member(shard, member.name, member.offset_data, member.size)
            stream.seek(archive.offset)
            if stream.read(tarfile.BLOCKSIZE).strip(b"\0"):  # tarfile takes a damaged header for the end
                raise tarfile.ReadError(f"the header at byte {archive.offset:,} is damaged")
    except (tarfile.TarError, OSError, ValueError, EOFError, OverflowError) as error:
        raise DataError(
            f"{path} cannot be read as a tar file: {error}; compressed ones must be unpacked first"
        ) from error


def _read(paths: Sequence[Path], member: _Member, limit: int) -> bytes:
    if member.size > limit:
        raise BadImage(f"its {member.size:,} bytes are too many; such files have at most {limit:,}")
    handle = os.open(paths[member.shard], os.O_RDONLY)
    try:
        data = b""
        while len(data) < member.size:
            piece = os.pread(handle, member.size - len(data), member.offset + len(data))
            if not piece:
                raise BadImage("the shard ends before it")
            data += piece
        return data
    finally:
        os.close(handle)


def open_shards(spec: str, *, key: str | None = None, label_key: str | None = None) -> ImageFiles:
    """All images of the shards, in their order, with the labels beside them.

    Args:
        spec: as in ``find_shards``.
        key: the ending of the images, where a sample has several.
        label_key: "cls", or the field of the JSON files; by default name.cls, else a usual field of name.json.

    Raises:
        DataError: shards that are missing or damaged, no images, or labels that only some images have.
    """
    paths = find_shards(spec)
    samples: dict[tuple[int, str], _Sample] = {}
    for shard, path in enumerate(paths):
        for member in _scan(shard, path):
            stem, ending = _key(member.name)
            samples.setdefault((shard, stem), _Sample()).parts.setdefault(ending, member)
    images, owners = _images(spec, list(samples.values()), key)
    names = tuple(f"{paths[image.shard].name}:{image.name}" for image in images)

    def stamp() -> Iterator[object]:
        for path in paths:
            status = path.stat()
            yield str(path.resolve()), status.st_size, status.st_mtime_ns
        yield key

    others = len(samples) - len(owners)
    notes = (f"{others} samples without an image were ignored",) if others else ()
    labels = _labels(spec, paths, owners, names, label_key)
    return ImageFiles(spec, names, lambda index: _read(paths, images[index], MAX_FILE_BYTES), stamp, labels, notes)


def _images(spec: str, samples: Sequence[_Sample], key: str | None) -> tuple[list[_Member], list[_Sample]]:
    """The image of each sample that has one, and these samples."""
    endings = {ending for sample in samples for ending in sample.parts}
    wanted = {key.lower().lstrip(".")} if key is not None else {e for e in endings if f".{e}" in EXTENSIONS}
    images, owners = [], []
    for sample in samples:
        found = [ending for ending in sample.parts if ending in wanted]
        if len(found) > 1:
            raise DataError(
                f"{shown(sample.parts[found[0]].name)} in {spec} has images of several endings, "
                f"{' and '.join(map(shown, found))}; say with --data_key which are meant"
            )
        if found:
            images.append(sample.parts[found[0]])
            owners.append(sample)
    if not images:
        seen = ", ".join(shown(ending) for ending in sorted(endings)[:8]) or "nothing"
        raise DataError(f"{spec} holds no images{f' that end in {key}' if key else ''}: the endings are {seen}")
    return images, owners


def _labels(
    spec: str, paths: Sequence[Path], samples: Sequence[_Sample], names: Sequence[str], label_key: str | None
) -> Labels | None:
    """The classes beside the images; None where no image has one and none is asked for."""
    values: list[int | str | None] = []
    for sample, name in zip(samples, names, strict=True):
        try:
            values.append(_label(paths, sample, label_key))
        except (BadImage, OSError, ValueError) as error:
            raise DataError(f"the label of {shown(name)} in {spec} cannot be read: {error}") from error
    missing = [name for name, value in zip(names, values, strict=True) if value is None]
    if len(missing) == len(values) and label_key is None:
        return None
    if missing:
        what = f"label {label_key!r}" if label_key else "label"
        raise DataError(f"{len(missing)} of {len(names)} images in {spec} have no {what}, as {shown(missing[0])}")
    if all(isinstance(value, int) for value in values):
        return Labels.of([value for value in values if isinstance(value, int)])
    return Labels.of([str(value) for value in values])


def _label(paths: Sequence[Path], sample: _Sample, label_key: str | None) -> int | str | None:
    text = sample.parts.get("cls")
    if text is not None and label_key in (None, "cls"):
        value = _read(paths, text, MAX_LABEL_BYTES).decode().strip()
        return int(value) if value.isdecimal() else value
    described = sample.parts.get("json")
    if described is None:
        return None
    fields = json.loads(_read(paths, described, MAX_LABEL_BYTES))
    if not isinstance(fields, Mapping):
        return None
    for field_name in LABEL_FIELDS if label_key is None else (label_key,):
        found = fields.get(field_name)
        if isinstance(found, (int, str)) and not isinstance(found, bool):
            return found
    return None
