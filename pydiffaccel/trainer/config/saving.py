"""Flags of checkpoints and logs."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from pydiffaccel.trainer.config.base import OptionGroup

__all__ = ["SavingOptions"]


@dataclass(frozen=True)
class SavingOptions(OptionGroup):
    """Checkpoints and logs."""

    FREE: ClassVar[frozenset[str]] = frozenset(
        {
            *("checkpointing_steps", "checkpoints_total_limit", "checkpoints_keep_every", "checkpoint_async"),
            *("resume_from_checkpoint", "max_skipped_steps", "log_every"),
        }
    )

    checkpointing_steps: int = 500
    """Steps between checkpoints."""
    checkpoints_total_limit: int = 2
    """How many checkpoints to keep, the newest ones; 0 keeps all."""
    checkpoints_keep_every: int = 0
    """Checkpoints of multiples of this step are kept for good; 0 for none."""
    checkpoint_async: bool = True
    """Write checkpoints while training goes on; takes a copy of the state in the host's memory."""
    resume_from_checkpoint: str = "latest"
    """latest, the folder of a checkpoint, or none, which refuses a folder that has checkpoints."""
    max_skipped_steps: int = 10
    """Steps in a row whose loss or gradient is no finite number: so many end the run, fewer are skipped."""
    log_every: int = 10
    """Steps between writes to metrics.jsonl; every step has its line."""

    def check(self) -> None:
        self._at_least(checkpointing_steps=1, checkpoints_total_limit=0, checkpoints_keep_every=0)
        self._at_least(max_skipped_steps=1, log_every=1)
