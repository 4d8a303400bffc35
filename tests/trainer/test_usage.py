"""The training command: what it refuses, and what it says before it does anything."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from pydiffaccel.train import main
from pydiffaccel.trainer.run import RunFolder, RunLock

from .conftest import TINY, refused

Train = Callable[..., Path]
CIFAR = Path(__file__).resolve().parents[3] / "shared" / "data" / "cifar10-jpeg" / "train.zip"


# --- refusals


def test_folder_of_something_else(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "thesis.tex").write_text("precious")
    assert "is in use by something else: it holds 'thesis.tex' but no run" in refused(capsys, tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.tex"]


def test_output_that_is_a_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "file").write_text("x")
    assert "file is a file" in refused(capsys, tmp_path / "file")


def test_folder_of_a_run_with_other_options(train: Train, capsys: pytest.CaptureFixture[str]) -> None:
    folder = train("run")
    said = refused(capsys, folder, "--coupling", "hungarian", "--seed", "3")
    assert "holds a run with other options: --seed 3 (the run: 0), --coupling hungarian (the run: none)" in said


def test_fewer_threads_and_other_checkpoints_are_no_other_options(train: Train) -> None:
    train("run", steps=4)
    train("run", "--checkpointing_steps", "2", "--num_threads", "2")


def test_length_is_an_option_where_something_is_spread_over_it(
    train: Train, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = train("run", "--curriculum", steps=4)
    assert "--max_train_steps 6 (the run: 4)" in refused(capsys, folder, "--curriculum")


def test_folder_of_a_run_on_other_data(train: Train, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    np.save(tmp_path / "a.npy", np.zeros((9, 8, 8), np.uint8))
    folder = train("run", "--data", str(tmp_path / "a.npy"), steps=4)
    np.save(tmp_path / "a.npy", np.zeros((7, 8, 8), np.uint8))
    said = refused(capsys, folder, "--data", str(tmp_path / "a.npy"))
    assert "holds a run on other data (a.npy, 9 images; now a.npy, 7)" in said


def test_folder_of_a_live_process(train: Train, capsys: pytest.CaptureFixture[str]) -> None:
    folder = train("run", steps=4)
    with RunLock(RunFolder(folder)):
        assert "is in use by another live process (process " in refused(capsys, folder)
    train("run")  # and free again


def test_remains_of_a_start_that_died_are_no_obstacle(train: Train, tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / ".lock").write_text("process 1 on somewhere")
    (tmp_path / "run" / ".options.json.tmp").write_text("{")
    train("run")


@pytest.mark.parametrize("name", ["options.json", "process.json"])
def test_damaged_description(train: Train, capsys: pytest.CaptureFixture[str], name: str) -> None:
    folder = train("run", steps=4)
    (folder / name).write_text("{")
    assert f"{name} is no JSON file" in refused(capsys, folder)


def test_loss_that_is_no_number(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    argv = ["--learning_rate", "1e30", "--lr_warmup_steps", "0", "--output_dir", str(tmp_path / "a"), *TINY]
    assert main(argv) == 1
    assert "try a smaller --learning_rate" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("flags", "match"),
    [
        (("--zap", "1"), "Unrecognized options: --zap, 1; see --help"),
        (("--train_batch_sze", "8"), "--train_batch_sze, 8; did you mean --train_batch_size?"),
        (("--couplin", "knn", "--sed", "3"), "did you mean --coupling --seed?"),
        (("--no-coupling-ahed",), "did you mean --no_coupling_ahead?"),
        (("--checkpointing_step=3",), "did you mean --checkpointing_steps?"),
        (("--max_skipped_steps", "0"), "--max_skipped_steps must be at least 1, got 0"),
        (("--checkpoints_keep_every", "-1"), "--checkpoints_keep_every must be at least 0, got -1"),
        (("--coupling", "magic"), "invalid choice 'magic' for argument '--coupling'"),
        (("--sinkhorn_project", "0"), "--sinkhorn_project must be at least 1, got 0"),
        (("--sinkhorn_iterations", "-1"), "--sinkhorn_iterations must be at least 0, got -1"),
        (("--sinkhorn_epsilon", "0"), "--sinkhorn_epsilon must be a positive number, got 0.0"),
        (("--hungarian_project", "0"), "--hungarian_project must be at least 1, got 0"),
        (("--hungarian_pool", "7"), "--hungarian_pool must be at least --train_batch_size 8, got 7"),
        (("--queue_size", "-1"), "--queue_size must be at least 0, got -1"),
        (("--coupling_start_step", "-1"), "--coupling_start_step must be at least 0, got -1"),
        (("--knn_k", "0"), "--knn_k must be at least 1, got 0"),
        (("--kl_terms", "0"), "--kl_terms must be at least 1, got 0"),
        (("--max_train_steps", "many"), "--max_train_steps: invalid literal for int() with base 10: 'many'"),
        (("--data_scale", "0"), "--data_scale must be a positive number, got 0"),
        (("--learning_rate", "nan"), "--learning_rate must be a positive number, got nan"),
        (("--ema_decay", "1"), r"--ema_decay must be in [0, 1), got 1"),
        (("--ema_halflife_images", "0"), "--ema_halflife_images must be at least 1, got 0"),
        (("--ema_halflife_images", "9", "9"), "--ema_halflife_images must differ, got 9 9"),
        (("--ema_halflife_images", "9", "--no_use_ema"), "--ema_halflife_images and --no_use_ema exclude each other"),
        (("--seed", "-1"), "--seed must be in 0 .. 2**63 - 1, got -1"),
        (("--forward", "flow", "--prediction_type", "epsilon"), "--forward flow goes with --prediction_type flow"),
        (("--prediction_type", "flow"), "--forward vp goes with --prediction_type epsilon, sample or v_prediction"),
        (("--channels", "12"), "--channels must be multiples of 8, got 12"),
        (("--channels", "8", "8", "8", "8", "8"), "can be halved for at most 4 levels, got 5"),
        (("--resolution", "0"), "--resolution must be at least 1, got 0"),
    ],
)
def test_bad_usage(tmp_path: Path, capsys: pytest.CaptureFixture[str], flags: tuple[str, ...], match: str) -> None:
    said = refused(capsys, tmp_path / "run", *flags, code=2)
    assert match in said
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("flags", "match"),
    [
        (("--data", "no/where"), "no/where does not exist"),
        (("--device", "cuda:77"), "device 'cuda:77' cannot be used"),
        (("--device", "abacus"), "device 'abacus' cannot be used"),
    ],
)
def test_what_is_not_there(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], flags: tuple[str, ...], match: str
) -> None:
    assert match in refused(capsys, tmp_path / "run", *flags)
    assert not (tmp_path / "run").exists()


def test_missing_networks_name_the_extra(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "diffusers", None)
    assert "pip install 'pydiffaccel[train]'" in refused(capsys, tmp_path / "run")


# --- looking first


@pytest.mark.parametrize("flag", ["--dry_run", "--dry-run"])
def test_dry_run_prints_the_plan_and_writes_nothing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], flag: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main([flag, "--coupling", "knn", "--forward", "kl", "--momentum_decay", "--data_scale", "2"]) == 0
    said = capsys.readouterr().out
    for part in (
        "UCI optical digits: 1,797 gray images, 8 x 8, 10 classes",
        "channels 24 32, 207,209 parameters",
        "kl with 4 terms, predicts epsilon",
        "the nearest of 4 noises (l2)",
        "data scaled by 2, momentum decay of strength 1",
        "800 of 128 images",
        "409,600 network evaluations",
        "runs/digits",
    ):
        assert part in said
    assert list(tmp_path.iterdir()) == []


def test_dry_run_of_a_begun_run_changes_nothing(train: Train, capsys: pytest.CaptureFixture[str]) -> None:
    folder = train("run", steps=4)
    before = {path: path.stat().st_mtime_ns for path in folder.rglob("*")}
    train("run", "--dry_run", steps=6)
    assert "4 done" in capsys.readouterr().out
    assert before == {path: path.stat().st_mtime_ns for path in folder.rglob("*")}


def test_help_is_light() -> None:
    """--help and bad flags need no diffusers, no matplotlib and no Pillow."""
    code = (
        "import sys\n"
        "from pydiffaccel import train, sample, distill, evaluate, demo, report\n"
        "commands = train, sample, distill, evaluate, demo, report\n"
        "codes = [m.main(a) for m in commands for a in (['--help'], ['--zap'])]\n"
        "heavy = {'diffusers', 'transformers', 'matplotlib', 'PIL', 'safetensors'} & set(sys.modules)\n"
        "print(codes, heavy, file=sys.stderr)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stderr.splitlines()[-1] == f"{[0, 2] * 6} set()", done.stderr
    assert "--train_batch_size" in done.stdout


@pytest.mark.parametrize("command", ["train", "sample", "distill", "evaluate", "plan", "report", "demo"])
def test_help_needs_no_torch(command: str) -> None:
    python = [sys.executable, "-X", "importtime", "-m", f"pydiffaccel.{command}"]
    done = subprocess.run([*python, "--help"], capture_output=True, text=True, check=True)
    imported = {line.rpartition("|")[2].strip() for line in done.stderr.splitlines()}
    assert f"pydiffaccel.{command}".rpartition(".")[0] in imported  # the list is there
    assert not imported & {"torch", "numpy", "diffusers"}
    assert "--help" in done.stdout
