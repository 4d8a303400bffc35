"""Frechet distance, the evaluate command, and the demo."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from pydiffaccel.demo import main as demo
from pydiffaccel.demo import verdict
from pydiffaccel.evaluate import main as evaluate
from pydiffaccel.evaluate import make_reference
from pydiffaccel.trainer.data import ImageData, load_digits

from .conftest import write_images

Train = Callable[..., Path]


def test_reference_knows_digits_from_noise() -> None:
    data = load_digits()
    reference = make_reference(data, steps=150)
    assert reference.accuracy > 0.9
    assert np.trace(reference.cov) == pytest.approx(100)
    digits = data.batch(np.arange(0, 1797, 2))
    blurred = torch.nn.functional.avg_pool2d(digits, 3, 1, 1)
    noise = torch.randn(900, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    distances = [reference.distance(x) for x in (digits, blurred, noise)]
    assert distances[0] < 2
    assert min(distances[1:]) > 10
    again = make_reference(data, steps=150)
    assert np.array_equal(again.cov, reference.cov)


def test_evaluate_command(train: Train, capsys: pytest.CaptureFixture[str]) -> None:
    folder = train("run", "--forward", "flow")
    assert evaluate([str(folder), "--steps", "1", "2", "--num_samples", "100", "--num_threads", "1"]) == 0
    said = capsys.readouterr().out
    stored = json.loads((folder / "evaluation.json").read_text())
    assert [row["nfe"] for row in stored["results"]] == [1, 2]
    for row in stored["results"]:
        assert row["frechet_distance"] > stored["halves"] > 0
        assert f"{row['frechet_distance']:.2f}" in said


def test_evaluate_dry_run_writes_nothing(train: Train) -> None:
    folder = train("run")
    before = sorted(folder.rglob("*"))
    assert evaluate([str(folder), "--dry-run"]) == 0
    assert sorted(folder.rglob("*")) == before


def test_evaluate_needs_labels(train: Train, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_images(tmp_path / "flat", 4)
    folder = train("run", "--data", str(tmp_path / "flat"))
    assert evaluate([str(folder)]) == 1
    assert "flat has no classes" in capsys.readouterr().err


def test_evaluate_needs_enough_images() -> None:
    few = ImageData("few", np.zeros((9, 1, 8, 8), np.uint8), labels=np.arange(9) % 2, classes=("a", "b"))
    with pytest.raises(Exception, match="few has 9 images; a Frechet distance needs at least 100"):
        make_reference(few)


@pytest.mark.parametrize(
    ("flags", "match"),
    [
        (["--steps", "0"], "--steps must be at least 1 each, got 0"),
        (["--num_samples", "5"], "--num_samples must be at least 100, got 5"),
        (["--solver", "adams_bashforth"], "adams_bashforth runs on flow schedules, got vp"),
    ],
)
def test_evaluate_bad_usage(train: Train, capsys: pytest.CaptureFixture[str], flags: list[str], match: str) -> None:
    folder = train("run")
    assert evaluate([str(folder), *flags]) == 2
    assert match in capsys.readouterr().err


# --- the demo


DEMO = ["--max_train_steps", "6", "--train_batch_size", "8", "--channels", "8", "--num_samples", "100"]


def test_demo_compares_draws_and_remembers(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    flags = ["--output_dir", str(tmp_path / "demo"), "--num_threads", "1", *DEMO]
    assert demo(flags) == 0
    first = capsys.readouterr().out
    figures = json.loads((tmp_path / "demo" / "demo.json").read_text())
    for name in ("plain", "hungarian"):
        run = figures["runs"][name]
        assert len(run["frechet_distance"]) == 4
        assert 0 < run["coupling_seconds"] < run["seconds"]
        for distance in run["frechet_distance"]:
            assert f"{distance:.2f}" in first
    picture = Image.open(tmp_path / "demo" / "demo.png")
    assert picture.width > 1000
    options = [json.loads((tmp_path / "demo" / name / "options.json").read_text()) for name in ("plain", "hungarian")]
    different = {key for key in options[0] if options[0][key] != options[1][key]}
    assert different == {"coupling", "output_dir"}

    before = (tmp_path / "demo" / "demo.png").stat().st_mtime_ns
    assert demo(flags) == 0
    again = capsys.readouterr().out
    assert "measured before" in again
    assert (tmp_path / "demo" / "demo.png").stat().st_mtime_ns == before
    table = [line for line in first.splitlines() if line.startswith("     ")]
    assert table == [line for line in again.splitlines() if line.startswith("     ")]

    assert demo([*flags[:-1], "101"]) == 0  # another number of samples is another measurement
    assert "measured before" not in capsys.readouterr().out


def test_demo_dry_run_writes_nothing(tmp_path: Path) -> None:
    assert demo(["--dry-run", "--output_dir", str(tmp_path / "demo")]) == 0
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("pairs", "expected"),
    [
        ([(1, 8.0, 2.0), (4, 3.0, 2.0)], "At 1 evaluation the accelerated model's distance is 4.0 times smaller, and"),
        (
            [(1, 2.0, 2.0), (4, 6.0, 2.0)],
            "At 4 evaluations the accelerated model's distance is 3.0 times smaller; at 1",
        ),
        ([(1, 2.0, 3.0), (4, 1.0, 2.0)], "The accelerated model is not better"),
    ],
)
def test_verdict_follows_from_the_figures(pairs: list[tuple[int, float, float]], expected: str) -> None:
    assert verdict(pairs).startswith(expected)
