"""Checkpoints: safetensors and JSON, nothing that could run code when it is read.

A checkpoint is a folder step_XXXXXXXX with a state.json and one safetensors file per group of tensors. It is written
under a temporary name, flushed to the disk and renamed, so a folder with the final name is always whole.
"""

from __future__ import annotations

import json
import os
import re
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from pydiffaccel._cli import CommandError

__all__ = [
    "Checkpoint",
    "list_checkpoints",
    "load_checkpoint",
    "load_optimizer",
    "optimizer_state",
    "prune_checkpoints",
    "read_json",
    "read_tensors",
    "save_checkpoint",
    "write_file",
    "write_json",
    "write_tensors",
]

FORMAT = "pydiffaccel.checkpoint"
VERSION = 1
_NAME = re.compile(r"step_(\d{8,})")


@dataclass(frozen=True)
class Checkpoint:
    """What a checkpoint holds: the steps done, named groups of tensors, and JSON-ready state."""

    step: int
    tensors: Mapping[str, Mapping[str, Tensor]]
    state: Mapping[str, Any]


def _sync_folder(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def write_file(path: Path, content: bytes) -> None:
    """The file appears whole or not at all, also when the machine loses power."""
    part = path.with_name(f".{path.name}.tmp")
    with part.open("wb") as out:
        out.write(content)
        out.flush()
        os.fsync(out.fileno())
    part.replace(path)
    _sync_folder(path.parent)


def write_json(path: Path, value: Any) -> None:
    """value as JSON, through ``write_file``."""
    write_file(path, (json.dumps(value, indent=1, allow_nan=False) + "\n").encode())


def read_json(path: Path) -> dict[str, Any]:
    """The JSON object in a file.

    Raises:
        CommandError: the file is missing or holds no JSON object.
    """
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise CommandError(f"{path} cannot be read: {error.strerror or error}") from error
    except ValueError as error:
        raise CommandError(f"{path} is no JSON file: {error}") from error
    if not isinstance(value, dict):
        raise CommandError(f"{path} must hold a JSON object, got {type(value).__name__}")
    return value


def write_tensors(path: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str] | None = None) -> None:
    """Tensors as safetensors, through ``write_file``; tensors that share memory are written twice."""
    from safetensors.torch import save

    copies = {name: tensor.detach().cpu().contiguous().clone() for name, tensor in tensors.items()}
    write_file(path, save(copies, None if metadata is None else dict(metadata)))


def read_tensors(path: Path) -> dict[str, Tensor]:
    """Tensors of a safetensors file, on the CPU.

    Raises:
        CommandError: the file is missing or damaged.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        return load_file(path)
    except (OSError, SafetensorError) as error:
        raise CommandError(f"{path} cannot be read: {error}") from error


def save_checkpoint(folder: Path, checkpoint: Checkpoint) -> Path:
    """Writes a checkpoint below folder and returns where; one of the same step is replaced."""
    folder.mkdir(parents=True, exist_ok=True)
    name = f"step_{checkpoint.step:08d}"
    part, target = folder / f".{name}.tmp", folder / name
    if part.exists():
        shutil.rmtree(part)
    part.mkdir()
    for group, tensors in checkpoint.tensors.items():
        write_tensors(part / f"{group}.safetensors", tensors)
    write_json(
        part / "state.json",
        {
            "format": FORMAT,
            "version": VERSION,
            "step": checkpoint.step,
            "groups": sorted(checkpoint.tensors),
            "state": checkpoint.state,
        },
    )
    if target.exists():
        _remove(target)
    part.replace(target)
    _sync_folder(folder)
    return target


def _remove(path: Path) -> None:
    """A checkpoint's folder goes in one rename, so that no half-deleted one has the final name."""
    grave = path.with_name(f".{path.name}.old")
    if grave.exists():
        shutil.rmtree(grave)
    path.replace(grave)
    shutil.rmtree(grave)


def list_checkpoints(folder: Path) -> list[tuple[int, Path]]:
    """(step, folder) of every checkpoint below folder, oldest first."""
    if not folder.is_dir():
        return []
    found = ((_NAME.fullmatch(item.name), item) for item in folder.iterdir())
    return sorted((int(match[1]), item) for match, item in found if match)


def prune_checkpoints(folder: Path, keep: int) -> None:
    """Removes all but the newest `keep` checkpoints (0: none), and remains of interrupted writes."""
    if keep:
        for _, path in list_checkpoints(folder)[:-keep]:
            _remove(path)
    for item in folder.glob(".step_*"):
        shutil.rmtree(item, ignore_errors=True)


def load_checkpoint(path: Path) -> Checkpoint:
    """Reads what ``save_checkpoint`` wrote, tensors on the CPU.

    Raises:
        CommandError: a file is missing or damaged, or of another version.
    """
    try:
        head = read_json(path / "state.json")
        if head.get("format") != FORMAT or head.get("version") != VERSION:
            raise CommandError(f"its format is {head.get('format')!r}, version {head.get('version')!r}")
        tensors = {group: read_tensors(path / f"{group}.safetensors") for group in head["groups"]}
        return Checkpoint(int(head["step"]), tensors, head["state"])
    except (CommandError, KeyError, TypeError, ValueError) as error:
        raise CommandError(
            f"checkpoint {path} cannot be used ({error}); remove that folder to continue from the one before"
        ) from error


def optimizer_state(optimizer: torch.optim.Optimizer) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """An optimizer's state as tensors named ``<parameter>.<key>`` and the JSON-ready rest."""
    state = optimizer.state_dict()
    tensors: dict[str, Tensor] = {}
    scalars: dict[str, Any] = {}
    for index, entries in state["state"].items():
        for key, value in entries.items():
            (tensors if isinstance(value, Tensor) else scalars)[f"{index}.{key}"] = value
    return tensors, {"scalars": scalars, "param_groups": state["param_groups"]}


def load_optimizer(optimizer: torch.optim.Optimizer, tensors: Mapping[str, Tensor], rest: Mapping[str, Any]) -> None:
    """Puts back what ``optimizer_state`` took.

    Raises:
        ValueError: the state is of an optimizer with other parameters.
    """
    state: dict[int, dict[str, Any]] = {}
    for name, value in (*tensors.items(), *rest["scalars"].items()):
        index, _, key = name.partition(".")
        state.setdefault(int(index), {})[key] = value
    groups = [
        {key: tuple(value) if isinstance(value, list) and key != "params" else value for key, value in group.items()}
        for group in rest["param_groups"]
    ]
    optimizer.load_state_dict({"state": state, "param_groups": groups})
