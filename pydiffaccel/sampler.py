"""Samples from a trained run. Each sample is a function of its own seed, the network and the plan."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from pydiffaccel._cli import CommandError
from pydiffaccel.conditioning import ClassCondition
from pydiffaccel.coupling import Coupling
from pydiffaccel.forward import EDMProcess, Process
from pydiffaccel.networks import build_network
from pydiffaccel.noise import noise_for_seeds
from pydiffaccel.schedule import Schedule
from pydiffaccel.solvers import Denoiser, Plan, integrate, make_plan, wrap_model
from pydiffaccel.trainer.checkpoint import check_checkpoint, list_checkpoints, read_group, read_tensors
from pydiffaccel.trainer.ema import halflife_name
from pydiffaccel.trainer.run import RunDescription, RunFolder

__all__ = ["LoadedRun", "default_solver", "denoiser_of", "draw", "load_run", "sample", "select_device", "start_noise"]


@dataclass(frozen=True)
class LoadedRun:
    """A trained network and what sampling needs to know about it.

    Attributes:
        folder: where it was read from.
        description: process, coupling and the data's shape.
        network: in eval mode, on its device.
        step: training steps behind the weights.
        finished: whether these are the final weights.
    """

    folder: RunFolder
    description: RunDescription
    network: nn.Module
    step: int
    finished: bool

    @property
    def classes(self) -> ClassCondition | None:
        """What the network can be told; None for an unconditional one."""
        number = self.description.network.num_classes
        if number is None:
            return None
        return ClassCondition(self.description.classes, number if self.description.conditioning_dropout_prob else None)


def select_device(name: str) -> torch.device:
    """The device that a --device flag names; "auto" is the GPU where there is one.

    Raises:
        CommandError: there is no such device.
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError) as error:
        reason = str(error).splitlines()[0]
        raise CommandError(f"device {name!r} cannot be used: {reason}") from error
    return device


def load_run(path: Path, device: torch.device | str = "cpu", *, ema: int | None = None) -> LoadedRun:
    """The run in a folder: its final weights, or those of its newest checkpoint while it is unfinished.

    Args:
        path: the folder.
        device: of the network.
        ema: which of several averages of the weights, by its half-life in images; None is the run's first one.

    Raises:
        CommandError: there is no run, it has no weights yet, or a file is damaged.
    """
    folder = RunFolder(path)
    if not folder.options.exists():
        reason = "holds no run" if path.exists() else "does not exist"
        raise CommandError(f"{path} {reason}; train one with: python -m pydiffaccel.train --output_dir {path}")
    if not folder.process.exists():
        raise CommandError(f"the run in {path} has no weights yet; its training stopped before the first checkpoint")
    description = folder.read_description()
    halflives = folder.read_options().ema_halflife_images
    if ema is not None and ema not in halflives:
        known = ", ".join(map(str, halflives)) or "none"
        raise CommandError(f"the run in {path} has no average of half-life {ema} images; it has {known}")
    network = build_network(description.network)
    step = folder.finished_steps()
    finished = step > 0 and folder.model.exists()
    checkpoints = list_checkpoints(folder.checkpoints)
    if finished:
        weights = read_tensors(folder.model if ema is None else folder.average(ema))
    elif not checkpoints:
        raise CommandError(f"the run in {path} has no weights yet; its training stopped before the first checkpoint")
    else:
        step, checkpoint = checkpoints[-1]
        check_checkpoint(checkpoint)
        images = ema if ema is not None or not halflives else halflives[0]
        averaged = read_group(checkpoint, "ema" if images is None else halflife_name(images))
        weights = {k.removeprefix("module."): v for k, v in averaged.items() if k.startswith("module.")}
        weights = weights or read_group(checkpoint, "model")
    try:
        network.load_state_dict(weights)
    except RuntimeError as error:
        reason = str(error).splitlines()[0]
        raise CommandError(f"the weights in {path} do not fit the network in process.json: {reason}") from error
    return LoadedRun(folder, description, network.to(device).eval(), step, finished)


def default_solver(schedule: Schedule) -> str:
    """The solver that suits a noise schedule: Euler for flow matching, else DPM-Solver++."""
    return "euler" if schedule.kind == "flow" else "dpm_solver++"


def denoiser_of(network: Callable[..., Any], process: Process) -> Denoiser:
    """The network as solvers see it."""
    if isinstance(process, EDMProcess):
        return wrap_model(_edm_data(network, process), prediction_type="denoised", schedule=process.schedule)
    return wrap_model(
        network,
        prediction_type=process.prediction_type,
        time="index",
        time_scale=process.time_scale,
        schedule=process.schedule,
    )


def _edm_data(network: Callable[..., Any], process: EDMProcess) -> Callable[[Tensor, Tensor], Tensor]:
    """The data that a preconditioned network predicts at noise levels ``[B]``."""

    def predict(x: Tensor, sigma: Tensor) -> Tensor:
        answer = network(process.model_input(x, sigma), process.model_time(sigma))
        answer = answer if isinstance(answer, Tensor) else answer.sample
        return process.denoised(answer, x, sigma)

    return predict


def sample(
    network: Callable[..., Any],
    shape: Sequence[int],
    seeds: Sequence[int],
    *,
    process: Process,
    coupling: Coupling | None = None,
    condition: Mapping[str, Any] | None = None,
    unconditional: Mapping[str, Any] | None = None,
    guidance_scale: float = 1.0,
    plan: Plan | None = None,
    solver: str | None = None,
    num_steps: int = 20,
    batch_size: int = 256,
    device: torch.device | str | None = None,
    progress: Callable[[int], None] = lambda done: None,
) -> tuple[Tensor, Plan]:
    """Samples ``[len(seeds), *shape]``, float32 on the CPU, in the data's range, and the plan they were made with.

    Sample i starts from the noise of seeds[i] alone; the batch it is computed in changes it by rounding at most.

    Args:
        network: ``network(x_t, time)``, answering with a tensor or an object with ``.sample``, in eval mode.
        shape: of one sample.
        seeds: one per sample.
        process: what the network was trained on.
        coupling: undoes the scale of the data; None for unscaled data.
        condition, unconditional, guidance_scale: as in ``integrate``, with a row per seed.
        plan: the solver's table; None makes one for `solver` (default: ``default_solver``) with num_steps steps.
        batch_size: samples that are computed at once.
        device: where the network is.
        progress: told after each batch how many samples are done.

    Raises:
        ValueError: the solver or the plan does not fit the process' noise schedule.
    """
    if plan is None:
        plan = make_plan(solver or default_solver(process.schedule), process, num_steps)
    elif plan.schedule != process.schedule:
        raise ValueError(
            f"the plan is for another noise schedule ({plan.schedule!r}) than the process ({process.schedule!r})"
        )
    denoiser = denoiser_of(network, process).conditioned(condition, unconditional, guidance_scale)
    out = draw(plan, denoiser, shape, seeds, batch_size=batch_size, device=device, progress=progress)
    return (out if coupling is None else coupling.unscale_data(out)), plan


def draw(
    plan: Plan,
    denoiser: Denoiser,
    shape: Sequence[int],
    seeds: Sequence[int],
    *,
    batch_size: int = 256,
    device: torch.device | str | None = None,
    progress: Callable[[int], None] = lambda done: None,
) -> Tensor:
    """What the plan makes of each seed's noise, ``[len(seeds), *shape]``, float32 on the CPU; see ``sample``.

    Where the denoiser holds conditions of each sample, they are those of the seeds, in their order.
    """
    out = torch.empty(len(seeds), *shape)
    for start in range(0, len(seeds), batch_size):
        part = seeds[start : start + batch_size]
        mine = denoiser.rows(start, start + len(part))
        out[start : start + len(part)] = integrate(plan, mine, start_noise(plan, shape, part, device), seeds=part)
        progress(start + len(part))
    return out


def start_noise(plan: Plan, shape: Sequence[int], seeds: Sequence[int], device: torch.device | str | None) -> Tensor:
    """The states ``[len(seeds), *shape]`` that the plan starts from."""
    x = noise_for_seeds(shape, seeds, device=device)
    std = plan.schedule.prior_std_at(plan.start.t)
    return x if std == 1 else x * std
