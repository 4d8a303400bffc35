"""Flags of the forward process and of the weights of the loss."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from pydiffaccel._cli import UsageError
from pydiffaccel.trainer.config.base import OptionGroup

__all__ = ["NoiseSchedule", "ObjectiveOptions"]

NoiseSchedule = Literal[
    "linear", "scaled_linear", "cosine", "continuous_linear", "continuous_cosine", "continuous_constant"
]


@dataclass(frozen=True)
class ObjectiveOptions(OptionGroup):
    """The forward process and what is predicted."""

    forward: Literal["vp", "flow", "kl"] = "vp"
    """Forward process: vp (DDPM), flow (flow matching), kl (KL diffusion, on the noise levels of vp)."""
    noise_schedule: NoiseSchedule = "linear"
    """Noise levels of vp and kl: those of 1000 time steps, or on continuous time."""
    prediction_type: Literal["auto", "epsilon", "sample", "v_prediction", "flow"] = "auto"
    """What the network predicts; auto is epsilon for vp and kl, flow for flow."""
    snr_gamma: float | None = None
    """Weight the loss at each time by min-SNR-gamma (the paper's choice is 5); by default no weight."""

    def check(self) -> None:
        self._positive("snr_gamma")
        if (self.forward == "flow") != (self.prediction_type == "flow") and self.prediction_type != "auto":
            fits = "flow" if self.forward == "flow" else "epsilon, sample or v_prediction"
            raise UsageError(f"--forward {self.forward} goes with --prediction_type {fits}, got {self.prediction_type}")
        if self.forward == "flow" and self.noise_schedule != "linear":
            raise UsageError(f"--noise_schedule is for --forward vp and kl, got {self.noise_schedule} with flow")
