"""Flags of training times and of what changes over a run."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_args

from pydiffaccel._cli import UsageError
from pydiffaccel.trainer.config.base import OptionGroup

__all__ = ["MomentumDecayParts", "ScheduleOptions", "of_older_runs", "with_bare_flags"]

MomentumDecayParts = Literal["off", "lr_only", "beta_only", "both"]

# What a flag without its value stands for.
_BARE = {"--momentum_decay": "both", "--momentum-decay": "both"}
_NEGATED = {"--no_momentum_decay": "off", "--no-momentum-decay": "off"}
# Flags that belong to one density.
_OF_DENSITY = {
    "logit_mean": "logit_normal",
    "logit_std": "logit_normal",
    "mode_scale": "mode",
    "speed_suppression": "speed",
    "speed_threshold": "speed",
}


@dataclass(frozen=True)
class ScheduleOptions(OptionGroup):
    """Which times are trained, and what changes over the run."""

    timestep_density: Literal["uniform", "logit_normal", "mode", "cosmap", "speed"] = "uniform"
    """Density of the training times: uniform; the three of Stable Diffusion 3, over the share of noise; fewer times
    from where the noise level has converged (SpeeD)."""
    logit_mean: float = 0.0
    """Mean of the logit of the share of noise under --timestep_density logit_normal; positive is noisier."""
    logit_std: float = 1.0
    """Standard deviation of the same."""
    mode_scale: float = 1.29
    """Scale of --timestep_density mode, from -1 (the ends) over 0 (uniform) to 1.75 (the middle)."""
    speed_suppression: float = 5.0
    """How many times as likely the other times are under --timestep_density speed; 1 is uniform."""
    speed_threshold: float = 0.1
    """Slope of the noise level below which it has converged under --timestep_density speed."""
    density_importance: bool = False
    """Weight the loss so that its expected value is that of uniform times, under --timestep_density."""
    curriculum: bool = False
    """Move the training times from uniform towards the curriculum's distribution: a Gaussian over the time steps, on
    continuous time over those of the same signal-to-noise ratio."""
    curriculum_weight: float = 1.0
    """Weight of the curriculum at the end of the run; 0 turns it off."""
    curriculum_mu: float = 0.3
    """Centre of the curriculum's Gaussian, as a part of the time steps."""
    curriculum_width: float = 0.3
    """Standard deviation of the curriculum's Gaussian, as a part of the time steps."""
    curriculum_importance: bool = False
    """Weight the loss so that its expected value is that of uniform times, under --curriculum."""
    momentum_decay: MomentumDecayParts = "off"
    """Let the momentum decay to 0 over the run, the learning rate compensated (both; also what the flag means without a
    value), or one of the two alone, as controls."""
    momentum_decay_strength: float = 1.0
    """How far the momentum decays; 0 turns it off."""

    def check(self) -> None:
        self._within(0, 1, "curriculum_weight", "momentum_decay_strength")
        self._positive("logit_std", "speed_threshold", "curriculum_width")
        for name in ("logit_mean", "curriculum_mu"):
            if not math.isfinite(getattr(self, name)):
                raise UsageError(f"--{name} must be a finite number, got {getattr(self, name)}")
        if self.momentum_decay not in get_args(MomentumDecayParts):
            raise UsageError(
                f"--momentum_decay must be one of {', '.join(get_args(MomentumDecayParts))}, got {self.momentum_decay}"
            )
        for name in ("curriculum_importance", "curriculum_mu", "curriculum_width"):
            if self._is_given(name) and not self.curriculum:
                raise UsageError(f"--{name} needs --curriculum")
        for name, density in _OF_DENSITY.items():
            if self._is_given(name) and self.timestep_density != density:
                raise UsageError(
                    f"--{name} needs --timestep_density {density}, got --timestep_density {self.timestep_density}"
                )
        if self.density_importance and self.timestep_density == "uniform":
            raise UsageError("--density_importance needs a --timestep_density, got uniform")
        if self.curriculum and self.timestep_density != "uniform":
            raise UsageError(
                "--curriculum starts from uniform times, it does not go with "
                f"--timestep_density {self.timestep_density}"
            )

    @property
    def is_spread_over_steps(self) -> bool:
        """Whether something is spread over the number of steps, so that a longer run is another one."""
        return self.curriculum or self.momentum_decay != "off"


def with_bare_flags(argv: Sequence[str]) -> list[str]:
    """argv with the values of flags that may stand without one, as ``--momentum_decay``."""
    spelled: list[str] = []
    for place, argument in enumerate(argv):
        if argument in _NEGATED:
            spelled += ["--momentum_decay", _NEGATED[argument]]
            continue
        spelled.append(argument)
        following = argv[place + 1] if place + 1 < len(argv) else "--"
        if argument in _BARE and following.startswith("--"):
            spelled.append(_BARE[argument])
    return spelled


def of_older_runs(values: dict[str, Any]) -> dict[str, Any]:
    """Options as older versions wrote them, in today's words: momentum decay was on or off."""
    decay = values.get("momentum_decay")
    return {**values, "momentum_decay": "both" if decay else "off"} if isinstance(decay, bool) else values
