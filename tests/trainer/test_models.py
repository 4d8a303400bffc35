"""The commands on what is no run: a Python function; plans and comparisons."""

from __future__ import annotations

import json
import re
import textwrap
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pydiffaccel._cli import CommandError
from pydiffaccel.distill import main as distill
from pydiffaccel.models import load_model
from pydiffaccel.plan import exported
from pydiffaccel.plan import main as plan_command
from pydiffaccel.sample import main as sample
from pydiffaccel.schedule import FlowSchedule, VPSchedule
from pydiffaccel.solvers import Plan, load_plan, make_plan

SEEDS = ["--fit_seeds", "0-31", "--held_out_seeds", "100-131", "--teacher_multiplier", "4", "--num_threads", "1"]

MODULE = """
    import torch
    from pydiffaccel import Denoiser, FlowProcess, VPProcess, VPSchedule
    from pydiffaccel.solvers.point import output_parts

    process = VPProcess()
    generator = torch.Generator().manual_seed(0)
    centres = torch.randn(5, 1, 4, 4, generator=generator) * 0.5

    class Mixture(Denoiser):
        def __call__(self, x, point, output_type):
            variance = point.alpha**2 * 0.04 + point.sigma**2
            offset = x[:, None] - point.alpha * centres
            weight = torch.softmax(-offset.square().flatten(2).sum(-1) / (2 * variance), dim=1)
            best = centres + point.alpha * 0.04 / variance * offset
            x_0 = (weight[..., None, None, None] * best).sum(1)
            p, q = output_parts(output_type, point.alpha, point.sigma)
            return p * x_0 + q * (x - point.alpha * x_0) / point.sigma

    class Net(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.weight = torch.nn.Parameter(torch.tensor(0.5))
        def forward(self, x, t):
            return torch.tanh(self.weight * x * (1 + t.view(-1, *[1] * (x.dim() - 1)) / 1000))

    def mixture():
        return Mixture(), VPSchedule.linear(), (1, 4, 4)

    def network():
        return Net(), process, (1, 4, 4)

    def flow():
        return Net(), FlowProcess(), (1, 4, 4)

    def vectors():
        return Net(), process, (7,)

    def wrong():
        return Net(), process

    def wrong_shape():
        return Net(), process, (1, -4, 4)

    def no_process():
        return Net(), VPSchedule.linear(), (1, 4, 4)

    def late_nan():
        return (lambda x, t: torch.where(t.view(-1, 1, 1, 1) < 300, torch.nan, x)), process, (1, 4, 4)

    def narrow():
        return (lambda x, t: x[..., :2]), process, (1, 4, 4)

    def asks_for_more():
        return (lambda x, t, labels: x), process, (1, 4, 4)
"""


@pytest.fixture
def module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    (tmp_path / "my_models.py").write_text(textwrap.dedent(MODULE))
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(__import__("sys").modules, "my_models", raising=False)
    monkeypatch.chdir(tmp_path)
    return "my_models"


def report_of(path: Path) -> dict[str, Any]:
    report: dict[str, Any] = load_plan(path).metadata["distillation"]
    return report


def test_distill_and_sample_a_function(module: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert distill([f"{module}:network", "--solver", "dpm_solver++", "--steps", "4", *SEEDS]) == 0
    path = Path("plans") / "dpm_solver++-4.json"
    assert "held-out seeds, after the last step" in capsys.readouterr().out
    report = report_of(path)
    assert report["model"]["name"] == "my_models:network"
    assert report["model"]["hash"] == load_model("my_models:network").hash
    assert report["seeds"] == {"fit": "0-31", "held_out": "100-131"}
    assert report["date"].startswith("20")
    assert sample([f"{module}:network", "--plan", str(path), "--seeds", "0-2"]) == 0
    with np.load(Path("samples") / "plan-dpm_solver++-4.npz") as found:
        assert found["samples"].shape == (3, 1, 4, 4)
    assert "note" not in capsys.readouterr().err


def test_a_plan_for_other_weights_is_noted(module: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert distill([f"{module}:network", "--steps", "3", *SEEDS]) == 0
    source = Path("my_models.py")
    source.write_text(source.read_text().replace("torch.tensor(0.5)", "torch.tensor(0.25)"))
    del __import__("sys").modules["my_models"]
    __import__("importlib").invalidate_caches()
    assert sample([f"{module}:network", "--plan", "plans/ddim-3.json", "--seeds", "0"]) == 0
    assert "was fitted to other weights than these" in capsys.readouterr().err


@pytest.mark.parametrize("parameters", ["lambda", "history", "none"])
def test_learned_grid_on_the_command_line(module: str, parameters: str, capsys: pytest.CaptureFixture[str]) -> None:
    flags = ["--steps", "5", "--learn_grid", "--parameters", parameters, "--output", "out/mine.json", *SEEDS]
    assert distill([f"{module}:mixture", *flags]) == 0
    said = capsys.readouterr().out
    assert "learned grid: levels by " in said
    report = report_of(Path("out/mine.json"))
    assert report["parameters"] == parameters
    assert report["held_out"]["error_distilled"][-1] < report["held_out"]["error_base"][-1]
    assert json.loads(Path("out/mine.options.json").read_text())["learn_grid"] is True


def test_a_worse_plan_is_not_saved(module: str, capsys: pytest.CaptureFixture[str]) -> None:
    # Two factors per step from one sample of sixteen numbers.
    flags = ["--solver", "dpm_solver++", "--steps", "6", "--parameters", "history", "--ridge", "0", "--fit_seeds", "1"]
    flags += ["--held_out_seeds", "100-131"]
    assert distill([f"{module}:mixture", *flags]) == 1
    said = capsys.readouterr().err
    assert "is worse than dpm_solver++ on the held-out seeds" in said
    assert "--force" in said
    assert not Path("plans").exists()
    path = Path("plans") / "dpm_solver++-6.json"
    assert distill([f"{module}:mixture", *flags, "--force"]) == 0
    errors = report_of(path)["held_out"]
    assert errors["error_distilled"][-1] > errors["error_base"][-1]
    # Pulled back to the base far enough, it is the base.
    assert distill([f"{module}:mixture", *flags, "--ridge", "inf"]) == 0
    assert load_plan(path).evaluations == make_plan("dpm_solver++", VPSchedule.linear(), 6).evaluations


@pytest.mark.parametrize(
    ("flags", "match"),
    [
        (["--parameters", "none"], "--parameters none leaves nothing to fit; add --learn_grid"),
        (["--learn_grid", "--grid", "official"], "--learn_grid needs --grid aligned"),
        (["--ridge", "-1"], "--ridge must not be negative, got -1.0"),
        (["--order", "0"], "--order must be at least 1, got 0"),
        (["--parameters", "all"], "invalid choice 'all'"),
    ],
)
def test_bad_distillation(module: str, flags: list[str], match: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert distill([f"{module}:mixture", *flags]) == 2
    said = capsys.readouterr().err
    assert match in said
    assert said.count("\n") == 1


@pytest.mark.parametrize(
    ("name", "match"),
    [
        ("nowhere_at_all:make", "nowhere_at_all:make cannot be imported: No module named 'nowhere_at_all'"),
        ("my_models:nothing", "the module my_models has no 'nothing'"),
        ("my_models:process", "my_models:process must be a function, got VPProcess"),
        ("math:sqrt", "math:sqrt must be a function that needs no arguments: missing a required argument: 'x'"),
        ("my_models:wrong", "must return a network, its forward process and the shape of a sample, got tuple"),
        ("my_models:wrong_shape", r"the shape of a sample as its third result, got \(1, -4, 4\)"),
        ("my_models:no_process", "a network with its forward process, or a Denoiser with its schedule, got Net"),
    ],
)
def test_functions_that_make_no_model(module: str, name: str, match: str) -> None:
    with pytest.raises(CommandError, match=match):
        load_model(name)


@pytest.mark.parametrize(
    ("name", "match"),
    [
        ("late_nan", r"at evaluation \d+ of \d+ \(t = .*\) the model returned values that are not finite"),
        ("narrow", r"the model must return the state's shape \(32, 1, 4, 4\), got \(32, 1, 4, 2\)"),
        ("asks_for_more", "missing 1 required positional argument: 'labels'"),
    ],
)
def test_models_that_answer_nonsense(module: str, name: str, match: str, capsys: pytest.CaptureFixture[str]) -> None:
    model = f"{module}:{name}"
    grid = ["--learn_grid", "--parameters", "none"]
    for command, flags in (
        (sample, ["--seeds", "0-31", "--steps", "4"]),
        (sample, ["--seeds", "0-31", "--steps", "4", "--compare", "ddim", "--fine_steps", "8"]),
        (distill, ["--steps", "4", *SEEDS]),
        (distill, ["--steps", "4", *grid, *SEEDS]),
    ):
        assert command([model, *flags]) == 1
        (sentence,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("python -m")]
        assert re.search(match, sentence)


def test_only_images_are_drawn(module: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert distill([f"{module}:vectors", "--steps", "2", *SEEDS]) == 0
    assert sample([f"{module}:vectors"]) == 1
    assert "makes samples of shape 7, and only images can be drawn" in capsys.readouterr().err


# --- comparisons


def test_compare(module: str, capsys: pytest.CaptureFixture[str]) -> None:
    from PIL import Image

    assert distill([f"{module}:mixture", "--steps", "5", "--output", "mine.json", *SEEDS]) == 0
    capsys.readouterr()
    flags = ["--compare", "ddim,dpm_solver++,mine.json", "--steps", "3,5", "--seeds", "0-15", "--output_dir", "sheet"]
    assert sample([f"{module}:mixture", *flags]) == 0
    said = capsys.readouterr().out
    results = json.loads(Path("sheet/compare.json").read_text())["results"]
    assert [(row["name"], row["steps"], row["nfe"]) for row in results] == [
        ("ddim", 3, 3),
        ("ddim", 5, 5),
        ("dpm_solver++", 3, 3),
        ("dpm_solver++", 5, 5),
        ("mine", 5, 5),
    ]
    errors = {(row["name"], row["steps"]): row["error"] for row in results}
    assert errors["mine", 5] < errors["ddim", 5] < errors["ddim", 3]
    assert all(row["seconds"] > 0 for row in results)
    assert f"{errors['mine', 5]:.6g}" in said
    assert Image.open("sheet/compare.png").size[0] > 300


def test_errors_are_to_the_fine_solution(module: str) -> None:
    flags = [
        "--compare",
        "dpm_solver++",
        "--spacing",
        "uniform",
        "--steps",
        "20",
        "--fine_steps",
        "20",
        "--seeds",
        "0-3",
    ]
    assert sample([f"{module}:mixture", *flags]) == 0
    assert json.loads(Path("samples/compare.json").read_text())["results"][0]["error"] == 0


@pytest.mark.parametrize(
    ("flags", "code", "match"),
    [
        (["--steps", "5,8"], 2, "--steps takes several numbers with --compare only, got '5,8'"),
        (["--steps", "five"], 2, "--steps: steps are written as 10 or 5,8,10, got 'five'"),
        (["--steps", "5,0", "--compare", "ddim"], 2, "--steps must be at least 1, got 0"),
        (["--compare", "ddim", "--plan", "x.json"], 2, "--plan and --compare exclude each other"),
        (["--compare", "ddim,magic"], 2, "unknown solver 'magic'"),
        (["--compare", "ddim,"], 2, "--compare: solvers and files are written as ddim,unipc, got 'ddim,'"),
        (["--compare", "nowhere.json"], 1, "the plan nowhere.json cannot be read: No such file or directory"),
    ],
)
def test_bad_comparison(
    module: str, flags: list[str], code: int, match: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert sample([f"{module}:mixture", *flags]) == code
    assert match in capsys.readouterr().err


# --- the plan command


def test_show(module: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert distill([f"{module}:network", "--steps", "3", *SEEDS]) == 0
    capsys.readouterr()
    assert plan_command(["show", "plans/ddim-3.json"]) == 0
    said = capsys.readouterr().out
    assert load_plan("plans/ddim-3.json").describe() in said
    for part in (
        "distilled: lambda",
        "teacher: ddim, 12 steps",
        "weights sha256:",
        "seeds: 0-31 to fit",
        "32 held-out",
    ):
        assert part in said
    make_plan("ddim", VPSchedule.linear(), 2).save("base.json")
    assert plan_command(["show", "base.json"]) == 0
    assert "distilled" not in capsys.readouterr().out


def test_export(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    schedule = VPSchedule.linear()
    plan = make_plan("ddim", schedule, 4)
    plan.save(tmp_path / "plan.json")
    assert plan_command(["export", "--format", "diffusers", str(tmp_path / "plan.json")]) == 0
    out = capsys.readouterr()
    numbers = json.loads(out.out)
    assert numbers["timesteps"] == [999, 749, 499, 249]
    assert out.err == ""
    assert plan_command(["export", str(tmp_path / "plan.json")]) == 0
    sigmas = json.loads(capsys.readouterr().out)
    assert sigmas == numbers["sigmas"]
    assert sigmas[-1] == 0
    bar = schedule.alphas_cumprod[[999, 749, 499, 249]]
    assert sigmas[:-1] == pytest.approx(np.sqrt((1 - bar) / bar))


@pytest.mark.parametrize(
    ("plan", "timesteps", "sigmas"),
    [
        (make_plan("euler", FlowSchedule(), 2), [1000, 500], [1, 0.5, 0]),
        (make_plan("dpm_solver++", VPSchedule.linear(), timesteps=[900.5, 20]), [900.5, 20], None),
    ],
)
def test_exported_numbers(plan: Plan, timesteps: list[float], sigmas: list[float] | None) -> None:
    numbers = exported(plan)
    assert numbers["timesteps"] == timesteps
    assert sigmas is None or numbers["sigmas"] == sigmas


def test_diffusers_takes_the_exported_numbers() -> None:
    diffusers = pytest.importorskip("diffusers")
    numbers = exported(make_plan("dpm_solver++", VPSchedule.linear(), 5, spacing="trailing"))
    scheduler = diffusers.DPMSolverMultistepScheduler(
        beta_schedule="linear", use_karras_sigmas=False, final_sigmas_type="zero"
    )
    scheduler.set_timesteps(timesteps=numbers["timesteps"])
    assert scheduler.timesteps.tolist() == numbers["timesteps"]
    assert scheduler.sigmas.tolist() == pytest.approx(numbers["sigmas"], rel=1e-4)


@pytest.mark.parametrize(
    ("content", "match"),
    [
        ("{}", "this is no pydiffaccel.plan file"),
        (None, "plan.json cannot be read: No such file or directory"),
        ("changed", "the plan was changed after it was saved"),
        ("newer", "plan version 99 is unknown"),
    ],
)
def test_bad_plans(tmp_path: Path, content: str | None, match: str, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "plan.json"
    good = make_plan("ddim", VPSchedule.linear(), 2).to_dict()
    if content == "changed":
        good["evaluations"][0]["updates"][0]["b"][0] += 1e-9
    if content == "newer":
        good["version"] = 99
    if content is not None:
        path.write_text(content if content == "{}" else json.dumps(good))
    assert plan_command(["show", str(path)]) == 1
    assert match in capsys.readouterr().err
