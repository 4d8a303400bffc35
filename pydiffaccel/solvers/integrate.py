"""The one loop that runs every plan."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from torch import Tensor

from pydiffaccel.noise import derive_seed, gaussian_noise
from pydiffaccel.ops import solver_step
from pydiffaccel.solvers.denoiser import Denoiser
from pydiffaccel.solvers.plan import Plan, Update
from pydiffaccel.solvers.point import Point

__all__ = ["Callback", "integrate"]

# (evaluations done, noise level of the state, the state)
Callback = Callable[[int, Point, Tensor], Any]


def integrate(
    plan: Plan,
    denoiser: Denoiser,
    x_T: Tensor,
    *,
    seeds: Sequence[int] | None = None,
    callback: Callback | None = None,
    progress: bool = False,
    return_trajectory: bool = False,
) -> Tensor:
    """Runs a plan from x_T to its end.

    Args:
        plan: the solver's table.
        denoiser: the model, from ``wrap_model``.
        x_T: the state ``[B, *]`` at the plan's start: normal noise of the standard deviation
            ``plan.schedule.prior_std_at(plan.start.t)``. float64 is kept, every other floating dtype is computed in
            float32. Never written to.
        seeds: one int per sample, for plans that add noise; each sample's noise depends on its own seed alone.
        callback: called as ``callback(done, point, x)`` after each evaluation's updates, with the number of evaluations
            done and the new state and its noise level. It must not write to x.
        progress: shows a tqdm bar.
        return_trajectory: returns all states of the trajectory ``[S, B, *]`` instead of the last one: x_T first, the
            result last, at the levels ``plan.state_points[i] for i in plan.trajectory_states``. Predictors and inner
            stages are no part of it, so one-step and multistep plans have S = num_steps + 1.

    Returns:
        ``[B, *]`` (or ``[S, B, *]``), float32 or float64, on x_T's device; an ordinary tensor without gradient. The
        loop synchronises with no device; the model and the callback may.

    Raises:
        TypeError: plan, denoiser or x_T of the wrong type.
        ValueError: the plan is for another noise schedule than the denoiser's, x_T has no batch dimension, the plan
            needs seeds and has none, or there is not one per sample.
    """
    if not isinstance(plan, Plan):
        raise TypeError(f"plan must be a Plan, got {type(plan).__name__}")
    if not isinstance(denoiser, Denoiser):
        raise TypeError(f"denoiser must be a Denoiser (see wrap_model), got {type(denoiser).__name__}")
    if denoiser.schedule is not None and denoiser.schedule != plan.schedule:
        raise ValueError(f"the plan is for {plan.schedule!r}, but the model was trained on {denoiser.schedule!r}")
    x = as_state(x_T)
    if seeds is None and plan.stochastic:
        raise ValueError(f"this {plan.solver} plan adds noise, so it needs seeds, one int per sample")
    if seeds is not None and len(seeds) != len(x):
        raise ValueError(f"seeds must hold one int per sample, got {len(seeds)} for {len(x)} samples")
    noise_seeds = None if seeds is None else [derive_seed(int(seed), "sampler") for seed in seeds]
    if len(x) == 0:  # nothing to evaluate, and not every network takes an empty batch
        return x.new_empty((len(plan.trajectory_states), *x.shape)) if return_trajectory else x.clone()
    with torch.inference_mode():
        result = _run(plan, denoiser, x, noise_seeds, callback, progress, return_trajectory)
    return result.clone()  # outside inference mode: a tensor that may take part in autograd


def as_state(x: Tensor, name: str = "x_T") -> Tensor:
    """x as a solver's state: float64 stays, other floating dtypes become float32; detached."""
    if not isinstance(x, Tensor):
        raise TypeError(f"{name} must be a tensor, got {type(x).__name__}")
    if not x.is_floating_point():
        raise TypeError(f"{name} must be floating point, got {x.dtype}")
    if x.ndim == 0:
        raise ValueError(f"{name} needs a batch dimension, got a scalar")
    return x.detach() if x.dtype == torch.float64 else x.detach().float()


def _run(
    plan: Plan,
    denoiser: Denoiser,
    x: Tensor,
    noise_seeds: Sequence[int] | None,
    callback: Callback | None,
    progress: bool,
    return_trajectory: bool,
) -> Tensor:
    last_state_use, last_output_use = _last_uses(plan)
    kept = set(plan.trajectory_states) if return_trajectory else set()
    trajectory = [x] if return_trajectory else []
    states: dict[int, Tensor] = {0: x}
    outputs: dict[int, Tensor] = {}
    newest = 0

    def apply(update: Update, evaluation: int) -> None:
        nonlocal x, newest
        terms = [(outputs[evaluation - lag], factor) for lag, factor in enumerate(update.b) if factor != 0]
        x = solver_step(states[update.base], [m for m, _ in terms], update.a, [factor for _, factor in terms])
        newest += 1
        if update.noise > 0:
            assert noise_seeds is not None
            x = solver_step(x, [_noise(x, noise_seeds, newest)], 1.0, [update.noise])
        states[newest] = x
        if newest in kept:
            trajectory.append(x)

    for update in plan.initial_updates:
        apply(update, -1)
    for index, evaluation in enumerate(_bar(plan, progress)):
        output = denoiser(x, evaluation.point, evaluation.output_type)
        outputs[index] = output
        for update in evaluation.updates:
            apply(update, index)
        for used_up in [i for i in outputs if last_output_use[i] <= index]:
            del outputs[used_up]
        for used_up in [i for i in states if last_state_use[i] <= index]:
            del states[used_up]
        if callback is not None:
            callback(index + 1, evaluation.updates[-1].point, x)
    return torch.stack(trajectory) if return_trajectory else x


def _last_uses(plan: Plan) -> tuple[list[int], list[int]]:
    """The evaluation after whose updates each state and each output is needed no more, so that its memory is free."""
    states = [-1] * len(plan.state_points)
    outputs = [-1] * plan.nfe
    for index, update in plan.updates():
        states[update.base] = index
        for lag, factor in enumerate(update.b):
            if factor != 0:
                outputs[index - lag] = index
    return states, outputs


def _noise(x: Tensor, noise_seeds: Sequence[int], step: int) -> Tensor:
    rows = [gaussian_noise(x[row : row + 1], seed, step) for row, seed in enumerate(noise_seeds)]
    return torch.cat(rows)


def _bar(plan: Plan, progress: bool) -> Iterable[Any]:
    if not progress:
        return plan.evaluations
    from tqdm.auto import tqdm

    bar: Iterable[Any] = tqdm(plan.evaluations, desc=plan.solver, unit="evaluation")
    return bar
