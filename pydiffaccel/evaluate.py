"""How far samples are from data: ``python -m pydiffaccel.evaluate --help``; docs/evaluation.md has the recipes.

Distances on the features of a small classifier compare methods on the same data with each other. Only those on the
Inception network's features are called FID and KID.
"""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydiffaccel._cli import OK, CommandError, UsageError, cpu_threads
from pydiffaccel.trainer.launch import end_process, run_on_ranks
from pydiffaccel.trainer.parallel import Ranks

try:
    from tyro.conf import Positional
except ImportError:  # without the extra [train] there is no command line, and nothing reads the mark
    Positional = None  # type: ignore[misc]

if TYPE_CHECKING:
    import torch

    from pydiffaccel.evaluation.panel import Panel
    from pydiffaccel.models import Model
    from pydiffaccel.solvers import Plan
    from pydiffaccel.trainer.data import TrainData

PROGRAM = "python -m pydiffaccel.evaluate"
_SAMPLES = 2000  # of a model
_LEAST = 100

MetricName = Literal[
    "frechet", "kid", "precision_recall", "density_coverage", "sliced_wasserstein", "sliced_wasserstein_pixels"
]


@dataclass(frozen=True)
class EvaluateOptions:
    """Distances of a model's samples, or of images in files, to data. Features and recipes: docs/evaluation.md.

    Started by torchrun, all processes share the work, and the figures are the same.
    """

    model: Annotated[str, Positional] = ""
    """Folder of a run or an unconditional diffusers pipeline, or package.module:function (see pydiffaccel.models)."""
    ema: int | None = None
    """Which average of a run that has several, by its half-life in images; by default its first."""
    samples: Path | None = None
    """Images instead of a model: a folder, zip, npz or npy."""
    samples_key: str | None = None
    """The array of an npz of samples that holds the images, where that is not plain."""
    metrics: tuple[MetricName, ...] = ("frechet", "kid", "precision_recall", "sliced_wasserstein")
    """What to measure."""
    features: str = "auto"
    """classifier, rotation, pixels, inception or package.module:name; auto is classifier for labelled data, else
    rotation."""
    features_weights: Path | None = None
    """File of the Inception network's weights; by default where torch-fidelity keeps it."""
    steps: tuple[int, ...] = (1, 2, 4, 10)
    """Steps of the solver, a set of figures each."""
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
    plan: Path | None = None
    """A saved plan instead of solver and steps."""
    clip_sample: bool = False
    """Clip the predicted images to the range of the data at each evaluation; helps networks that predict noise."""
    num_samples: int | None = None
    """Samples behind each figure; by default 2,000 of a model, all of --samples."""
    num_reference: int = 10_000
    """Images of the data to compare with, at most."""
    force: bool = False
    """Measure with fewer images than a measure needs to mean something."""
    data: Path | None = None
    """The data; by default what the run was trained on."""
    data_key: str | None = None
    """Which array, column or ending holds the data's images; by default that of the run."""
    label_key: str | None = None
    """Likewise of the classes."""
    resolution: int | None = None
    """Resize and crop the data, and --samples, to this size; by default as in the run."""
    skip_bad_images: bool = False
    """Leave unreadable images out."""
    seed: int = 0
    """Seed of what is trained, drawn and chosen to measure; not of the samples."""
    output: Path | None = None
    """The JSON of the figures; by default evaluation.json in the model's folder (for a function or --samples: here)."""
    batch_size: int = 256
    """Samples that are computed at once."""
    device: str = "auto"
    """cpu, cuda, cuda:1, ...; auto takes a GPU where there is one."""
    num_threads: int | None = None
    """CPU threads of the arithmetic."""
    dry_run: bool = False
    """Print what would be done and write nothing."""

    def __post_init__(self) -> None:
        if bool(self.model) == (self.samples is not None):
            raise UsageError("give either a model or --samples")
        if self.ema is not None and not self.model:
            raise UsageError("--ema goes with a model")
        if self.clip_sample and not self.model:
            raise UsageError("--clip_sample goes with a model")
        if not self.steps or min(self.steps) < 1:
            raise UsageError(f"--steps must be at least 1 each, got {' '.join(map(str, self.steps)) or 'none'}")
        if not self.metrics:
            raise UsageError("--metrics must name at least one")
        if self.features_weights is not None and self.features != "inception":
            raise UsageError(f"--features_weights goes with --features inception, got {self.features}")
        least = 1 if self.force else _LEAST
        hint = "" if self.force else "; --force measures fewer"
        if self.num_samples is not None and self.num_samples < least:
            raise UsageError(f"--num_samples must be at least {least}, got {self.num_samples}{hint}")
        if self.num_reference < least:
            raise UsageError(f"--num_reference must be at least {least}, got {self.num_reference}{hint}")
        for name in ("resolution", "batch_size", "num_threads"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise UsageError(f"--{name} must be at least 1, got {value}")
        if not -(2**63) <= self.seed < 2**64:
            raise UsageError(f"--seed must fit in 64 bits, got {self.seed}")


def main(argv: Sequence[str] | None = None) -> int:
    """The command line, on each rank under torchrun; returns the exit code."""
    return run_on_ranks(EvaluateOptions, run, argv, program=PROGRAM)


def run(options: EvaluateOptions, ranks: Ranks | None = None) -> int:
    """Measures and writes the figures: a table and a JSON; returns the exit code."""
    ranks = ranks or Ranks()
    device = ranks.join(options.device)
    with cpu_threads(options.num_threads), ranks.exchanging("run the command again"):
        code = _run(options, device, ranks)
        ranks.leave()
    return code


def _run(options: EvaluateOptions, device: torch.device, ranks: Ranks) -> int:
    from pydiffaccel.evaluation.samples import with_classes_of
    from pydiffaccel.models import load_model

    with ranks.together():
        model = load_model(options.model, device, ema=options.ema) if options.model else None
        model = model.clipped() if model and options.clip_sample else model
        plans = _plans(options, model) if model else []
    if model is not None:
        print(model.about)
        print(f"solver      {plans[0].solver}, {', '.join(str(plan.num_steps) for plan in plans)} steps")
        print(f"samples     {options.num_samples or _SAMPLES:,}")
    else:
        print(f"samples     {options.samples}")
    print(f"measures    {', '.join(options.metrics)}")
    if options.dry_run:
        print("dry run: nothing was written")
        return OK
    with ranks.together():
        data, files = _load_data(options, model)
        if model is not None:
            model = with_classes_of(model, data, options.num_samples or _SAMPLES, device)
    print(f"data        {data.describe()}")
    figures = _measure(options, model, plans, data, files, device, ranks)
    with ranks.together():
        if ranks.is_main:
            target = options.output or (model.folder if model else Path()) / "evaluation.json"
            _tell(figures)
            _write(target, options, model, plans, figures)
            print(f"{target} holds these figures.")
    return OK


def _plans(options: EvaluateOptions, model: Model) -> list[Plan]:
    from pydiffaccel.models import read_plan
    from pydiffaccel.solvers import make_plan

    if model.latent or len(model.shape) != 3:
        what = "latents" if model.latent else f"samples of shape {' x '.join(map(str, model.shape))}"
        raise CommandError(f"{model.name} makes {what}, and only images can be measured")
    if options.plan is not None:
        return [read_plan(options.plan, model)]
    solver = model.default_solver if options.solver == "auto" else options.solver
    try:
        return [make_plan(solver, model.schedule, steps) for steps in options.steps]
    except ValueError as error:
        raise UsageError(str(error)) from error


def _load_data(options: EvaluateOptions, model: Model | None) -> tuple[TrainData, TrainData | None]:
    """The data, which the flags name, or else the run was trained on, and the images of --samples."""
    from pydiffaccel.evaluation.samples import load_samples
    from pydiffaccel.trainer.build import make_data
    from pydiffaccel.trainer.config import TrainOptions
    from pydiffaccel.trainer.run import RunFolder

    asked = TrainOptions(data=options.data)
    if model is not None and model.training_step is not None and RunFolder(model.folder).options.exists():
        asked = RunFolder(model.folder).read_options()
        if options.data is not None:
            moved = asked.data is not None and asked.data.suffix == options.data.suffix  # the same file, elsewhere
            keys = (asked.data_key, asked.label_key) if moved else (None, None)
            asked = replace(asked, data=options.data, data_key=keys[0], label_key=keys[1])
    asked = replace(
        asked,
        data_key=options.data_key or asked.data_key,
        label_key=options.label_key or asked.label_key,
        resolution=options.resolution or asked.resolution,
        skip_bad_images=options.skip_bad_images or asked.skip_bad_images,
    )
    data = make_data(asked, report=lambda message: print(message, file=sys.stderr))
    if model is not None and data.shape != model.shape:
        sizes = [" x ".join(map(str, shape)) for shape in (model.shape, data.shape)]
        raise CommandError(f"{model.name} makes images of {sizes[0]}, the data has {sizes[1]}")
    if options.samples is None:
        return data, None
    return data, load_samples(
        options.samples,
        options.samples_key,
        data,
        resolution=asked.resolution,
        skip_bad_images=asked.skip_bad_images,
    )


@dataclass(frozen=True)
class _Figures:
    """What was measured: a dict per plan, or one for the images in files; the same of real images; and with what."""

    results: list[dict[str, Any]]
    floor: dict[str, Any]
    panel: Panel
    num_samples: int


def _measure(
    options: EvaluateOptions,
    model: Model | None,
    plans: Sequence[Plan],
    data: TrainData,
    files: TrainData | None,
    device: torch.device,
    ranks: Ranks,
) -> _Figures:
    from pydiffaccel.evaluation.measures import Settings
    from pydiffaccel.evaluation.panel import make_features, make_panel
    from pydiffaccel.evaluation.ranks import once
    from pydiffaccel.evaluation.reference import FIRST_SEED
    from pydiffaccel.evaluation.samples import embed_images, embed_samples
    from pydiffaccel.trainer.metrics import Progress

    count = options.num_samples or _SAMPLES
    if files is not None:
        print(f"samples     {files.describe()}")
        count = min(options.num_samples or len(files), len(files))
    weights, seed = options.features_weights, options.seed
    features = make_features(
        options.features, data, weights=weights, seed=seed, device=device, ranks=ranks, report=print
    )
    print(f"features    {features.about}, {features.dimension:,} per image")
    panel = make_panel(
        data,
        options.metrics,
        features,
        num_samples=count,
        num_reference=options.num_reference,
        settings=Settings(seed=seed),
        force=options.force,
        ranks=ranks,
    )
    results = []
    if files is not None:
        values = embed_images(files, count, panel.references, ranks=ranks, seed=seed)
        results.append(once(ranks, partial(panel.figures, values)))
    for plan in plans:
        assert model is not None
        with contextlib.closing(Progress(ranks.split(count)[1], 0, "image")) as progress:
            values = embed_samples(
                model,
                plan,
                range(FIRST_SEED, FIRST_SEED + count),
                panel.references,
                ranks=ranks,
                batch_size=options.batch_size,
                device=device,
                progress=progress.advance,
            )
        results.append({"nfe": plan.nfe, "steps": plan.num_steps, **once(ranks, partial(panel.figures, values))})
    return _Figures(results, once(ranks, partial(panel.floor, count)), panel, count)


def _tell(found: _Figures) -> None:
    named = [f"NFE {row['nfe']}" if "nfe" in row else "samples" for row in found.results]
    print(found.panel.table(dict(zip([*named, "real"], [*found.results, found.floor], strict=True))))
    counts = f"{found.floor['num_samples']:,} images of the data against {found.floor['num_reference']:,} others"
    print(f"real is {counts}: what one can hope for at best.")


def _write(target: Path, options: EvaluateOptions, model: Model | None, plans: Sequence[Plan], found: _Figures) -> None:
    from pydiffaccel.trainer.checkpoint import write_json

    resolved = {key: str(value) if isinstance(value, Path) else value for key, value in asdict(options).items()}
    made: dict[str, Any] = {}
    if model is not None:
        made = {"solver": plans[0].solver, "model": model.hash, "training_step": model.training_step}
    target.parent.mkdir(parents=True, exist_ok=True)
    write_json(
        target,
        {
            "options": resolved,
            **made,
            "recipe": found.panel.recipe(found.num_samples),
            "floor": found.floor,
            "results": found.results,
        },
    )


if __name__ == "__main__":
    end_process(main())
