"""Processes of a gloo group on this machine."""

from __future__ import annotations

import multiprocessing
import os
import socket
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist

from pydiffaccel.trainer.parallel import Ranks

TIMEOUT = 60


def join_group(rank: int, count: int, folder: str) -> None:
    """Called by a process of ``run_ranks``, before anything else that is distributed."""
    dist.init_process_group(
        "gloo", f"file://{folder}/store", rank=rank, world_size=count, timeout=timedelta(seconds=TIMEOUT)
    )


def leave_group(rank: int, folder: str, found: Any) -> None:
    """Called at its end, with what ``run_ranks`` is to return for it."""
    torch.save(found, f"{folder}/{rank}.pt")
    dist.barrier()
    dist.destroy_process_group()


def run_ranks(target: Callable[[int, int, str], None], count: int, folder: Path) -> list[Any]:
    """What each of count processes, ``target(rank, count, folder)``, found."""
    if not (dist.is_available() and dist.is_gloo_available()):
        pytest.skip("this torch has no gloo")
    context = multiprocessing.get_context("spawn")
    processes = [context.Process(target=target, args=(rank, count, str(folder))) for rank in range(count)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(3 * TIMEOUT)
    alive = [process for process in processes if process.is_alive()]
    for process in alive:
        process.kill()
    assert not alive
    assert [process.exitcode for process in processes] == [0] * count
    return [torch.load(folder / f"{rank}.pt") for rank in range(count)]


def as_torchrun(rank: int, count: int, port: int) -> Ranks:
    """A rank as torchrun starts it; it has yet to join the others."""
    where = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    os.environ.update(RANK=str(rank), WORLD_SIZE=str(count), LOCAL_RANK=str(rank), **where)
    return Ranks.from_environment()


def free_ports(count: int) -> list[int]:
    """Ports that nobody listens on."""
    sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    ports = [server.getsockname()[1] for server in sockets]
    for server in sockets:
        server.close()
    return ports
