"""Signals, in a process of its own: Ctrl-C saves and ends with 130; test_kill.py has what kill -9 does."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from pydiffaccel.trainer.checkpoint import list_checkpoints

from .conftest import TINY, losses, same_run

Train = Callable[..., Path]
STEPS = 250
FLAGS = ["--checkpointing_steps", "20", "--log_every", "1"]


def start(folder: Path, steps: int = STEPS) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "pydiffaccel.train", "--output_dir", str(folder), "--max_train_steps", str(steps)]
    return subprocess.Popen(
        [*command, *TINY, *FLAGS], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=folder.parent
    )


def wait_for_checkpoint(process: subprocess.Popen[str], folder: Path) -> None:
    deadline = time.monotonic() + 120
    while not list_checkpoints(folder / "checkpoints"):
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline, "no checkpoint appeared"
        time.sleep(0.01)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from pydiffaccel.train import main

    folder = tmp_path_factory.mktemp("runs") / "whole"
    assert main(["--output_dir", str(folder), "--max_train_steps", str(STEPS), *TINY]) == 0
    return folder


def test_interrupt_saves_and_continues(train: Train, tmp_path: Path, whole: Path) -> None:
    folder = tmp_path / "cut"
    with start(folder) as process:
        wait_for_checkpoint(process, folder)
        process.send_signal(signal.SIGINT)
        _, said = process.communicate(timeout=60)
    assert process.returncode == 130, said
    assert "Traceback" not in said
    done = len(losses(folder))
    assert f"interrupted after step {done:,}, which is saved; the same command continues from there" in said
    assert list_checkpoints(folder / "checkpoints")[-1][0] == done < STEPS
    train("cut", *FLAGS, steps=STEPS)
    same_run(whole, folder)


def test_two_processes_do_not_share_a_folder(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    steps = 20 * STEPS  # the first goes on while the second starts
    with start(folder, steps) as first:
        wait_for_checkpoint(first, folder)
        with start(folder, steps) as second:
            _, said = second.communicate(timeout=60)
        assert second.returncode == 1
        assert f"is in use by another live process (process {first.pid} on " in said
        first.terminate()  # SIGTERM saves as well
        first.communicate(timeout=60)
    assert first.returncode == 130
    assert list_checkpoints(folder / "checkpoints")[-1][0] == len(losses(folder))
