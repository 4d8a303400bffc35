"""Files that appear whole or not at all: JSON and safetensors, nothing that could run code when it is read."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from pydiffaccel._cli import CommandError

__all__ = [
    "host_copies",
    "json_bytes",
    "looks_pickled",
    "read_json",
    "read_tensors",
    "sha256",
    "sync_folder",
    "tensor_bytes",
    "write_file",
    "write_json",
    "write_tensors",
]

# How pickles begin: protocol 2 or later, and the zip archive of torch.save.
_PICKLES = (b"\x80\x02", b"\x80\x03", b"\x80\x04", b"\x80\x05", b"PK\x03\x04")


def sync_folder(path: Path) -> None:
    """What was made, renamed or removed in the folder is on the disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def write_file(path: Path, content: bytes) -> None:
    """The file appears whole or not at all, also when the machine loses power.

    Raises:
        OSError: it cannot be written; an older file of the name is as it was.
    """
    part = path.with_name(f".{path.name}.tmp")
    try:
        with part.open("wb") as out:
            out.write(content)
            out.flush()
            os.fsync(out.fileno())
        part.replace(path)
    except OSError as error:
        part.unlink(missing_ok=True)  # a full disk needs the room
        raise OSError(error.errno, error.strerror, str(path)) from error  # a failed write does not name the file
    sync_folder(path.parent)


def json_bytes(value: Any) -> bytes:
    """value as the content of a JSON file."""
    return (json.dumps(value, indent=1, allow_nan=False) + "\n").encode()


def write_json(path: Path, value: Any) -> None:
    """value as JSON, through ``write_file``."""
    write_file(path, json_bytes(value))


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


def host_copies(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Contiguous copies in the host's memory, each with memory of its own."""
    return {
        name: tensor.detach().to("cpu", copy=True, memory_format=torch.contiguous_format)
        for name, tensor in tensors.items()
    }


def tensor_bytes(tensors: Mapping[str, Tensor], metadata: Mapping[str, str] | None = None) -> bytes:
    """Tensors as the content of a safetensors file; those that share memory are in it twice."""
    from safetensors.torch import save

    alone: dict[str, Tensor] = {}
    seen: set[int] = set()
    for name, tensor in tensors.items():
        tensor = tensor.detach().cpu().contiguous()
        storage = tensor.untyped_storage()
        if storage.data_ptr() in seen or storage.nbytes() != tensor.nbytes:
            tensor = tensor.clone()
        seen.add(tensor.untyped_storage().data_ptr())
        alone[name] = tensor
    return save(alone, None if metadata is None else dict(metadata))


def write_tensors(path: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str] | None = None) -> None:
    """Tensors as safetensors, through ``write_file``."""
    write_file(path, tensor_bytes(tensors, metadata))


def looks_pickled(path: Path) -> bool:
    """Whether a file begins like a pickle or an archive of torch.save."""
    with path.open("rb") as file:
        return file.read(4).startswith(_PICKLES)


def read_tensors(path: Path) -> dict[str, Tensor]:
    """Tensors of a safetensors file, on the CPU.

    Raises:
        CommandError: the file is missing or damaged, or a pickle.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        if looks_pickled(path):
            raise CommandError(f"{path} is a pickle, which could run code when it is read: only safetensors are read")
        return load_file(path)
    except OSError as error:
        raise CommandError(f"{path} cannot be read: {error.strerror or error}") from error
    except SafetensorError as error:
        raise CommandError(f"{path} cannot be read: {error}") from error


def sha256(path: Path) -> str:
    """The checksum of a file's content, in hexadecimal.

    Raises:
        OSError: it cannot be read.
    """
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(1 << 22):
            digest.update(block)
    return digest.hexdigest()
