"""docs/schedules.md shows what the package computes."""

from __future__ import annotations

import re
from pathlib import Path
from typing import get_args, get_type_hints

import pytest
import torch

from pydiffaccel import CosMap, LogitNormal, Mode, NoiseDensity, SpeedDensity, VPProcess, VPSchedule
from pydiffaccel.losses.weights import WEIGHTINGS

ROOT = Path(__file__).parents[1]
PAGE = (ROOT / "docs" / "schedules.md").read_text(encoding="utf-8")
CHAINS = {
    "linear": VPSchedule.linear(),
    "scaled_linear": VPSchedule.scaled_linear(),
    "cosine": VPSchedule.cosine(),
}


def test_quantiles_of_the_laws() -> None:
    for law, name in ((LogitNormal(), "LogitNormal()"), (Mode(), "Mode()"), (CosMap(), "CosMap()")):
        cells = []
        for chain in CHAINS.values():
            below = NoiseDensity(VPProcess(schedule=chain), law).probabilities().cumsum(0)
            at = torch.searchsorted(below, torch.tensor([0.1, 0.5, 0.9], dtype=torch.float64))
            cells.append(", ".join(str(int(index)) for index in at))
        assert f"| `{name}` | {' | '.join(cells)} |" in PAGE


def test_borders_of_asymmetric_sampling() -> None:
    linear, scaled, cosine = (int(SpeedDensity(VPProcess(schedule=chain)).border) for chain in CHAINS.values())
    said = " ".join(PAGE.split())
    assert f"index {linear} on linear levels, {scaled} on scaled_linear, {cosine} on cosine" in said


def test_every_weighting_has_its_row() -> None:
    rows = [line for line in PAGE.splitlines() if line.startswith("| `")]
    for name in WEIGHTINGS:
        assert any(f"`{name}`" in row for row in rows), name


def test_flags_are_the_trainers() -> None:
    pytest.importorskip("tyro")
    from pydiffaccel.trainer.config import TrainOptions

    flags = {flag.removeprefix("--") for flag in re.findall(r"--[a-z0-9_]+", PAGE)}
    hints = get_type_hints(TrainOptions)
    assert flags <= set(hints)
    for flag in ("timestep_density", "momentum_decay", "loss_weighting"):
        for choice in get_args(hints[flag]):
            assert f"`{choice}`" in PAGE, (flag, choice)
