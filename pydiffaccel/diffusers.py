"""Plans in diffusers' pipelines: ``PlanScheduler``.

The path of this module and the name of its class are written into ``model_index.json`` by every pipeline that is saved
with it; a process that loads one imports this module first, because diffusers loads no component of a module that is
not imported. diffusers is imported here and nowhere when the package itself is.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from diffusers.configuration_utils import ConfigMixin, register_to_config
from diffusers.schedulers.scheduling_utils import KarrasDiffusionSchedulers, SchedulerMixin, SchedulerOutput
from diffusers.utils.torch_utils import randn_tensor
from torch import Tensor

from pydiffaccel._diffusers import (
    TimestepAxis,
    check_fixed,
    grid_of,
    output_factors,
    schedule_of,
    source_of,
    translated,
    without_variance,
)
from pydiffaccel.ops import solver_step
from pydiffaccel.schedule import EDMSchedule, FlowSchedule, VPSchedule
from pydiffaccel.solvers.denoiser import conversion, model_input_scale
from pydiffaccel.solvers.integrate import as_state
from pydiffaccel.solvers.make import make_plan
from pydiffaccel.solvers.plan import Plan
from pydiffaccel.solvers.point import Point
from pydiffaccel.solvers.run import Run
from pydiffaccel.solvers.tail import step_starts, tail

__all__ = ["PlanScheduler"]

_PREDICTION_TYPES = ("epsilon", "sample", "v_prediction", "flow_prediction")


class PlanScheduler(SchedulerMixin, ConfigMixin):  # type: ignore[misc]
    """Runs any plan, made by ``make_plan`` or distilled, as the scheduler of a diffusers pipeline.

    The pipeline calls the network once per entry of ``timesteps`` and ``step`` after each: what comes back is the
    state that the next evaluation sees. So a plan with inner stages has more timesteps than steps, as diffusers' own
    schedulers of that kind have. ``step`` does what ``integrate`` does, bit for bit. Times that lie between training
    indices are passed as float32.

    An instance holds the state of one run; give each of several pipelines that run at the same time its own
    (``PlanScheduler.from_config(scheduler.config)`` or a deep copy).

    Args:
        num_train_timesteps, beta_start, beta_end, beta_schedule, trained_betas, rescale_betas_zero_snr: the VP noise
            schedule, as in diffusers ("linear", "scaled_linear", "squaredcos_cap_v2"), computed in float64.
        prediction_type: "epsilon", "sample", "v_prediction" or "flow_prediction" (noise - data, as in diffusers).
        solver, solver_order, solver_options: as ``make_plan``'s solver, order and options.
        timestep_spacing: a spacing of ``make_plan``, as "leading", "linspace", "trailing" or "karras"; by default the
            solver's own.
        steps_offset, drop_last: options of "leading" and "linspace" in ``make_plan``.
        whole_timesteps: False leaves the times of "linspace" where they fall between training indices.
        set_alpha_to_one: whether a run ends at the clean data or at the noise of training index 0.
        clip_sample, clip_sample_range: clamps the predicted data of every evaluation to +- this range.
        noise_schedule: "vp", "flow" (straight paths; the timestep is 1000 sigma for 1000 training steps) or "edm"
            (noise added to the data; the network is the one inside EDM's preconditioning and sees log(sigma) / 4).
        sigma_min, sigma_max, sigma_data, rho: of "edm".
        shift, use_dynamic_shifting: of "flow", as in diffusers; the latter takes ``mu`` in set_timesteps.
        plan: a saved plan (``Plan.to_dict()``), which then decides the noise schedule, the solver and the timesteps;
            see ``from_plan``. It lies in the configuration with its checksum and is refused when it was changed.

    Raises:
        ValueError: an unknown prediction_type, noise_schedule or beta_schedule, or a plan that is damaged.
    """

    num_inference_steps: int | None
    timesteps: Tensor
    sigmas: Tensor
    _plan: Plan | None
    _run: Run | None
    _first: int  # the evaluation that the run started with
    _begin_index: int | None
    _last: tuple[Tensor | None, int | None]  # what step returned, and its version
    _times: list[float]  # timesteps, on the host

    _compatibles = [e.name for e in KarrasDiffusionSchedulers]  # noqa: RUF012  diffusers reads a class attribute

    @register_to_config  # type: ignore[untyped-decorator]
    def __init__(
        self,
        num_train_timesteps: int = 1000,
        beta_start: float = 0.0001,
        beta_end: float = 0.02,
        beta_schedule: str = "linear",
        trained_betas: Sequence[float] | None = None,
        rescale_betas_zero_snr: bool = False,
        prediction_type: str = "epsilon",
        solver: str = "dpm_solver++",
        solver_order: int | None = None,
        solver_options: Mapping[str, Any] | None = None,
        timestep_spacing: str | None = None,
        steps_offset: int = 0,
        drop_last: bool = False,
        whole_timesteps: bool = True,
        set_alpha_to_one: bool = True,
        clip_sample: bool = False,
        clip_sample_range: float = 1.0,
        noise_schedule: str = "vp",
        sigma_min: float = 0.002,
        sigma_max: float = 80.0,
        sigma_data: float = 0.5,
        rho: float = 7.0,
        shift: float = 1.0,
        use_dynamic_shifting: bool = False,
        plan: Mapping[str, Any] | None = None,
    ) -> None:
        if prediction_type not in _PREDICTION_TYPES:
            raise ValueError(f"unknown prediction_type {prediction_type!r}; known: {', '.join(_PREDICTION_TYPES)}")
        self._order = 1
        self._fixed = None if plan is None else Plan.from_dict(plan)
        self.schedule = schedule_of(self._settings) if self._fixed is None else self._fixed.schedule
        if isinstance(self.schedule, EDMSchedule) and prediction_type not in ("epsilon", "v_prediction"):
            raise ValueError(f"an edm network predicts epsilon or v_prediction, got {prediction_type!r}")
        self._axis = TimestepAxis(self.schedule, num_train_timesteps)
        self.num_inference_steps, self._plan = None, None
        self._generator: torch.Generator | list[torch.Generator] | None = None
        if isinstance(self.schedule, VPSchedule):
            self.alphas_cumprod = torch.tensor(self.schedule.alphas_cumprod, dtype=torch.float32)
            self.betas = torch.tensor(self.schedule.betas, dtype=torch.float32)
        self._reset()
        if self._fixed is not None:
            self.set_timesteps()
        else:
            self.timesteps = torch.arange(num_train_timesteps - 1, -1, -1)
            self._times = []

    @classmethod
    def from_plan(cls, plan: Plan, **config: Any) -> PlanScheduler:
        """A scheduler that runs this plan, distilled or not; saved, it holds the plan.

        Args:
            plan: its number of steps is the only one that set_timesteps then takes.
            config: further arguments of the constructor, as prediction_type.

        Raises:
            TypeError: plan is no Plan.
        """
        if not isinstance(plan, Plan):
            raise TypeError(f"plan must be a Plan, got {type(plan).__name__}")
        settings: dict[str, Any] = {"solver": plan.solver, "noise_schedule": plan.schedule.kind}
        if isinstance(plan.schedule, VPSchedule):
            total = plan.schedule.num_train_timesteps
            settings["num_train_timesteps"] = total
            if plan.schedule != VPSchedule.linear(total):  # so that other schedulers made from this one agree
                settings["trained_betas"] = plan.schedule.betas.tolist()
        if isinstance(plan.schedule, FlowSchedule):
            settings["prediction_type"] = "flow_prediction"
        scheduler: PlanScheduler = cls(**{**settings, **config, "plan": plan.to_dict()})
        return scheduler

    @classmethod
    def from_config(cls, config: Any = None, return_unused_kwargs: bool = False, **kwargs: Any) -> Any:
        """The scheduler of a configuration: its own, or one of diffusers'.

        DDIM, DDPM, PNDM, Euler (also ancestral), Heun, KDPM2, DPM-Solver (multistep, singlestep), DEIS, UniPC, both EDM
        schedulers and flow matching's Euler become the plan that is their method. Keyword arguments replace what was
        read, as ``solver="unipc"``. ``clip_sample`` is taken over.

        Raises:
            ValueError: a scheduler that has no counterpart, or a setting of it that no plan has (dynamic thresholding,
                beta sigmas, ...).
        """
        source = source_of(config) if isinstance(config, Mapping) else None
        if source is not None:
            settings = translated(source, config)
            if "solver" in kwargs:  # order and options belong to the solver that is replaced
                settings = {key: value for key, value in settings.items() if not key.startswith("solver_")}
            scheduler = cls(**{**settings, **kwargs})
            return (scheduler, {}) if return_unused_kwargs else scheduler
        return super().from_config(config, return_unused_kwargs=return_unused_kwargs, **kwargs)

    @property
    def _settings(self) -> Any:
        return self.config

    @property
    def plan(self) -> Plan | None:
        """The plan that ``set_timesteps`` made, or that this scheduler was made from."""
        return self._plan

    @property
    def order(self) -> int:
        """Network evaluations per step, where all steps have as many; else 1."""
        return self._order

    @property
    def init_noise_sigma(self) -> float:
        """Standard deviation of the noise that a run starts from."""
        if self._plan is None:
            return self.schedule.prior_std
        # Noise that the plan adds before its first evaluation is part of the start, which has the same law.
        return self.schedule.prior_std_at(self._plan.evaluations[0].point.t)

    @property
    def step_index(self) -> int | None:
        """The evaluation that ``step`` waits for; None before the first."""
        return None if self._run is None else self._first + self._run.done

    @property
    def begin_index(self) -> int | None:
        """Where the run starts; None if the first timestep decides."""
        return self._begin_index

    def set_begin_index(self, begin_index: int = 0) -> None:
        """The index in ``timesteps`` of the first call of ``step``. Then no timestep is ever read from the device."""
        self._begin_index = begin_index

    def set_timesteps(
        self,
        num_inference_steps: int | None = None,
        device: str | torch.device | None = None,
        timesteps: Sequence[float] | Tensor | None = None,
        sigmas: Sequence[float] | Tensor | None = None,
        mu: float | None = None,
    ) -> None:
        """Makes the plan of the next run and forgets the last run.

        Args:
            num_inference_steps: steps of the plan. ``timesteps`` has one entry per network evaluation. A scheduler made
                from a plan takes that plan's number or None.
            device: where ``timesteps`` will lie.
            timesteps: the times of the steps themselves, noisy to clean, in the unit of ``timesteps``; real-valued.
            sigmas: instead, noise levels sigma / alpha (flow: sigma, which is then shifted), noisy to clean; a last 0
                may be given. Within 1 % of an end of VP training's range they lie on it: published lists are rounded.
            mu: of flow schedules with use_dynamic_shifting.

        Raises:
            ValueError: no or contradicting numbers, another number than that of the plan, or an invalid grid.
        """
        if self._fixed is not None:
            check_fixed(self._fixed, num_inference_steps, timesteps is not None or sigmas is not None)
        self._plan = self._fixed or self._made_plan(num_inference_steps, timesteps, sigmas, mu)
        self.num_inference_steps = self._plan.num_steps
        points = [row.point for row in self._plan.evaluations]
        times = [self._axis.timestep(point) for point in points]
        whole = self.schedule.kind == "vp" and all(time == int(time) for time in times)
        on_host = torch.tensor(times, dtype=torch.int64 if whole else torch.float32)
        self.timesteps, self._times = on_host.to(device), on_host.tolist()
        points.append(self._plan.state_points[-1])
        self.sigmas = torch.tensor([self._axis.sigma(point) for point in points], dtype=torch.float32)
        self._reset()
        starts, each = step_starts(self._plan), -(-self._plan.nfe // self._plan.num_steps)
        self._order = each if starts == list(range(0, each * self._plan.num_steps, each)) else 1

    def scale_model_input(self, sample: Tensor, timestep: float | Tensor | None = None) -> Tensor:
        """What the network sees: the sample itself, or c_in times it for "edm"."""
        if not isinstance(self.schedule, EDMSchedule):
            return sample
        row = self._checked_plan().evaluations[self._index(timestep)]
        return sample * model_input_scale("edm", row.point, self._settings.sigma_data)

    def step(
        self,
        model_output: Tensor,
        timestep: float | Tensor,
        sample: Tensor,
        generator: torch.Generator | list[torch.Generator] | None = None,
        return_dict: bool = True,
    ) -> SchedulerOutput | tuple[Tensor]:
        """The state after the updates of one evaluation.

        Args:
            model_output: ``[B, C, *]``, or ``[B, 2 C, *]`` of a network that learned its variance, which is left out.
            timestep: the entry of ``timesteps`` that the network was given. On a GPU its value is read at the first
                call alone, and not even there after set_begin_index.
            sample: the state ``[B, C, *]``. States are kept in float32 between calls; a sample that is not the one
                returned last replaces the state.
            generator: of the noise that stochastic plans add; one, or one per sample.
            return_dict: a SchedulerOutput rather than a tuple.

        Returns:
            ``prev_sample``, in sample's dtype.

        Raises:
            ValueError: no timesteps were set, the run is over, or the timestep is not the next one.
        """
        plan = self._checked_plan()
        index = self._index(timestep)
        if self._run is None:
            self._first = index
            self._run = Run(tail(plan, index), as_state(sample, "sample"), self._noise)
        elif not self._is_last(sample):
            self._run.replace_newest(as_state(sample, "sample"))
        row = plan.evaluations[index]
        output = self._converted(model_output, self._run.x, row.point, row.output_type)
        self._generator = generator
        state = self._run.advance(output)
        self._generator = None
        previous = state.to(sample.dtype)
        self._last = (previous, None if previous.is_inference() else previous._version)
        return SchedulerOutput(prev_sample=previous) if return_dict else (previous,)

    def add_noise(self, original_samples: Tensor, noise: Tensor, timesteps: Tensor) -> Tensor:
        """alpha x_0 + sigma noise at the given timesteps ``[B]``, whole or not, in x_0's dtype."""
        alpha, sigma = self._axis.levels(timesteps, original_samples)
        return alpha * original_samples + sigma * noise

    def scale_noise(self, sample: Tensor, timestep: Tensor, noise: Tensor) -> Tensor:
        """``add_noise`` under the name and order that flow-matching pipelines use."""
        return self.add_noise(sample, noise, timestep)

    def get_velocity(self, sample: Tensor, noise: Tensor, timesteps: Tensor) -> Tensor:
        """What a v_prediction network is trained on, alpha noise - sigma sample; for "flow" noise - sample."""
        if isinstance(self.schedule, FlowSchedule):
            return noise - sample
        alpha, sigma = self._axis.levels(timesteps, sample)
        return alpha * noise - sigma * sample

    def __len__(self) -> int:
        return int(self._settings.num_train_timesteps)

    def _reset(self) -> None:
        self._run, self._first, self._begin_index = None, 0, None
        self._last = (None, None)

    def _checked_plan(self) -> Plan:
        if self._plan is None:
            raise ValueError("call set_timesteps before the first step")
        return self._plan

    def _made_plan(self, num_steps: int | None, timesteps: Any, sigmas: Any, mu: float | None) -> Plan:
        config, schedule = self._settings, self.schedule
        if timesteps is not None and sigmas is not None:
            raise ValueError("give timesteps or sigmas, not both")
        given = timesteps if timesteps is not None else sigmas
        if given is None and (isinstance(num_steps, bool) or not isinstance(num_steps, int) or num_steps < 1):
            raise ValueError(f"num_inference_steps must be a positive int, got {num_steps!r}")
        if timesteps is not None:
            grid: dict[str, Any] = {"timesteps": [self._axis.time(float(t)) for t in timesteps]}
        elif config.use_dynamic_shifting and mu is None:
            raise ValueError("this scheduler shifts dynamically, so set_timesteps needs mu")
        else:
            levels = None if sigmas is None else [float(sigma) for sigma in sigmas]
            grid = grid_of(config, schedule, num_steps, levels, mu)
        plan = make_plan(config.solver, schedule, order=config.solver_order, **grid, **(config.solver_options or {}))
        if num_steps is not None and num_steps != plan.num_steps:
            raise ValueError(f"num_inference_steps is {num_steps}, but {plan.num_steps} steps were given")
        return plan

    def _index(self, timestep: float | Tensor | None) -> int:
        """The evaluation that comes next; the timestep is compared where that needs no word from a device."""
        count = len(self._times)
        if self._run is not None:
            index = self._first + self._run.done
            if index >= count:
                raise ValueError(f"all {count} evaluations are done; call set_timesteps for another run")
        elif self._begin_index is not None:
            index = self._begin_index
            if not 0 <= index < count:
                raise ValueError(f"begin_index must be one of the {count} timesteps, got {index}")
        else:
            return self._place(timestep)
        on_host = not isinstance(timestep, Tensor) or timestep.device.type == "cpu"
        if timestep is not None and on_host and float(timestep) != self._times[index]:
            raise ValueError(
                f"step {index} of this run is at timestep {self._times[index]:g}, got {float(timestep):g}; call"
                " set_timesteps for another run"
            )
        return index

    def _place(self, timestep: float | Tensor | None) -> int:
        if timestep is None:
            return 0
        value = float(timestep)
        if value not in self._times:
            raise ValueError(f"timestep {value:g} is none of the run's: {', '.join(f'{t:g}' for t in self._times)}")
        return self._times.index(value)

    def _is_last(self, sample: Tensor) -> bool:
        """Whether sample is what ``step`` returned, untouched; of inference tensors nobody can tell."""
        last, version = self._last
        return sample is last and version is not None and sample._version == version

    def _converted(self, model_output: Tensor, x: Tensor, point: Point, want: str) -> Tensor:
        config, sources = self._settings, [without_variance(model_output, x)]
        have = config.prediction_type
        if config.clip_sample:
            c, d = output_factors(self.schedule, have, "sample", point, config.sigma_data)
            limit = float(config.clip_sample_range)
            sources = [solver_step(x, sources, c, [d]).clamp_(-limit, limit)]
            c, d = conversion("sample", want, point)
        else:
            c, d = output_factors(self.schedule, have, want, point, config.sigma_data)
        return sources[0].to(x.dtype) if (c, d) == (0.0, 1.0) else solver_step(x, sources, c, [d])

    def _noise(self, like: Tensor, number: int) -> Tensor:
        noise: Tensor = randn_tensor(like.shape, generator=self._generator, device=like.device, dtype=like.dtype)
        return noise
