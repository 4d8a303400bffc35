"""One run of a plan: the states and outputs that its next updates need."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from pydiffaccel.noise import derive_seed, gaussian_noise
from pydiffaccel.ops import solver_step
from pydiffaccel.solvers.plan import Plan, Update

__all__ = ["NoiseSource", "Run", "Steps", "check_answers", "seeded_noise", "where"]

# (a tensor of the state's shape, dtype and device; number of the new state) -> standard normal noise like it
NoiseSource = Callable[[Tensor, int], Tensor]


def seeded_noise(seeds: Sequence[int]) -> NoiseSource:
    """Noise in which each sample depends on its own seed and the number of the state alone."""
    streams = [derive_seed(int(seed), "sampler") for seed in seeds]

    def noise(like: Tensor, step: int) -> Tensor:
        return torch.cat([gaussian_noise(like[row : row + 1], seed, step) for row, seed in enumerate(streams)])

    return noise


class Steps:
    """A plan's states and outputs on one batch, update by update; each is freed after its last use.

    Nothing here evaluates a model or waits for a device.

    Args:
        plan: the table.
        x: the starting state ``[B, *]``, float32 or float64.
        reach: for each of ``plan.updates()``, how many outputs it may use; by default as many as it does use.

    Attributes:
        x: the newest state, which the next evaluation sees.
        done: evaluations whose output was given.
        newest: the number of the newest state, which is the number of updates done; 0 is the start.
    """

    def __init__(self, plan: Plan, x: Tensor, reach: Sequence[int] | None = None) -> None:
        self.plan, self.x, self.done, self.newest = plan, x, 0, 0
        self._states: dict[int, Tensor] = {0: x}
        self._outputs: dict[int, Tensor] = {}
        self._state_uses, self._output_uses = _last_uses(plan, reach)

    def give(self, output: Tensor) -> None:
        """Takes the output ``[B, *]`` of the next evaluation, in the state's dtype."""
        self._outputs[self.done] = output
        self.done += 1

    def combine(self, base: int, a: float, b: Sequence[float], out: Tensor | None = None) -> Tensor:
        """``a states[base] + sum_j b_j outputs[newest - j]``."""
        terms = [(self._outputs[self.done - 1 - lag], factor) for lag, factor in enumerate(b) if factor != 0]
        return solver_step(self._states[base], [m for m, _ in terms], a, [factor for _, factor in terms], out=out)

    def push(self, x: Tensor) -> None:
        """x is the result of the next update; frees what no later update needs."""
        for number in [number for number in self._states if self._state_uses[number] <= self.newest]:
            del self._states[number]
        for index in [index for index in self._outputs if self._output_uses[index] <= self.newest]:
            del self._outputs[index]
        self.newest += 1
        self.x = self._states[self.newest] = x

    def replace_newest(self, x: Tensor) -> None:
        """Goes on from another state than the last update made."""
        self.x = self._states[self.newest] = x


class Run(Steps):
    """A plan on its way from the starting state to its end, one ``advance`` per network evaluation.

    Args:
        plan: the table.
        x: the starting state ``[B, *]``, float32 or float64.
        noise: where fresh noise comes from; needed by stochastic plans.
        inplace: states that are needed no more, x among them, are written over. Only for contiguous x.
        keep: numbers of the states that ``kept`` collects; they are never written over.

    Attributes:
        kept: the states asked for, by number.
    """

    def __init__(
        self,
        plan: Plan,
        x: Tensor,
        noise: NoiseSource | None = None,
        *,
        inplace: bool = False,
        keep: Sequence[int] = (),
    ) -> None:
        super().__init__(plan, x)
        self._noise, self._inplace, self._keep = noise, inplace, frozenset(keep)
        self.kept: dict[int, Tensor] = {0: x} if 0 in self._keep else {}
        for update in plan.initial_updates:
            self._apply(update)

    def advance(self, output: Tensor) -> Tensor:
        """The state after all updates of the next evaluation, whose output ``[B, *]`` is given in the state's dtype."""
        self.give(output)
        for update in self.plan.evaluations[self.done - 1].updates:
            self._apply(update)
        return self.x

    def _apply(self, update: Update) -> None:
        target = self._states[update.base] if self._may_overwrite(update.base) else None
        x = self.combine(update.base, update.a, update.b, target)
        if update.noise > 0:
            if self._noise is None:
                raise ValueError(f"this {self.plan.solver} plan adds noise, so it needs a source of noise")
            x = solver_step(x, [self._noise(x, self.newest + 1)], 1.0, [update.noise], out=target)
        self.push(x)
        if self.newest in self._keep:
            self.kept[self.newest] = x

    def _may_overwrite(self, number: int) -> bool:
        if not self._inplace or number in self._keep or self._state_uses[number] > self.newest:
            return False
        # A model may return its own input, or a view of it, and a later update may need that output.
        memory = self._states[number].untyped_storage().data_ptr()
        return all(output.untyped_storage().data_ptr() != memory for output in self._outputs.values())


def _last_uses(plan: Plan, reach: Sequence[int] | None) -> tuple[list[int], list[int]]:
    """For each state and each output the place in ``plan.updates()`` of the last update that reads it; -1 for none."""
    states = [-1] * len(plan.state_points)
    outputs = [-1] * plan.nfe
    for place, (index, update) in enumerate(plan.updates()):
        states[update.base] = place
        used = [lag for lag, factor in enumerate(update.b) if factor != 0] if reach is None else range(reach[place])
        for lag in used:
            outputs[index - lag] = place
    return states, outputs


def check_answers(probes: Sequence[Tensor], plan: Plan) -> None:
    """Reads the sum of each evaluation's output from the device, once for all.

    Raises:
        ValueError: one is not finite; the sentence names the first.
    """
    flags = torch.stack(list(probes)).isfinite().tolist()
    if not all(flags):
        raise ValueError(f"{where(plan, flags.index(False))} the model returned values that are not finite")


def where(plan: Plan, index: int) -> str:
    """How a sentence names an evaluation."""
    return f"at evaluation {index + 1} of {plan.nfe} (t = {plan.evaluations[index].point.t:g})"
