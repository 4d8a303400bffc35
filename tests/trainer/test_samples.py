"""Grids of samples while a run trains: when, of which weights, and that the training does not notice."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from PIL import Image
from torch import Tensor, nn

from pydiffaccel.trainer import fit, samples
from pydiffaccel.trainer.config import TrainOptions
from pydiffaccel.trainer.loop import Trainer
from pydiffaccel.trainer.samples import _evaluating

from .conftest import TINY, losses, same_run
from .test_ranks_end import end, start

Train = Callable[..., Path]
EVERYTHING = ("--coupling", "queue", "--coupling_ahead", "--curriculum", "--momentum_decay")


def grids(folder: Path) -> list[str]:
    return sorted(path.name for path in (folder / "samples").glob("step_*.png"))


@pytest.mark.parametrize("flags", [(), ("--no_use_ema",), EVERYTHING, ("--class_conditional",)])
def test_sampling_does_not_touch_the_training(train: Train, flags: tuple[str, ...]) -> None:
    watched, plain = train("a", "--sample_every", "2", *flags), train("b", *flags)
    same_run(watched, plain)
    assert grids(watched) == [f"step_{step:08d}.png" for step in (2, 4, 6)]
    assert not (plain / "samples").exists()
    assert (watched / "samples.png").read_bytes() == (plain / "samples.png").read_bytes()
    assert (watched / "samples" / "step_00000006.png").read_bytes() == (watched / "samples.png").read_bytes()
    pictures = {(watched / "samples" / name).read_bytes() for name in grids(watched)}
    assert len(pictures) == 3  # the weights move
    columns, rows = (8, 10) if "--class_conditional" in flags else (8, 8)
    assert Image.open(watched / "samples.png").size == (2 + 50 * columns, 2 + 50 * rows)


def test_a_continued_run_has_every_grid(train: Train) -> None:
    whole = train("a", "--sample_every", "2")
    train("b", "--sample_every", "2", steps=4)
    parts = train("b", "--sample_every", "2")
    same_run(whole, parts)
    for name in grids(whole):
        assert (whole / "samples" / name).read_bytes() == (parts / "samples" / name).read_bytes()


def test_the_time_of_sampling_is_not_training(train: Train, monkeypatch: pytest.MonkeyPatch) -> None:
    draw, late = samples.draw_samples, [0.0]

    def slow(trainer: Trainer, weights: dict[str, dict[str, Tensor]]) -> object:
        late[0] += 1e6
        return draw(trainer, weights)

    monkeypatch.setattr(samples, "draw_samples", slow)
    monkeypatch.setattr(fit, "time", SimpleNamespace(monotonic=lambda: time.monotonic() + late[0]))
    folder = train("run", "--sample_every", "2", steps=4)
    assert late[0] == 3e6
    assert json.loads((folder / "summary.json").read_text())["seconds"] < 1e6


def test_a_picture_is_not_worth_a_run(
    train: Train, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(*args: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(samples, "save_grid", fails)
    folder = train("run", "--sample_every", "4")
    assert "note: no samples of step 4: [Errno 28] No space left on device" in capsys.readouterr().err
    assert grids(folder) == []
    assert len(losses(folder)) == 6


def test_modes_are_as_before() -> None:
    network = nn.Sequential(nn.Dropout(), nn.Sequential(nn.Dropout().eval()))
    network.train()
    network[1][0].eval()  # type: ignore[index]
    before = [module.training for module in network.modules()]
    with _evaluating(network):
        assert not any(module.training for module in network.modules())
    assert [module.training for module in network.modules()] == before
    assert len(set(before)) == 2


def test_the_generator_of_torch_is_left_alone(train: Train) -> None:
    torch.manual_seed(3)
    expected = torch.random.get_rng_state()
    train("a", "--sample_every", "1", steps=2)
    assert torch.equal(torch.random.get_rng_state(), expected)


def test_runs_of_before_the_option_load() -> None:
    old = TrainOptions().to_dict()
    for name in ("sample_every", "report_to", "tracker_project_name"):
        del old[name]
    assert TrainOptions.from_dict(old) == TrainOptions()
    # They may change when a run is continued.
    assert not TrainOptions(sample_every=3, report_to="all", tracker_project_name="x").differences(TrainOptions())


@pytest.mark.parametrize("parallel", ["ddp", "fsdp"])
def test_only_the_main_rank_samples(train: Train, tmp_path: Path, parallel: str) -> None:
    flags = ["--max_train_steps", "4", "--sample_every", "2", "--parallel", parallel, *TINY]
    codes, _, said = end(start(tmp_path / "ranks", [flags, flags]))
    assert codes == [0, 0], said
    assert grids(tmp_path / "ranks") == ["step_00000002.png", "step_00000004.png"]
    assert losses(tmp_path / "ranks") == pytest.approx(losses(train("one", steps=4)), rel=1e-5)
