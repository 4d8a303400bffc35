"""The sample and distill commands, and the sampler behind them."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from pydiffaccel._cli import parse_seeds
from pydiffaccel.distill import main as distill
from pydiffaccel.forward import EDMProcess, FlowProcess, VPProcess
from pydiffaccel.sample import main as sample
from pydiffaccel.sampler import load_run
from pydiffaccel.sampler import sample as draw
from pydiffaccel.solvers import load_plan

from .conftest import TINY

Train = Callable[..., Path]


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A tiny run of each process."""
    from pydiffaccel.train import main

    folder = tmp_path_factory.mktemp("runs")
    flags = {
        "vp": [],
        "flow": ["--forward", "flow"],
        "kl": ["--forward", "kl", "--kl_terms", "2"],
        "scaled": ["--data_scale", "4"],
    }
    for name, extra in flags.items():
        assert main(["--output_dir", str(folder / name), "--max_train_steps", "30", *TINY, *extra]) == 0
    return {name: folder / name for name in flags}


def results(folder: Path) -> dict[str, np.ndarray]:
    with np.load(folder, allow_pickle=False) as npz:
        return dict(npz)


@pytest.mark.parametrize(
    ("name", "flags", "nfe"),
    [
        ("vp", ["--solver", "ddim", "--steps", "3"], 3),
        ("vp", ["--solver", "dpm_solver++", "--steps", "4", "--order", "1"], 4),
        ("vp", ["--solver", "ddim", "--steps", "5", "--spacing", "linspace"], 5),
        ("kl", ["--steps", "2"], 2),
        ("flow", ["--steps", "3"], 3),
        ("scaled", ["--steps", "3"], 3),
    ],
)
def test_grid_npz_and_nfe(
    runs: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str, flags: list[str], nfe: int
) -> None:
    assert sample([str(runs[name]), "--seeds", "0-4", "--output_dir", str(tmp_path), *flags]) == 0
    said = capsys.readouterr().out
    assert f"{nfe} network evaluations (NFE) per image" in said
    assert f"NFE         {nfe} per image" in said
    (file,) = tmp_path.glob("*.npz")
    found = results(file)
    assert found["images"].shape == found["samples"].shape == (5, 1, 8, 8)
    assert (found["images"].dtype, found["samples"].dtype) == (np.uint8, np.float32)
    assert np.isfinite(found["samples"]).all()
    assert (found["seeds"].tolist(), int(found["nfe"])) == ([0, 1, 2, 3, 4], nfe)
    clipped = np.round((found["samples"].clip(-1, 1) + 1) * 127.5)
    assert np.abs(clipped - found["images"]).max() <= 1
    assert Image.open(file.with_suffix(".png")).size == (3 * 50 + 2, 2 * 50 + 2)
    assert json.loads(file.with_suffix(".json").read_text())["nfe"] == nfe


def test_default_results_are_in_the_run(runs: dict[str, Path]) -> None:
    assert sample([str(runs["vp"]), "--seeds", "3", "--steps", "2"]) == 0
    assert results(runs["vp"] / "samples" / "dpm_solver++-2.npz")["samples"].shape == (1, 1, 8, 8)


def test_each_sample_depends_on_its_seed_alone(runs: dict[str, Path], tmp_path: Path) -> None:
    def drawn(seeds: str, *flags: str) -> np.ndarray:
        assert sample([str(runs["vp"]), "--steps", "3", "--seeds", seeds, "--output_dir", str(tmp_path), *flags]) == 0
        return results(tmp_path / "dpm_solver++-3.npz")["samples"]

    many = drawn("0-9")
    # The same arithmetic in batches of other sizes rounds differently in the last bits.
    np.testing.assert_allclose(drawn("7,2"), many[[7, 2]], atol=1e-4)
    np.testing.assert_allclose(drawn("0-9", "--batch_size", "3"), many, atol=1e-4)
    assert np.array_equal(drawn("0-9"), many)
    assert np.abs(many[0] - many[1]).max() > 0.1


def test_scaled_data_is_scaled_back() -> None:
    """A perfect network for the single image 0.5, diffused at four times its value, samples 0.5."""
    from pydiffaccel.coupling import Scaled

    process = FlowProcess()

    def perfect(x: torch.Tensor, time: torch.Tensor) -> torch.Tensor:
        t = (time / process.time_scale).view(-1, 1, 1, 1)
        noise = (x - t * 2.0) / (1 - t)
        return 2.0 - noise

    images, plan = draw(perfect, (1, 4, 4), range(3), process=process, coupling=Scaled(4.0), num_steps=5)
    torch.testing.assert_close(images, torch.full((3, 1, 4, 4), 0.5))
    assert plan.nfe == 5


def test_no_samples() -> None:
    images, _ = draw(lambda x, t: x, (1, 4, 4), [], process=VPProcess(), num_steps=2)
    assert images.shape == (0, 1, 4, 4)


def test_unfinished_run_is_sampled_from_its_checkpoint(
    runs: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    import shutil

    copy = tmp_path / "run"
    shutil.copytree(runs["vp"], copy)
    (copy / "summary.json").unlink()
    (copy / "model.safetensors").unlink()
    assert not load_run(copy).finished
    assert sample([str(copy), "--seeds", "0", "--steps", "2"]) == 0
    assert "30 steps, unfinished: its newest checkpoint" in capsys.readouterr().out
    a, b = load_run(copy).network.state_dict(), load_run(runs["vp"]).network.state_dict()
    assert all(torch.equal(a[key], b[key]) for key in b)


# --- distillation


@pytest.mark.parametrize(
    ("name", "solver"), [("vp", "ddim"), ("kl", "dpm_solver++"), ("scaled", "ddim"), ("flow", "euler")]
)
def test_distilled_plan_is_closer_and_usable(
    runs: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str, solver: str
) -> None:
    flags = ["--steps", "4", "--teacher_multiplier", "3", "--fit_seeds", "100-131", "--held_out_seeds", "200-231"]
    assert distill([str(runs[name]), "--solver", solver, *flags]) == 0
    path = runs[name] / "plans" / f"{solver}-4.json"
    said = capsys.readouterr().out
    assert f"Next: python -m pydiffaccel.sample {runs[name]} --plan {path}" in said
    plan = load_plan(path)
    assert (plan.nfe, plan.solver) == (4, solver)
    held_out = plan.metadata["distillation"]["held_out"]
    assert held_out["error_distilled"][-1] < held_out["error_base"][-1]
    assert f"{held_out['error_base'][-1]:.6f}" in said
    assert f"{held_out['error_distilled'][-1]:.6f}" in said
    assert json.loads(path.with_suffix(".options.json").read_text())["teacher_multiplier"] == 3
    assert sample([str(runs[name]), "--plan", str(path), "--seeds", "0-2", "--output_dir", str(tmp_path)]) == 0
    assert results(tmp_path / f"plan-{solver}-4.npz")["nfe"] == 4


def test_solver_must_suit_the_run(runs: dict[str, Path], capsys: pytest.CaptureFixture[str]) -> None:
    assert distill([str(runs["vp"]), "--solver", "magic"]) == 2
    assert "unknown solver 'magic'; known: " in capsys.readouterr().err
    assert distill([str(runs["vp"]), "--solver", "dpm_solver++", "--order", "9"]) == 2
    assert "dpm_solver++ has order " in capsys.readouterr().err


# --- refusals


@pytest.mark.parametrize(
    ("flags", "code", "match"),
    [
        (["--solver", "adams_bashforth"], 2, "adams_bashforth runs on flow schedules, got vp"),
        (["--solver", "ddim", "--order", "2"], 2, "ddim has order 1, got 2"),
        (["--spacing", "magic"], 2, "unknown spacing 'magic'"),
        (["--steps", "0"], 2, "--steps must be at least 1, got 0"),
        (["--seeds", "9-3"], 2, "--seeds: a range of seeds runs upwards, got '9-3'"),
        (["--seeds", "x"], 2, "--seeds: seeds are written as 0-63 or 1,5,9, got 'x'"),
        (["--seeds", "0-9999999"], 2, "at most a million seeds"),
        (["--solver", "magic"], 2, "unknown solver 'magic'"),
        (["--plan", "nowhere.json"], 1, "the plan nowhere.json cannot be read: No such file or directory"),
    ],
)
def test_bad_sampling(
    runs: dict[str, Path], capsys: pytest.CaptureFixture[str], flags: list[str], code: int, match: str
) -> None:
    assert sample([str(runs["vp"]), *flags]) == code
    said = capsys.readouterr().err
    assert match in said
    assert said.count("\n") == 1


def test_plan_of_another_schedule(runs: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from pydiffaccel.solvers import make_plan

    make_plan("euler", FlowProcess(), 3).save(tmp_path / "plan.json")
    assert sample([str(runs["vp"]), "--plan", str(tmp_path / "plan.json")]) == 1
    assert (
        "the plan is for another noise schedule (FlowSchedule()) than the model's (VPSchedule("
        in capsys.readouterr().err
    )
    with pytest.raises(ValueError, match="another noise schedule"):
        draw(lambda x, t: x, (1, 4, 4), [1], process=VPProcess(), plan=load_plan(tmp_path / "plan.json"))


@pytest.mark.parametrize("command", [sample, distill])
def test_no_run(command: Callable[[list[str]], int], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert command([str(tmp_path / "nowhere")]) == 1
    assert "nowhere does not exist; train one with: python -m pydiffaccel.train" in capsys.readouterr().err
    assert command([str(tmp_path)]) == 1
    assert "holds no run" in capsys.readouterr().err
    assert command([]) == 2
    assert "missing argument: " in capsys.readouterr().err


def test_common_seeds_are_no_check(runs: dict[str, Path], capsys: pytest.CaptureFixture[str]) -> None:
    assert distill([str(runs["vp"]), "--fit_seeds", "0-9", "--held_out_seeds", "9-12"]) == 2
    assert "nothing in common, got seed 9 in both" in capsys.readouterr().err


def test_damaged_weights(runs: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    import shutil

    shutil.copytree(runs["vp"], tmp_path / "run")
    (tmp_path / "run" / "model.safetensors").write_bytes(b"garbage")
    assert sample([str(tmp_path / "run")]) == 1
    assert "model.safetensors cannot be read" in capsys.readouterr().err


@pytest.mark.parametrize("command", [sample, distill])
def test_dry_run_writes_nothing(
    command: Callable[[list[str]], int], runs: dict[str, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    before = {path: path.stat().st_mtime_ns for path in runs["kl"].rglob("*")}
    assert command([str(runs["kl"]), "--dry-run", "--steps", "7"]) == 0
    assert "7 network evaluations" in capsys.readouterr().out
    assert before == {path: path.stat().st_mtime_ns for path in runs["kl"].rglob("*")}


@pytest.mark.parametrize(
    ("text", "expected"), [("7", [7]), ("0-3", [0, 1, 2, 3]), ("1,5,9-10", [1, 5, 9, 10]), (" 2 , 3", [2, 3])]
)
def test_seeds(text: str, expected: list[int]) -> None:
    assert parse_seeds(text) == expected


@pytest.mark.parametrize("prediction_type", ["edm", "epsilon", "sample"])
def test_a_preconditioned_network_is_sampled(prediction_type: str) -> None:
    """The exact denoiser of N(0.3, 0.5^2), written as the network of an EDM process, gives that law back."""
    mean, std = 0.3, 0.5
    process = EDMProcess(0.5, prediction_type=prediction_type)

    def network(x: Tensor, time: Tensor) -> Tensor:
        sigma = (4 * time.double()).exp().view(-1, 1)
        state = x * (sigma.square() + process.sigma_data**2).sqrt()
        data = mean + std**2 / (std**2 + sigma.square()) * (state - mean)
        if prediction_type == "sample":
            return data
        if prediction_type == "epsilon":
            return (state - data) / sigma
        square = sigma.square() + process.sigma_data**2
        skip, out = process.sigma_data**2 / square, sigma * process.sigma_data / square.sqrt()
        return (data - skip * state) / out

    samples, plan = draw(network, (3,), range(2000), process=process, solver="edm_heun", num_steps=80)
    assert plan.schedule == process.schedule
    assert abs(float(samples.mean()) - mean) < 0.03
    assert abs(float(samples.std()) - std) < 0.02
