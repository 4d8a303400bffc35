"""Frechet distance of a run's samples to its data: ``python -m pydiffaccel.evaluate --help``.

The features are those of a small classifier, trained here on the run's own labelled data in seconds, in units in which
the data's variance (the trace of its covariance) is 100. The distances compare methods on the same data with each
other; they are no FID in the sense of the Inception network.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from pydiffaccel._cli import OK, CommandError, UsageError, cpu_threads, run_command
from pydiffaccel.evaluation import frechet_distance, statistics

if TYPE_CHECKING:
    import numpy as np
    import torch
    from numpy.typing import NDArray
    from torch import Tensor, nn

    from pydiffaccel.sampler import LoadedRun
    from pydiffaccel.trainer.data import ImageData

PROGRAM = "python -m pydiffaccel.evaluate"
FIRST_SEED = 10_000_000  # far from the seeds that one looks at, or fits plans on
MAX_REFERENCE = 10_000


@dataclass(frozen=True)
class Reference:
    """What samples are compared with: a classifier's features of the data, as mean and covariance.

    Attributes:
        network: images ``[N, C, H, W]`` in [-1, 1] to features ``[N, F]``.
        scale: factor on the features that makes the data's variance 100.
        mean, cov: of the data's scaled features, float64 ``[F]`` and ``[F, F]``.
        accuracy: of the classifier on a tenth of the data that it was not trained on.
        num_images: behind mean and cov.
        halves: the distance between two random halves of the data, what one can hope for at best.
    """

    network: nn.Module
    scale: float
    mean: NDArray[np.float64]
    cov: NDArray[np.float64]
    accuracy: float
    num_images: int
    halves: float

    def distance(self, images: Tensor) -> float:
        """Squared Frechet distance of images ``[N, C, H, W]`` to the data; values are clipped to [-1, 1]."""
        found = features(self.network, images.clamp(-1, 1)) * self.scale
        return frechet_distance(self.mean, self.cov, *statistics(found))


def features(network: nn.Module, images: Tensor) -> NDArray[np.float64]:
    """Features float64 ``[N, F]`` of images ``[N, C, H, W]``."""
    import torch

    with torch.inference_mode():
        found = torch.cat([network(images[first : first + 512]) for first in range(0, len(images), 512)])
    values: NDArray[np.float64] = found.double().numpy()
    return values


def make_reference(
    data: ImageData, *, seed: int = 0, steps: int = 600, report: Callable[[str], None] = lambda message: None
) -> Reference:
    """Trains the classifier on nine tenths of the data and takes the features of all of it (10,000 images at most).

    Everything is a function of (data, seed, steps).

    Raises:
        CommandError: the data has no labels, too few images, or one class only.
    """
    import numpy as np
    import torch
    from torch import nn

    from pydiffaccel.noise import derive_seed
    from pydiffaccel.trainer.data import BatchOrder

    if data.labels is None or len(data.classes) < 2:
        raise CommandError(f"{data.name} has no classes; the features are those of a classifier, which needs them")
    if len(data) < 100:
        raise CommandError(f"{data.name} has {len(data)} images; a Frechet distance needs at least 100")
    report("training the classifier whose features are compared")
    chosen = BatchOrder(len(data), derive_seed(seed, "reference")).indices(0, min(len(data), MAX_REFERENCE))
    images = torch.cat([data.batch(part) for part in np.array_split(chosen, -(-len(chosen) // 512))])
    labels = torch.from_numpy(data.labels[chosen])
    train = len(images) * 9 // 10

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(derive_seed(seed, "classifier"))
        body = nn.Sequential(
            nn.Conv2d(data.shape[0], 16, 3, padding=1),
            nn.SiLU(),
            nn.Conv2d(16, 32, 3, stride=2, padding=1),
            nn.SiLU(),
            nn.Conv2d(32, 32, 3, stride=2, padding=1),
            nn.SiLU(),
            nn.AdaptiveAvgPool2d(2),
            nn.Flatten(),
            nn.Linear(128, 16),
            nn.SiLU(),
        )
        head = nn.Linear(16, len(data.classes))
    optimizer = torch.optim.Adam([*body.parameters(), *head.parameters()], lr=3e-3)
    order = BatchOrder(train, derive_seed(seed, "classifier batches"))
    for step in range(steps):
        rows = torch.from_numpy(order.indices(step * 128, 128))
        loss = nn.functional.cross_entropy(head(body(images[rows])), labels[rows])
        optimizer.zero_grad()
        torch.autograd.backward(loss)
        optimizer.step()
    found = features(body, images)
    with torch.inference_mode():
        answers = head(torch.from_numpy(found[train:]).float()).argmax(1)
    accuracy = float((answers == labels[train:]).float().mean())
    scale = float((100 / found.var(0, ddof=1).sum()) ** 0.5)
    found = found * scale
    half = len(found) // 2
    halves = frechet_distance(*statistics(found[:half]), *statistics(found[half:]))
    return Reference(body, scale, *statistics(found), accuracy, len(found), halves)


@dataclass(frozen=True)
class EvaluateOptions:
    """Frechet distance of a run's samples to its data, at several numbers of steps. The data needs labels."""

    run: Path
    """Folder of the run."""
    steps: tuple[int, ...] = (1, 2, 4, 10)
    """Steps of the solver, one distance each."""
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
    num_samples: int = 2000
    """Samples behind each distance."""
    data: Path | None = None
    """The data, where it has moved since the run was trained on it."""
    batch_size: int = 256
    """Samples that are computed at once."""
    device: str = "auto"
    """cpu, cuda, cuda:1, ...; auto takes a GPU where there is one."""
    num_threads: int | None = None
    """CPU threads of the arithmetic."""
    dry_run: bool = False
    """Print what would be done and write nothing."""

    def __post_init__(self) -> None:
        if not self.steps or min(self.steps) < 1:
            raise UsageError(f"--steps must be at least 1 each, got {' '.join(map(str, self.steps)) or 'none'}")
        for name, low in (("num_samples", 100), ("batch_size", 1)):
            if getattr(self, name) < low:
                raise UsageError(f"--{name} must be at least {low}, got {getattr(self, name)}")
        if self.num_threads is not None and self.num_threads < 1:
            raise UsageError(f"--num_threads must be at least 1, got {self.num_threads}")


def main(argv: Sequence[str] | None = None) -> int:
    """The command line; returns the exit code."""
    return run_command(EvaluateOptions, run, argv, program=PROGRAM)


def run(options: EvaluateOptions) -> int:
    """Samples from the run and compares with its data: a table and evaluation.json; returns the exit code."""
    from pydiffaccel.sampler import default_solver, load_run, sample, select_device
    from pydiffaccel.solvers import load_plan, make_plan
    from pydiffaccel.trainer.checkpoint import write_json
    from pydiffaccel.trainer.data import load_data

    device = select_device(options.device)
    loaded = load_run(options.run, device)
    trained = loaded.folder.read_options()
    process = loaded.description.process
    try:
        if options.plan is not None:
            plans = [load_plan(options.plan)]
        else:
            solver = default_solver(process.schedule) if options.solver == "auto" else options.solver
            plans = [make_plan(solver, process, steps) for steps in options.steps]
    except (OSError, ValueError) as error:
        raise UsageError(str(error)) from error
    print(f"run         {loaded.folder.path} ({loaded.step:,} steps)")
    print(f"solver      {plans[0].solver}, {', '.join(str(plan.num_steps) for plan in plans)} steps")
    print(f"samples     {options.num_samples:,}")
    if options.dry_run:
        print("dry run: nothing was written")
        return OK
    with cpu_threads(options.num_threads):
        data = load_data(
            options.data or trained.data,
            key=trained.data_key,
            resolution=trained.resolution,
            skip_bad_images=trained.skip_bad_images,
        )
        if data.shape != loaded.description.network.shape:
            raise CommandError(f"the run is on images {loaded.description.network.shape}, the data has {data.shape}")
        condition = _condition(loaded, data, options.num_samples, device)
        reference = make_reference(data, report=print)
        print(f"the classifier is right on {reference.accuracy:.1%} of unseen images of {data.name}")
        rows = []
        print(f"{'NFE':>5}  Frechet distance")
        for plan in plans:
            images, _ = sample(
                loaded.network,
                data.shape,
                range(FIRST_SEED, FIRST_SEED + options.num_samples),
                process=process,
                coupling=loaded.description.coupling,
                condition=condition,
                plan=plan,
                batch_size=options.batch_size,
                device=device,
            )
            rows.append({"nfe": plan.nfe, "steps": plan.num_steps, "frechet_distance": reference.distance(images)})
            print(f"{plan.nfe:>5}  {rows[-1]['frechet_distance']:.2f}")
    print(f"two halves of the data have a distance of {reference.halves:.2f}")
    resolved = {key: str(value) if isinstance(value, Path) else value for key, value in asdict(options).items()}
    write_json(
        loaded.folder.path / "evaluation.json",
        {
            "options": resolved,
            "solver": plans[0].solver,
            "training_step": loaded.step,
            "accuracy": reference.accuracy,
            "halves": reference.halves,
            "results": rows,
        },
    )
    print(f"{loaded.folder.path / 'evaluation.json'} holds these figures.")
    return OK


def _condition(loaded: LoadedRun, data: ImageData, count: int, device: torch.device) -> dict[str, Tensor] | None:
    """The classes of count samples, as frequent as in the data; None for an unconditional run."""
    import torch

    from pydiffaccel.noise import derive_seed
    from pydiffaccel.trainer.data import BatchOrder

    if loaded.classes is None:
        return None
    if data.labels is None or data.classes != loaded.classes.names:
        raise CommandError(f"{data.name} has other classes than the run was trained on; give its own data")
    chosen = BatchOrder(len(data), derive_seed(0, "evaluation classes")).indices(0, count)
    return {"class_labels": torch.from_numpy(data.labels[chosen]).to(device)}


if __name__ == "__main__":
    sys.exit(main())
