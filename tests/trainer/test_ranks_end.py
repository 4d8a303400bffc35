"""How a run of two ranks ends: well, on a signal to one rank, by the loss of one, by an error of one."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import pytest

from pydiffaccel._cli import UsageError
from pydiffaccel.trainer.checkpoint import list_checkpoints
from pydiffaccel.trainer.parallel import Ranks
from tests.ranks import free_ports

from .conftest import TINY, losses, same_run

STEPS = 120
FLAGS = ["--max_train_steps", str(STEPS), "--checkpointing_steps", "10", "--log_every", "1", *TINY]
FLAGS += ["--coupling", "hungarian", "--coupling_ahead", "--curriculum", "--momentum_decay"]


def start(folder: Path, flags: Sequence[Sequence[str]] = (FLAGS, FLAGS)) -> list[subprocess.Popen[str]]:
    """Two ranks, as torchrun would start them, each with its flags."""
    (port,) = free_ports(1)
    where = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "WORLD_SIZE": "2"}
    return [
        subprocess.Popen(
            [sys.executable, "-m", "pydiffaccel.train", "--output_dir", str(folder), *mine],
            env={**os.environ, **where, "RANK": str(rank), "LOCAL_RANK": str(rank)},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank, mine in enumerate(flags)
    ]


def end(processes: list[subprocess.Popen[str]]) -> tuple[list[int], list[str], list[str]]:
    """Exit codes, what was printed, what was said on stderr."""
    said = [process.communicate(timeout=180) for process in processes]
    return [process.returncode for process in processes], [out for out, _ in said], [err for _, err in said]


def wait_for_checkpoint(processes: list[subprocess.Popen[str]], folder: Path, after: int) -> None:
    deadline = time.monotonic() + 180
    while not any(step > after for step, _ in list_checkpoints(folder / "checkpoints")):
        assert all(process.poll() is None for process in processes), end(processes)
        assert time.monotonic() < deadline, "no checkpoint appeared"
        time.sleep(0.01)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that torchrun started and nothing interrupted."""
    folder = tmp_path_factory.mktemp("runs") / "whole"
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    command = [*launch, "-m", "pydiffaccel.train", "--output_dir", str(folder), *FLAGS]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("UNet2DModel") == 1
    return folder


def test_signalled_and_killed_ranks_continue(whole: Path, tmp_path: Path) -> None:
    folder = tmp_path / "cut"
    ranks = start(folder)
    wait_for_checkpoint(ranks, folder, 0)
    ranks[1].send_signal(signal.SIGTERM)
    codes, _, said = end(ranks)
    assert codes == [130, 130], said
    done = len(losses(folder))
    assert list_checkpoints(folder / "checkpoints")[-1][0] == done < STEPS
    assert f"interrupted after step {done:,}, which is saved; the same command continues" in said[0]
    assert said[1] == ""

    ranks = start(folder)
    wait_for_checkpoint(ranks, folder, done)
    ranks[1].kill()
    codes, _, said = end(ranks)
    assert codes == [1, -signal.SIGKILL]
    assert "rank 0 has lost another rank (" in said[0]
    assert said[0].rstrip().endswith("the same command continues from the last checkpoint")
    assert "Traceback" not in said[0]
    assert done < list_checkpoints(folder / "checkpoints")[-1][0] < STEPS

    codes, said, _ = end(start(folder))
    assert codes == [0, 0]
    assert "continuing after step" in said[0]
    same_run(whole, folder)


def test_an_error_of_one_rank_ends_all_with_its_sentence(tmp_path: Path) -> None:
    codes, out, said = end(start(tmp_path / "run", [FLAGS, [*FLAGS, "--data", str(tmp_path / "absent")]]))
    assert codes == [1, 1]
    assert said[0] == ""
    assert "absent" in said[1]
    assert len(said[1].splitlines()) == 1
    assert out == ["", ""]


def test_what_all_ranks_refuse_is_said_once(tmp_path: Path) -> None:
    few = [*FLAGS, "--train_batch_size", "1"]
    codes, out, said = end(start(tmp_path / "run", [few, few]))
    assert codes == [2, 2]
    assert said == [
        "python -m pydiffaccel.train: --train_batch_size must be at least the number of ranks, 2, got 1\n",
        "",
    ]
    assert out == ["", ""]
    assert not (tmp_path / "run").exists()


def test_a_port_in_use_is_a_sentence(tmp_path: Path) -> None:
    with socket.create_server(("", 0)) as server:
        port = str(server.getsockname()[1])
        where = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "WORLD_SIZE": "2", "RANK": "0", "LOCAL_RANK": "0"}
        command = [sys.executable, "-m", "pydiffaccel.train", "--output_dir", str(tmp_path / "run"), *FLAGS]
        done = subprocess.run(command, env={**os.environ, **where}, capture_output=True, text=True, timeout=180)
    assert done.returncode == 1
    last = done.stderr.splitlines()[-1]
    assert "rank 0 cannot meet the other ranks at 127.0.0.1, port " + port in last
    assert "another --master_port" in last
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize(
    ("variable", "value"), [("RANK", "first"), ("LOCAL_RANK", ""), ("MASTER_PORT", "-1"), ("MASTER_ADDR", "")]
)
def test_a_missing_or_wrong_variable_is_named(variable: str, value: str) -> None:
    good = {"WORLD_SIZE": "2", "RANK": "1", "LOCAL_RANK": "1", "MASTER_PORT": "29500", "MASTER_ADDR": "127.0.0.1"}
    assert Ranks.from_environment(good).rank == 1
    with pytest.raises(UsageError, match=f"environment variable {variable} must"):
        Ranks.from_environment({**good, variable: value})
