"""Flags of what changes over a run: training times and momentum."""

from __future__ import annotations

from dataclasses import dataclass

from pydiffaccel._cli import UsageError
from pydiffaccel.trainer.config.base import OptionGroup

__all__ = ["ScheduleOptions"]


@dataclass(frozen=True)
class ScheduleOptions(OptionGroup):
    """What changes over the run."""

    curriculum: bool = False
    """Move the training times from uniform towards the curriculum's distribution: a Gaussian over the time steps, on
    continuous time over those of the same signal-to-noise ratio."""
    curriculum_weight: float = 1.0
    """Weight of the curriculum at the end of the run; 0 turns it off."""
    curriculum_importance: bool = False
    """Weight the loss so that its expected value is that of uniform times, under --curriculum."""
    momentum_decay: bool = False
    """Let the momentum decay to 0 over the run, the learning rate compensated."""
    momentum_decay_strength: float = 1.0
    """How far the momentum decays; 0 turns it off."""

    def check(self) -> None:
        self._within(0, 1, "curriculum_weight", "momentum_decay_strength")
        if self.curriculum_importance and not self.curriculum:
            raise UsageError("--curriculum_importance needs --curriculum")
