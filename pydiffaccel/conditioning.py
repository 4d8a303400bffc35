"""What samples ask of a conditional network: classes, or prompts; and guidance."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from pydiffaccel._cli import CommandError, UsageError
from pydiffaccel.solvers import Denoiser

__all__ = ["ClassCondition", "Condition", "PromptCondition", "Wanted"]

_SHOWN = 12  # names in a message


@dataclass(frozen=True)
class Wanted:
    """The condition of samples as it is written on a command line.

    Attributes:
        classes: names or numbers of classes, as ``3,5``, which the samples get in turn; None is all.
        prompts: texts that the samples get in turn.
        negative_prompt: what guidance leads away from; None is the empty text.
        guidance_scale: of classifier-free guidance; 1 is without.

    Raises:
        UsageError: the scale is no finite number.
    """

    classes: str | None = None
    prompts: tuple[str, ...] = ()
    negative_prompt: str | None = None
    guidance_scale: float = 1.0

    def __post_init__(self) -> None:
        if not math.isfinite(self.guidance_scale):
            raise UsageError(f"--guidance_scale must be a finite number, got {self.guidance_scale}")

    def given(self) -> list[str]:
        """The flags that were set."""
        flags = {
            "--classes": self.classes is not None,
            "--prompt": bool(self.prompts),
            "--negative_prompt": self.negative_prompt is not None,
            "--guidance_scale": self.guidance_scale != 1,
        }
        return [flag for flag, value in flags.items() if value]


class Condition(ABC):
    """What a conditional network can be told.

    Attributes:
        kind: what it is called, in the plural.
    """

    kind: ClassVar[str]

    @abstractmethod
    def conditioned(
        self, denoiser: Denoiser, wanted: Wanted, count: int, device: torch.device | str | None = None
    ) -> tuple[Denoiser, tuple[str, ...]]:
        """The denoiser of count samples with what is wanted, one row each, and what each was told.

        With guidance (2207.12598) both predictions come from one call on twice the batch; at scale 1 there is none.

        Raises:
            UsageError: flags that are not for this kind of network, or a class that it does not have.
            CommandError: guidance, and the network does not know what it is to be told nothing.
        """


@dataclass(frozen=True)
class ClassCondition(Condition):
    """The classes of a network that takes ``class_labels`` int64 ``[B]``.

    Attributes:
        names: of the classes 0, 1, ...; a class may have several, separated by commas.
        null: the label that stands for no class; None where the network knows none, so that guidance is refused.
    """

    names: tuple[str, ...]
    null: int | None
    kind: ClassVar[str] = "classes"

    def parse(self, text: str) -> list[int]:
        """The labels of classes written by name, as ``3,5`` or ``cat,dog``; also by number, where no name is one.

        Raises:
            UsageError: no class has this name or number.
        """
        known: dict[str, int] = {}
        for label, names in enumerate(self.names):
            for name in names.split(","):
                known.setdefault(name.strip(), label)
        labels = []
        for name in (part.strip() for part in text.split(",")):
            if name in known:
                labels.append(known[name])
            elif name.isdecimal() and int(name) < len(self.names) and not any(other.isdecimal() for other in known):
                labels.append(int(name))
            else:
                rest = ", ..." if len(self.names) > _SHOWN else ""
                shown = f"{', '.join(self.names[:_SHOWN])}{rest}"
                raise UsageError(f"--classes: the model knows no class {name!r}; it knows {shown}")
        return labels

    def spread(self, count: int, wanted: Sequence[int] = ()) -> list[int]:
        """A label for each of count samples: the wanted ones in turn, by default all classes."""
        labels = list(wanted) or list(range(len(self.names)))
        return [labels[index % len(labels)] for index in range(count)]

    def conditioned(
        self, denoiser: Denoiser, wanted: Wanted, count: int, device: torch.device | str | None = None
    ) -> tuple[Denoiser, tuple[str, ...]]:
        """See ``Condition.conditioned``."""
        for flag in ("--prompt", "--negative_prompt"):
            if flag in wanted.given():
                raise UsageError(f"{flag} is for text-to-image models, and this one takes classes (--classes)")
        labels = self.spread(count, () if wanted.classes is None else self.parse(wanted.classes))
        unconditional = None
        if wanted.guidance_scale != 1:
            if self.null is None:
                raise CommandError(
                    f"--guidance_scale {wanted.guidance_scale:g} needs a network that was trained without its class at"
                    f" times and has a label for that, and this one has none; runs have one if you train them with"
                    f" --conditioning_dropout_prob above 0"
                )
            unconditional = {"class_labels": torch.tensor([self.null], device=device)}
        condition = {"class_labels": torch.tensor(labels, dtype=torch.int64, device=device)}
        told = tuple(self.names[label] for label in labels)
        return denoiser.conditioned(condition, unconditional, wanted.guidance_scale), told


@dataclass(frozen=True)
class PromptCondition(Condition):
    """A network that takes the embedding of a text as ``encoder_hidden_states`` ``[B, L, D]``.

    Attributes:
        encode: texts to embeddings, a row each, on the network's device.
    """

    encode: Callable[[Sequence[str]], Tensor]
    kind: ClassVar[str] = "prompts"

    def conditioned(
        self, denoiser: Denoiser, wanted: Wanted, count: int, device: torch.device | str | None = None
    ) -> tuple[Denoiser, tuple[str, ...]]:
        """See ``Condition.conditioned``."""
        if wanted.classes is not None:
            raise UsageError("--classes is for class-conditional models, and this one takes texts (--prompt)")
        if not wanted.prompts:
            raise UsageError("this is a text-to-image model, so it needs a --prompt")
        if wanted.negative_prompt is not None and wanted.guidance_scale == 1:
            raise UsageError("--negative_prompt does nothing without guidance; add --guidance_scale, as 7.5")
        turns = [index % len(wanted.prompts) for index in range(count)]
        condition = {"encoder_hidden_states": self.encode(wanted.prompts)[turns]}
        unconditional = None
        if wanted.guidance_scale != 1:
            unconditional = {"encoder_hidden_states": self.encode([wanted.negative_prompt or ""])}
        told = tuple(wanted.prompts[turn] for turn in turns)
        return denoiser.conditioned(condition, unconditional, wanted.guidance_scale), told
