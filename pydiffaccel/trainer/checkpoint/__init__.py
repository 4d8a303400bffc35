"""Checkpoints: safetensors and JSON with checksums, nothing that could run code when it is read."""

from __future__ import annotations

from pydiffaccel.trainer.checkpoint.files import read_json, read_tensors, write_file, write_json, write_tensors
from pydiffaccel.trainer.checkpoint.folder import (
    Checkpoint,
    check_checkpoint,
    list_checkpoints,
    load_checkpoint,
    newest_whole,
    prune_checkpoints,
    save_checkpoint,
    set_aside,
)
from pydiffaccel.trainer.checkpoint.optimizer import load_optimizer, optimizer_state
from pydiffaccel.trainer.checkpoint.shards import read_group, read_shards, shard_names, write_shards
from pydiffaccel.trainer.checkpoint.writer import CheckpointWriter

__all__ = [
    "Checkpoint",
    "CheckpointWriter",
    "check_checkpoint",
    "list_checkpoints",
    "load_checkpoint",
    "load_optimizer",
    "newest_whole",
    "optimizer_state",
    "prune_checkpoints",
    "read_group",
    "read_json",
    "read_shards",
    "read_tensors",
    "save_checkpoint",
    "set_aside",
    "shard_names",
    "write_file",
    "write_json",
    "write_shards",
    "write_tensors",
]
