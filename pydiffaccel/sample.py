"""Sample from a trained run: ``python -m pydiffaccel.sample --help``."""

from __future__ import annotations

import contextlib
import io
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from pydiffaccel._cli import OK, CommandError, UsageError, cpu_threads, parse_seeds, run_command

if TYPE_CHECKING:
    from pydiffaccel.forward import Process
    from pydiffaccel.solvers import Plan

PROGRAM = "python -m pydiffaccel.sample"


@dataclass(frozen=True)
class SampleOptions:
    """Sample images from a trained run. Each image is a function of its own seed."""

    run: Path
    """Folder of the run."""
    seeds: str = "0-63"
    """One image per seed, as 0-63 or 1,5,9."""
    solver: Literal[
        "auto",
        "ddim",
        "pndm",
        "ipndm",
        "dpm_solver",
        "dpm_solver++",
        "deis",
        "unipc",
        "edm_heun",
        "euler",
        "adams_bashforth",
    ] = "auto"
    """auto is euler for flow matching, else dpm_solver++."""
    steps: int = 20
    """Steps of the solver."""
    order: int | None = None
    """Order of the solver, by default its own (docs/solvers.md)."""
    spacing: str | None = None
    """Spacing of the steps, as trailing, log_snr or karras (docs/solvers.md); by default the solver's."""
    plan: Path | None = None
    """A saved plan, as from pydiffaccel.distill, instead of solver, steps, order and spacing."""
    output_dir: Path | None = None
    """Folder for the results; by default samples/ in the run's folder."""
    batch_size: int = 256
    """Images that are computed at once."""
    columns: int | None = None
    """Columns of the grid; by default about as many as rows."""
    device: str = "auto"
    """cpu, cuda, cuda:1, ...; auto takes a GPU where there is one."""
    num_threads: int | None = None
    """CPU threads of the arithmetic."""
    dry_run: bool = False
    """Print what would be done and write nothing."""

    def __post_init__(self) -> None:
        for name in ("steps", "order", "batch_size", "columns", "num_threads"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise UsageError(f"--{name} must be at least 1, got {value}")
        try:
            parse_seeds(self.seeds)
        except ValueError as error:
            raise UsageError(f"--seeds: {error}") from error


def main(argv: Sequence[str] | None = None) -> int:
    """The command line; returns the exit code."""
    return run_command(SampleOptions, run, argv, program=PROGRAM)


def _plan_of(options: SampleOptions, process: Process) -> tuple[Plan, str]:
    """The plan that the options name, and the name of its results."""
    from pydiffaccel.sampler import default_solver
    from pydiffaccel.solvers import load_plan, make_plan

    if options.plan is not None:
        try:
            return load_plan(options.plan), f"plan-{options.plan.stem}"
        except (OSError, ValueError) as error:
            raise CommandError(f"the plan cannot be used: {error}") from error
    solver = default_solver(process) if options.solver == "auto" else options.solver
    try:
        plan = make_plan(solver, process, options.steps, order=options.order, spacing=options.spacing)
    except ValueError as error:
        raise UsageError(str(error)) from error
    return plan, f"{solver}-{options.steps}"


def run(options: SampleOptions) -> int:
    """Reads the run, samples, and writes the results; returns the exit code."""
    import numpy as np

    from pydiffaccel.sampler import load_run, sample, select_device
    from pydiffaccel.trainer.checkpoint import write_file, write_json
    from pydiffaccel.trainer.metrics import Progress
    from pydiffaccel.trainer.report import save_grid, to_uint8

    device = select_device(options.device)
    seeds = parse_seeds(options.seeds)
    loaded = load_run(options.run, device)
    process, coupling = loaded.description.process, loaded.description.coupling
    plan, name = _plan_of(options, process)
    if plan.schedule != process.schedule:
        raise CommandError(
            f"the plan is for another noise schedule ({plan.schedule!r}) than the run's ({process.schedule!r})"
        )
    folder = options.output_dir or loaded.folder.path / "samples"
    state = f"{loaded.step:,} steps" + ("" if loaded.finished else ", unfinished: its newest checkpoint")
    print(f"run         {loaded.folder.path} ({state})")
    print(f"solver      {plan.solver}, {plan.num_steps} steps, {plan.nfe} network evaluations (NFE) per image")
    shape = loaded.description.network.shape
    print(f"images      {len(seeds):,} of {' x '.join(map(str, shape))}, seeds {options.seeds}")
    if options.dry_run:
        print("dry run: nothing was written")
        return OK
    with cpu_threads(options.num_threads):
        progress = Progress(len(seeds), 0, "image")
        begin = time.monotonic()
        with contextlib.closing(progress):
            samples, _ = sample(
                loaded.network,
                shape,
                seeds,
                process=process,
                coupling=coupling,
                plan=plan,
                batch_size=options.batch_size,
                device=device,
                progress=progress.advance,
            )
        seconds = time.monotonic() - begin
    folder.mkdir(parents=True, exist_ok=True)
    images = to_uint8(samples)
    save_grid(folder / f"{name}.png", images, options.columns)
    archive = io.BytesIO()
    np.savez(archive, images=images, samples=samples.numpy(), seeds=np.array(seeds, np.int64), nfe=np.int64(plan.nfe))
    write_file(folder / f"{name}.npz", archive.getvalue())
    resolved = {key: str(value) if isinstance(value, Path) else value for key, value in asdict(options).items()}
    write_json(
        folder / f"{name}.json",
        {**resolved, "solver": plan.solver, "steps": plan.num_steps, "nfe": plan.nfe, "training_step": loaded.step},
    )
    print(f"NFE         {plan.nfe} per image, {seconds:.1f} s for all")
    print(f"{folder} holds {name}.png (grid) and {name}.npz (images uint8, samples float32, seeds, nfe).")
    return OK


if __name__ == "__main__":
    sys.exit(main())
