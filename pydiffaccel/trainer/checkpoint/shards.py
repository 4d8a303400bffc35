"""The part of a checkpoint that each rank writes for itself, where ranks hold shards of the network (FSDP2).

The files are torch.distributed.checkpoint's safetensors: every tensor is there once, in pieces that name their place,
so any number of ranks, or a single process, reads them. A tensor's name is its group's and its own,
``model/conv.weight``.
"""

from __future__ import annotations

import contextlib
import shutil
import warnings
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from pydiffaccel._cli import CommandError
from pydiffaccel.trainer.checkpoint.files import read_tensors

if TYPE_CHECKING:
    import torch.distributed as dist

__all__ = ["read_group", "read_shards", "shard_names", "write_shards"]


@contextlib.contextmanager
def _sentences(path: Path) -> Iterator[None]:
    """torch's exception, which is no Exception, as a CommandError."""
    from torch.distributed.checkpoint.api import CheckpointException

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of torch, about reading without a process group
            yield
    except CheckpointException as error:
        rank, (cause, _) = min(error.failures.items())
        reason = (str(cause).strip().splitlines() or [type(cause).__name__])[-1]
        raise CommandError(f"the shards in {path} failed on rank {rank}: {reason}") from error


def write_shards(
    path: Path, groups: Mapping[str, Mapping[str, Tensor]], group: dist.ProcessGroup | None, *, is_main: bool
) -> None:
    """All ranks write what they hold of the groups' tensors into a new folder; returns when it is on the disk.

    Args:
        path: the folder; one that is there is replaced.
        groups: tensors by group and name; sharded ones are DTensors, others are the same on all ranks.
        group: the ranks, with a backend that exchanges objects on the host.
        is_main: whether this rank makes the folder.

    Raises:
        CommandError: a rank could not write.
        OSError: the folder cannot be made.
    """
    import torch.distributed as dist
    from torch.distributed.checkpoint.hf_storage import HuggingFaceStorageWriter
    from torch.distributed.checkpoint.state_dict_saver import save

    if is_main:
        if path.exists():
            shutil.rmtree(path)
        path.mkdir(parents=True)
    dist.barrier(group=group)
    flat = {f"{name}/{key}": value for name, tensors in groups.items() for key, value in tensors.items()}
    try:
        with _sentences(path):
            save(
                flat,
                storage_writer=HuggingFaceStorageWriter(str(path), save_distributed=True),
                process_group=group,
            )
    except CommandError:
        if is_main:
            shutil.rmtree(path, ignore_errors=True)  # a full disk needs the room
        raise


def shard_names(path: Path) -> dict[str, dict[str, tuple[torch.Size, torch.dtype]]]:
    """Shape and dtype of the whole tensors in a folder of shards, by group and name."""
    from torch.distributed.checkpoint.hf_storage import HuggingFaceStorageReader
    from torch.distributed.checkpoint.metadata import TensorStorageMetadata

    found: dict[str, dict[str, tuple[torch.Size, torch.dtype]]] = {}
    for full, about in HuggingFaceStorageReader(str(path)).read_metadata().state_dict_metadata.items():
        assert isinstance(about, TensorStorageMetadata)
        group, _, name = full.partition("/")
        found.setdefault(group, {})[name] = about.size, about.properties.dtype
    return found


def read_shards(path: Path, groups: Mapping[str, Mapping[str, Tensor]]) -> None:
    """Fills the tensors of the groups, which may be whole or shards of any split.

    Raises:
        CommandError: a tensor is missing, or has another shape.
    """
    from torch.distributed.checkpoint.hf_storage import HuggingFaceStorageReader
    from torch.distributed.checkpoint.state_dict_loader import load

    flat = {f"{name}/{key}": value for name, tensors in groups.items() for key, value in tensors.items()}
    with _sentences(path):
        load(flat, storage_reader=HuggingFaceStorageReader(str(path)), no_dist=True)


def read_group(path: Path, group: str) -> dict[str, Tensor]:
    """The whole tensors of one group of a checkpoint, on the CPU; empty where there is none of the name.

    Raises:
        CommandError: a file cannot be read.
    """
    if (path / f"{group}.safetensors").exists():
        return read_tensors(path / f"{group}.safetensors")
    if not any(path.glob("shard-*.safetensors")):
        return {}
    names = shard_names(path).get(group, {})
    tensors = {name: torch.empty(shape, dtype=dtype) for name, (shape, dtype) in names.items()}
    if tensors:
        read_shards(path, {group: tensors})
    return tensors
