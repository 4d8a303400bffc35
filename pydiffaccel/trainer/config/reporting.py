"""Flags of what a run shows of itself while it trains."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

from pydiffaccel._cli import UsageError
from pydiffaccel.trainer.config.base import OptionGroup

__all__ = ["ReportingOptions"]


@dataclass(frozen=True)
class ReportingOptions(OptionGroup):
    """Pictures and trackers. None of it changes a number of the training."""

    FREE: ClassVar[frozenset[str]] = frozenset({"sample_every", "report_to", "tracker_project_name"})

    sample_every: int = 0
    """Steps between grids of samples in samples/; 0 samples only at the end. Their time is not counted as training."""
    report_to: Literal["none", "tensorboard", "wandb", "all"] = "none"
    """Where the metrics go besides metrics.jsonl: to TensorBoard's files in tensorboard/, to Weights & Biases, both."""
    tracker_project_name: str = "pydiffaccel"
    """The project at Weights & Biases."""

    def check(self) -> None:
        self._at_least(sample_every=0)
        if not self.tracker_project_name.strip():
            raise UsageError(f"--tracker_project_name must not be empty, got {self.tracker_project_name!r}")
