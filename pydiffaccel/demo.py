"""Plain against accelerated training, side by side: ``python -m pydiffaccel.demo``.

Trains two flow-matching models on the packaged digits with the same seed, steps and network, one as it comes and one
with ``--preset fast`` (docs/evidence.md), and measures both at few network evaluations.
"""

from __future__ import annotations

import hashlib
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydiffaccel._cli import OK, UsageError, cpu_threads, run_command
from pydiffaccel.trainer.config import TrainOptions

PROGRAM = "python -m pydiffaccel.demo"
EVALUATIONS = (1, 2, 4, 10)
SHOWN = 24
NAMES = ("plain", "fast")
_LABELS = {"plain": "plain", "fast": "--preset fast"}


@dataclass(frozen=True)
class DemoOptions:
    """Train plain and accelerated with the same seed, steps and network, and compare both at few evaluations.

    A second call finds the trained models and measurements in the folder and only prints them.
    """

    output_dir: Path = Path("runs/demo")
    """Folder for both runs, the figures and the picture."""
    max_train_steps: int = 1000
    """Steps of each run."""
    train_batch_size: int = 128
    """Images per step."""
    seed: int = 0
    """Seed of both runs."""
    num_samples: int = 2000
    """Samples behind each Frechet distance."""
    channels: tuple[int, ...] = ()
    """Channels of the U-Net's levels; by default fitted to the images' size."""
    device: str = "auto"
    """cpu, cuda, cuda:1, ...; auto takes a GPU where there is one."""
    num_threads: int | None = None
    """CPU threads of the arithmetic."""
    dry_run: bool = False
    """Print what would be done and write nothing."""

    def __post_init__(self) -> None:
        if self.num_samples < 100:
            raise UsageError(f"--num_samples must be at least 100, got {self.num_samples}")

    def training(self, name: str) -> TrainOptions:
        """The options of one of the two runs."""
        return TrainOptions(
            output_dir=self.output_dir / name,
            forward="flow",
            preset="fast" if name == "fast" else "none",
            max_train_steps=self.max_train_steps,
            train_batch_size=self.train_batch_size,
            channels=self.channels,
            seed=self.seed,
            device=self.device,
            num_threads=self.num_threads,
            dry_run=self.dry_run,
        )


def main(argv: Sequence[str] | None = None) -> int:
    """The command line; returns the exit code."""
    return run_command(DemoOptions, run, argv, program=PROGRAM)


def run(options: DemoOptions) -> int:
    """Trains, measures, prints and draws; returns the exit code."""
    from pydiffaccel.train import train
    from pydiffaccel.trainer.checkpoint import read_json, write_json

    begin = time.monotonic()
    for number, name in enumerate(NAMES, start=1):
        print(f"--- {number} of 2: flow matching, {_LABELS[name]}", flush=True)
        code = train(options.training(name))
        if code != OK:
            return code
    if options.dry_run:
        return OK
    target, picture = options.output_dir / "demo.json", options.output_dir / "demo.png"
    inputs = _inputs(options)
    results: dict[str, Any] | None = None
    if target.exists() and picture.exists():
        stored = read_json(target)
        results = stored if stored.get("inputs") == inputs else None
    if results is None:
        print("--- comparing", flush=True)
        with cpu_threads(options.num_threads):
            results = {"inputs": inputs, **_measure(options, picture)}
        write_json(target, results)
    else:
        print("--- the figures of these two models, measured before")
    _tell(results)
    print(f"{picture} shows both models' samples from the same noise; {target} holds the figures.")
    print(f"took {time.monotonic() - begin:.0f} s")
    return OK


def _inputs(options: DemoOptions) -> dict[str, Any]:
    """What the figures depend on."""
    from pydiffaccel.trainer.run import RunFolder

    models = {
        name: hashlib.sha256(RunFolder(options.output_dir / name).model.read_bytes()).hexdigest() for name in NAMES
    }
    return {"models": models, "num_samples": options.num_samples, "evaluations": list(EVALUATIONS), "format": 1}


def _measure(options: DemoOptions, picture: Path) -> dict[str, Any]:
    from pydiffaccel.evaluation.reference import FIRST_SEED, make_reference
    from pydiffaccel.sampler import load_run, sample, select_device
    from pydiffaccel.trainer.checkpoint import read_json
    from pydiffaccel.trainer.data import load_digits
    from pydiffaccel.trainer.pictures import save_comparison, to_uint8

    device = select_device(options.device)
    data = load_digits()
    reference = make_reference(data, report=print)
    results: dict[str, Any] = {"accuracy": reference.accuracy, "halves": reference.halves, "runs": {}}
    cells: dict[tuple[int, int], tuple[Any, str]] = {}
    seeds = range(FIRST_SEED, FIRST_SEED + options.num_samples)
    for column, name in enumerate(NAMES):
        loaded = load_run(options.output_dir / name, device)
        distances = []
        for row, evaluations in enumerate(EVALUATIONS):
            images, plan = sample(
                loaded.network,
                data.shape,
                seeds,
                process=loaded.description.process,
                coupling=loaded.description.coupling,
                solver="euler",
                num_steps=evaluations,
                device=device,
            )
            assert plan.nfe == evaluations
            distances.append(reference.distance(images))
            cells[row, column] = (to_uint8(images[:SHOWN]), f"Frechet distance {distances[-1]:.1f}")
        summary = read_json(loaded.folder.summary)
        results["runs"][name] = {
            "frechet_distance": distances,
            "training_steps": summary["step"],
            "seconds": summary["seconds"],
            "coupling_seconds": summary["coupling_seconds"],
        }
    save_comparison(
        picture,
        [f"{n} evaluation{'s' * (n > 1)}" for n in EVALUATIONS],
        [_LABELS[name] for name in NAMES],
        cells,
        f"Flow matching, {results['runs']['plain']['training_steps']:,} training steps each, same seed and network: "
        "samples from the same noise",
    )
    return results


def _tell(results: dict[str, Any]) -> None:
    """The figures as text, with a verdict that follows from them."""
    plain, fast = (results["runs"][name] for name in NAMES)
    print(
        f"Frechet distance to the digits, lower is better (features of a small classifier, right on "
        f"{results['accuracy']:.1%} of unseen digits; the data's variance is 100, two halves of it have a distance "
        f"of {results['halves']:.2f})"
    )
    print(f"{'evaluations':>12} {_LABELS['plain']:>20} {_LABELS['fast']:>20}")
    pairs = list(
        zip(results["inputs"]["evaluations"], plain["frechet_distance"], fast["frechet_distance"], strict=True)
    )
    for evaluations, before, after in pairs:
        print(f"{evaluations:>12} {before:>20.2f} {after:>20.2f}")
    waits = [1000 * run["coupling_seconds"] / run["training_steps"] for run in (plain, fast)]
    print(
        f"A step waits {waits[1]:.2f} ms for its noise, which is paired beside the steps before; plain noise takes "
        f"{waits[0]:.2f} ms, the whole step {1000 * fast['seconds'] / fast['training_steps']:.0f} ms."
    )
    print(verdict(pairs))


def verdict(pairs: Sequence[tuple[int, float, float]]) -> str:
    """One sentence on (evaluations, plain distance, accelerated distance) for each number of evaluations."""
    better = [(n, before / after) for n, before, after in pairs if after < before]
    worse = [str(n) for n, before, after in pairs if after >= before]
    if not better:
        return "The accelerated model is not better at any of these numbers of evaluations."
    n, ratio = max(better, key=lambda item: item[1])
    text = f"At {n} evaluation{'s' * (n > 1)} the accelerated model's distance is {ratio:.1f} times smaller"
    return f"{text}; at {' and '.join(worse)} it is not better." if worse else f"{text}, and it is smaller at each."


if __name__ == "__main__":
    sys.exit(main())
