"""Flags of checkpoints and logs."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from pydiffaccel.trainer.config.base import OptionGroup

__all__ = ["SavingOptions"]


@dataclass(frozen=True)
class SavingOptions(OptionGroup):
    """Checkpoints and logs."""

    FREE: ClassVar[frozenset[str]] = frozenset({"checkpointing_steps", "checkpoints_total_limit", "log_every"})

    checkpointing_steps: int = 500
    """Steps between checkpoints."""
    checkpoints_total_limit: int = 2
    """How many checkpoints to keep, the newest ones; 0 keeps all."""
    log_every: int = 10
    """Steps between writes to metrics.jsonl; every step has its line."""

    def check(self) -> None:
        self._at_least(checkpointing_steps=1, checkpoints_total_limit=0, log_every=1)
