"""A deterministic plan on one batch, update by update, so that several plans can run side by side."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from torch import Tensor

from pydiffaccel.solvers.denoiser import Denoiser
from pydiffaccel.solvers.plan import Plan, Update
from pydiffaccel.solvers.run import Steps, check_answers

__all__ = ["Batch", "Walk", "in_batches"]


class Batch(NamedTuple):
    """Starting noise ``[B, *]``, and the model with the inputs of these samples."""

    denoiser: Denoiser
    x: Tensor


def in_batches(denoiser: Denoiser, x: Tensor, size: int | None = None) -> list[Batch]:
    """x in parts of at most size samples; None is one part."""
    size = len(x) if size is None else size
    return [Batch(denoiser.rows(i, min(i + size, len(x))), x[i : i + size]) for i in range(0, len(x), size)]


class Walk(Steps):
    """Runs a plan on one batch one update at a time; the coefficients of an update may be replaced on the way.

    Args:
        plan: without noise.
        denoiser: the model.
        x: the state ``[B, *]`` that the run starts from.
        reach: for each of ``plan.updates()``, how many outputs it may use; by default as many as it does use.
    """

    def __init__(self, plan: Plan, denoiser: Denoiser, x: Tensor, reach: Sequence[int] | None = None) -> None:
        super().__init__(plan, x, reach)
        self._denoiser = denoiser
        self._table = list(plan.updates())
        self._probes: list[Tensor] = []

    def advance(self, updates: int) -> Tensor:
        """The state after that many updates, none fewer than are done."""
        while self.newest < updates:
            self.evaluate()
            self.apply(self._table[self.newest][1])
        return self.x

    def evaluate(self) -> None:
        """Makes the output that the next update needs, if it is not there yet."""
        if self._table[self.newest][0] == self.done:
            row = self.plan.evaluations[self.done]
            output = self._denoiser(self.x, row.point, row.output_type)
            self._probes.append(output.sum())  # not finite where an element is not
            self.give(output)

    def apply(self, update: Update) -> None:
        """Does the next update, with the given coefficients; ``evaluate`` first."""
        self.push(self.combine(update.base, update.a, update.b))

    def check_answers(self) -> None:
        """Reads from the device whether all outputs so far were finite.

        Raises:
            ValueError: one was not; the sentence names its evaluation.
        """
        if self._probes:
            check_answers(self._probes, self.plan)
