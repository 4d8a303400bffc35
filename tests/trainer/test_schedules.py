"""Densities of times, weights of the loss and momentum decay from the command line."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from pydiffaccel.curriculum import ContinuousCurriculum, TimestepCurriculum
from pydiffaccel.densities import CosMap, LogitNormal, Mode, NoiseDensity, SpeedDensity
from pydiffaccel.losses.weights import WEIGHTINGS
from pydiffaccel.train import main
from pydiffaccel.trainer.build import make_curriculum, make_process, make_schedulers, make_weighting
from pydiffaccel.trainer.config import TrainOptions
from pydiffaccel.trainer.config.objective import LossWeightingName
from pydiffaccel.trainer.config.schedules import with_bare_flags

from .conftest import continues_exactly, losses, refused, same_run

Train = Callable[..., Path]
SHORT = ("--lr_warmup_steps", "1")


def built(**options: object) -> object:
    made = TrainOptions(**options)  # type: ignore[arg-type]
    return make_curriculum(made, make_process(made))


def test_flags_name_densities() -> None:
    assert built() is None
    logit = built(timestep_density="logit_normal", logit_mean=0.5, logit_std=2.0, density_importance=True)
    assert isinstance(logit, NoiseDensity)
    assert logit.law == LogitNormal(0.5, 2.0)
    assert logit.importance
    for forward in ("vp", "flow", "kl"):
        made = built(forward=forward, timestep_density="mode", mode_scale=0.5)
        assert isinstance(made, NoiseDensity)
        assert made.law == Mode(0.5)
    cosmap = built(timestep_density="cosmap", noise_schedule="continuous_cosine")
    assert isinstance(cosmap, NoiseDensity)
    assert cosmap.law == CosMap()
    speed = built(timestep_density="speed", speed_suppression=3.0, speed_threshold=0.2)
    assert isinstance(speed, SpeedDensity)
    assert (speed.suppression, speed.threshold, speed.importance) == (3.0, 0.2, False)


@pytest.mark.parametrize("noise_schedule", ["linear", "continuous_linear"])
def test_flags_name_the_curriculum(noise_schedule: str) -> None:
    options = {"curriculum_mu": 0.6, "curriculum_width": 0.1, "curriculum_weight": 0.5, "curriculum_importance": True}
    made = built(curriculum=True, noise_schedule=noise_schedule, max_train_steps=7, **options)
    assert isinstance(made, (TimestepCurriculum, ContinuousCurriculum))
    assert (made.mu, made.width, made.max_weight, made.importance, made.total_steps) == (0.6, 0.1, 0.5, True, 7)


def test_flags_name_weights() -> None:
    assert set(LossWeightingName.__args__) == {"none", *WEIGHTINGS}  # type: ignore[attr-defined]
    for options, name, gamma in (
        (TrainOptions(snr_gamma=2.0), "min_snr", 2.0),
        (TrainOptions(loss_weighting="min_snr"), "min_snr", 5.0),
        (TrainOptions(loss_weighting="min_snr", snr_gamma=3.0), "min_snr", 3.0),
        (TrainOptions(loss_weighting="p2", p2_gamma=0.5, p2_k=2.0), "p2", 5.0),
        (TrainOptions(loss_weighting="change_aware", change_ceiling=0.8), "change_aware", 5.0),
    ):
        weighting = make_weighting(options, make_process(options))
        assert weighting is not None
        assert (weighting.name, weighting.snr_gamma) == (name, gamma)
        assert (weighting.p2_gamma, weighting.p2_k) == (options.p2_gamma, options.p2_k)
        assert weighting.ceiling == options.change_ceiling
    assert make_weighting(TrainOptions(), make_process(TrainOptions())) is None


def test_momentum_decay_may_stand_alone() -> None:
    assert with_bare_flags(["--momentum_decay"]) == ["--momentum_decay", "both"]
    assert with_bare_flags(["--momentum_decay", "--seed", "1"]) == ["--momentum_decay", "both", "--seed", "1"]
    assert with_bare_flags(["--momentum-decay", "lr_only"]) == ["--momentum-decay", "lr_only"]
    assert with_bare_flags(["--no_momentum_decay", "--seed", "1"]) == ["--momentum_decay", "off", "--seed", "1"]
    assert with_bare_flags(["--momentum_decay=beta_only"]) == ["--momentum_decay=beta_only"]


@pytest.mark.parametrize(("old", "new"), [(True, "both"), (False, "off")])
def test_options_of_older_runs_are_read(old: bool, new: str) -> None:
    today = TrainOptions(momentum_decay=new, snr_gamma=2.0, curriculum=True)  # type: ignore[arg-type]
    fields = {"loss_weighting", "p2_gamma", "p2_k", "change_ceiling", "curriculum_mu", "curriculum_width"}
    fields |= {key for key in today.to_dict() if key.startswith(("logit_", "mode_", "speed_", "density_", "timestep_"))}
    before = {key: value for key, value in today.to_dict().items() if key not in fields} | {"momentum_decay": old}
    assert TrainOptions.from_dict(json.loads(json.dumps(before))) == today


def test_momentum_decay_has_its_parts() -> None:
    rates = {}
    for parts in ("off", "lr_only", "beta_only", "both"):
        options = TrainOptions(momentum_decay=parts, max_train_steps=10, lr_warmup_steps=0)  # type: ignore[arg-type]
        optimizer = torch.optim.AdamW([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
        schedulers = make_schedulers(options, optimizer)
        for _ in range(10):
            optimizer.step()
            for scheduler in schedulers:
                scheduler.step()
        group = optimizer.param_groups[0]
        rates[parts] = (round(group["lr"], 12), group["betas"][0])
    assert rates == {"off": (1.0, 0.9), "lr_only": (0.1, 0.9), "beta_only": (1.0, 0.0), "both": (0.1, 0.0)}


@pytest.mark.parametrize(
    ("flags", "plain"),
    [
        (("--forward", "flow", "--timestep_density", "mode", "--mode_scale", "0"), ("--forward", "flow")),
        (("--timestep_density", "speed", "--speed_suppression", "1", "--density_importance"), ()),
        (("--loss_weighting", "epsilon"), ()),
        (("--loss_weighting", "change_aware", "--change_ceiling", "0.5"), ()),
        (("--loss_weighting", "min_snr"), ("--snr_gamma", "5")),
        (("--momentum_decay", "lr_only", "--momentum_decay_strength", "0"), ()),
        (("--momentum_decay",), ("--momentum_decay", "both")),
        (("--curriculum", "--curriculum_mu", "0.3"), ("--curriculum",)),
    ],
    ids=str,
)
def test_null_settings_are_the_baseline(train: Train, flags: tuple[str, ...], plain: tuple[str, ...]) -> None:
    same_run(train("a", *SHORT, *flags, steps=3), train("b", *SHORT, *plain, steps=3))


@pytest.mark.parametrize(
    ("flags", "plain"),
    [
        (("--timestep_density", "logit_normal"), ()),
        (("--timestep_density", "logit_normal", "--logit_mean", "1"), ("--timestep_density", "logit_normal")),
        (("--timestep_density", "logit_normal", "--logit_std", "2"), ("--timestep_density", "logit_normal")),
        (("--timestep_density", "mode", "--density_importance"), ("--timestep_density", "mode")),
        (("--timestep_density", "mode", "--mode_scale", "0.5"), ("--timestep_density", "mode")),
        (("--timestep_density", "cosmap", "--forward", "flow"), ("--forward", "flow")),
        (("--timestep_density", "speed"), ()),
        (("--curriculum_mu", "0.8", "--curriculum"), ("--curriculum",)),
        (("--curriculum_width", "0.05", "--curriculum"), ("--curriculum",)),
        (("--momentum_decay", "lr_only"), ("--momentum_decay",)),
        (("--momentum_decay", "beta_only"), ("--momentum_decay",)),
        (("--loss_weighting", "p2", "--p2_gamma", "0.5"), ("--loss_weighting", "p2")),
        (("--loss_weighting", "p2", "--p2_k", "3"), ("--loss_weighting", "p2")),
        (("--loss_weighting", "change_aware"), ()),
        (("--loss_weighting", "cosmap", "--forward", "flow"), ("--forward", "flow")),
    ],
    ids=str,
)
def test_every_flag_does_something(train: Train, flags: tuple[str, ...], plain: tuple[str, ...]) -> None:
    a, b = train("a", *SHORT, *plain, *flags, steps=4), train("b", *SHORT, *plain, steps=4)
    assert losses(a) != losses(b)


@pytest.mark.parametrize(
    "flags",
    [
        ("--timestep_density", "logit_normal", "--momentum_decay", "beta_only", "--loss_weighting", "p2"),
        ("--forward", "kl", "--kl_mode", "path", "--timestep_density", "mode", "--momentum_decay", "lr_only"),
    ],
    ids=str,
)
def test_continued_equals_uninterrupted(train: Train, flags: tuple[str, ...], monkeypatch: pytest.MonkeyPatch) -> None:
    continues_exactly(train, monkeypatch, flags)


@pytest.mark.parametrize(
    ("flags", "match"),
    [
        (("--timestep_density", "beta"), "invalid choice 'beta' for argument '--timestep_density'"),
        (("--logit_mean", "1"), "--logit_mean needs --timestep_density logit_normal, got --timestep_density uniform"),
        (
            ("--timestep_density", "mode", "--speed_suppression", "2"),
            "--speed_suppression needs --timestep_density speed",
        ),
        (
            ("--timestep_density", "mode", "--mode_scale", "3"),
            "--timestep_density mode: scale must lie in [-1, 2 / (pi",
        ),
        (("--timestep_density", "logit_normal", "--logit_std", "0"), "--logit_std must be a positive number, got 0.0"),
        (
            ("--timestep_density", "logit_normal", "--logit_mean", "inf"),
            "--logit_mean must be a finite number, got inf",
        ),
        (("--timestep_density", "logit_normal", "--logit_mean", "99"), "lies outside of the process' noise levels"),
        (("--timestep_density", "speed", "--speed_suppression", "0.5"), "suppression must be at least 1 and finite"),
        (("--timestep_density", "speed", "--forward", "flow"), "--timestep_density speed: asymmetric sampling needs a"),
        (("--density_importance",), "--density_importance needs a --timestep_density, got uniform"),
        (("--curriculum", "--timestep_density", "mode"), "does not go with --timestep_density mode"),
        (("--curriculum_mu", "0.5"), "--curriculum_mu needs --curriculum"),
        (("--curriculum", "--curriculum_width", "0"), "--curriculum_width must be a positive number, got 0.0"),
        (("--curriculum", "--curriculum_mu", "nan"), "--curriculum_mu must be a finite number, got nan"),
        (
            ("--curriculum", "--curriculum_mu", "9", "--curriculum_width", "0.1", "--forward", "flow"),
            "--curriculum: the Gaussian of mu 9 and width 0.1 lies outside",
        ),
        (("--momentum_decay", "all"), "invalid choice 'all' for argument '--momentum_decay'"),
        (("--snr_gamma", "5", "--loss_weighting", "p2"), "--snr_gamma needs --loss_weighting min_snr, got"),
        (("--p2_k", "2"), "--p2_k needs --loss_weighting p2, got --loss_weighting none"),
        (
            ("--loss_weighting", "change_aware", "--change_ceiling", "0.4"),
            "--change_ceiling must be in [0.5, 1], got 0.4",
        ),
        (("--loss_weighting", "change_aware", "--forward", "flow"), "need a noise level whose slope changes"),
    ],
)
def test_bad_usage(tmp_path: Path, capsys: pytest.CaptureFixture[str], flags: tuple[str, ...], match: str) -> None:
    assert match in refused(capsys, tmp_path / "run", *flags, code=2)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (("--timestep_density", "logit_normal"), "logit-normal times of mean 0 and width 1"),
        (("--timestep_density", "mode", "--density_importance"), "mode times of scale 1.29 with importance weights"),
        (("--timestep_density", "cosmap"), "CosMap times"),
        (("--timestep_density", "speed"), "asymmetric times, 5 to 1 before the noise level has converged"),
        (("--curriculum",), "curriculum of weight 1, centre 0.3 and width 0.3"),
        (("--momentum_decay",), "momentum decay of strength 1"),
        (("--momentum_decay", "lr_only"), "momentum decay of strength 1, the learning rate alone"),
        (("--momentum_decay", "beta_only"), "momentum decay of strength 1 without compensation"),
        (("--loss_weighting", "p2"), "predicts epsilon, P2 weights of gamma 1 and k 1"),
        (("--loss_weighting", "change_aware"), "change-aware weights of ceiling 0.6"),
        (("--loss_weighting", "sample"), "predicts epsilon, weights sample"),
    ],
)
def test_the_plan_says_what_is_trained(capsys: pytest.CaptureFixture[str], flags: tuple[str, ...], said: str) -> None:
    assert main(["--dry_run", *flags]) == 0
    assert said in capsys.readouterr().out
