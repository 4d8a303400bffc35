"""pydiffaccel: diffusion models that train in fewer steps and sample in fewer network evaluations.

Operators: ``pydiffaccel.ops`` (and ``torch.ops.diffaccel.*``). Command lines: ``python -m pydiffaccel.train``,
``sample``, ``distill``, ``evaluate``.
"""

import sys


def _asks_for_help(argv: list[str]) -> bool:
    """Whether the process is ``python -m pydiffaccel.<command> --help``.

    It is answered without torch, whose import takes longer than anyone wants to wait for a list of flags.
    """
    command = argv[argv.index("-m") + 1 :] if "-m" in argv else []
    return bool(command) and command[0].startswith("pydiffaccel.") and not {"-h", "--help"}.isdisjoint(command)


if not _asks_for_help(sys.orig_argv):
    from pydiffaccel import ops
    from pydiffaccel._library import build_info
    from pydiffaccel.coupling import (
        KNN,
        Coupling,
        Distributed,
        Hungarian,
        Independent,
        NoiseQueue,
        Scaled,
        Sinkhorn,
        Standardized,
        WarmUp,
    )
    from pydiffaccel.curriculum import ContinuousCurriculum, TimestepCurriculum
    from pydiffaccel.densities import CosMap, LogitNormal, Mode, NoiseDensity, SpeedDensity
    from pydiffaccel.forward import EDMProcess, FlowProcess, KLProcess, Process, VPProcess
    from pydiffaccel.losses import (
        KLObjective,
        LossWeighting,
        coupled_noises,
        diffusion_loss,
        kl_loss,
        kl_loss_parts,
        min_snr_weight,
    )
    from pydiffaccel.ops import linear_sum_assignment
    from pydiffaccel.optim import MomentumDecay
    from pydiffaccel.schedule import (
        ContinuousVPSchedule,
        EDMSchedule,
        FlowSchedule,
        Schedule,
        TruncatedVPSchedule,
        VPSchedule,
    )
    from pydiffaccel.solvers import (
        Denoiser,
        Plan,
        clip_denoised,
        distill_plan,
        integrate,
        load_plan,
        make_plan,
        wrap_model,
    )

    __version__: str = build_info()["version"]

__all__ = [
    "KNN",
    "ContinuousCurriculum",
    "ContinuousVPSchedule",
    "CosMap",
    "Coupling",
    "Denoiser",
    "Distributed",
    "EDMProcess",
    "EDMSchedule",
    "FlowProcess",
    "FlowSchedule",
    "Hungarian",
    "Independent",
    "KLObjective",
    "KLProcess",
    "LogitNormal",
    "LossWeighting",
    "Mode",
    "MomentumDecay",
    "NoiseDensity",
    "NoiseQueue",
    "Plan",
    "Process",
    "Scaled",
    "Schedule",
    "Sinkhorn",
    "SpeedDensity",
    "Standardized",
    "TimestepCurriculum",
    "TruncatedVPSchedule",
    "VPProcess",
    "VPSchedule",
    "WarmUp",
    "build_info",
    "clip_denoised",
    "coupled_noises",
    "diffusion_loss",
    "distill_plan",
    "integrate",
    "kl_loss",
    "kl_loss_parts",
    "linear_sum_assignment",
    "load_plan",
    "make_plan",
    "min_snr_weight",
    "ops",
    "wrap_model",
]
