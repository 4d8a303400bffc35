"""Trackers: what they are given, on continuing too; one that is missing or fails."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest

from pydiffaccel._cli import CommandError
from pydiffaccel.train import main
from pydiffaccel.trainer import trackers
from pydiffaccel.trainer.config import TrainOptions
from pydiffaccel.trainer.trackers import Trackers, check_trackers

from .conftest import TINY, losses, same_run

Train = Callable[..., Path]


class Remembering:
    """A tracker that keeps what it is given, or fails at everything."""

    def __init__(self, *, fails: bool = False) -> None:
        self.rows: list[tuple[int, dict[str, float]]] = []
        self.pictures: list[tuple[int, tuple[int, int]]] = []
        self.closed, self.fails, self.calls = False, fails, 0

    def _check(self) -> None:
        self.calls += 1
        if self.fails:
            raise ConnectionError("nobody answers")

    def log(self, step: int, figures: Mapping[str, float]) -> None:
        self._check()
        self.rows.append((step, dict(figures)))

    def picture(self, step: int, picture: Any) -> None:
        self._check()
        self.pictures.append((step, picture.size))

    def close(self) -> None:
        self._check()
        self.closed = True


@pytest.fixture
def tracker(monkeypatch: pytest.MonkeyPatch) -> Callable[..., list[tuple[int, Remembering]]]:
    """tracker(fails=...) puts trackers that remember in TensorBoard's place; answers with (steps done, tracker)."""

    def use(**how: bool) -> list[tuple[int, Remembering]]:
        made: list[tuple[int, Remembering]] = []

        def make(options: TrainOptions, folder: object, done: int) -> Remembering:
            made.append((done, Remembering(**how)))
            return made[-1][1]

        monkeypatch.setattr(trackers, "_MAKERS", {"tensorboard": make})
        monkeypatch.setattr(trackers, "_installed", lambda name: True)
        return made

    return use


def test_everything_of_metrics_goes_there(train: Train, tracker: Callable[..., Any]) -> None:
    made = tracker()
    flags = ("--coupling", "hungarian", "--sample_every", "3")
    folder = train("run", "--report_to", "tensorboard", *flags)
    ((done, seen),) = made
    assert done == 0
    assert [step for step, _ in seen.rows] == [1, 2, 3, 4, 5, 6]
    assert [figures["loss"] for _, figures in seen.rows] == losses(folder)
    names = {"loss", "grad_norm", "learning_rate", "images", "evaluations", "seconds"}
    assert set(seen.rows[0][1]) == names | {"cost_reduction", "noise_mean_square", "coupling_ms"}
    assert seen.pictures == [(3, (402, 402)), (6, (402, 402))]
    assert seen.closed
    same_run(folder, train("plain", *flags))


def test_a_continued_run_continues_the_curves(train: Train, tracker: Callable[..., Any]) -> None:
    made = tracker()
    train("run", "--report_to", "tensorboard", steps=4)
    train("run", "--report_to", "tensorboard")
    assert [done for done, _ in made] == [0, 4]
    # Without --sample_every there are the samples of the end.
    assert [seen.pictures for _, seen in made] == [[(4, (402, 402))], [(6, (402, 402))]]
    assert [step for _, seen in made for step, _ in seen.rows] == [1, 2, 3, 4, 5, 6]


def test_errors_are_a_note_and_no_more(
    train: Train, tracker: Callable[..., Any], capsys: pytest.CaptureFixture[str]
) -> None:
    made = tracker(fails=True)
    folder = train("run", "--report_to", "tensorboard", "--sample_every", "2")
    said = capsys.readouterr().err
    assert said.count("tensorboard gets nothing or not everything, the training goes on: nobody answers") == 1
    assert made[0][1].calls == 6 + 3 + 1  # it is tried again: a network comes back
    same_run(folder, train("plain"))


def test_a_tracker_that_cannot_begin_is_a_note(
    train: Train, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def refuses(*args: object) -> Remembering:
        raise OSError("no route to host")

    monkeypatch.setattr(trackers, "_MAKERS", {"tensorboard": refuses})
    monkeypatch.setattr(trackers, "_installed", lambda name: True)
    folder = train("run", "--report_to", "tensorboard", steps=2)
    assert "the training goes on: no route to host" in capsys.readouterr().err
    assert len(losses(folder)) == 2


def test_numbers_that_are_none_are_left_out() -> None:
    seen = Remembering()
    row = {"step": 3, "loss": float("nan"), "grad_norm": None, "skipped": True, "seconds": 1, "note": "text"}
    Trackers({"x": seen}).log([row])
    assert seen.rows == [(3, {"skipped": 1.0, "seconds": 1.0})]


@pytest.mark.parametrize(
    ("report_to", "missing"), [("tensorboard", "tensorboard"), ("wandb", "wandb"), ("all", "tensorboard and wandb")]
)
def test_a_missing_package_is_said_before_training(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, report_to: str, missing: str
) -> None:
    monkeypatch.setattr(trackers, "_installed", lambda name: False)
    assert main(["--output_dir", str(tmp_path / "run"), *TINY, "--report_to", report_to]) == 1
    said = capsys.readouterr().err
    assert f"--report_to {report_to} needs the package {missing}: pip install 'pydiffaccel[track]'" in said
    assert not (tmp_path / "run").exists()


def test_a_folder_named_wandb_is_no_package(tmp_path: Path) -> None:
    """wandb leaves such a folder behind, and the working directory is on the path of python -m."""
    (tmp_path / "no_such_tracker").mkdir()
    code = (
        "from pydiffaccel.trainer.trackers import _installed as f; print(f('no_such_tracker'), f('json'), f('x.y.z'))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=tmp_path)
    assert done.stdout.split() == ["False", "True", "False"]


def test_none_needs_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(trackers, "_installed", lambda name: False)
    check_trackers(TrainOptions())
    with pytest.raises(CommandError):
        check_trackers(TrainOptions(report_to="all"))


def test_tensorboard_reads_one_curve_of_a_continued_run(train: Train) -> None:
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    flags = ("--report_to", "tensorboard", "--sample_every", "3", "--checkpointing_steps", "4")
    folder = train("run", *flags)
    # As after a kill in step 6: the newest checkpoint is that of step 4, steps 5 and 6 were written.
    for path in (*(folder / "checkpoints" / "step_00000006").iterdir(), folder / "checkpoints" / "step_00000006"):
        path.rmdir() if path.is_dir() else path.unlink()
    (folder / "summary.json").unlink()
    train("run", *flags)
    events = EventAccumulator(str(folder / "tensorboard"), size_guidance={"scalars": 0, "images": 0}).Reload()
    scalars = events.Scalars("train/loss")
    assert [event.step for event in scalars] == [1, 2, 3, 4, 5, 6]
    assert np.allclose([event.value for event in scalars], losses(folder), rtol=1e-6)
    assert [event.step for event in events.Images("samples")] == [3, 6]


class FakeWandB(ModuleType):
    """Remembers what wandb would be told."""

    def __init__(self, starting_step: int = 0) -> None:
        super().__init__("wandb")
        self.starting_step = starting_step
        self.inits: list[dict[str, Any]] = []
        self.logged: list[tuple[int, dict[str, Any]]] = []
        self.finished = 0

    def Image(self, picture: Any) -> tuple[str, tuple[int, int]]:
        return ("image", picture.size)

    def init(self, **how: Any) -> FakeWandB:
        self.inits.append(how)
        return self

    def log(self, figures: dict[str, Any], step: int) -> None:
        self.logged.append((step, figures))

    def finish(self) -> None:
        self.finished += 1


def test_wandb_is_told_once_of_each_step(train: Train, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(trackers, "_installed", lambda name: True)
    first, second = FakeWandB(), FakeWandB(starting_step=7)  # the server has heard of step 6
    flags = ("--report_to", "wandb", "--tracker_project_name", "digits", "--sample_every", "2")
    monkeypatch.setitem(sys.modules, "wandb", first)
    folder = train("run", *flags, steps=4)
    monkeypatch.setitem(sys.modules, "wandb", second)
    train("run", *flags, steps=8)
    (a,), (b,) = first.inits, second.inits
    assert a["id"] == b["id"] == (folder / "wandb" / "id.txt").read_text().strip()
    assert (a["project"], a["resume"], a["name"]) == ("digits", "allow", "run")
    assert a["config"]["train_batch_size"] == 8
    assert {step for step, _ in first.logged} == {1, 2, 3, 4}
    assert {step for step, _ in second.logged} == {7, 8}
    assert (4, {"samples": ("image", (402, 402))}) in first.logged
    assert [row["train/loss"] for _, row in first.logged if "train/loss" in row] == losses(folder)[:4]
    assert first.finished == second.finished == 1


def test_wandb_offline(train: Train, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("wandb")
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")
    folder = train("run", "--report_to", "wandb", "--sample_every", "2", steps=2)
    assert list((folder / "wandb").glob("offline-run-*/run-*.wandb"))
