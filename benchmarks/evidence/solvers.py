"""Solvers at few evaluations: as they are, distilled, and on a learned grid, on the networks of trained cells.

    python -m benchmarks.evidence.solvers --set digits

Needs the cells that it names to be trained (benchmarks.evidence.run, the same --work). Few evaluations are where
coupling and distilled solvers meet: both networks are there, of the plain cell and of the coupled one.
"""

from __future__ import annotations

import itertools
import re
import sys
import time
from collections.abc import Iterator
from typing import Any

import torch

from benchmarks.evidence.judge import FIRST_SEED, Judge
from benchmarks.evidence.run import in_workers, parse
from benchmarks.evidence.trained import Session, Trained
from pydiffaccel.sampler import draw, start_noise
from pydiffaccel.solvers import Denoiser, Plan, distill_plan, make_plan

CELLS = ("eps-plain", "flow-plain", "flow-preset", "x-preset")
SOLVERS = {
    "vp": ("ddim", "pndm", "ipndm", "dpm_solver", "dpm_solver++", "deis", "unipc"),
    "flow": ("euler", "adams_bashforth"),
}
EVALUATIONS = (5, 8, 10, 20)
VARIANTS: dict[str, dict[str, Any]] = {
    "plain": {},
    "lambda": {"parameters": "lambda"},
    "history": {"parameters": "history"},
    "learned grid": {"parameters": "lambda", "learn_grid": True},
}
FIT_SEEDS = 128


def plan_of(solver: str, schedule: Any, count: int) -> Plan | None:
    """The plan with the most steps that takes no more than `count` evaluations."""
    plans = []
    for steps in range(1, count + 1):
        try:
            plans.append(make_plan(solver, schedule, steps))
        except ValueError:
            continue
    return max((plan for plan in plans if plan.nfe <= count), key=lambda plan: plan.nfe, default=None)


def variants(
    plan: Plan, denoiser: Denoiser, shape: tuple[int, ...], seeds: int, device: torch.device
) -> Iterator[tuple[str, Plan, float]]:
    """(name, plan, CPU seconds of the fit) for the plan as it is and each way to distill it on so many seeds."""
    for name, how in VARIANTS.items():
        before = time.process_time()
        if how:
            try:
                fitted = distill_plan(plan, denoiser, start_noise(plan, shape, range(seeds), device), **how)
            except ValueError as error:
                print(f"{plan.solver}, {plan.nfe} evaluations, {name}: {error}")
                continue
        else:
            fitted = plan
        yield name, fitted, time.process_time() - before


def measured(one: Trained, solver: str, plan: Plan, count: int, options: Any, judge: Judge) -> list[dict[str, Any]]:
    """A plan of a solver for so many evaluations on a network, in each variant."""
    device, fit_seeds = torch.device(options.device), 8 if options.quick else FIT_SEEDS
    rows = []
    seeds = range(FIRST_SEED, FIRST_SEED + options.data_set.num_samples)
    for variant, fitted, seconds in variants(plan, one.denoiser, one.shape, fit_seeds, device):
        before = time.process_time()
        images = draw(fitted, one.denoiser, one.shape, seeds, device=device)
        found = judge(images) if bool(images.isfinite().all()) else None
        rows.append(
            {
                "cell": one.cell.name,
                "seed": one.seed,
                "solver": solver,
                "evaluations": count,
                "nfe": fitted.nfe,
                "variant": variant,
                "fit_cpu_seconds": seconds,
                "judge_cpu_seconds": time.process_time() - before,
                "figures": found,
            }
        )
    return rows


def work(options: Any, deadline: float) -> int:
    """One worker: takes the first plan on a network that nobody has; returns how many it measured."""
    keys = ("cell", "seed", "solver", "evaluations")
    session, done, quick = Session.of(options, deadline, "solvers.json", keys, fit_seeds=FIT_SEEDS), 0, options.quick
    for one in session.networks(CELLS):
        schedule = one.process.schedule
        solvers = [name for name in SOLVERS[schedule.kind] if re.search(options.solvers, name)]
        for solver, count in itertools.product(solvers[: 1 if quick else None], EVALUATIONS[: 1 if quick else None]):
            plan = plan_of(solver, schedule, count)
            if session.is_over:
                return done
            with session.kept.turn(one.cell.name, one.seed, solver, count) as mine:
                if mine and plan is not None:
                    session.kept.add(measured(one, solver, plan, count, options, session.judge))
                    print(f"{one.cell.name} seed {one.seed}: {solver} at {count} done", flush=True)
                    done += 1
    return done


def main(arguments: list[str] | None = None) -> int:
    return in_workers(work, parse(arguments, __doc__))


if __name__ == "__main__":
    sys.exit(main())
