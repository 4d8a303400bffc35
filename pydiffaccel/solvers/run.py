"""One run of a plan: the states and outputs that its next updates need, one ``advance`` per network evaluation."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from pydiffaccel.noise import derive_seed, gaussian_noise
from pydiffaccel.ops import solver_step
from pydiffaccel.solvers.plan import Plan, Update

__all__ = ["NoiseSource", "Run", "seeded_noise"]

# (a tensor of the state's shape, dtype and device; number of the new state) -> standard normal noise like it
NoiseSource = Callable[[Tensor, int], Tensor]


def seeded_noise(seeds: Sequence[int]) -> NoiseSource:
    """Noise in which each sample depends on its own seed and the number of the state alone."""
    streams = [derive_seed(int(seed), "sampler") for seed in seeds]

    def noise(like: Tensor, step: int) -> Tensor:
        return torch.cat([gaussian_noise(like[row : row + 1], seed, step) for row, seed in enumerate(streams)])

    return noise


class Run:
    """A plan on its way from the starting state to its end. Nothing here waits for a device.

    Args:
        plan: the table.
        x: the starting state ``[B, *]``, float32 or float64.
        noise: where fresh noise comes from; needed by stochastic plans.
        inplace: states that are needed no more, x among them, are written over. Only for contiguous x.
        keep: numbers of the states that ``kept`` collects; they are never written over.

    Attributes:
        x: the newest state, which the next evaluation sees.
        done: evaluations done.
        newest: the number of the newest state; 0 is the start.
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
        self.plan, self.x, self.done, self.newest = plan, x, 0, 0
        self._noise, self._inplace, self._keep = noise, inplace, frozenset(keep)
        self.kept: dict[int, Tensor] = {0: x} if 0 in self._keep else {}
        self._states: dict[int, Tensor] = {0: x}
        self._outputs: dict[int, Tensor] = {}
        self._last_state_use, self._last_output_use = _last_uses(plan)
        for update in plan.initial_updates:
            self._apply(update)

    def replace_newest(self, x: Tensor) -> None:
        """Goes on from another state than the last update made."""
        self.x = self._states[self.newest] = x

    def advance(self, output: Tensor) -> Tensor:
        """The state after all updates of the next evaluation, whose output ``[B, *]`` is given in the state's dtype."""
        evaluation = self.plan.evaluations[self.done]
        self._outputs[self.done] = output
        for update in evaluation.updates:
            self._apply(update)
        for index in [i for i in self._outputs if self._last_output_use[i] <= self.done]:
            del self._outputs[index]
        for number in [i for i in self._states if self._last_state_use[i] <= self.newest and i != self.newest]:
            del self._states[number]
        self.done += 1
        return self.x

    def _apply(self, update: Update) -> None:
        self.newest += 1
        newest = self.done
        terms = [(self._outputs[newest - lag], factor) for lag, factor in enumerate(update.b) if factor != 0]
        base = self._states[update.base]
        target = base if self._may_overwrite(update.base) else None
        self.x = solver_step(base, [m for m, _ in terms], update.a, [factor for _, factor in terms], out=target)
        if update.noise > 0:
            if self._noise is None:
                raise ValueError(f"this {self.plan.solver} plan adds noise, so it needs a source of noise")
            self.x = solver_step(self.x, [self._noise(self.x, self.newest)], 1.0, [update.noise], out=target)
        self._states[self.newest] = self.x
        if self.newest in self._keep:
            self.kept[self.newest] = self.x

    def _may_overwrite(self, number: int) -> bool:
        if not self._inplace or number in self._keep or self._last_state_use[number] > self.newest:
            return False
        # A model may return its own input, or a view of it, and a later update may need that output.
        memory = self._states[number].untyped_storage().data_ptr()
        return all(output.untyped_storage().data_ptr() != memory for output in self._outputs.values())


def _last_uses(plan: Plan) -> tuple[list[int], list[int]]:
    """For each state the number of the last state made from it; for each output the last evaluation that reads it."""
    states = [-1] * len(plan.state_points)
    outputs = [-1] * plan.nfe
    for number, (index, update) in enumerate(plan.updates(), start=1):
        states[update.base] = number
        for lag, factor in enumerate(update.b):
            if factor != 0:
                outputs[index - lag] = index
    return states, outputs
