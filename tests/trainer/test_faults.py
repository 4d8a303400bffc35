"""What disks, systems and users do to a run: one sentence, the right exit code, the last good checkpoint intact."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import importlib
import os
import resource
import shutil
import signal
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from pydiffaccel.trainer.checkpoint import check_checkpoint, list_checkpoints
from pydiffaccel.trainer.loop import Trainer

from .conftest import losses, same_run

Train = Callable[..., Path]
EVERY_TWO = ("--checkpointing_steps", "2", "--log_every", "2")
NOBODY = 65534


def at_step(monkeypatch: pytest.MonkeyPatch, step: int, what: Callable[[], object]) -> None:
    """Calls what before the step of that number (counted from 1), once the checkpoints before it are written."""
    original = Trainer.train_step

    def train_step(self: Trainer) -> object:
        if self.step + 1 == step:
            for thread in threading.enumerate():
                if thread.name == "pydiffaccel-checkpoint":
                    thread.join()
            what()
        return original(self)

    monkeypatch.setattr(Trainer, "train_step", train_step)


def last_line(capsys: pytest.CaptureFixture[str]) -> str:
    said = capsys.readouterr().err
    assert "Traceback" not in said
    return said.splitlines()[-1]


def whole_checkpoints(folder: Path) -> list[int]:
    """Steps of the checkpoints, which are all that the folder holds and whole."""
    found = list_checkpoints(folder / "checkpoints")
    assert {path.name for _, path in found} == {path.name for path in (folder / "checkpoints").iterdir()}
    for _, path in found:
        check_checkpoint(path)
    return [step for step, _ in found]


# --- disks


@contextlib.contextmanager
def file_size_limit() -> Iterator[Callable[[int], None]]:
    """A function that sets how large files may become, as on a full disk; no limit afterwards."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    try:
        yield lambda size: resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@pytest.mark.parametrize("flag", ["--checkpoint_async", "--no_checkpoint_async"])
def test_full_disk(
    train: Train, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], flag: str
) -> None:
    with file_size_limit() as limit, monkeypatch.context() as patched:
        at_step(patched, 4, lambda: limit(20_000))
        folder = train("run", *EVERY_TWO, flag, code=1)
    said = last_line(capsys)
    assert f"the checkpoint of step 4 could not be written to {folder / 'checkpoints'} (File too large)" in said
    assert said.endswith("the same command continues from step 2, which is whole")
    assert whole_checkpoints(folder) == [2]
    same_run(train("whole"), train("run", *EVERY_TWO, flag))


def test_full_disk_before_the_first_checkpoint(
    train: Train, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with file_size_limit() as limit, monkeypatch.context() as patched:
        at_step(patched, 1, lambda: limit(20_000))
        train("run", *EVERY_TWO, code=1)
    assert last_line(capsys).endswith("(File too large); no other is there")
    same_run(train("whole"), train("run", *EVERY_TWO))


def test_full_disk_for_the_log(
    train: Train, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    metrics = []
    with file_size_limit() as limit, monkeypatch.context() as patched:
        # In the middle of a line.
        at_step(patched, 4, lambda: limit(metrics[0].stat().st_size + 40))
        original = Trainer.fit
        patched.setattr(
            Trainer, "fit", lambda self, folder, **given: metrics.append(folder.metrics) or original(self, folder)
        )
        folder = train("run", *EVERY_TWO, code=1)
    assert last_line(capsys).endswith(f"File too large ({folder / 'metrics.jsonl'})")
    assert whole_checkpoints(folder) == [2]
    same_run(train("whole"), train("run", *EVERY_TWO))


@contextlib.contextmanager
def write_protected(folder: Path) -> Iterator[Callable[[], None]]:
    """A function after which this process may not write to folder; its superuser's rights are given up for it."""
    root = os.geteuid() == 0

    def protect() -> None:
        if root:
            os.seteuid(NOBODY)
        else:
            folder.chmod(0o555)

    try:
        yield protect
    finally:
        if root:
            os.seteuid(0)
        elif folder.exists():
            folder.chmod(0o755)


def test_folder_that_becomes_read_only(
    train: Train, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with write_protected(tmp_path / "run" / "checkpoints") as protect, monkeypatch.context() as patched:
        at_step(patched, 4, protect)
        train("run", *EVERY_TWO, "--no_checkpoint_async", code=1)
    said = last_line(capsys)
    assert "step 4 could not be written" in said
    assert "Permission denied" in said
    assert whole_checkpoints(tmp_path / "run") == [2]
    same_run(train("whole"), train("run", *EVERY_TWO))


def test_folder_that_is_read_only(
    train: Train, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from pydiffaccel.trainer import run

    with write_protected(tmp_path) as protect, monkeypatch.context() as patched:
        patched.setattr(run.RunFolder, "read_options", lambda self: pytest.fail("there is no run"))
        original = run.Path.mkdir

        def mkdir(self: Path, *args: Any, **given: Any) -> None:
            if self.name == "run":
                protect()
            original(self, *args, **given)

        patched.setattr(run.Path, "mkdir", mkdir)
        train("run", code=1)
    assert last_line(capsys).endswith(f"Permission denied ({tmp_path / 'run'})")


@pytest.mark.parametrize("flags", [(), ("--coupling", "queue", "--coupling_ahead")])
def test_torn_checkpoint(train: Train, capsys: pytest.CaptureFixture[str], flags: tuple[str, ...]) -> None:
    folder = train("run", *EVERY_TWO, *flags, steps=4)
    torn = folder / "checkpoints" / "step_00000004" / "optimizer.safetensors"
    torn.write_bytes(torn.read_bytes()[:1000])
    capsys.readouterr()
    train("run", *EVERY_TWO, *flags)
    said = capsys.readouterr()
    assert f"checkpoint {torn.parent} cannot be used: optimizer.safetensors has 1,000 bytes instead of" in said.err
    assert "it is kept as step_00000004.damaged, and step_00000002 is used" in said.err
    assert "continuing after step 2" in said.out
    same_run(train("whole", *flags), folder)


def test_nothing_begins_anew_where_all_checkpoints_are_damaged(
    train: Train, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = train("run", *EVERY_TWO, steps=4)
    for _, path in list_checkpoints(folder / "checkpoints"):
        (path / "state.json").write_text("{")
    before = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file() and path.name != ".lock"}
    train("run", *EVERY_TWO, code=1)
    assert f"no other one is left: remove {folder / 'checkpoints'} to begin again from step 0" in last_line(capsys)
    assert before == {path: path.read_bytes() for path in before}


def test_sampling_refuses_a_damaged_checkpoint(
    train: Train, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from pydiffaccel.sample import main

    folder = train("run", steps=4)
    (folder / "summary.json").unlink()
    weights = folder / "checkpoints" / "step_00000004" / "ema.safetensors"
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    weights.write_bytes(content)
    assert main([str(folder)]) == 1
    assert "the checksum of ema.safetensors is wrong" in last_line(capsys)


def test_lines_that_a_crash_damaged_are_left_out_of_the_log(train: Train) -> None:
    folder = train("run", *EVERY_TWO, steps=4)
    with (folder / "metrics.jsonl").open("ab") as file:
        file.write(b'\0\0\0\0\n{"loss"\n5\n{"step": 5, "lo')
    same_run(train("whole"), train("run", *EVERY_TWO))


# --- signals


def interrupt() -> None:
    os.kill(os.getpid(), signal.SIGTERM)


def before_call(monkeypatch: pytest.MonkeyPatch, name: str, what: Callable[[], object]) -> None:
    """Calls what before the function of that full name."""
    module_name, _, attribute = name.rpartition(".")
    module = importlib.import_module(module_name)
    original = getattr(module, attribute)

    def call(*args: Any, **given: Any) -> Any:
        what()
        return original(*args, **given)

    monkeypatch.setattr(module, attribute, call)


@pytest.mark.parametrize(
    ("place", "sentence", "saved"),
    [
        ("pydiffaccel.trainer.data.load_data", "python -m pydiffaccel.train: interrupted", None),
        ("pydiffaccel.networks.build_network", "python -m pydiffaccel.train: interrupted", None),
        ("step", "interrupted after step 3, which is saved; the same command continues from there", 3),
        (
            "pydiffaccel.trainer.checkpoint.writer.save_checkpoint",
            "interrupted after step {step}, which is saved; the same command continues from there",
            2,
        ),
        (
            "pydiffaccel.sampler.sample",
            "python -m pydiffaccel.train: interrupted; all 6 steps are saved; the same command makes the pictures",
            6,
        ),
    ],
)
def test_sigterm_at_any_time(
    train: Train,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    place: str,
    sentence: str,
    saved: int | None,
) -> None:
    with monkeypatch.context() as patched:
        if place == "step":
            at_step(patched, 3, interrupt)
        else:
            before_call(patched, place, interrupt)
        folder = train("run", *EVERY_TWO, code=130)
    assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL
    found = whole_checkpoints(folder)[-1] if (folder / "checkpoints").exists() else None
    # While a checkpoint is being written the training may have come a little further.
    assert found == saved or (saved == 2 and found is not None and found >= 2)
    assert last_line(capsys) == sentence.format(step=found)
    assert not (folder / "summary.json").exists()
    same_run(train("whole"), train("run", *EVERY_TWO))


def test_the_second_ctrl_c_ends_at_once(
    train: Train, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def twice() -> None:
        for _ in range(2):
            signal.raise_signal(signal.SIGINT)

    with monkeypatch.context() as patched:
        at_step(patched, 4, twice)
        folder = train("run", *EVERY_TWO, code=130)
    assert last_line(capsys).endswith("interrupted; the same command continues from the newest checkpoint")
    assert whole_checkpoints(folder) == [2]
    same_run(train("whole"), train("run", *EVERY_TWO))


def test_ctrl_c_before_the_first_step(
    train: Train, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with monkeypatch.context() as patched:
        original = Trainer.fit

        def fit(self: Trainer, *args: Any, **given: Any) -> bool:
            interrupt()
            return original(self, *args, **given)

        patched.setattr(Trainer, "fit", fit)
        train("run", code=130)
    assert last_line(capsys) == "interrupted before the first step; the same command continues from there"


# --- two runs in one folder


@pytest.mark.parametrize("number", [errno.ENOLCK, errno.EOPNOTSUPP])
def test_file_systems_without_locks(
    train: Train, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], number: int
) -> None:
    def flock(handle: int, operation: int) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(fcntl, "flock", flock)
    folder = train("run")
    note = f"note: the file system of {folder} has no locks ({os.strerror(number)}); take care that no second process"
    assert capsys.readouterr().err.startswith(note)
    assert len(losses(folder)) == 6


# --- --resume_from_checkpoint


def test_checkpoints_of_this_run(train: Train, capsys: pytest.CaptureFixture[str]) -> None:
    folder = train("run", *EVERY_TWO, "--checkpoints_total_limit", "0")
    (folder / "summary.json").unlink()
    capsys.readouterr()
    start = folder / "checkpoints" / "step_00000002"
    train("run", "--resume_from_checkpoint", str(start))
    said = capsys.readouterr()
    assert "continuing after step 2" in said.out
    later = folder / "checkpoints" / "step_00000004"
    assert f"{later} is later than {start} and kept as step_00000004.superseded" in said.err
    same_run(train("whole"), folder)


def test_checkpoints_of_another_run(train: Train, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    whole = train("whole", *EVERY_TWO)
    start = str(whole / "checkpoints" / "step_00000004")
    before = {path: path.stat().st_mtime_ns for path in whole.rglob("*")}
    same_run(whole, train("run", "--resume_from_checkpoint", start))
    end = str(whole / "checkpoints" / "step_00000006")
    same_run(whole, train("end", "--resume_from_checkpoint", end))  # no step is left to be done
    shutil.copytree(start, tmp_path / "alone")
    alone = train("alone_run", "--resume_from_checkpoint", str(tmp_path / "alone"))
    assert (alone / "model.safetensors").read_bytes() == (whole / "model.safetensors").read_bytes()
    capsys.readouterr()
    train("other", "--resume_from_checkpoint", start, "--seed", "1", code=1)
    assert f"checkpoint {start} is of a run with other options: --seed 1 (the run: 0)" in last_line(capsys)
    assert before == {path: path.stat().st_mtime_ns for path in whole.rglob("*")}


def test_latest_and_none(train: Train, capsys: pytest.CaptureFixture[str]) -> None:
    folder = train("run", "--resume_from_checkpoint", "none", steps=4)
    train("run", "--resume_from_checkpoint", "none", code=1)
    assert f"--resume_from_checkpoint none, but {folder} holds the checkpoint of step 4" in last_line(capsys)
    same_run(train("whole"), train("run", "--resume_from_checkpoint", "latest"))
    same_run(train("whole"), train("new", "--resume_from_checkpoint", "latest"))


@pytest.mark.parametrize("name", ["model.ckpt", "model.pt", "weights.pkl", "nowhere"])
def test_what_is_no_checkpoint(train: Train, tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str) -> None:
    path = tmp_path / name
    if name != "nowhere":
        torch.save({"w": torch.zeros(2)}, path, _use_new_zipfile_serialization=name != "weights.pkl")
    folder = train("run", "--resume_from_checkpoint", str(path), code=1)
    said = last_line(capsys)
    assert f"{path} " in said
    assert ("does not exist" if name == "nowhere" else "is a pickle, which could run code when it is read") in said
    assert not (folder / "options.json").exists()


# --- settings that change no number


def test_writing_ahead_changes_nothing(train: Train) -> None:
    a, b = train("a", *EVERY_TWO, "--checkpoint_async"), train("b", *EVERY_TWO, "--no_checkpoint_async")
    same_run(a, b)
    for step in (4, 6):
        for group in ("model", "ema", "optimizer"):
            name = f"checkpoints/step_{step:08d}/{group}.safetensors"
            assert (a / name).read_bytes() == (b / name).read_bytes()


def test_steps_that_are_kept_for_good(train: Train) -> None:
    folder = train(
        "run", "--checkpointing_steps", "1", "--checkpoints_total_limit", "1", "--checkpoints_keep_every", "3"
    )
    assert whole_checkpoints(folder) == [3, 6]
    train("run", "--checkpointing_steps", "1", "--checkpoints_total_limit", "1", steps=8)  # no longer asked for
    assert whole_checkpoints(folder) == [8]
