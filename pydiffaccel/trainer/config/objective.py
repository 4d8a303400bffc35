"""Flags of the forward process and of the weights of the loss."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from pydiffaccel._cli import UsageError
from pydiffaccel.trainer.config.base import OptionGroup

__all__ = ["LossWeightingName", "NoiseSchedule", "ObjectiveOptions"]

NoiseSchedule = Literal[
    "linear", "scaled_linear", "cosine", "continuous_linear", "continuous_cosine", "continuous_constant"
]
LossWeightingName = Literal[
    "none",
    "min_snr",
    "truncated_snr",
    "p2",
    "sigma_sqrt",
    "cosmap",
    "change_aware",
    "sample",
    "epsilon",
    "v_prediction",
    "flow",
]
_SNR_GAMMA = 5.0


@dataclass(frozen=True)
class ObjectiveOptions(OptionGroup):
    """The forward process and what is predicted."""

    forward: Literal["vp", "flow", "kl"] = "vp"
    """Forward process: vp (DDPM), flow (flow matching), kl (KL diffusion, on the noise levels of vp)."""
    noise_schedule: NoiseSchedule = "linear"
    """Noise levels of vp and kl: those of 1000 time steps, or on continuous time."""
    prediction_type: Literal["auto", "epsilon", "sample", "v_prediction", "flow"] = "auto"
    """What the network predicts; auto is epsilon for vp and kl, flow for flow."""
    loss_weighting: LossWeightingName = "none"
    """Weight of the loss at each time: a published one, or the error of another quantity (sample, epsilon,
    v_prediction, flow) counted alike at all times."""
    snr_gamma: float | None = None
    """Gamma of --loss_weighting min_snr (by default 5), which it also turns on by itself."""
    p2_gamma: float = 1.0
    """Exponent of --loss_weighting p2."""
    p2_k: float = 1.0
    """Summand of --loss_weighting p2."""
    change_ceiling: float = 0.6
    """How far --loss_weighting change_aware goes, from 0.5 (no weight) to 1."""

    def check(self) -> None:
        self._positive("snr_gamma", "p2_gamma", "p2_k")
        self._within(0.5, 1, "change_ceiling")
        needed = {"snr_gamma": "min_snr", "p2_gamma": "p2", "p2_k": "p2", "change_ceiling": "change_aware"}
        for name, weighting in needed.items():
            if self._is_given(name) and self.weighting != weighting:
                raise UsageError(f"--{name} needs --loss_weighting {weighting}, got --loss_weighting {self.weighting}")
        if (self.forward == "flow") != (self.prediction_type == "flow") and self.prediction_type != "auto":
            fits = "flow" if self.forward == "flow" else "epsilon, sample or v_prediction"
            raise UsageError(f"--forward {self.forward} goes with --prediction_type {fits}, got {self.prediction_type}")
        if self.forward == "flow" and self.noise_schedule != "linear":
            raise UsageError(f"--noise_schedule is for --forward vp and kl, got {self.noise_schedule} with flow")

    @property
    def weighting(self) -> LossWeightingName:
        """The weight of the loss, which --snr_gamma alone also names."""
        return "min_snr" if self.loss_weighting == "none" and self.snr_gamma is not None else self.loss_weighting

    @property
    def min_snr_gamma(self) -> float:
        """Gamma of min-SNR weights."""
        return _SNR_GAMMA if self.snr_gamma is None else self.snr_gamma
