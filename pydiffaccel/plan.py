"""Look at a plan, or take its numbers to other tools: ``python -m pydiffaccel.plan --help``."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from pydiffaccel._cli import OK, CommandError, run_command

if TYPE_CHECKING:
    from pydiffaccel.solvers import Plan

PROGRAM = "python -m pydiffaccel.plan"


@dataclass(frozen=True)
class PlanOptions:
    """Show a plan and how it was fitted, or export its noise levels.

    Exported are the noise levels alone. The coefficients of a distilled plan run in pydiffaccel only.
    """

    command: Literal["show", "export"]
    """show prints the table and where it is from; export prints numbers to paste elsewhere."""
    file: Path
    """A saved plan, as from pydiffaccel.distill."""
    format: Literal["sigmas", "diffusers"] = "sigmas"
    """sigmas: a list from the noisiest level down to 0, as samplers of the k-diffusion kind take it. diffusers: the
    arguments timesteps and sigmas of a pipeline's or set_timesteps' call (give it one of them)."""


def main(argv: Sequence[str] | None = None) -> int:
    """The command line; returns the exit code."""
    return run_command(PlanOptions, run, argv, program=PROGRAM)


def run(options: PlanOptions) -> int:
    """Reads the plan and prints; returns the exit code."""
    from pydiffaccel.models import read_plan

    plan = read_plan(options.file)
    if options.command == "show":
        _show(plan)
        return OK
    numbers = exported(plan)
    print(json.dumps(numbers["sigmas"] if options.format == "sigmas" else numbers))
    if "distillation" in plan.metadata and plan.metadata["distillation"]["parameters"] != "none":
        print(f"{PROGRAM}: these are the noise levels; the fitted coefficients are not part of them", file=sys.stderr)
    return OK


def exported(plan: Plan) -> dict[str, list[float]]:
    """The plan's levels as other tools write them.

    ``sigmas`` end with that of the last state and are sigma / alpha, for flow matching sigma itself. ``timesteps`` are
    the model's times of all levels but the last: training indices, for flow matching 1000 sigma, for EDM sigma.

    Raises:
        CommandError: a level without signal has no finite sigma / alpha.
    """
    levels = [plan.state_points[state] for state in plan.trajectory_states]
    if plan.schedule.kind == "flow":
        sigmas = [level.sigma for level in levels]
        times = [1000.0 * sigma for sigma in sigmas]
    else:
        if any(level.alpha == 0 for level in levels):
            raise CommandError("the plan starts at a level without signal, where sigma / alpha is infinite")
        sigmas = [level.sigma / level.alpha for level in levels]
        times = [level.t for level in levels]
    whole = [int(t) if t == int(t) else t for t in times[:-1]]
    return {"timesteps": whole, "sigmas": sigmas}


def _show(plan: Plan) -> None:
    print(plan.describe())
    report = plan.metadata.get("distillation")
    if report is None:
        return
    print(f"distilled: {report['parameters']}, ridge {report['ridge']}, grid {report['grid']}")
    teacher = report["teacher"]
    print(f"teacher: {teacher['solver']}, {teacher['num_steps']} steps, {teacher['nfe']} NFE")
    print(f"fitted on {report['num_samples']} samples, {report['evaluations_per_sample']} evaluations of each")
    if "model" in report:
        print(f"model: {report['model']['name']}, weights {report['model']['hash']}")
        print(f"seeds: {report['seeds']['fit']} to fit, {report['seeds']['held_out']} held out")
        print(f"date: {report['date']}")
    if "condition" in report:
        told = report["condition"]
        print(f"condition: {', '.join(told['told'])}; guidance scale {told['guidance_scale']:g}")
    if "clip_sample" in report:
        print(f"predicted data clipped to +-{report['clip_sample']:g}")
    if "learned_grid" in report:
        print(f"learned grid: {report['learned_grid']['taken']} of {report['learned_grid']['candidates']} candidates")
    if "held_out" in report:
        errors = report["held_out"]
        print(
            f"mean squared distance to the teacher on {errors['num_samples']} held-out samples:"
            f" {errors['error_base'][-1]:.6g} before, {errors['error_distilled'][-1]:.6g} after"
        )


if __name__ == "__main__":
    sys.exit(main())
