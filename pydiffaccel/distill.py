"""Fit a faster sampler for a trained model: ``python -m pydiffaccel.distill --help``."""

from __future__ import annotations

import math
import shlex
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from datetime import datetime, timezone
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from pydiffaccel._cli import OK, CommandError, UsageError, cpu_threads, parse_seeds, run_command

if TYPE_CHECKING:
    from pydiffaccel.models import Model
    from pydiffaccel.solvers import Plan

PROGRAM = "python -m pydiffaccel.distill"


@dataclass(frozen=True)
class DistillOptions:
    """Fit the coefficients of a solver, or its noise levels too, to a solver with more steps (2309.16421).

    The plan, saved in plans/ in the model's folder, costs as many network evaluations as the solver itself. One that
    is worse than the solver on the held-out seeds is not saved.
    """

    model: str
    """Folder of a run or a diffusers pipeline, or package.module:function (see pydiffaccel.models)."""
    solver: str = "ddim"
    """The solver, as ddim, dpm_solver++ or euler (docs/solvers.md)."""
    steps: int = 10
    """Its steps."""
    order: int | None = None
    """Order of the solver, by default its own (docs/solvers.md)."""
    spacing: str | None = None
    """Spacing of the steps, as trailing, log_snr or karras (docs/solvers.md); by default the solver's."""
    teacher_multiplier: int = 10
    """Steps of the teacher per step of the solver."""
    teacher_solver: str | None = None
    """Solver of the teacher, by default the same; for solvers with inner stages, one of first order."""
    grid: Literal["aligned", "official"] = "aligned"
    """Whether the teacher meets the solver at the same noise levels, or as in the authors' code."""
    parameters: Literal["lambda", "history", "none"] = "lambda"
    """One scalar per step, all factors of a step's outputs, or nothing (with --learn_grid)."""
    ridge: float | None = None
    """Weight of the solver's own coefficients in the fit, by default 0 for lambda and 1e-4 for history."""
    consistent: bool = False
    """With --parameters history: keep the plan exact for a model of a single data point."""
    learn_grid: bool = False
    """Also learn where the steps lie, by dynamic programming on the teacher's trajectories."""
    fit_seeds: str = "1000000-1000099"
    """Seeds of the samples that the fit sees."""
    held_out_seeds: str = "2000000-2000099"
    """Seeds of the samples that the fit is checked on."""
    classes: str | None = None
    """Classes of a class-conditional model by name, which the samples get in turn, as 3,5; by default all of them."""
    prompt: tuple[str, ...] = ()
    """Prompts of a text-to-image model, which the samples get in turn."""
    negative_prompt: str | None = None
    """What guidance leads away from in a text-to-image model; by default the empty text."""
    guidance_scale: float = 1.0
    """Classifier-free guidance of a conditional model, which the plan is then fitted to: 1 is without."""
    clip_sample: bool = False
    """Clip the predicted images to the range of the data at each evaluation, as sample --clip_sample; the plan is then
    fitted to that."""
    force: bool = False
    """Save the plan even if it is worse than the solver on the held-out seeds."""
    output: Path | None = None
    """File of the plan; by default plans/SOLVER-STEPS.json in the model's folder (for a function: here)."""
    batch_size: int = 256
    """Samples that are computed at once."""
    device: str = "auto"
    """cpu, cuda, cuda:1, ...; auto takes a GPU where there is one."""
    num_threads: int | None = None
    """CPU threads of the arithmetic."""
    dry_run: bool = False
    """Print what would be done and write nothing."""

    def __post_init__(self) -> None:
        for name in ("steps", "order", "teacher_multiplier", "batch_size", "num_threads"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise UsageError(f"--{name} must be at least 1, got {value}")
        if self.ridge is not None and not self.ridge >= 0:
            raise UsageError(f"--ridge must not be negative, got {self.ridge}")
        if self.parameters == "none" and not self.learn_grid:
            raise UsageError("--parameters none leaves nothing to fit; add --learn_grid")
        if self.learn_grid and self.grid != "aligned":
            raise UsageError("--learn_grid needs --grid aligned, because the noise levels move")
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
    """Loads the model, fits the plan, and writes it with its options; returns the exit code."""
    from pydiffaccel.conditioning import Wanted
    from pydiffaccel.models import load_model
    from pydiffaccel.sampler import select_device
    from pydiffaccel.solvers import make_plan
    from pydiffaccel.trainer.checkpoint import write_json

    device = select_device(options.device)
    model = load_model(options.model, device)
    model = model.clipped() if options.clip_sample else model
    try:
        plan = make_plan(options.solver, model.schedule, options.steps, order=options.order, spacing=options.spacing)
    except ValueError as error:
        raise UsageError(str(error)) from error
    wanted = Wanted(options.classes, options.prompt, options.negative_prompt, options.guidance_scale)
    fit_seeds, held_out_seeds = parse_seeds(options.fit_seeds), parse_seeds(options.held_out_seeds)
    fitted, held_out = (model.conditioned(len(seeds), wanted, device) for seeds in (fit_seeds, held_out_seeds))
    target = options.output or model.folder / "plans" / f"{options.solver}-{options.steps}.json"
    print(model.about)
    print(f"student     {plan.solver}, {plan.num_steps} steps, {plan.nfe} network evaluations (NFE) per sample")
    print(f"teacher     up to {options.teacher_multiplier} steps for each, grid {options.grid}")
    print(f"samples     {len(fit_seeds)} to fit, {len(held_out_seeds)} held out")
    print(fitted.announced(options.guidance_scale), end="")
    if options.dry_run:
        print("dry run: nothing was written")
        return OK
    with cpu_threads(options.num_threads):
        distilled = _fitted(options, fitted, held_out, plan, device)
    before, after = _tell(plan, distilled)
    if not after <= before and not options.force:
        raise CommandError(
            f"the distilled plan is worse than {plan.solver} on the held-out seeds ({after:.6g} against {before:.6g})"
            f" and was not saved; fit on more seeds, or save it all the same with --force"
        )
    target.parent.mkdir(parents=True, exist_ok=True)
    distilled.save(target)
    resolved = {key: str(value) if isinstance(value, Path) else value for key, value in asdict(options).items()}
    if options.ridge is not None and math.isinf(options.ridge):
        resolved["ridge"] = "infinity"
    write_json(target.with_suffix(".options.json"), {**resolved, "training_step": model.training_step})
    again = [options.model, "--plan", str(target)]
    again += ["--guidance_scale", f"{options.guidance_scale:g}"] if options.guidance_scale != 1 else []
    again += ["--clip_sample"] if options.clip_sample else []
    again += ["--prompt", *options.prompt] if options.prompt else []
    print(f"{target} holds the plan, {distilled.nfe} NFE. Next: python -m pydiffaccel.sample {shlex.join(again)}")
    return OK


def _fitted(options: DistillOptions, fitted: Model, held_out: Model, plan: Plan, device: Any) -> Plan:
    """The distilled plan, with what it was made from in its metadata; the models have the conditions of the seeds."""
    from pydiffaccel.sampler import start_noise
    from pydiffaccel.solvers import distill_plan

    fit_seeds, held_out_seeds = parse_seeds(options.fit_seeds), parse_seeds(options.held_out_seeds)
    try:
        distilled = distill_plan(
            plan,
            fitted.denoiser,
            start_noise(plan, fitted.shape, fit_seeds, device),
            teacher_multiplier=options.teacher_multiplier,
            grid=options.grid,
            teacher_solver=options.teacher_solver,
            parameters=options.parameters,
            ridge=options.ridge,
            consistent=options.consistent,
            learn_grid=options.learn_grid,
            batch_size=options.batch_size,
            held_out=start_noise(plan, held_out.shape, held_out_seeds, device),
            held_out_denoiser=held_out.denoiser,
            progress=sys.stderr.isatty(),
        )
    except (ValueError, TypeError) as error:
        raise CommandError(f"{plan.solver} cannot be distilled here: {error}") from error
    report = distilled.metadata["distillation"]
    report["model"] = {"name": options.model, "hash": fitted.hash, "training_step": fitted.training_step}
    report["seeds"] = {"fit": options.fit_seeds, "held_out": options.held_out_seeds}
    if fitted.told:
        report["condition"] = {"told": sorted(set(fitted.told)), "guidance_scale": options.guidance_scale}
    if fitted.clip_limit is not None:
        report["clip_sample"] = fitted.clip_limit
    report["date"] = datetime.now(timezone.utc).isoformat(timespec="seconds")
    return distilled.with_metadata(distillation=report)


def _tell(plan: Plan, distilled: Plan) -> tuple[float, float]:
    """Prints the errors; returns those on the held-out seeds at the end, of the solver and of the distilled plan."""
    report = distilled.metadata["distillation"]
    print("mean squared distance to the teacher on the fitted seeds, without and with each update's own correction:")
    levels = [point.t for point in distilled.state_points[1:]]
    rows = zip(levels, report["step_error_before"], report["step_error_after"], strict=True)
    for number, (level, without, corrected) in enumerate(rows, start=1):
        print(f"  {number:>3}  to t = {level:<10.4g} {without:.3e}  {corrected:.3e}")
    if "learned_grid" in report:
        grid = report["learned_grid"]
        taken = "the given levels are the best" if grid["taken"] == "given" else f"levels by {grid['taken']}"
        print(f"learned grid: {taken}: {', '.join(f'{t:.4g}' for t in grid['times'])}")
    before, after = report["held_out"]["error_base"][-1], report["held_out"]["error_distilled"][-1]
    print("mean squared distance to the teacher on the held-out seeds, after the last step:")
    print(f"  {plan.solver}            {before:.6f}")
    gain = f"  ({before / after:.1f} times less)" if 0 < after < before else ""
    print(f"  {plan.solver}, distilled {after:.6f}{gain}")
    if not after < before:
        print("  The distilled plan is no better here.")
    return before, after


if __name__ == "__main__":
    sys.exit(main())
