"""Checkpoints: folders of safetensors and JSON with checksums.

A checkpoint is a folder step_XXXXXXXX with one safetensors file per group of tensors, a state.json, and a
checksums.json over both. It is written under a temporary name, flushed to the disk and renamed, so a folder with the
final name is whole; the checksums find what the disk did to it later.
"""

from __future__ import annotations

import copy
import hashlib
import re
import shutil
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from pydiffaccel._cli import CommandError
from pydiffaccel.trainer.checkpoint.files import (
    host_copies,
    json_bytes,
    looks_pickled,
    read_json,
    read_tensors,
    sha256,
    sync_folder,
    tensor_bytes,
    write_file,
    write_json,
)

__all__ = [
    "Checkpoint",
    "check_checkpoint",
    "list_checkpoints",
    "load_checkpoint",
    "newest_whole",
    "prune_checkpoints",
    "save_checkpoint",
    "set_aside",
]

FORMAT = "pydiffaccel.checkpoint"
VERSION = 2  # 1 had no checksums
CHECKSUMS = "checksums.json"
_NAME = re.compile(r"step_(\d{8,})")


@dataclass(frozen=True)
class Checkpoint:
    """What a checkpoint holds: the steps done, named groups of tensors, and JSON-ready state.

    Of ranks that hold shards of the network, ``shards`` is a folder of what ``write_shards`` wrote of the groups.
    """

    step: int
    tensors: Mapping[str, Mapping[str, Tensor]]
    state: Mapping[str, Any]
    shards: Path | None = None

    def copied(self) -> Checkpoint:
        """The same with copies of the tensors in the host's memory, which training does not change."""
        tensors = {group: host_copies(held) for group, held in self.tensors.items()}
        return Checkpoint(self.step, tensors, copy.deepcopy(self.state), self.shards)


def save_checkpoint(folder: Path, checkpoint: Checkpoint) -> Path:
    """Writes a checkpoint below folder and returns where; one of the same step is replaced.

    Raises:
        OSError: it cannot be written; nothing of it is left, and older ones are as they were.
    """
    folder.mkdir(parents=True, exist_ok=True)
    name = f"step_{checkpoint.step:08d}"
    part, target = folder / f".{name}.tmp", folder / name
    if part.exists():
        shutil.rmtree(part)
    try:
        part.mkdir()
        sums: dict[str, dict[str, Any]] = {}

        def write(name: str, content: bytes) -> None:
            write_file(part / name, content)
            sums[name] = {"bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}

        for group, tensors in checkpoint.tensors.items():
            write(f"{group}.safetensors", tensor_bytes(tensors))
        if checkpoint.shards is not None:
            for file in sorted(checkpoint.shards.iterdir()):
                moved = file.replace(part / file.name)
                sums[file.name] = {"bytes": moved.stat().st_size, "sha256": sha256(moved)}
        head = {"format": FORMAT, "version": VERSION, "step": checkpoint.step, "groups": sorted(checkpoint.tensors)}
        if checkpoint.shards is not None:
            head["sharded"] = True
        write("state.json", json_bytes({**head, "state": checkpoint.state}))
        write_json(part / CHECKSUMS, {"files": sums})
        if target.exists():
            _remove(target)
        part.replace(target)
    except OSError:
        shutil.rmtree(part, ignore_errors=True)  # a full disk needs the room
        raise
    finally:
        if checkpoint.shards is not None:
            shutil.rmtree(checkpoint.shards, ignore_errors=True)
    sync_folder(folder)
    return target


def _remove(path: Path) -> None:
    """A checkpoint's folder goes in one rename, so that no half-deleted one has the final name."""
    grave = path.with_name(f".{path.name}.old")
    if grave.exists():
        shutil.rmtree(grave)
    path.replace(grave)
    shutil.rmtree(grave)


def set_aside(path: Path, reason: str) -> Path:
    """Renames a checkpoint to <its name>.<reason>, where it is no checkpoint any more; one that is there goes."""
    aside = path.with_name(f"{path.name}.{reason}")
    if aside.exists():
        shutil.rmtree(aside)
    path.replace(aside)
    sync_folder(path.parent)
    return aside


def list_checkpoints(folder: Path) -> list[tuple[int, Path]]:
    """(step, folder) of every checkpoint below folder, oldest first."""
    if not folder.is_dir():
        return []
    found = ((_NAME.fullmatch(item.name), item) for item in folder.iterdir())
    return sorted((int(match[1]), item) for match, item in found if match)


def prune_checkpoints(folder: Path, keep: int, every: int = 0) -> None:
    """Removes old checkpoints and remains of interrupted writes.

    Args:
        folder: where the checkpoints are.
        keep: how many of the newest stay; 0 keeps all.
        every: checkpoints of multiples of this step stay as well; 0 for none of them.
    """
    if keep:
        for step, path in list_checkpoints(folder)[:-keep]:
            if not every or step % every:
                _remove(path)
    for item in folder.glob(".step_*"):
        shutil.rmtree(item, ignore_errors=True)


def check_checkpoint(path: Path) -> dict[str, Any]:
    """Compares all files of a checkpoint with their checksums; returns what its state.json holds.

    Raises:
        CommandError: it is no checkpoint of this package, or a file is missing or damaged or of another version.
    """
    _refuse_foreign(path)
    try:
        head = read_json(path / "state.json")
        version = head.get("version")
        if head.get("format") != FORMAT or version not in (1, VERSION):
            raise CommandError(f"its format is {head.get('format')!r}, version {version!r}")
        files = [f"{group}.safetensors" for group in head["groups"]]
        if version == 1:  # reading finds at least what was cut off
            for name in files:
                read_tensors(path / name)
            return head
        sums = read_json(path / CHECKSUMS)["files"]
        if missing := {"state.json", *files} - set(sums):
            raise CommandError(f"{CHECKSUMS} does not name {min(missing)}")
        for name, expected in sums.items():
            size = (path / name).stat().st_size
            if looks_pickled(path / name):
                raise CommandError(f"{name} is a pickle, which could run code when it is read")
            if size != expected["bytes"]:
                raise CommandError(f"{name} has {size:,} bytes instead of {expected['bytes']:,}")
            if sha256(path / name) != expected["sha256"]:
                raise CommandError(f"the checksum of {name} is wrong")
        return head
    except OSError as error:
        raise _unusable(path, f"{Path(error.filename or path).name} cannot be read: {error.strerror}") from error
    except (CommandError, AttributeError, KeyError, TypeError, ValueError) as error:
        raise _unusable(path, error) from error


def _unusable(path: Path, reason: object) -> CommandError:
    return CommandError(f"checkpoint {path} cannot be used: {reason}")


def load_checkpoint(path: Path, *, check: bool = True) -> Checkpoint:
    """Reads what ``save_checkpoint`` wrote, tensors on the CPU.

    Args:
        path: the checkpoint's folder.
        check: compare the checksums first; False where ``check_checkpoint`` has just done so.

    Raises:
        CommandError: it is no checkpoint of this package, or a file is missing or damaged or of another version.
    """
    head = check_checkpoint(path) if check else read_json(path / "state.json")
    try:
        tensors = {group: read_tensors(path / f"{group}.safetensors") for group in head["groups"]}
        return Checkpoint(int(head["step"]), tensors, head["state"], path if head.get("sharded") else None)
    except (CommandError, KeyError, TypeError, ValueError) as error:
        raise _unusable(path, error) from error


def _refuse_foreign(path: Path) -> None:
    """Says what a path is that was never one of our checkpoints."""
    if not path.exists():
        raise CommandError(f"checkpoint {path} does not exist")
    if not path.is_dir():
        kind = "is a pickle, which could run code when it is read" if looks_pickled(path) else "is a file"
        raise CommandError(f"{path} {kind}; a checkpoint is a folder step_XXXXXXXX of safetensors and JSON")
    if not any((path / name).exists() for name in ("state.json", CHECKSUMS)):
        pickles = sorted(item.name for item in path.iterdir() if item.is_file() and looks_pickled(item))
        other = f" ('{pickles[0]}' is a pickle, which is never read)" if pickles else ""
        raise CommandError(f"{path} holds no state.json, so it is no checkpoint of this package{other}")


def newest_whole(folder: Path) -> Path | None:
    """The newest checkpoint below folder that is whole; None where there is none at all.

    Damaged newer ones are reported on stderr and kept aside as step_XXXXXXXX.damaged.

    Raises:
        CommandError: there are checkpoints, but all of them are damaged; they stay as they are.
    """
    damaged: list[tuple[Path, CommandError]] = []
    for _, path in reversed(list_checkpoints(folder)):
        try:
            check_checkpoint(path)
        except CommandError as error:
            damaged.append((path, error))
            continue
        for bad, why in damaged:
            aside = set_aside(bad, "damaged")
            print(f"{why}; it is kept as {aside.name}, and {path.name} is used", file=sys.stderr)
        return path
    if damaged:
        raise CommandError(f"{damaged[0][1]}; no other one is left: remove {folder} to begin again from step 0")
    if any(folder.glob("step_*.damaged")):
        raise CommandError(f"{folder} holds only damaged checkpoints: remove it to begin again from step 0")
    return None
