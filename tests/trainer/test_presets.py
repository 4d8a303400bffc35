"""--preset fast: what it sets, what it leaves alone, and what it refuses."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from pydiffaccel._cli import UsageError
from pydiffaccel.trainer.config import TrainOptions
from pydiffaccel.trainer.config.presets import with_preset
from pydiffaccel.trainer.run import RunFolder

from .conftest import refused

Train = Callable[..., Path]
PAIRED = ["--coupling", "hungarian", "--coupling_window", "8", "--coupling_ahead"]
TIMES = ["--timestep_density", "logit_normal", "--learning_rate", "0.004"]


@pytest.mark.parametrize(
    ("written", "meant"),
    [
        (["--preset", "fast", "--forward", "flow"], ["--forward", "flow", *PAIRED, *TIMES]),
        (["--preset=fast", "--seed", "1"], ["--seed", "1", "--prediction_type", "sample", *PAIRED, *TIMES]),
        (["--preset", "fast", "--forward=flow", "--coupling", "none"],
         ["--forward=flow", "--coupling", "none", *TIMES]),
        (["--preset", "fast", "--forward=flow", "--coupling-window", "2"],
         ["--forward=flow", "--coupling-window", "2", "--coupling", "hungarian", "--coupling_ahead", *TIMES]),
        (["--forward=flow", "--no_coupling_ahead", "--preset", "fast", "--curriculum"],
         ["--forward=flow", "--no_coupling_ahead", "--curriculum", *PAIRED[:-1], *TIMES[2:]]),
        (["--forward=flow", "--hungarian_pool", "256", "--preset", "fast"],
         ["--forward=flow", "--hungarian_pool", "256", *PAIRED[:2], PAIRED[-1], *TIMES]),
        (["--preset", "fast", "--prediction_type", "epsilon"],
         ["--prediction_type", "epsilon", "--snr_gamma", "5.0", "--data_scale", "2.0"]),
        (["--preset", "fast", "--prediction_type", "epsilon", "--loss_weighting", "p2", "--data_scale", "1"],
         ["--prediction_type", "epsilon", "--loss_weighting", "p2", "--data_scale", "1"]),
        (["--preset", "none", "--seed", "1"], ["--preset", "none", "--seed", "1"]),
        (["--seed", "1"], ["--seed", "1"]),
    ],
)  # fmt: skip
def test_flags_that_are_spelled_stay(written: list[str], meant: list[str]) -> None:
    assert with_preset(written) == meant


def test_options_left_at_their_defaults_become_the_presets() -> None:
    options = TrainOptions(preset="fast", forward="flow")
    assert (options.coupling, options.coupling_window, options.timestep_density) == ("hungarian", 8, "logit_normal")
    assert TrainOptions(preset="fast").prediction_type == "sample"
    assert TrainOptions(preset="fast", coupling="knn").coupling_window == 1
    # What is written down is what it stands for, so that a run does not change with the preset.
    assert options == TrainOptions.from_dict(options.to_dict())
    assert "preset" not in options.to_dict()
    assert TrainOptions(preset="none") == TrainOptions()


def test_what_was_not_measured_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    said = refused(capsys, tmp_path / "run", "--preset", "fast", "--forward", "kl", code=2)
    assert "--preset fast goes with --forward flow or vp, got kl" in said
    with pytest.raises(UsageError, match="--preset must be none or fast, got quick"):
        TrainOptions(preset="quick")  # type: ignore[arg-type]
    assert "quick" in refused(capsys, tmp_path / "run", "--preset", "quick", code=2)


def test_a_run_of_the_preset_is_that_of_its_flags(train: Train) -> None:
    preset = train("preset", "--preset", "fast", steps=4)
    spelled = train("spelled", "--prediction_type", "sample", *PAIRED, *TIMES, steps=4)
    assert RunFolder(preset).model.read_bytes() == RunFolder(spelled).model.read_bytes()
