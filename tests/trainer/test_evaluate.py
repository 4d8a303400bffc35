"""The evaluate command, and the demo."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image

from pydiffaccel.demo import main as demo
from pydiffaccel.demo import verdict
from pydiffaccel.evaluate import main as evaluate
from pydiffaccel.evaluation.reference import FIRST_SEED
from pydiffaccel.forward import FlowProcess
from pydiffaccel.sample import main as sample
from pydiffaccel.trainer.checkpoint import read_json as read
from pydiffaccel.trainer.data import load_digits
from tests.ranks import as_torchrun, free_ports, run_ranks

from .conftest import write_images

Train = Callable[..., Path]


@pytest.fixture
def module(monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    """A module `mine` that tests put their models in."""
    found = SimpleNamespace()
    monkeypatch.setitem(sys.modules, "mine", found)
    return found


MEASURED = ("frechet_distance", "kernel_distance", "precision", "recall", "sliced_wasserstein")


def test_evaluate_command(train: Train, capsys: pytest.CaptureFixture[str]) -> None:
    folder = train("run", "--forward", "flow")
    capsys.readouterr()
    assert evaluate([str(folder), "--steps", "1", "2", "--num_samples", "100", "--num_threads", "1"]) == 0
    said = capsys.readouterr().out
    stored = read(folder / "evaluation.json")
    recipe, floor = stored["recipe"], stored["floor"]
    assert [row["nfe"] for row in stored["results"]] == [1, 2]
    for row in stored["results"]:
        assert row["frechet_distance"] > 10 * floor["frechet_distance"] > 0
        assert row["sliced_wasserstein"] > floor["sliced_wasserstein"] > 0
        assert row["precision"] < floor["precision"]
        for key in MEASURED:
            assert f"{row[key]:.4g}" in said
    assert "Frechet distance (classifier features)" in said
    assert "FID" not in said
    assert recipe["features"]["name"] == "classifier"
    assert recipe["features"]["accuracy"] > 0.9
    assert recipe["features"]["hash"].startswith("sha256:")
    assert (recipe["num_samples"], recipe["num_reference"], floor["num_samples"]) == (100, 1797, 100)
    assert floor["num_reference"] == 1697
    assert recipe["versions"]["torch"] == torch.__version__
    assert stored["training_step"] == 6
    assert stored["model"].startswith("sha256:")


QUICK = ["--features", "pixels", "--steps", "2", "--num_threads", "1"]


def test_figures_are_those_of_the_files(train: Train, tmp_path: Path) -> None:
    """The same images, made here or read from the archive that sample writes, have the same figures."""
    folder = train("run", "--forward", "flow")
    flags = [*QUICK, "--num_samples", "120"]
    assert evaluate([str(folder), *flags]) == 0
    out = str(tmp_path / "made")
    assert (
        sample([str(folder), "--seeds", f"{FIRST_SEED}-{FIRST_SEED + 119}", "--steps", "2", "--output_dir", out]) == 0
    )
    archive = tmp_path / "made" / "euler-2.npz"
    with np.load(archive) as npz:
        np.save(tmp_path / "made.npy", npz["samples"].clip(-1, 1))
        pictures = npz["images"]
    target = tmp_path / "other" / "figures.json"
    assert evaluate(["--samples", str(tmp_path / "made.npy"), *QUICK, "--output", str(target)]) == 0
    made, files = read(folder / "evaluation.json"), read(target)
    assert files["floor"] == made["floor"]
    assert "solver" not in files
    for key in MEASURED:
        assert files["results"][0][key] == pytest.approx(made["results"][0][key], rel=1e-4)

    for number, picture in enumerate(pictures):  # as a folder of 8-bit pictures: rounded
        (tmp_path / "png").mkdir(exist_ok=True)
        Image.fromarray(picture[0]).save(tmp_path / "png" / f"{number:03d}.png")
    assert evaluate(["--samples", str(tmp_path / "png"), *QUICK, "--output", str(target)]) == 0
    assert evaluate(["--samples", str(archive), *QUICK, "--output", str(tmp_path / "npz.json")]) == 0
    rounded, again = read(target)["results"], read(tmp_path / "npz.json")["results"]
    assert rounded == again
    assert rounded[0]["frechet_distance"] == pytest.approx(made["results"][0]["frechet_distance"], rel=0.02)


def test_some_of_the_files(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    digits = load_digits()
    some = np.round(np.asarray(digits.values[::6]) * (255 / 16)).astype(np.uint8)
    np.savez(tmp_path / "x.npz", one=some, two=some[:150])
    target = tmp_path / "x.json"
    flags = ["--samples", str(tmp_path / "x.npz"), *QUICK, "--output", str(target)]
    assert evaluate(flags) == 1
    assert "say with --samples_key which array holds the images" in capsys.readouterr().err
    flags += ["--samples_key", "one"]
    assert evaluate([*flags, "--num_samples", "200", "--num_reference", "500"]) == 0
    stored = read(target)
    assert (stored["recipe"]["num_samples"], stored["recipe"]["num_reference"]) == (200, 500)
    assert stored["results"][0]["frechet_distance"] < 1.5 * stored["floor"]["frechet_distance"]
    assert evaluate([*flags, "--num_samples", "9999"]) == 0
    assert read(target)["recipe"]["num_samples"] == 300


def test_data_that_has_moved(train: Train, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The run's array of an npz is the one to look for elsewhere too; other data may have other arrays."""
    rng = np.random.default_rng(0)
    first, second = (rng.integers(0, 256, (120, 8, 8), dtype=np.uint8) for _ in range(2))
    np.savez(tmp_path / "a.npz", first=first, second=second)
    np.save(tmp_path / "c.npy", second)
    folder = train("run", "--data", str(tmp_path / "a.npz"), "--data_key", "second")
    flags = [str(folder), *QUICK, "--num_samples", "100"]
    assert evaluate(flags) == 0
    trained = read(folder / "evaluation.json")
    (tmp_path / "a.npz").rename(tmp_path / "b.npz")
    assert evaluate(flags) == 1
    assert "a.npz does not exist" in capsys.readouterr().err
    assert evaluate([*flags, "--data", str(tmp_path / "b.npz")]) == 0
    assert read(folder / "evaluation.json")["results"] == trained["results"]
    assert evaluate([*flags, "--data", str(tmp_path / "c.npy")]) == 0
    assert read(folder / "evaluation.json")["results"] == trained["results"]
    assert evaluate([*flags, "--data", str(tmp_path / "b.npz"), "--data_key", "first"]) == 0
    assert read(folder / "evaluation.json")["results"] != trained["results"]


def test_own_features(module: SimpleNamespace, train: Train, capsys: pytest.CaptureFixture[str]) -> None:
    folder = train("run")
    module.net = torch.nn.Sequential(torch.nn.AvgPool2d(4), torch.nn.Flatten())
    flags = [str(folder), "--steps", "2", "--num_threads", "1", "--num_samples", "100", "--metrics", "frechet"]
    assert evaluate([*flags, "--features", "mine:net"]) == 0
    assert "Frechet distance (mine:net features)" in capsys.readouterr().out
    recipe = read(folder / "evaluation.json")["recipe"]
    assert (recipe["features"]["dimension"], recipe["features"]["scale"]) == (4, 1)
    module.net = lambda x: x
    assert evaluate([*flags, "--features", "mine:net"]) == 1
    assert "mine:net must answer images [2, 1, 8, 8]" in capsys.readouterr().err


def test_gray_samples_of_colour_data(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rng = np.random.default_rng(0)
    np.save(tmp_path / "colour.npy", rng.integers(0, 256, (120, 8, 8, 3), dtype=np.uint8))
    np.save(tmp_path / "gray.npy", rng.integers(0, 256, (120, 8, 8), dtype=np.uint8))
    np.save(tmp_path / "large.npy", rng.integers(0, 256, (120, 9, 9), dtype=np.uint8))
    target = ["--output", str(tmp_path / "x.json"), "--metrics", "kid", "--force"]

    def measured(samples: str, data: str, *flags: str) -> int:
        files = ["--samples", str(tmp_path / f"{samples}.npy"), "--data", str(tmp_path / f"{data}.npy")]
        return evaluate([*files, *QUICK, *target, *flags])

    assert measured("gray", "colour") == 0
    assert measured("colour", "gray") == 1
    assert "colour.npy has 3 channels, gray.npy has 1; both must have the same" in capsys.readouterr().err
    assert measured("large", "colour") == 1
    assert "images of 9 x 9, colour.npy has images of 8 x 8; --resolution makes both" in capsys.readouterr().err
    assert measured("large", "colour", "--resolution", "6") == 0


def test_other_models(module: SimpleNamespace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A function's network is measured too; the figures lie here."""
    monkeypatch.chdir(tmp_path)
    module.model = lambda: (lambda x, t: torch.zeros_like(x), FlowProcess(), (1, 8, 8))
    assert evaluate(["mine:model", *QUICK, "--num_samples", "100"]) == 0
    stored = read(tmp_path / "evaluation.json")
    assert (stored["solver"], stored["model"], stored["training_step"]) == ("euler", None, None)


@pytest.mark.parametrize(
    ("name", "match"),
    [
        ("broken", "mine:broken cannot be sampled: .*not finite"),
        ("large", "mine:large makes images of 1 x 9 x 9, the data has 1 x 8 x 8"),
    ],
)
def test_models_that_cannot_be_measured(
    module: SimpleNamespace, capsys: pytest.CaptureFixture[str], name: str, match: str
) -> None:
    module.broken = lambda: (lambda x, t: x * float("nan"), FlowProcess(), (1, 8, 8))
    module.large = lambda: (lambda x, t: x, FlowProcess(), (1, 9, 9))
    assert evaluate([f"mine:{name}", *QUICK, "--num_samples", "100"]) == 1
    assert re.search(match, capsys.readouterr().err)


def test_samples_that_are_not_finite(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    np.save(tmp_path / "x.npy", np.full((120, 8, 8), np.nan))
    assert evaluate(["--samples", str(tmp_path / "x.npy"), *QUICK]) == 1
    assert "x.npy holds NaN or infinite values" in capsys.readouterr().err


def test_evaluate_dry_run_writes_nothing(train: Train) -> None:
    folder = train("run")
    before = sorted(folder.rglob("*"))
    assert evaluate([str(folder), "--dry-run"]) == 0
    assert sorted(folder.rglob("*")) == before


def test_data_without_labels(train: Train, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_images(tmp_path / "flat", 120)
    folder = train("run", "--data", str(tmp_path / "flat"))
    flags = ["--steps", "1", "--num_samples", "100", "--num_threads", "1"]
    assert evaluate([str(folder), *flags]) == 0
    assert read(folder / "evaluation.json")["recipe"]["features"]["name"] == "rotation"
    assert "Frechet distance (rotation features)" in capsys.readouterr().out
    assert evaluate([str(folder), *flags, "--features", "classifier"]) == 1
    assert "flat has no classes" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("flags", "match"),
    [
        (["--steps", "0"], "--steps must be at least 1 each, got 0"),
        (["--num_samples", "5"], "--num_samples must be at least 100, got 5; --force measures fewer"),
        (["--num_samples", "0", "--force"], "--num_samples must be at least 1, got 0"),
        (["--num_reference", "5"], "--num_reference must be at least 100, got 5"),
        (["--solver", "adams_bashforth"], "adams_bashforth runs on flow schedules, got vp"),
        (["--samples", "x.npz"], "give either a model or --samples"),
        (["--features_weights", "x.pth"], "--features_weights goes with --features inception, got auto"),
        (["--metrics", "fid"], "invalid choice"),
        (["--label_key", "y", "--samples", "x.npz"], "give either a model or --samples"),
        (["--seed", str(2**64)], "--seed must fit in 64 bits"),
        (["--resolution", "0"], "--resolution must be at least 1, got 0"),
    ],
)
def test_evaluate_bad_usage(train: Train, capsys: pytest.CaptureFixture[str], flags: list[str], match: str) -> None:
    folder = train("run")
    assert evaluate([str(folder), *flags]) == 2
    assert match in capsys.readouterr().err


def test_a_model_or_samples_must_be_given(capsys: pytest.CaptureFixture[str]) -> None:
    assert evaluate([]) == 2
    assert "give either a model or --samples" in capsys.readouterr().err


def test_inception_without_weights(train: Train, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = train("run")
    missing = str(tmp_path / "w.pth")
    assert evaluate([str(folder), *QUICK, "--features", "inception", "--features_weights", missing]) == 1
    assert "w.pth does not exist" in capsys.readouterr().err


# --- on several ranks


def _evaluate_on(rank: int, count: int, folder: str) -> None:
    here = Path(folder)
    as_torchrun(rank, count, *json.loads((here / "ports").read_text()))
    flags = ["--num_samples", "131", "--num_threads", "1", "--steps", "1", "3", "--batch_size", "50"]
    code = evaluate([str(here / "run"), *flags, "--output", str(here / f"rank{rank}.json")])
    torch.save(code, here / f"{rank}.pt")


def test_ranks_share_the_work(train: Train, tmp_path: Path) -> None:
    folder = train("run", "--forward", "flow")
    flags = ["--num_samples", "131", "--num_threads", "1", "--steps", "1", "3", "--batch_size", "50"]
    assert evaluate([str(folder), *flags]) == 0
    (tmp_path / "ports").write_text(json.dumps(free_ports(1)))
    assert run_ranks(_evaluate_on, 2, tmp_path) == [0, 0]
    alone, together = read(folder / "evaluation.json"), read(tmp_path / "rank0.json")
    assert not (tmp_path / "rank1.json").exists()  # rank 0 writes
    assert together["recipe"] == alone["recipe"]
    for row, other in zip([alone["floor"], *alone["results"]], [together["floor"], *together["results"]], strict=True):
        assert row == pytest.approx(other, rel=1e-4)


# --- the demo


DEMO = ["--max_train_steps", "6", "--train_batch_size", "8", "--channels", "8", "--num_samples", "100"]


def test_demo_compares_draws_and_remembers(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    flags = ["--output_dir", str(tmp_path / "demo"), "--num_threads", "1", *DEMO]
    assert demo(flags) == 0
    first = capsys.readouterr().out
    figures = read(tmp_path / "demo" / "demo.json")
    for name in ("plain", "fast"):
        run = figures["runs"][name]
        assert len(run["frechet_distance"]) == 4
        assert 0 < run["coupling_seconds"] < run["seconds"]
        for distance in run["frechet_distance"]:
            assert f"{distance:.2f}" in first
    picture = Image.open(tmp_path / "demo" / "demo.png")
    assert picture.width > 1000
    options = [read(tmp_path / "demo" / name / "options.json") for name in ("plain", "fast")]
    different = {key for key in options[0] if options[0][key] != options[1][key]}
    preset = {"coupling", "coupling_window", "coupling_ahead", "timestep_density", "learning_rate"}
    assert different == preset | {"output_dir"}

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
