"""The one loop that runs every plan."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from pydiffaccel.solvers.denoiser import Denoiser
from pydiffaccel.solvers.plan import Evaluation, Plan
from pydiffaccel.solvers.point import Point
from pydiffaccel.solvers.run import NoiseSource, Run, check_answers, seeded_noise, where

__all__ = ["Callback", "integrate"]

# (evaluations done, noise level of the state, the state)
Callback = Callable[[int, Point, Tensor], Any]


def integrate(
    plan: Plan,
    denoiser: Denoiser,
    x_T: Tensor,
    *,
    seeds: Sequence[int] | None = None,
    noise: NoiseSource | None = None,
    condition: Mapping[str, Any] | None = None,
    unconditional: Mapping[str, Any] | None = None,
    guidance_scale: float = 1.0,
    callback: Callback | None = None,
    progress: bool = False,
    return_trajectory: bool = False,
    inplace: bool = False,
    check_finite: bool = True,
) -> Tensor:
    """Runs a plan from x_T to its end.

    Args:
        plan: the solver's table.
        denoiser: the model, from ``wrap_model``.
        x_T: the state ``[B, *]`` at the plan's start: normal noise of the standard deviation
            ``plan.schedule.prior_std_at(plan.start.t)``. float64 is kept, every other floating dtype is computed in
            float32. Not written to unless inplace.
        seeds: one int per sample, for plans that add noise; each sample's noise depends on its own seed alone.
        noise: instead of seeds, ``noise(like, number)`` returns the standard normal noise of the state with that
            number, in the shape, dtype and device of like.
        condition, unconditional, guidance_scale: as in ``wrap_model``, for this run; they replace what the denoiser
            was made with. All three left alone, the denoiser stays as it is.
        callback: called as ``callback(done, point, x)`` after each evaluation's updates, with the number of evaluations
            done and the new state and its noise level. It must not write to x.
        progress: shows a tqdm bar.
        return_trajectory: returns all states of the trajectory ``[S, B, *]`` instead of the last one: x_T first, the
            result last, at the levels ``plan.state_points[i] for i in plan.trajectory_states``. Predictors and inner
            stages are no part of it, so one-step and multistep plans have S = num_steps + 1.
        inplace: x_T and the states after it may be written over, which saves their memory and its traffic. The model
            and the callback must then keep no state they were given. The result is the same, bit for bit.
        check_finite: refuses a model's answer that is not finite, naming the evaluation. The flags stay on the device
            until the run is over: the host reads them once, not at each step. Ignored while a CUDA graph is captured.

    Returns:
        ``[B, *]`` (or ``[S, B, *]``), float32 or float64, on x_T's device; an ordinary tensor without gradient. No step
        synchronises with a device; the model and the callback may.

    Raises:
        TypeError: plan, denoiser or x_T of the wrong type.
        ValueError: the plan is for another noise schedule than the denoiser's, x_T has no batch dimension, the plan
            needs noise and has none, there is not one seed per sample, or the denoiser answers in another shape or with
            values that are not finite.
    """
    if not isinstance(plan, Plan):
        raise TypeError(f"plan must be a Plan, got {type(plan).__name__}")
    if not isinstance(denoiser, Denoiser):
        raise TypeError(f"denoiser must be a Denoiser (see wrap_model), got {type(denoiser).__name__}")
    if denoiser.schedule is not None and denoiser.schedule != plan.schedule:
        raise ValueError(f"the plan is for {plan.schedule!r}, but the model was trained on {denoiser.schedule!r}")
    if condition is not None or unconditional is not None or guidance_scale != 1.0:
        denoiser = denoiser.conditioned(condition, unconditional, guidance_scale)
    x = as_state(x_T)
    if seeds is not None and noise is not None:
        raise ValueError("give seeds or noise, not both")
    if seeds is None and noise is None and plan.stochastic:
        raise ValueError(f"this {plan.solver} plan adds noise, so it needs seeds, one int per sample")
    if seeds is not None and len(seeds) != len(x):
        raise ValueError(f"seeds must hold one int per sample, got {len(seeds)} for {len(x)} samples")
    if seeds is not None:
        noise = seeded_noise(seeds)
    if len(x) == 0:  # nothing to evaluate, and not every network takes an empty batch
        return x.new_empty((len(plan.trajectory_states), *x.shape)) if return_trajectory else x.clone()
    if inplace:
        x = x.contiguous()
    if x.is_cuda and torch.cuda.is_current_stream_capturing():
        check_finite = False
    with torch.inference_mode():
        result = _run(plan, denoiser, x, noise, callback, progress, return_trajectory, inplace, check_finite)
    # An inference tensor could not take part in autograd.
    return result.clone() if result.is_inference() or (result is x and not inplace) else result


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
    noise: NoiseSource | None,
    callback: Callback | None,
    progress: bool,
    return_trajectory: bool,
    inplace: bool,
    check_finite: bool,
) -> Tensor:
    kept = plan.trajectory_states if return_trajectory else ()
    run = Run(plan, x, noise, inplace=inplace, keep=kept)
    probes: list[Tensor] = []
    for index, evaluation in enumerate(_bar(plan, progress)):
        output = denoiser(run.x, evaluation.point, evaluation.output_type)
        _check_output(output, run.x, plan, index)
        output = output.to(run.x.dtype)
        if check_finite:
            probes.append(output.sum())  # not finite where an element is not
        run.advance(output)
        del output  # its memory is free where no later update needs it
        if callback is not None:
            callback(run.done, evaluation.updates[-1].point, run.x)
    if check_finite:
        check_answers(probes, plan)
    return torch.stack([run.kept[number] for number in kept]) if return_trajectory else run.x


def _check_output(output: Any, x: Tensor, plan: Plan, index: int) -> None:
    if not isinstance(output, Tensor):
        raise TypeError(f"{where(plan, index)} the denoiser must return a tensor, got {type(output).__name__}")
    if output.shape != x.shape or output.device != x.device:
        raise ValueError(
            f"{where(plan, index)} the denoiser must return the state's shape {tuple(x.shape)} on {x.device}, got"
            f" {tuple(output.shape)} on {output.device}"
        )


def _bar(plan: Plan, progress: bool) -> Iterable[Evaluation]:
    if not progress:
        return plan.evaluations
    from tqdm.auto import tqdm

    bar: Iterable[Evaluation] = tqdm(plan.evaluations, desc=plan.solver, unit="evaluation")
    return bar
