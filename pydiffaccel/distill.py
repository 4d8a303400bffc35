"""Fit a faster sampler for a trained run: ``python -m pydiffaccel.distill --help``."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

from pydiffaccel._cli import OK, CommandError, UsageError, cpu_threads, parse_seeds, run_command

PROGRAM = "python -m pydiffaccel.distill"


@dataclass(frozen=True)
class DistillOptions:
    """Fit the coefficients of a solver to the same solver with more steps, for a trained run (2309.16421).

    The plan, saved in plans/ in the run's folder, costs as many network evaluations as the solver itself.
    """

    run: Path
    """Folder of the run."""
    solver: Literal["ddim"] = "ddim"
    """The solver."""
    steps: int = 10
    """Its steps."""
    spacing: str | None = None
    """Spacing of the steps: trailing, leading, linspace, log_snr or uniform."""
    teacher_multiplier: int = 10
    """Steps of the teacher per step of the solver."""
    grid: Literal["aligned", "official"] = "aligned"
    """Whether the teacher meets the solver at the same noise levels, or as in the authors' code."""
    fit_seeds: str = "1000000-1000099"
    """Seeds of the samples that the fit sees."""
    held_out_seeds: str = "2000000-2000099"
    """Seeds of the samples that the fit is checked on."""
    output: Path | None = None
    """File of the plan; by default plans/SOLVER-STEPS.json in the run's folder."""
    batch_size: int = 256
    """Samples that are computed at once."""
    device: str = "auto"
    """cpu, cuda, cuda:1, ...; auto takes a GPU where there is one."""
    num_threads: int | None = None
    """CPU threads of the arithmetic."""
    dry_run: bool = False
    """Print what would be done and write nothing."""

    def __post_init__(self) -> None:
        for name in ("steps", "teacher_multiplier", "batch_size", "num_threads"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise UsageError(f"--{name} must be at least 1, got {value}")
        seeds: list[set[int]] = []
        for name in ("fit_seeds", "held_out_seeds"):
            try:
                seeds.append(set(parse_seeds(getattr(self, name))))
            except ValueError as error:
                raise UsageError(f"--{name}: {error}") from error
        if seeds[0] & seeds[1]:
            twice = min(seeds[0] & seeds[1])
            raise UsageError(f"--fit_seeds and --held_out_seeds must have nothing in common, got seed {twice} in both")


def main(argv: Sequence[str] | None = None) -> int:
    """The command line; returns the exit code."""
    return run_command(DistillOptions, run, argv, program=PROGRAM)


def run(options: DistillOptions) -> int:
    """Reads the run, fits the plan, and writes it with its options; returns the exit code."""
    from pydiffaccel.noise import noise_for_seeds
    from pydiffaccel.sampler import denoiser_of, load_run, select_device
    from pydiffaccel.solvers import distill_plan, make_plan
    from pydiffaccel.trainer.checkpoint import write_json

    device = select_device(options.device)
    loaded = load_run(options.run, device)
    process, shape = loaded.description.process, loaded.description.network.shape
    if process.schedule.kind != "vp":
        raise CommandError(
            f"the run in {options.run} was trained with --forward {process.schedule.name}; distillation of "
            f"{options.solver} is for runs with --forward vp or kl"
        )
    try:
        plan = make_plan(options.solver, process, options.steps, spacing=options.spacing)
    except ValueError as error:
        raise UsageError(str(error)) from error
    target = options.output or loaded.folder.plans / f"{options.solver}-{options.steps}.json"
    fit_seeds, held_out_seeds = parse_seeds(options.fit_seeds), parse_seeds(options.held_out_seeds)
    print(f"run         {loaded.folder.path} ({loaded.step:,} steps)")
    print(f"student     {plan.solver}, {plan.num_steps} steps, {plan.nfe} network evaluations (NFE) per image")
    print(f"teacher     {plan.solver}, up to {options.teacher_multiplier * plan.num_steps} steps, grid {options.grid}")
    print(f"samples     {len(fit_seeds)} to fit, {len(held_out_seeds)} held out")
    prior_std = plan.schedule.prior_std_at(plan.start.t)
    if options.dry_run:
        print("dry run: nothing was written")
        return OK
    with cpu_threads(options.num_threads):
        distilled = distill_plan(
            plan,
            denoiser_of(loaded.network, process),
            noise_for_seeds(shape, fit_seeds, device=device) * prior_std,
            teacher_multiplier=options.teacher_multiplier,
            grid=options.grid,
            batch_size=options.batch_size,
            held_out=noise_for_seeds(shape, held_out_seeds, device=device) * prior_std,
            progress=sys.stderr.isatty(),
        )
    target.parent.mkdir(parents=True, exist_ok=True)
    distilled.save(target)
    resolved = {key: str(value) if isinstance(value, Path) else value for key, value in asdict(options).items()}
    write_json(target.with_suffix(".options.json"), {**resolved, "training_step": loaded.step})
    report = distilled.metadata["distillation"]
    before, after = report["held_out"]["error_base"][-1], report["held_out"]["error_distilled"][-1]
    print("mean squared distance to the teacher on the held-out seeds, after the last step:")
    print(f"  {plan.solver}            {before:.6f}")
    gain = f"  ({before / after:.1f} times less)" if 0 < after < before else ""
    print(f"  {plan.solver}, distilled {after:.6f}{gain}")
    if after >= before:
        print("  The distilled plan is no better here.")
    print(
        f"{target} holds the plan, {distilled.nfe} NFE. Next: python -m pydiffaccel.sample "
        f"{shlex.quote(str(options.run))} --plan {shlex.quote(str(target))}"
    )
    return OK


if __name__ == "__main__":
    sys.exit(main())
