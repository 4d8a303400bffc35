"""Flags of the optimization: batches, steps, learning rate, number formats, averages."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar, Literal

from pydiffaccel._cli import UsageError
from pydiffaccel.trainer.config.base import OptionGroup

__all__ = ["LoopOptions"]


@dataclass(frozen=True)
class LoopOptions(OptionGroup):
    """The optimization."""

    FREE: ClassVar[frozenset[str]] = frozenset({"device", "num_threads"})

    train_batch_size: int = 128
    """Images per step and accumulation part, over all ranks."""
    max_train_steps: int = 800
    """Optimizer steps."""
    gradient_accumulation_steps: int = 1
    """Batches whose gradients are averaged for one optimizer step."""
    learning_rate: float = 2e-3
    """Learning rate of AdamW (no weight decay)."""
    lr_warmup_steps: int = 50
    """Steps over which the learning rate rises linearly."""
    max_grad_norm: float = 1.0
    """Clip the norm of the gradient to this; 0 turns it off."""
    mixed_precision: Literal["no", "bf16", "fp16"] = "no"
    """Number format of the network's arithmetic."""
    use_ema: bool = True
    """Average the weights; samples then come from the average."""
    ema_decay: float = 0.995
    """Decay of the average per step, lower in the first steps."""
    ema_halflife_images: tuple[int, ...] = ()
    """Instead of --ema_decay: averages that forget half in so many images, as 50000 500000; each is saved, and the
    first one is the run's."""
    seed: int = 0
    """Seed of everything: the same seed gives the same losses."""
    device: str = "auto"
    """cpu, cuda, cuda:1, ...; auto takes a GPU where there is one."""
    num_threads: int | None = None
    """CPU threads of the arithmetic."""

    def check(self) -> None:
        self._at_least(
            train_batch_size=1, max_train_steps=1, gradient_accumulation_steps=1, lr_warmup_steps=0, num_threads=1
        )
        self._positive("learning_rate")
        if not (math.isfinite(self.max_grad_norm) and self.max_grad_norm >= 0):
            raise UsageError(f"--max_grad_norm must be 0 or a positive number, got {self.max_grad_norm}")
        if not 0 <= self.ema_decay < 1:
            raise UsageError(f"--ema_decay must be in [0, 1), got {self.ema_decay}")
        if any(images < 1 for images in self.ema_halflife_images):
            raise UsageError(f"--ema_halflife_images must be at least 1, got {min(self.ema_halflife_images)}")
        if len(set(self.ema_halflife_images)) < len(self.ema_halflife_images):
            raise UsageError(f"--ema_halflife_images must differ, got {' '.join(map(str, self.ema_halflife_images))}")
        if self.ema_halflife_images and not self.use_ema:
            raise UsageError("--ema_halflife_images and --no_use_ema exclude each other")
        if not 0 <= self.seed < 2**63:
            raise UsageError(f"--seed must be in 0 .. 2**63 - 1, got {self.seed}")
