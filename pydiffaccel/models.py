"""The models that the commands take: a run, a diffusers pipeline (folders), or a Python function.

A function is written ``package.module:function``. It is called without arguments and returns three things:

1. the network, called as ``network(x, t)`` with the state ``[B, *]`` and its time ``[B]``, or a ``Denoiser``;
2. the forward process that it was trained on (``VPProcess``, ``FlowProcess``, ...), or for a ``Denoiser`` its
   ``Schedule``;
3. the shape of one sample.
"""

from __future__ import annotations

import hashlib
import importlib
import inspect
import re
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from pydiffaccel._cli import CommandError, UsageError
from pydiffaccel.conditioning import Condition, Wanted
from pydiffaccel.forward import Process
from pydiffaccel.pipelines import INDEX, load_pipeline
from pydiffaccel.sampler import default_solver, denoiser_of, load_run
from pydiffaccel.schedule import Schedule
from pydiffaccel.solvers import Denoiser, Plan, clip_denoised, load_plan

__all__ = ["FUNCTION", "Model", "import_attribute", "load_model", "read_plan", "state_hash"]

FUNCTION = re.compile(r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)*:[A-Za-z_]\w*")
# Classes and prompts that are listed.
_NAMED = 12


@dataclass(frozen=True)
class Model:
    """A trained model as the commands see it.

    Attributes:
        name: how the user wrote it.
        about: what it is, for the user.
        denoiser: for solvers.
        schedule: the noise levels it was trained on.
        shape: of one sample.
        folder: where its plans and samples go by default.
        hash: ``state_hash`` of its weights; None where it has none.
        unscale: takes samples to images in [-1, 1].
        training_step: steps behind the weights, where that is known.
        latent: whether samples are latents, of which unscale makes images.
        drawable: whether unscale gives images; not of a run on latents, whose decoder is the user's.
        condition: what the network can be told; None for an unconditional one.
        told: after ``conditioned``, the class or the prompt of each sample.
        data_limit: images lie in +- this in the units of samples; None where samples are no images of a known range.
        clip_limit: after ``clipped``, that limit.
    """

    name: str
    about: str
    denoiser: Denoiser
    schedule: Schedule
    shape: tuple[int, ...]
    folder: Path
    hash: str | None
    unscale: Callable[[Tensor], Tensor]
    training_step: int | None = None
    latent: bool = False
    drawable: bool = True
    condition: Condition | None = None
    told: tuple[str, ...] = ()
    data_limit: float | None = None
    clip_limit: float | None = None

    @property
    def default_solver(self) -> str:
        """``sampler.default_solver`` of the schedule."""
        return default_solver(self.schedule)

    def conditioned(self, count: int, wanted: Wanted, device: torch.device | str | None = None) -> Model:
        """The model for count samples, each with its condition; an unconditional one stays as it is.

        Raises:
            UsageError: the model cannot be told this.
            CommandError: the model knows no guidance.
        """
        if self.condition is None:
            for flag in wanted.given():
                raise UsageError(f"{flag} is for conditional models, and {self.name} is none")
            return self
        denoiser, told = self.condition.conditioned(self.denoiser, wanted, count, device)
        return replace(self, denoiser=denoiser, told=told)

    def clipped(self) -> Model:
        """The model with its predicted images clipped to their range, [-1, 1], at each evaluation (``clip_denoised``).

        Raises:
            CommandError: samples are latents, or what a function makes is not known to be images.
        """
        if self.data_limit is None:
            what = "latents" if self.latent or not self.drawable else f"samples of shape {_size(self.shape)}"
            raise CommandError(f"--clip_sample is for images in [-1, 1], and {self.name} makes {what}")
        return replace(
            self,
            about=f"{self.about}\nclipping    predicted images to [-1, 1] at each evaluation",
            denoiser=clip_denoised(self.denoiser, self.data_limit),
            clip_limit=self.data_limit,
        )

    def announced(self, guidance_scale: float) -> str:
        """What samples are told, for the user: two lines, or none of an unconditional model."""
        if self.condition is None:
            return ""
        names = list(dict.fromkeys(self.told))
        rest = ", ..." if len(names) > _NAMED else ""
        doubled = ", each evaluation on a doubled batch" if guidance_scale != 1 else ""
        return (
            f"{self.condition.kind}     {', '.join(names[:_NAMED])}{rest} in turn\n"
            f"guidance    scale {guidance_scale:g}{doubled}\n"
        )


def load_model(name: str, device: torch.device | str = "cpu", *, ema: int | None = None) -> Model:
    """The model that a command was given; ema chooses one of a run's averages, as in ``load_run``.

    Raises:
        CommandError: there is none, it cannot be loaded, or it is of a kind that is not known here.
    """
    path = Path(name)
    is_run = path.exists() and not (path / INDEX).exists()
    if ema is not None and not is_run:
        raise CommandError(f"{name} is no run, and only runs have averages of a half-life in images, got {ema}")
    if not path.exists() and FUNCTION.fullmatch(name):
        return _imported(name, device)
    if (path / INDEX).exists():
        pipeline = load_pipeline(path, device)
        return Model(
            name=name,
            about=f"pipeline    {path} ({pipeline.class_name}, {pipeline.scheduler})",
            denoiser=pipeline.denoiser,
            schedule=pipeline.schedule,
            shape=pipeline.shape,
            folder=path,
            hash=state_hash(pipeline.network),
            unscale=pipeline.decode or (lambda x: x),
            latent=pipeline.decode is not None,
            condition=pipeline.condition,
            data_limit=1.0 if pipeline.decode is None else None,
        )
    run = load_run(path, device, ema=ema)
    state = f"{run.step:,} steps" + ("" if run.finished else ", unfinished: its newest checkpoint")
    process, coupling = run.description.process, run.description.coupling
    is_latent = run.description.latent_scale is not None
    return Model(
        name=name,
        about=f"run         {run.folder.path} ({state})",
        denoiser=denoiser_of(run.network, process),
        schedule=process.schedule,
        shape=tuple(run.description.network.shape),
        folder=path,
        hash=state_hash(run.network),
        drawable=not is_latent,
        unscale=coupling.unscale_data,
        training_step=run.step,
        condition=run.classes,
        data_limit=None if is_latent else float(coupling.scale_data(torch.ones(1, dtype=torch.float64))),
    )


def state_hash(network: nn.Module) -> str:
    """``sha256:...`` over names, dtypes, shapes and bytes of the state dict, in the order of the names."""
    digest = hashlib.sha256()
    for name, value in sorted(network.state_dict().items()):
        if isinstance(value, Tensor):
            digest.update(f"{name} {value.dtype} {tuple(value.shape)}\n".encode())
            digest.update(value.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
    return f"sha256:{digest.hexdigest()}"


def import_attribute(name: str) -> Any:
    """What ``package.module:attribute`` names.

    Raises:
        CommandError: the module cannot be imported, or has no such attribute.
    """
    module_name, _, attribute = name.partition(":")
    try:
        module = importlib.import_module(module_name)
    except Exception as error:  # the user's own code may raise anything
        raise CommandError(f"{name} cannot be imported: {error}") from error
    if not hasattr(module, attribute):
        raise CommandError(f"the module {module_name} has no {attribute!r}")
    return getattr(module, attribute)


def read_plan(path: Path, model: Model | None = None, guidance_scale: float | None = None) -> Plan:
    """The plan in a file that a command was given; a note on stderr says where it was fitted to something else.

    Args:
        model: what it is to be used with; None does not compare.
        guidance_scale: with which it is to be used; None does not compare.

    Raises:
        CommandError: there is none, it is damaged, or it is for another noise schedule than the model's.
    """
    try:
        plan = load_plan(path)
    except OSError as error:
        raise CommandError(f"the plan {path} cannot be read: {error.strerror or error}") from error
    except ValueError as error:
        raise CommandError(f"the plan cannot be used: {error}") from error
    if model is None:
        return plan
    if plan.schedule != model.schedule:
        raise CommandError(
            f"the plan is for another noise schedule ({plan.schedule!r}) than the model's ({model.schedule!r})"
        )
    report = plan.metadata.get("distillation", {})
    fitted_to = report.get("model", {}).get("hash")
    if fitted_to is not None and model.hash is not None and fitted_to != model.hash:
        print(f"note: the plan in {path} was fitted to other weights than these", file=sys.stderr)
    fitted_with = report.get("condition", {}).get("guidance_scale")
    if None not in (fitted_with, guidance_scale) and fitted_with != guidance_scale:
        print(f"note: the plan in {path} was fitted at guidance scale {fitted_with:g}", file=sys.stderr)
    if report and (report.get("clip_sample") is None) != (model.clip_limit is None):
        how = "with" if model.clip_limit is None else "without"
        print(f"note: the plan in {path} was fitted {how} --clip_sample", file=sys.stderr)
    return plan


def _imported(name: str, device: torch.device | str) -> Model:
    function = import_attribute(name)
    if not callable(function):
        raise CommandError(f"{name} must be a function, got {type(function).__name__}")
    try:
        inspect.signature(function).bind()
    except TypeError as error:
        raise CommandError(f"{name} must be a function that needs no arguments: {error}") from None
    made: Any = function()
    if not isinstance(made, Sequence) or len(made) != 3:
        raise CommandError(
            f"{name} must return a network, its forward process and the shape of a sample, got {type(made).__name__}"
        )
    network, process, shape = made
    if not isinstance(shape, Sequence) or not all(isinstance(size, int) and size > 0 for size in shape):
        raise CommandError(f"{name} must return the shape of a sample as its third result, got {shape!r}")
    module = network if isinstance(network, nn.Module) else None
    if module is not None:
        module.to(device).eval()
    if isinstance(network, Denoiser):
        schedule = getattr(process, "schedule", process)
        denoiser = network
    elif isinstance(process, Process) and callable(network):
        schedule, denoiser = process.schedule, denoiser_of(network, process)
    else:
        schedule = None
    if not isinstance(schedule, Schedule):
        raise CommandError(
            f"{name} must return a network with its forward process, or a Denoiser with its schedule,"
            f" got {type(network).__name__} and {type(process).__name__}"
        )
    return Model(
        name=name,
        about=f"model       {name}",
        denoiser=denoiser,
        schedule=schedule,
        shape=tuple(shape),
        folder=Path(),
        hash=None if module is None else state_hash(module),
        unscale=lambda x: x,
        data_limit=1.0 if len(shape) == 3 and shape[0] in (1, 3) else None,
    )


def _size(shape: Sequence[int]) -> str:
    return " x ".join(map(str, shape))
