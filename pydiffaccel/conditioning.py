"""What a class-conditional network can be told, and what samples ask of it: classes and guidance."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from pydiffaccel._cli import CommandError, UsageError
from pydiffaccel.solvers import Denoiser

__all__ = ["ClassCondition"]

_SHOWN = 12  # names in a message


@dataclass(frozen=True)
class ClassCondition:
    """The classes of a network that takes ``class_labels`` int64 ``[B]``.

    Attributes:
        names: of the classes 0, 1, ...
        null: the label that stands for no class; None where the network knows none, so that guidance is refused.
    """

    names: tuple[str, ...]
    null: int | None

    def parse(self, text: str) -> list[int]:
        """The labels of classes written by name, as ``3,5`` or ``cat,dog``.

        Raises:
            UsageError: a name that no class has.
        """
        labels = []
        for name in (part.strip() for part in text.split(",")):
            if name not in self.names:
                rest = ", ..." if len(self.names) > _SHOWN else ""
                known = f"{', '.join(self.names[:_SHOWN])}{rest}"
                raise UsageError(f"--classes: the model knows no class {name!r}; it knows {known}")
            labels.append(self.names.index(name))
        return labels

    def spread(self, count: int, wanted: Sequence[int] = ()) -> list[int]:
        """A label for each of count samples: the wanted ones in turn, by default all classes."""
        labels = list(wanted) or list(range(len(self.names)))
        return [labels[index % len(labels)] for index in range(count)]

    def conditioned(
        self, denoiser: Denoiser, labels: Sequence[int], guidance_scale: float, device: torch.device | str | None = None
    ) -> Denoiser:
        """The denoiser of samples with these labels, one each, under classifier-free guidance (2207.12598).

        At scale 1 there is no guidance and one evaluation; else both predictions come from one call on twice the batch.

        Raises:
            UsageError: the scale is no finite number.
            CommandError: guidance, and the network knows no null label.
        """
        if not math.isfinite(guidance_scale):
            raise UsageError(f"--guidance_scale must be a finite number, got {guidance_scale}")
        unconditional = None
        if guidance_scale != 1:
            if self.null is None:
                raise CommandError(
                    f"--guidance_scale {guidance_scale:g} needs a network that was trained without its class at times, "
                    f"and this one never was: train it with a --conditioning_dropout_prob above 0"
                )
            unconditional = {"class_labels": torch.tensor([self.null], device=device)}
        condition = {"class_labels": torch.tensor(list(labels), dtype=torch.int64, device=device)}
        return denoiser.conditioned(condition, unconditional, guidance_scale)
