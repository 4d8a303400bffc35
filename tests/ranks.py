"""Processes of a gloo group on this machine."""

from __future__ import annotations

import contextlib
import multiprocessing
import multiprocessing.connection
import os
import random
import socket
import time
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist

from pydiffaccel.trainer.parallel import Ranks

TIMEOUT = 60  # seconds, of one exchange
WHOLE = 900  # of everything


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
    deadline = time.monotonic() + WHOLE
    codes: list[int | None] = [None] * count
    # Where one has failed the others wait for it.
    while None in codes and not any(codes) and time.monotonic() < deadline:
        multiprocessing.connection.wait([process.sentinel for process in processes if process.is_alive()], timeout=1)
        codes = [process.exitcode for process in processes]
    for process in processes:
        process.kill()
        process.join()
    assert codes == [0] * count, "exit codes; None: it still waited"
    return [torch.load(folder / f"{rank}.pt") for rank in range(count)]


def as_torchrun(rank: int, count: int, port: int) -> Ranks:
    """A rank as torchrun starts it; it has yet to join the others."""
    where = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    os.environ.update(RANK=str(rank), WORLD_SIZE=str(count), LOCAL_RANK=str(rank), **where)
    return Ranks.from_environment()


def free_ports(count: int) -> list[int]:
    """Ports that nobody listens on, below those that the system gives to connections: they stay free for a while."""
    found: list[int] = []
    for port in random.Random(os.urandom(8)).sample(range(12_000, 32_000), 1_000):
        with contextlib.suppress(OSError), socket.create_server(("", port)):
            found.append(port)
        if len(found) == count:
            return found
    raise RuntimeError("this machine has no free ports")
