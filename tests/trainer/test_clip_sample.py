"""--clip_sample of sample, evaluate and distill."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import Tensor

from pydiffaccel.distill import main as distill
from pydiffaccel.evaluate import main as evaluate
from pydiffaccel.evaluation.reference import FIRST_SEED
from pydiffaccel.forward import VPProcess
from pydiffaccel.models import load_model
from pydiffaccel.plan import main as plan
from pydiffaccel.sample import main as sample
from pydiffaccel.sampler import draw
from pydiffaccel.solvers import clip_denoised, load_plan, make_plan

from .conftest import TINY

SEEDS = ["--fit_seeds", "0-15", "--held_out_seeds", "100-115", "--teacher_multiplier", "2", "--force"]


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Tiny runs that predict noise: of images, of images times 4, and of latents."""
    from pydiffaccel.train import main

    folder = tmp_path_factory.mktemp("runs")
    np.save(folder / "latents.npy", np.random.default_rng(0).normal(size=(20, 4, 8, 8)).astype(np.float32))
    flags = {
        "plain": [],
        "scaled": ["--data_scale", "4"],
        "latents": ["--data", str(folder / "latents.npy"), "--data_kind", "latents"],
    }
    for name, extra in flags.items():
        more = ["--prediction_type", "epsilon", "--max_train_steps", "6", *extra]
        assert main(["--output_dir", str(folder / name), *TINY, *more]) == 0
    return {name: folder / name for name in flags}


@pytest.fixture
def module(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> SimpleNamespace:
    """A module `mine` that tests put their models in; results go to a folder of the test."""
    found = SimpleNamespace()
    monkeypatch.setitem(sys.modules, "mine", found)
    monkeypatch.chdir(tmp_path)
    return found


def samples(folder: Path, model: str, *flags: str, name: str = "ddim-3") -> np.ndarray:
    solver = () if "--plan" in flags else ("--solver", "ddim", "--steps", "3")
    assert sample([model, "--seeds", "0-4", "--output_dir", str(folder), *solver, *flags]) == 0
    with np.load(folder / f"{name}.npz") as found:
        return found["samples"]


@pytest.mark.parametrize(("name", "limit"), [("plain", 1.0), ("scaled", 4.0)])
def test_samples_of_a_run_stay_in_the_range(
    runs: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str, limit: float
) -> None:
    free = samples(tmp_path, str(runs[name]))
    assert "clipping" not in capsys.readouterr().out
    clipped = samples(tmp_path, str(runs[name]), "--clip_sample")
    assert "clipping    predicted images to [-1, 1] at each evaluation" in capsys.readouterr().out
    assert json.loads((tmp_path / "ddim-3.json").read_text())["clip_sample"] is True
    assert np.abs(free).max() > 1.5
    assert np.abs(clipped).max() <= 1 + 1e-6
    assert np.abs(clipped - free.clip(-1, 1)).max() > 0.01  # more than the pictures' own clipping
    model = load_model(str(runs[name]))
    assert model.data_limit == limit
    by_hand = draw(make_plan("ddim", model.schedule, 3), clip_denoised(model.denoiser, limit), model.shape, range(5))
    assert np.array_equal(clipped, (by_hand / limit).numpy())


def test_compare_clips_every_solver(runs: dict[str, Path], tmp_path: Path) -> None:
    def errors(*flags: str) -> list[float]:
        more = ["--steps", "2,4", "--fine_steps", "8", "--seeds", "0-3", "--output_dir", str(tmp_path), *flags]
        assert sample([str(runs["plain"]), "--compare", "ddim", *more]) == 0
        return [entry["error"] for entry in json.loads((tmp_path / "compare.json").read_text())["results"]]

    free, clipped = errors(), errors("--clip_sample")
    assert all(0 < error != other for error, other in zip(clipped, free, strict=True))
    assert max(clipped) < 4 < max(free)  # no two images in [-1, 1] are farther apart


@pytest.mark.parametrize("prediction_type", ["epsilon", "sample", "v_prediction"])
def test_a_perfect_model_of_data_inside_gives_the_same(
    module: SimpleNamespace, tmp_path: Path, prediction_type: str
) -> None:
    image = torch.linspace(-0.9, 0.9, 16).view(1, 4, 4)
    process = VPProcess(prediction_type=prediction_type)

    def network(x: Tensor, time: Tensor) -> Tensor:
        t = time.double().cpu().numpy()
        alpha, sigma = (
            torch.from_numpy(f(t)).view(-1, 1, 1, 1) for f in (process.schedule.alpha, process.schedule.sigma)
        )
        noise = (x.double() - alpha * image) / sigma
        answers = {"epsilon": noise, "sample": image + 0 * noise, "v_prediction": alpha * noise - sigma * image}
        return answers[prediction_type].float()

    module.perfect = lambda: (network, process, (1, 4, 4))
    free, clipped = samples(tmp_path, "mine:perfect"), samples(tmp_path, "mine:perfect", "--clip_sample")
    np.testing.assert_allclose(clipped, free, rtol=0, atol=1e-4)
    np.testing.assert_allclose(clipped, image.expand(5, 1, 4, 4), rtol=0, atol=1e-4)


def test_evaluate_measures_the_clipped_samples(runs: dict[str, Path], tmp_path: Path) -> None:
    """The figures are those of the images that sample --clip_sample makes."""

    def figure(*flags: str) -> float:
        quick = ["--features", "pixels", "--metrics", "frechet", "--num_threads", "1", "--num_samples", "100"]
        assert evaluate([*quick, "--output", str(tmp_path / "figures.json"), *flags]) == 0
        stored = json.loads((tmp_path / "figures.json").read_text())
        assert stored["options"]["clip_sample"] is ("--clip_sample" in flags)
        return float(stored["results"][0]["frechet_distance"])

    run = [str(runs["plain"]), "--solver", "ddim", "--steps", "3"]
    made = samples(tmp_path, run[0], "--clip_sample", "--seeds", f"{FIRST_SEED}-{FIRST_SEED + 99}")
    np.save(tmp_path / "made.npy", made.clip(-1, 1))
    clipped = figure(*run, "--clip_sample")
    assert figure("--samples", str(tmp_path / "made.npy")) == pytest.approx(clipped, rel=1e-4)
    assert abs(figure(*run) / clipped - 1) > 1e-3


def test_a_plan_is_fitted_to_the_clipped_model_and_says_so(
    runs: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run, free, clipped = str(runs["plain"]), tmp_path / "free.json", tmp_path / "clipped.json"
    assert distill([run, "--steps", "3", *SEEDS, "--output", str(free)]) == 0
    assert "--clip_sample" not in capsys.readouterr().out
    assert distill([run, "--steps", "3", *SEEDS, "--clip_sample", "--output", str(clipped)]) == 0
    assert f"--plan {clipped} --clip_sample" in capsys.readouterr().out
    plans = load_plan(free), load_plan(clipped)
    assert "clip_sample" not in plans[0].metadata["distillation"]
    assert plans[1].metadata["distillation"]["clip_sample"] == 1.0
    assert plans[0].evaluations != plans[1].evaluations
    assert plan(["show", str(clipped)]) == 0
    assert "predicted data clipped to +-1\n" in capsys.readouterr().out
    for path, flags, note in (
        (free, (), None),
        (clipped, ("--clip_sample",), None),
        (free, ("--clip_sample",), "was fitted without --clip_sample"),
        (clipped, (), "was fitted with --clip_sample"),
    ):
        samples(tmp_path, run, "--plan", str(path), *flags, name=f"plan-{path.stem}")
        said = capsys.readouterr().err
        assert (note is None) == ("note" not in said)
        assert note is None or note in said


def test_what_has_no_range_is_refused(
    runs: dict[str, Path], module: SimpleNamespace, capsys: pytest.CaptureFixture[str]
) -> None:
    assert distill([str(runs["latents"]), "--clip_sample", "--dry_run"]) == 1
    said = capsys.readouterr().err
    assert f"--clip_sample is for images in [-1, 1], and {runs['latents']} makes latents" in said
    module.points = lambda: (lambda x, t: x, VPProcess(), (2,))
    assert distill(["mine:points", "--clip_sample", "--dry_run"]) == 1
    assert "--clip_sample is for images in [-1, 1], and mine:points makes samples of shape 2" in capsys.readouterr().err
    assert evaluate(["--samples", "x.npz", "--clip_sample"]) == 2
    assert "--clip_sample goes with a model" in capsys.readouterr().err
