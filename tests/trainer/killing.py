"""Trainings in processes of their own that kill themselves; forked from one that has imported everything."""

from __future__ import annotations

import importlib
import itertools
import multiprocessing
import os
import shutil
import signal
import socket
from collections.abc import Callable, Mapping, Sequence
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

from pydiffaccel.train import main
from pydiffaccel.trainer.launch import end_process
from pydiffaccel.trainer.loop import Trainer

# What a training imports on its way: the processes are forked from one that has it.
for _name in ("diffusers.models.unets.unet_2d", "matplotlib.figure", "pydiffaccel.sampler", "tqdm", "tyro"):
    importlib.import_module(_name)


WHERE: dict[str, list[tuple[Any, str]]] = {
    "step": [(Trainer, "train_step")],
    "disk": [(os, "fsync"), (os, "replace"), (shutil, "rmtree")],
}


def train_until_killed(argv: Sequence[str], where: str, event: int, note: str, environment: Mapping[str, str]) -> None:
    """Trains, and sends itself SIGKILL at the event of that number: before or after a call that WHERE lists.

    What was called is appended to the file `note`.
    """
    os.environ.update(environment)
    count = itertools.count(1)

    def at(kind: str) -> None:
        if next(count) == event:
            handle = os.open(note, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
            os.write(handle, f"{kind}\n".encode())
            os.kill(os.getpid(), signal.SIGKILL)

    def deadly(owner: Any, name: str) -> None:
        original: Callable[..., Any] = getattr(owner, name)

        def call(*args: Any, **given: Any) -> Any:
            at(f"before {name}")
            result = original(*args, **given)
            at(f"after {name}")
            return result

        setattr(owner, name, call)

    for owner, name in WHERE.get(where, []):
        deadly(owner, name)
    end_process(main(argv))


def run(argv: Sequence[str], note: Path, where: str = "nowhere", event: int = 0) -> int:
    """Runs ``train_until_killed`` in a process of its own; its exit code, -9 where it was killed."""
    return _end(_start(argv, note, where, event, {}))


def run_ranks(
    argv: Sequence[str], note: Path, count: int, victim: int = 0, where: str = "nowhere", event: int = 0
) -> list[int]:
    """``run`` on count ranks, of which one kills itself; their exit codes."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    shared = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "WORLD_SIZE": str(count)}
    processes = []
    for rank in range(count):
        there = where if rank == victim else "nowhere"
        own = {"RANK": str(rank), "LOCAL_RANK": str(rank), **shared}
        processes.append(_start(argv, note, there, event, own))
    return [_end(process) for process in processes]


def _start(argv: Sequence[str], note: Path, where: str, event: int, environment: Mapping[str, str]) -> BaseProcess:
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([__name__])
    process = context.Process(target=train_until_killed, args=(argv, where, event, str(note), environment))
    process.start()
    return process


def _end(process: BaseProcess) -> int:
    process.join(120)
    if process.is_alive():
        process.kill()
        process.join()
        raise AssertionError("a training did not end")
    assert process.exitcode is not None
    return process.exitcode
