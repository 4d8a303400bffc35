"""kill -9 at random moments, in real processes: the continued run equals the uninterrupted one, bit for bit."""

from __future__ import annotations

import random
import signal
import sys
from pathlib import Path

import pytest

from pydiffaccel.trainer.checkpoint import list_checkpoints, load_checkpoint

from .conftest import TINY, same_run
from .killing import run, run_ranks

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="there is no SIGKILL")

KILLS, STEPS = 20, 60
# Everything that has a state or looks ahead.
FLAGS = [
    *("--forward", "kl", "--kl_terms", "2", "--coupling", "queue", "--queue_size", "12", "--coupling_ahead"),
    *("--curriculum", "--momentum_decay", "--gradient_accumulation_steps", "2", "--data_scale", "2"),
    *("--checkpointing_steps", "2", "--log_every", "3", "--max_train_steps", str(STEPS)),
]


@pytest.mark.parametrize("parallel", ["ddp", "fsdp"])
def test_ten_kills_of_one_of_two_ranks_change_nothing(tmp_path: Path, parallel: str) -> None:
    def argv(name: str) -> list[str]:
        return ["--output_dir", str(tmp_path / name), *TINY, *FLAGS, "--parallel", parallel]

    note = tmp_path / "kinds"
    assert run_ranks(argv("whole"), note, 2) == [0, 0]
    draw = random.Random(0)
    for kill in range(KILLS // 2):
        victim = kill % 2
        # Under ddp rank 0 alone writes.
        on_disk = kill % 4 < 2 and (victim == 0 or parallel == "fsdp")
        where, events = ("disk", 6 if victim else 40) if on_disk else ("step", 8)
        codes = run_ranks(argv("cut"), note, 2, victim, where, draw.randint(1, events))
        assert codes == ([1, -signal.SIGKILL] if victim else [-signal.SIGKILL, 1])
    assert len(note.read_text().splitlines()) == KILLS // 2
    assert run_ranks(argv("cut"), note, 2) == [0, 0]
    same_run(tmp_path / "whole", tmp_path / "cut")
    assert (tmp_path / "whole" / "samples.png").read_bytes() == (tmp_path / "cut" / "samples.png").read_bytes()


def test_twenty_kills_change_nothing(tmp_path: Path) -> None:
    def argv(name: str) -> list[str]:
        return ["--output_dir", str(tmp_path / name), *TINY, *FLAGS]

    note = tmp_path / "kinds"
    assert run(argv("whole"), note) == 0
    draw = random.Random(0)
    reached = []
    for kill in range(KILLS):
        where, events = (("step", 8), ("disk", 60))[kill % 2]
        assert run(argv("cut"), note, where, draw.randint(1, events)) == -signal.SIGKILL
        reached += [step for step, _ in list_checkpoints(tmp_path / "cut" / "checkpoints")[-1:]]
    assert reached == sorted(reached)
    assert reached[-1] < STEPS
    calls = note.read_text().splitlines()
    assert len(calls) == KILLS
    # Which of the writer's calls it was depends on how the threads take turns.
    assert {call.split()[1] for call in calls} >= {"train_step", "fsync"}
    assert run(argv("cut"), note) == 0
    same_run(tmp_path / "whole", tmp_path / "cut")
    assert (tmp_path / "whole" / "samples.png").read_bytes() == (tmp_path / "cut" / "samples.png").read_bytes()
    ends = [load_checkpoint(tmp_path / name / "checkpoints" / f"step_{STEPS:08d}") for name in ("whole", "cut")]
    for group in ("model", "ema", "optimizer"):
        a, b = (end.tensors[group] for end in ends)
        assert a.keys() == b.keys()
        assert all(a[name].equal(b[name]) for name in a)
    timed = {"seconds", "coupling_seconds"}
    a, b = ({key: value for key, value in end.state.items() if key not in timed} for end in ends)
    assert a == b
