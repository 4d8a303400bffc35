"""A deterministic plan on one batch, update by update, so that several plans can run side by side."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from torch import Tensor

from pydiffaccel.ops import solver_step
from pydiffaccel.solvers.denoiser import Denoiser
from pydiffaccel.solvers.plan import Plan, Update

__all__ = ["Batch", "Walk", "in_batches"]


class Batch(NamedTuple):
    """Starting noise ``[B, *]``, and the model with the inputs of these samples."""

    denoiser: Denoiser
    x: Tensor


def in_batches(denoiser: Denoiser, x: Tensor, size: int | None = None) -> list[Batch]:
    """x in parts of at most size samples; None is one part."""
    size = len(x) if size is None else size
    return [Batch(denoiser.rows(i, min(i + size, len(x))), x[i : i + size]) for i in range(0, len(x), size)]


class Walk:
    """Runs a plan on one batch one update at a time; frees every state and output after its last use.

    Args:
        plan: without noise.
        denoiser: the model.
        x: the state ``[B, *]`` that the run starts from.
        reach: for each of ``plan.updates()``, how many outputs it may use; by default as many as it does use.

    Attributes:
        x: the newest state ``[B, *]``.
        done: updates done, which is the index of the newest state.
    """

    def __init__(self, plan: Plan, denoiser: Denoiser, x: Tensor, reach: Sequence[int] | None = None) -> None:
        self.plan = plan
        self.x = x
        self.done = 0
        self._denoiser = denoiser
        self._table = list(plan.updates())
        self._states = {0: x}
        self._outputs: dict[int, Tensor] = {}
        self._state_uses = [-1] * (len(self._table) + 1)
        self._output_uses = [-1] * plan.nfe
        for place, (index, update) in enumerate(self._table):
            self._state_uses[update.base] = place
            used = [lag for lag, factor in enumerate(update.b) if factor != 0] if reach is None else range(reach[place])
            for lag in used:
                self._output_uses[index - lag] = place

    def advance(self, done: int) -> Tensor:
        """The state after that many updates, none fewer than are done."""
        while self.done < done:
            self.evaluate()
            self.apply(self._table[self.done][1])
        return self.x

    def evaluate(self) -> None:
        """Makes the output that the next update needs, if it is not there yet."""
        index = self._table[self.done][0]
        if index >= 0 and index not in self._outputs and not self._evaluated(index):
            row = self.plan.evaluations[index]
            self._outputs[index] = self._denoiser(self.x, row.point, row.output_type)

    def combine(self, base: int, a: float, b: Sequence[float]) -> Tensor:
        """``a states[base] + sum_j b_j outputs[newest - j]`` at the next update."""
        index = self._table[self.done][0]
        terms = [(self._outputs[index - lag], factor) for lag, factor in enumerate(b) if factor != 0]
        if a == 0 and terms:
            (first, a), *terms = terms
        else:
            first = self._states[base]
        return solver_step(first, [m for m, _ in terms], a, [factor for _, factor in terms])

    def apply(self, update: Update) -> None:
        """Does the next update, with the given coefficients; ``evaluate`` first."""
        self.x = self.combine(update.base, update.a, update.b)
        place = self.done
        self.done += 1
        self._states[self.done] = self.x
        for state in [state for state in self._states if self._state_uses[state] <= place]:
            del self._states[state]
        for index in [index for index in self._outputs if self._output_uses[index] <= place]:
            del self._outputs[index]

    def _evaluated(self, index: int) -> bool:
        return self.done > 0 and self._table[self.done - 1][0] == index
