"""Sample from a trained model: ``python -m pydiffaccel.sample --help``."""

from __future__ import annotations

import contextlib
import io
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydiffaccel._cli import OK, CommandError, UsageError, cpu_threads, parse_seeds, run_command

if TYPE_CHECKING:
    from pydiffaccel.models import Model
    from pydiffaccel.solvers import Plan

PROGRAM = "python -m pydiffaccel.sample"

# Images of each solver in a comparison's picture.
_SHOWN = 24


@dataclass(frozen=True)
class SampleOptions:
    """Sample images from a trained model. Each image is a function of its own seed.

    With --compare, several solvers start from the same noise, and one picture and one table set them side by side.
    """

    model: str
    """Folder of a run or a diffusers pipeline, or package.module:function (see pydiffaccel.models)."""
    ema: int | None = None
    """Which average of a run that has several, by its half-life in images; by default its first."""
    seeds: str = "0-63"
    """One image per seed, as 0-63 or 1,5,9."""
    classes: str | None = None
    """Classes of a class-conditional model by name, which the images get in turn, as 3,5; by default all of them."""
    prompt: tuple[str, ...] = ()
    """Prompts of a text-to-image model, which the images get in turn."""
    negative_prompt: str | None = None
    """What guidance leads away from in a text-to-image model; by default the empty text."""
    guidance_scale: float = 1.0
    """Classifier-free guidance of a conditional model: 1 is without, anything else doubles the work."""
    clip_sample: bool = False
    """Clip the predicted images to the range of the data at each evaluation; helps networks that predict noise."""
    solver: str = "auto"
    """The solver (docs/solvers.md); auto is euler for flow matching, else dpm_solver++."""
    steps: str = "20"
    """Steps of the solver; with --compare several, as 5,8,10."""
    order: int | None = None
    """Order of the solver, by default its own (docs/solvers.md)."""
    spacing: str | None = None
    """Spacing of the steps, as trailing, log_snr or karras (docs/solvers.md); by default the solver's."""
    plan: Path | None = None
    """A saved plan, as from pydiffaccel.distill, instead of solver, steps, order and spacing."""
    compare: str | None = None
    """Solvers and files of plans to compare, as ddim,dpm_solver++,plans/ddim-10.json."""
    fine_steps: int = 200
    """With --compare: steps of the fine solution that errors are measured to."""
    output_dir: Path | None = None
    """Folder for the results; by default samples/ in the model's folder (for a function: here)."""
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
        for name in ("order", "fine_steps", "batch_size", "columns", "num_threads"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise UsageError(f"--{name} must be at least 1, got {value}")
        if len(self.all_steps()) > 1 and self.compare is None:
            raise UsageError(f"--steps takes several numbers with --compare only, got {self.steps!r}")
        if self.compare is not None and self.plan is not None:
            raise UsageError("--plan and --compare exclude each other; name the plan's file in --compare")
        try:
            parse_seeds(self.seeds)
        except ValueError as error:
            raise UsageError(f"--seeds: {error}") from error

    def all_steps(self) -> list[int]:
        """The numbers of steps.

        Raises:
            UsageError: not whole numbers of at least 1, separated by commas.
        """
        parts = [part.strip() for part in self.steps.split(",")]
        if not all(part.isdecimal() for part in parts):
            raise UsageError(f"--steps: steps are written as 10 or 5,8,10, got {self.steps!r}")
        low = [int(part) for part in parts if int(part) < 1]
        if low:
            raise UsageError(f"--steps must be at least 1, got {low[0]}")
        return [int(part) for part in parts]


def main(argv: Sequence[str] | None = None) -> int:
    """The command line; returns the exit code."""
    return run_command(SampleOptions, run, argv, program=PROGRAM)


def _make_plan(options: SampleOptions, model: Model, solver: str, steps: int) -> Plan:
    from pydiffaccel.solvers import make_plan

    solver = model.default_solver if solver == "auto" else solver
    try:
        return make_plan(solver, model.schedule, steps, order=options.order, spacing=options.spacing)
    except ValueError as error:
        raise UsageError(str(error)) from error


def run(options: SampleOptions) -> int:
    """Loads the model, samples, and writes the results; returns the exit code."""
    from pydiffaccel.conditioning import Wanted
    from pydiffaccel.models import load_model, read_plan
    from pydiffaccel.sampler import select_device

    device = select_device(options.device)
    model = load_model(options.model, device, ema=options.ema)
    images = model.latent or (len(model.shape) == 3 and model.shape[0] in (1, 3, 4))
    if not (images and model.drawable):
        what = f"{'samples' if model.drawable else 'latents'} of shape {' x '.join(map(str, model.shape))}"
        raise CommandError(f"{options.model} makes {what}, and only images can be drawn; use pydiffaccel.integrate")
    model = model.clipped() if options.clip_sample else model
    wanted = Wanted(options.classes, options.prompt, options.negative_prompt, options.guidance_scale)
    model = model.conditioned(len(parse_seeds(options.seeds)), wanted, device)
    print(model.about)
    if options.compare is not None:
        return _compare(options, model, device)
    if options.plan is not None:
        plan, name = read_plan(options.plan, model, options.guidance_scale), f"plan-{options.plan.stem}"
    else:
        plan = _make_plan(options, model, options.solver, options.all_steps()[0])
        name = f"{plan.solver}-{plan.num_steps}"
    print(f"solver      {plan.solver}, {plan.num_steps} steps, {plan.nfe} network evaluations (NFE) per image")
    _announce(options, model)
    if options.dry_run:
        print("dry run: nothing was written")
        return OK
    return _sample(options, model, plan, name, device)


@contextlib.contextmanager
def _told_by(model: Model) -> Iterator[None]:
    """What is wrong with a model's answers, as one sentence."""
    try:
        yield
    except (ValueError, TypeError) as error:
        raise CommandError(f"{model.name} cannot be sampled: {error}") from error


def _announce(options: SampleOptions, model: Model) -> None:
    count = len(parse_seeds(options.seeds))
    what = " as latents" if model.latent else ""
    print(f"images      {count:,} of {' x '.join(map(str, model.shape))}{what}, seeds {options.seeds}")
    print(model.announced(options.guidance_scale), end="")


def _resolved(options: SampleOptions, model: Model, **more: Any) -> dict[str, Any]:
    values = {key: str(value) if isinstance(value, Path) else value for key, value in asdict(options).items()}
    return {**values, "training_step": model.training_step, **more}


def _sample(options: SampleOptions, model: Model, plan: Plan, name: str, device: Any) -> int:
    import numpy as np

    from pydiffaccel.sampler import draw
    from pydiffaccel.trainer.checkpoint import write_file, write_json
    from pydiffaccel.trainer.metrics import Progress
    from pydiffaccel.trainer.pictures import save_grid, to_uint8

    seeds = parse_seeds(options.seeds)
    folder = options.output_dir or model.folder / "samples"
    with cpu_threads(options.num_threads):
        progress = Progress(len(seeds), 0, "image")
        begin = time.monotonic()
        with contextlib.closing(progress), _told_by(model):
            latents = draw(
                plan,
                model.denoiser,
                model.shape,
                seeds,
                batch_size=options.batch_size,
                device=device,
                progress=progress.advance,
            )
        samples = model.unscale(latents)
        seconds = time.monotonic() - begin
    folder.mkdir(parents=True, exist_ok=True)
    images = to_uint8(samples)
    save_grid(folder / f"{name}.png", images, options.columns)
    archive = io.BytesIO()
    arrays: dict[str, Any] = {"images": images, "samples": samples.numpy(), "seeds": np.array(seeds, np.int64)}
    if model.condition is not None:
        arrays[model.condition.kind] = np.array(model.told)
    if model.latent:
        arrays["latents"] = latents.numpy()
    np.savez(archive, nfe=np.int64(plan.nfe), **arrays)
    write_file(folder / f"{name}.npz", archive.getvalue())
    write_json(
        folder / f"{name}.json",
        _resolved(options, model, solver=plan.solver, steps=plan.num_steps, nfe=plan.nfe),
    )
    print(f"NFE         {plan.nfe} per image, {seconds:.1f} s for all")
    print(f"{folder} holds {name}.png (grid) and {name}.npz (images uint8, samples float32, seeds, nfe).")
    return OK


def _compare(options: SampleOptions, model: Model, device: Any) -> int:
    from pydiffaccel.comparison import compare, save_sheet, table
    from pydiffaccel.models import read_plan
    from pydiffaccel.trainer.checkpoint import write_json

    plans: list[tuple[str, Plan]] = []
    names = [part.strip() for part in (options.compare or "").split(",")]
    if not all(names):
        raise UsageError(f"--compare: solvers and files are written as ddim,unipc, got {options.compare!r}")
    for name in names:
        if name.endswith(".json") or Path(name).is_file():
            plans.append((Path(name).stem, read_plan(Path(name), model, options.guidance_scale)))
        else:
            plans.extend((name, _make_plan(options, model, name, steps)) for steps in options.all_steps())
    print(f"comparing   {', '.join(dict.fromkeys(name for name, _ in plans))}")
    _announce(options, model)
    if options.dry_run:
        print("dry run: nothing was written")
        return OK
    with cpu_threads(options.num_threads), _told_by(model):
        entries = compare(
            model,
            plans,
            parse_seeds(options.seeds),
            fine_steps=options.fine_steps,
            batch_size=options.batch_size,
            device=device,
        )
    folder = options.output_dir or model.folder / "samples"
    folder.mkdir(parents=True, exist_ok=True)
    save_sheet(folder / "compare.png", entries, model, _SHOWN, "Samples from the same noise")
    write_json(folder / "compare.json", _resolved(options, model, results=[entry.to_dict() for entry in entries]))
    print(table(entries))
    print(f"{folder} holds compare.png and compare.json.")
    return OK


if __name__ == "__main__":
    sys.exit(main())
