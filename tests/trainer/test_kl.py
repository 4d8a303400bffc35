"""KL diffusion from the command line: every mode trains, continues, samples and says what it cost."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from pydiffaccel import (
    Independent,
    KLProcess,
    LossWeighting,
    TimestepCurriculum,
    VPProcess,
    diffusion_loss,
    kl_loss,
    min_snr_weight,
)
from pydiffaccel.losses import KLObjective
from pydiffaccel.sample import main as sample
from pydiffaccel.sampler import load_run
from pydiffaccel.schedule import VPSchedule
from pydiffaccel.solvers import make_plan
from pydiffaccel.train import main
from pydiffaccel.trainer.build import make_process
from pydiffaccel.trainer.config import TrainOptions
from pydiffaccel.trainer.objective import Objective
from pydiffaccel.trainer.run import RunFolder

from .conftest import continues_exactly, losses, refused, same_run

Train = Callable[..., Path]
KL = ("--forward", "kl")
SHORT = ("--lr_warmup_steps", "1")
# Flags, and network evaluations per image.
MODES: list[tuple[tuple[str, ...], int]] = [
    ((), 4),
    (("--kl_terms", "3", "--kl_draws", "antithetic"), 3),
    (("--kl_draws", "orthogonal", "--kl_weights", "uniform"), 4),
    (("--kl_partial", "2"), 2),
    (("--kl_mode", "schedule"), 1),
    (("--kl_mode", "recombined", "--kl_terms", "2"), 2),
    (("--kl_mode", "path"), 4),
    (("--kl_mode", "path", "--kl_path_times", "2", "--kl_basis", "haar"), 2),
]
LEVELS = [
    (),
    ("--kl_basis", "haar"),
    ("--no_kl_renormalise",),
    ("--no_kl_renormalise", "--kl_basis", "haar", "--noise_schedule", "cosine"),
    ("--noise_schedule", "continuous_linear", "--prediction_type", "v_prediction"),
    ("--noise_schedule", "continuous_cosine", "--no_kl_renormalise"),
    ("--noise_schedule", "continuous_constant", "--no_kl_renormalise", "--kl_basis", "haar"),
]


def rows(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


@pytest.mark.parametrize(("flags", "evaluations"), MODES, ids=str)
def test_every_mode_logs_steps_evaluations_and_seconds(
    train: Train, capsys: pytest.CaptureFixture[str], flags: tuple[str, ...], evaluations: int
) -> None:
    folder = train("run", *KL, *flags, "--gradient_accumulation_steps", "2", steps=3)
    said = capsys.readouterr().out
    assert f"evaluations {3 * 16 * evaluations:,} network evaluations for training" in said
    assert "loss        " in said
    assert [row["step"] for row in rows(folder)] == [1, 2, 3]
    assert [row["evaluations"] for row in rows(folder)] == [16 * evaluations * step for step in (1, 2, 3)]
    seconds = [row["seconds"] for row in rows(folder)]
    assert 0 < seconds[0] < seconds[1] < seconds[2]
    summary = json.loads((folder / "summary.json").read_text())
    assert (summary["step"], summary["evaluations"]) == (3, 48 * evaluations)
    assert summary["seconds"] > 0


@pytest.mark.parametrize("flags", LEVELS, ids=str)
def test_sample_knows_the_noise_levels(
    train: Train, flags: tuple[str, ...], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = train("run", *KL, *flags, steps=2)
    process, truncated = load_run(folder).description.process, "--no_kl_renormalise" in flags
    assert isinstance(process, KLProcess)
    assert process == make_process(RunFolder(folder).read_options())
    assert process.renormalise is not truncated
    for solver in ("dpm_solver++", "ddim"):
        assert sample([str(folder), "--seeds", "0-3", "--steps", "3", "--solver", solver]) == 0
        plan = make_plan(solver, process, 3)
        start = plan.schedule.prior_std_at(plan.start.t)
        assert start == pytest.approx(float(process.schedule.sigma(plan.start.t)) if truncated else 1)
    # A plan for the levels of the VP process: the same ones only where the noise is scaled up to them.
    make_plan("ddim", VPProcess(schedule=process.base_schedule), 3).save(tmp_path / "base.json")
    capsys.readouterr()
    asked = [str(folder), "--seeds", "0-3", "--plan", str(tmp_path / "base.json"), "--output_dir", str(tmp_path / "x")]
    assert sample(asked) == (1 if truncated else 0)
    said = capsys.readouterr().err
    assert ("noise schedule" in said) == truncated
    assert "Traceback" not in said


@pytest.mark.parametrize("flags", [flags for flags, _ in MODES[1:]] + LEVELS[3:5], ids=str)
def test_continued_equals_uninterrupted(train: Train, flags: tuple[str, ...], monkeypatch: pytest.MonkeyPatch) -> None:
    flags = (*KL, *flags, "--kl_microbatch", "24", "--snr_gamma", "5")
    continues_exactly(train, monkeypatch, flags)


@pytest.mark.parametrize(
    ("flags", "plain"),
    [
        ((*KL, "--kl_terms", "1", "--kl_draws", "antithetic"), ()),
        ((*KL, "--kl_terms", "1", "--kl_draws", "orthogonal"), ()),
        ((*KL, "--kl_terms", "1", "--kl_partial", "1"), ()),
        ((*KL, "--kl_terms", "1", "--kl_mode", "path", "--kl_path_times", "1"), ()),
        ((*KL, "--kl_terms", "1", "--kl_basis", "haar"), ()),
        ((*KL, "--kl_terms", "5", "--kl_mode", "schedule"), ()),
        ((*KL, "--kl_terms", "5", "--kl_mode", "schedule", "--coupling", "knn"), ("--coupling", "knn")),
        (
            (*KL, "--kl_terms", "1", "--noise_schedule", "continuous_linear", "--snr_gamma", "5"),
            ("--noise_schedule", "continuous_linear", "--snr_gamma", "5"),
        ),
        ((*KL, "--kl_terms", "1", "--noise_schedule", "cosine"), ("--noise_schedule", "cosine")),
        ((*KL, "--kl_weights", "uniform", "--kl_partial", "4"), (*KL, "--kl_weights", "uniform")),
        ((*KL, "--kl_microbatch", "32"), KL),
        ((*KL, "--kl_mode", "path", "--kl_path_times", "4"), (*KL, "--kl_mode", "path")),
        (("--snr_gamma", "1e30", "--no_use_ema"), ("--no_use_ema",)),
        (("--forward", "flow", "--curriculum", "--curriculum_weight", "0"), ("--forward", "flow")),
    ],
    ids=str,
)
def test_null_settings_are_the_baseline(train: Train, flags: tuple[str, ...], plain: tuple[str, ...]) -> None:
    same_run_but_for_metadata(train("a", *flags, steps=3), train("b", *plain, steps=3))


def same_run_but_for_metadata(a: Path, b: Path) -> None:
    from safetensors.torch import load_file

    assert losses(a) == losses(b)
    one, other = load_file(a / "model.safetensors"), load_file(b / "model.safetensors")
    assert one.keys() == other.keys()
    assert all(torch.equal(one[key], other[key]) for key in one)


@pytest.mark.parametrize(
    ("flags", "plain"),
    [
        *((flags, KL) for flags in (("--kl_mode", "path"), ("--kl_mode", "recombined"), ("--kl_mode", "schedule"))),
        *((flags, KL) for flags in (("--kl_partial", "2"), ("--kl_draws", "antithetic"), ("--kl_weights", "uniform"))),
        *((flags, KL) for flags in (("--kl_draws", "orthogonal"), ("--kl_basis", "haar"), ("--no_kl_renormalise",))),
        (("--kl_path_times", "2"), (*KL, "--kl_mode", "path")),
        (("--snr_gamma", "1"), ()),
        (("--snr_gamma", "1", "--forward", "flow"), ("--forward", "flow")),
        (("--noise_schedule", "scaled_linear"), ()),
        (("--noise_schedule", "continuous_cosine"), ("--noise_schedule", "cosine")),
        (("--noise_schedule", "continuous_constant"), ("--noise_schedule", "continuous_linear")),
        (("--curriculum_importance",), ("--curriculum",)),
        (("--curriculum",), ("--forward", "flow")),
        (("--curriculum",), (*KL, "--kl_mode", "path", "--noise_schedule", "continuous_linear")),
    ],
    ids=str,
)
def test_every_flag_does_something(train: Train, flags: tuple[str, ...], plain: tuple[str, ...]) -> None:
    a, b = train("a", *SHORT, *plain, *flags, steps=3), train("b", *SHORT, *plain, steps=3)
    assert losses(a) != losses(b)


@pytest.mark.parametrize("flags", [(), ("--kl_mode", "path"), ("--coupling", "hungarian")], ids=str)
@pytest.mark.parametrize("precision", ["no", "bf16"])
def test_a_microbatch_changes_the_memory_alone(
    train: Train, monkeypatch: pytest.MonkeyPatch, flags: tuple[str, ...], precision: str
) -> None:
    from diffusers import UNet2DModel

    seen: list[int] = []
    original = UNet2DModel.forward

    def watching(self: UNet2DModel, x: torch.Tensor, *rest: Any, **given: Any) -> Any:
        if self.training:
            seen.append(len(x))
        return original(self, x, *rest, **given)

    monkeypatch.setattr(UNet2DModel, "forward", watching)
    flags = (*KL, *flags, "--mixed_precision", precision)
    whole = losses(train("whole", *flags, steps=2))
    assert set(seen) == {32}
    seen.clear()
    parts = losses(train("parts", *flags, "--kl_microbatch", "13", steps=2))
    assert set(seen) == {12, 8}  # 3, 3 and 2 of the 8 images
    assert parts == pytest.approx(whole, rel=1e-5 if precision == "no" else 1e-2)


def test_options_of_older_runs_are_read(train: Train, capsys: pytest.CaptureFixture[str]) -> None:
    folder = train("run", *KL, steps=3)
    options = json.loads((folder / "options.json").read_text())
    old = {key: value for key, value in options.items() if not key.startswith("kl_") or key == "kl_terms"}
    for key in ("noise_schedule", "snr_gamma", "curriculum_importance"):
        del old[key]
    (folder / "options.json").write_text(json.dumps(old))
    process = json.loads((folder / "process.json").read_text())
    del process["process"]["renormalise"]
    (folder / "process.json").write_text(json.dumps(process))
    capsys.readouterr()
    train("run", *KL, steps=3)
    assert "is finished: 3 steps" in capsys.readouterr().out
    same_run(train("run", *KL, steps=5), train("other", *KL, steps=5))


@pytest.mark.parametrize(
    ("flags", "match"),
    [
        (("--kl_draws", "antithetic"), "--kl_draws needs --forward kl, got --forward vp"),
        (("--no_kl_renormalise",), "--kl_renormalise needs --forward kl, got --forward vp"),
        (("--kl_microbatch", "8", "--forward", "flow"), "--kl_microbatch needs --forward kl, got --forward flow"),
        ((*KL, "--kl_path_times", "2"), "--kl_path_times needs --kl_mode path, got --kl_mode component"),
        ((*KL, "--kl_mode", "path", "--kl_path_times", "0"), "--kl_path_times must be at least 1, got 0"),
        ((*KL, "--kl_partial", "2", "--kl_mode", "path"), "--kl_partial needs --kl_mode component, got --kl_mode path"),
        ((*KL, "--kl_draws", "orthogonal", "--kl_mode", "recombined"), "--kl_draws needs --kl_mode component, got"),
        ((*KL, "--kl_weights", "uniform", "--kl_mode", "schedule"), "--kl_weights needs --kl_mode component, got"),
        ((*KL, "--kl_partial", "5"), "--kl_partial must be at most --kl_terms 4, got 5"),
        ((*KL, "--kl_partial", "0"), "--kl_partial must be at least 1, got 0"),
        ((*KL, "--kl_partial", "2", "--kl_draws", "antithetic"), "--kl_partial goes with --kl_draws iid, got"),
        ((*KL, "--kl_draws", "antithetic", "--coupling", "knn"), "it does not go with --coupling knn"),
        (
            (*KL, "--kl_microbatch", "3"),
            "--kl_microbatch must be at least 4, the network evaluations of one image, got",
        ),
        ((*KL, "--kl_microbatch", "0"), "--kl_microbatch must be at least 1, got 0"),
        ((*KL, "--kl_terms", "1000000000000"), "num_terms must be at most 2**24, got 1000000000000"),
        ((*KL, "--kl_terms", "16000000", "--kl_basis", "haar"), "16000000 terms at 1000 times are 16000000000 coeff"),
        ((*KL, "--kl_terms", "20000", "--noise_schedule", "continuous_linear"), "more than the 2**25 that a table may"),
        ((*KL, "--kl_basis", "cosine"), "invalid choice 'cosine' for argument '--kl_basis'"),
        (
            ("--noise_schedule", "cosine", "--forward", "flow"),
            "--noise_schedule is for --forward vp and kl, got cosine",
        ),
        (("--snr_gamma", "0"), "--snr_gamma must be a positive number, got 0.0"),
        (("--snr_gamma", "nan"), "--snr_gamma must be a positive number, got nan"),
        (("--curriculum_importance",), "--curriculum_importance needs --curriculum"),
    ],
)
def test_bad_usage(tmp_path: Path, capsys: pytest.CaptureFixture[str], flags: tuple[str, ...], match: str) -> None:
    assert match in refused(capsys, tmp_path / "run", *flags, code=2)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("flags", "parts"),
    [
        (("--kl_partial", "2"), ("kl with 4 terms, predicts epsilon", "component, 2 of 4 terms at random")),
        (
            ("--kl_mode", "path", "--noise_schedule", "continuous_linear", "--snr_gamma", "5", "--kl_basis", "haar"),
            (
                "kl with 4 terms of basis haar on continuous linear levels, predicts epsilon, min-SNR weights of gamma",
                "path, one smooth path per image at 4 times",
            ),
        ),
        (
            ("--no_kl_renormalise", "--kl_draws", "antithetic", "--kl_weights", "uniform", "--kl_microbatch", "1024"),
            (
                "kl with 4 terms, not renormalised, predicts epsilon",
                "uniform weights, antithetic draws, at most 1,024 evaluations at once",
            ),
        ),
        (("--kl_mode", "recombined"), ("recombined, the errors of 4 terms summed (biased)",)),
        (("--kl_mode", "schedule"), ("schedule, the sum of the terms as one noise",)),
    ],
    ids=str,
)
def test_the_plan_says_what_is_trained(
    capsys: pytest.CaptureFixture[str], flags: tuple[str, ...], parts: tuple[str, ...]
) -> None:
    assert main(["--dry_run", *KL, *flags]) == 0
    said = capsys.readouterr().out
    for part in parts:
        assert part in said


def test_weights_multiply() -> None:
    """Min-SNR weights with the importance weights of a curriculum."""
    process, step = VPProcess(), 6
    objective, both = weighted(process, KLObjective(), None)
    x, place = torch.randn(8, 4, generator=torch.Generator().manual_seed(0)), {**PLACE, "step": step}
    noise, t = objective.noise(x, place), objective.times(8, place, x.device)
    (loss,) = objective.losses(lambda x_t, time: x_t, x, noise, place)
    each = diffusion_loss(lambda x_t, time: x_t, x, t, process=process, noise=noise, reduction="none")
    assert loss.item() == pytest.approx((each * both(t, step)).mean().item(), rel=1e-6)


PLACE: dict[str, Any] = {"seed": 1, "step": 6, "first_sample": 3}


def weighted(
    process: VPProcess, kl: KLObjective, microbatch: int | None
) -> tuple[Objective, Callable[[torch.Tensor, int], torch.Tensor]]:
    """An objective with both kinds of weights, and their product."""
    curriculum = TimestepCurriculum(1000, 10, importance=True)
    weighting = LossWeighting(process, "min_snr", snr_gamma=5.0)
    objective = Objective(process, Independent(), curriculum, weighting, kl, 2, microbatch)
    return objective, lambda t, step: min_snr_weight(process, t, 5.0) * curriculum.weights(step, t)


@pytest.mark.parametrize("microbatch", [None, 7])
@pytest.mark.parametrize("renormalise", [True, False])
@pytest.mark.parametrize("mode", ["component", "schedule", "recombined", "path"])
def test_weights_multiply_the_losses_of_kl(mode: str, renormalise: bool, microbatch: int | None) -> None:
    process = KLProcess(VPSchedule.linear(), 3, renormalise=renormalise)
    objective, both = weighted(process, KLObjective(mode), microbatch)
    x = torch.randn(8, 4, generator=torch.Generator().manual_seed(0))
    t = objective.times(8, PLACE, x.device)
    weight = both(t, PLACE["step"])
    assert weight.shape == ((8, 2) if mode == "path" else (8,))
    assert weight.std() > 0.1 * weight.mean()

    def model(x_t: torch.Tensor, time: torch.Tensor) -> torch.Tensor:
        return x_t * (1 + time / 1000).view(-1, 1)

    found = sum(part.item() for part in objective.losses(model, x, None, PLACE))
    # The loss is linear in its weights: what each sample (and time) counts for itself, times its weight.
    units = torch.eye(weight.numel()).view(-1, *weight.shape)
    each = [kl_loss(model, x, t, process=process, mode=mode, weight=unit, **PLACE).item() for unit in units]
    assert found == pytest.approx(sum(e * w for e, w in zip(each, weight.flatten().tolist(), strict=True)), rel=1e-5)
    assert len(list(objective.losses(model, x, None, PLACE))) == objective.num_losses(8)


def test_times_of_a_path_are_a_function_of_the_image() -> None:
    process = make_process(TrainOptions(forward="kl"))
    objective = Objective(process, Independent(), None, None, KLObjective("path"), 3, None)
    cpu = torch.device("cpu")
    whole = objective.times(8, {"seed": 1, "step": 2, "first_sample": 0}, cpu)
    assert whole.shape == (8, 3)
    assert torch.equal(objective.times(3, {"seed": 1, "step": 2, "first_sample": 5}, cpu), whole[5:])


def test_any_number_of_terms_is_resolved_on_continuous_time() -> None:
    process = make_process(TrainOptions(forward="kl", noise_schedule="continuous_linear", kl_terms=400))
    assert isinstance(process, KLProcess)
    assert process.num_terms == 400
