"""What the options of a run name, as objects: the process, the coupling, the schedulers, the network's size."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from pydiffaccel._cli import UsageError
from pydiffaccel.trainer.config import NoiseSchedule, TrainOptions

if TYPE_CHECKING:
    from torch.optim import Optimizer
    from torch.optim.lr_scheduler import LRScheduler

    from pydiffaccel.coupling import Coupling
    from pydiffaccel.curriculum import ContinuousCurriculum, TimestepCurriculum
    from pydiffaccel.forward import Process
    from pydiffaccel.networks import NetworkConfig
    from pydiffaccel.schedule import ContinuousVPSchedule, VPSchedule
    from pydiffaccel.trainer.data import ImageData

__all__ = [
    "make_coupling",
    "make_curriculum",
    "make_network_config",
    "make_process",
    "make_schedule",
    "make_schedulers",
]

# The rate of continuous_constant: about as much noise at the end as under continuous_linear.
CONSTANT_BETA = 10.0


def make_schedule(options: TrainOptions) -> VPSchedule | ContinuousVPSchedule:
    """The noise levels of vp and kl that the options name."""
    from pydiffaccel.schedule import ContinuousVPSchedule, VPSchedule

    makers: dict[NoiseSchedule, Callable[[], VPSchedule | ContinuousVPSchedule]] = {
        "linear": VPSchedule.linear,
        "scaled_linear": VPSchedule.scaled_linear,
        "cosine": VPSchedule.cosine,
        "continuous_linear": ContinuousVPSchedule.linear,
        "continuous_cosine": ContinuousVPSchedule.cosine,
        "continuous_constant": lambda: ContinuousVPSchedule.constant(CONSTANT_BETA),
    }
    return makers[options.noise_schedule]()


def make_process(options: TrainOptions) -> Process:
    """The forward process that the options name.

    Raises:
        UsageError: the noise levels of the KL terms cannot be used as they are asked for.
    """
    from pydiffaccel.forward import FlowProcess, KLProcess, VPProcess
    from pydiffaccel.schedule.kl_terms import NUM_INTERVALS

    if options.forward == "flow":
        return FlowProcess()
    predicts = "epsilon" if options.prediction_type == "auto" else options.prediction_type
    schedule = make_schedule(options)
    if options.forward == "vp":
        return VPProcess(schedule=schedule, prediction_type=predicts)
    intervals = max(NUM_INTERVALS, 4 * options.kl_terms)  # enough for any number of terms
    try:
        return KLProcess(
            schedule,
            options.kl_terms,
            options.kl_basis,
            predicts,
            renormalise=options.kl_renormalise,
            num_intervals=intervals,
        )
    except ValueError as error:
        raise UsageError(f"--forward kl: {error}") from error


def make_coupling(options: TrainOptions) -> Coupling:
    """The coupling, with the data's scale, that the options name."""
    from pydiffaccel.coupling import KNN, Hungarian, Independent, NoiseQueue, Scaled, Sinkhorn, WarmUp

    inner: Coupling = Independent()
    if options.coupling == "hungarian":
        inner = Hungarian(
            pool=options.hungarian_pool, project=options.hungarian_project, projection=options.hungarian_projection
        )
    elif options.coupling == "sinkhorn":
        inner = Sinkhorn(
            options.sinkhorn_epsilon,
            options.sinkhorn_iterations,
            options.sinkhorn_output,
            project=options.sinkhorn_project,
        )
    elif options.coupling == "queue":
        inner = NoiseQueue(options.queue_size)
    elif options.coupling == "knn":
        inner = KNN(options.knn_k, options.knn_metric)
    if options.coupling_start_step and options.coupling != "none":
        inner = WarmUp(options.coupling_start_step, inner)
    return Scaled(options.data_scale, inner)


def make_curriculum(options: TrainOptions, process: Process) -> TimestepCurriculum | ContinuousCurriculum | None:
    """The curriculum over the process' time steps, or over its continuous time; or None."""
    from pydiffaccel.curriculum import ContinuousCurriculum, TimestepCurriculum

    if not options.curriculum:
        return None
    total, weight, importance = options.max_train_steps, options.curriculum_weight, options.curriculum_importance
    steps = process.schedule.num_train_timesteps
    if steps is None:
        return ContinuousCurriculum(process, total, max_weight=weight, importance=importance)
    return TimestepCurriculum(steps, total, max_weight=weight, importance=importance)


def make_schedulers(options: TrainOptions, optimizer: Optimizer) -> list[LRScheduler]:
    """Linear warm-up, then (where asked for) momentum decay."""
    from torch.optim.lr_scheduler import LambdaLR

    from pydiffaccel.optim import MomentumDecay

    warmup = max(1, options.lr_warmup_steps)
    schedulers: list[LRScheduler] = [LambdaLR(optimizer, lambda step: min(1.0, (step + 1) / warmup))]
    if options.momentum_decay:
        ramp = min(options.lr_warmup_steps, options.max_train_steps - 1)
        strength = options.momentum_decay_strength
        schedulers.append(MomentumDecay(optimizer, options.max_train_steps, ramp, strength))
    return schedulers


def make_network_config(options: TrainOptions, data: ImageData) -> NetworkConfig:
    """The network's size for the data.

    Raises:
        UsageError: --channels does not fit the samples, or no network of this kind does.
    """
    from pydiffaccel.networks import default_network

    if len(data.shape) != 3:
        raise UsageError(f"--data: the command's network is for samples [C, H, W], these are {list(data.shape)}")
    channels, height, width = data.shape
    try:
        return default_network((channels, height, width), options.channels, options.layers_per_block)
    except ValueError as error:
        raise UsageError(f"--channels: {error}") from error
