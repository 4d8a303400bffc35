"""What the options of a run name, as objects: the process, the coupling, the schedulers, the network's size."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from pydiffaccel._cli import CommandError, UsageError
from pydiffaccel.trainer.config import NoiseSchedule, TrainOptions

if TYPE_CHECKING:
    from torch.optim import Optimizer
    from torch.optim.lr_scheduler import LRScheduler

    from pydiffaccel.coupling import Coupling
    from pydiffaccel.densities import TimeDistribution
    from pydiffaccel.forward import Process
    from pydiffaccel.losses import LossWeighting
    from pydiffaccel.networks import NetworkConfig
    from pydiffaccel.schedule import ContinuousVPSchedule, VPSchedule
    from pydiffaccel.trainer.data import TrainData

__all__ = [
    "make_coupling",
    "make_curriculum",
    "make_data",
    "make_network_config",
    "make_process",
    "make_schedule",
    "make_schedulers",
    "make_weighting",
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
            options.hungarian_labels,
            pool=options.hungarian_pool,
            project=options.hungarian_project,
            projection=options.hungarian_projection,
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


def make_curriculum(options: TrainOptions, process: Process) -> TimeDistribution | None:
    """The curriculum or the density of the process' training times that the options name; None is uniform.

    Raises:
        UsageError: it does not go with the process.
    """
    try:
        return _make_curriculum(options, process) if options.curriculum else _make_density(options, process)
    except ValueError as error:
        flag = "--curriculum" if options.curriculum else f"--timestep_density {options.timestep_density}"
        raise UsageError(f"{flag}: {error}") from error


def _make_curriculum(options: TrainOptions, process: Process) -> TimeDistribution:
    from pydiffaccel.curriculum import ContinuousCurriculum, TimestepCurriculum

    shape = (
        options.max_train_steps,
        options.curriculum_mu,
        options.curriculum_width,
        options.curriculum_weight,
        options.curriculum_importance,
    )
    steps = process.schedule.num_train_timesteps
    return ContinuousCurriculum(process, *shape) if steps is None else TimestepCurriculum(steps, *shape)


def _make_density(options: TrainOptions, process: Process) -> TimeDistribution | None:
    from pydiffaccel.densities import CosMap, LogitNormal, Mode, NoiseDensity, SpeedDensity

    importance = options.density_importance
    if options.timestep_density == "uniform":
        return None
    if options.timestep_density == "speed":
        return SpeedDensity(process, options.speed_suppression, options.speed_threshold, importance)
    if options.timestep_density == "logit_normal":
        return NoiseDensity(process, LogitNormal(options.logit_mean, options.logit_std), importance)
    law = Mode(options.mode_scale) if options.timestep_density == "mode" else CosMap()
    return NoiseDensity(process, law, importance)


def make_weighting(options: TrainOptions, process: Process) -> LossWeighting | None:
    """The weight of the loss at each time that the options name; None is 1.

    Raises:
        UsageError: it does not go with the process.
    """
    from pydiffaccel.losses import LossWeighting

    if options.weighting == "none":
        return None
    try:
        return LossWeighting(
            process,
            options.weighting,
            snr_gamma=options.min_snr_gamma,
            p2_gamma=options.p2_gamma,
            p2_k=options.p2_k,
            ceiling=options.change_ceiling,
        )
    except ValueError as error:
        raise UsageError(f"--loss_weighting {options.weighting}: {error}") from error


def make_schedulers(options: TrainOptions, optimizer: Optimizer) -> list[LRScheduler]:
    """Linear warm-up, then (where asked for) momentum decay."""
    from torch.optim.lr_scheduler import LambdaLR

    from pydiffaccel.optim import MomentumDecay

    warmup = max(1, options.lr_warmup_steps)
    schedulers: list[LRScheduler] = [LambdaLR(optimizer, lambda step: min(1.0, (step + 1) / warmup))]
    if options.momentum_decay != "off":
        ramp = min(options.lr_warmup_steps, options.max_train_steps - 1)
        strength, parts = options.momentum_decay_strength, options.momentum_decay
        schedulers.append(MomentumDecay(optimizer, options.max_train_steps, ramp, strength, parts))
    return schedulers


def make_data(
    options: TrainOptions,
    *,
    progress: Callable[[int], None] = lambda done: None,
    report: Callable[[str], None] = lambda message: None,
) -> TrainData:
    """The data that the options name; progress and report as in ``load_data``.

    Raises:
        DataError: it cannot be used.
    """
    from pydiffaccel.trainer.data import default_cache_dir, load_data

    workers = options.dataloader_num_workers
    keeps = options.cache_images and not options.dry_run
    return load_data(
        options.data,
        key=options.data_key,
        label_key=options.label_key,
        kind=options.data_kind,
        latent_scale=options.latent_scale,
        resolution=options.resolution,
        skip_bad_images=options.skip_bad_images,
        cache_dir=(options.cache_dir or default_cache_dir()) if keeps else None,
        threads=None if workers is None else max(1, workers),
        progress=progress,
        report=report,
    )


def make_network_config(options: TrainOptions, data: TrainData) -> NetworkConfig:
    """The network's size for the data.

    Raises:
        UsageError: --channels does not fit the samples, or no network of this kind does.
        CommandError: --class_conditional, and the data has no classes.
    """
    from pydiffaccel.networks import default_network

    if len(data.shape) != 3:
        raise UsageError(f"--data: the command's network is for samples [C, H, W], these are {list(data.shape)}")
    if options.class_conditional and data.labels is None:
        raise CommandError(
            f"--class_conditional needs images with classes, and {data.name} has none; "
            f"give a folder with one sub-folder per class, or name them with --label_key"
        )
    channels, height, width = data.shape
    classes = len(data.classes) if options.class_conditional else None
    try:
        return default_network((channels, height, width), options.channels, options.layers_per_block, classes)
    except ValueError as error:
        raise UsageError(f"--channels: {error}") from error
