"""Options of a training run: what the command line spells, what options.json holds. One file per group of flags."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from pydiffaccel._cli import UsageError
from pydiffaccel.trainer.config.coupling import CouplingOptions
from pydiffaccel.trainer.config.data import DataOptions
from pydiffaccel.trainer.config.kl import KLOptions
from pydiffaccel.trainer.config.loop import LoopOptions
from pydiffaccel.trainer.config.network import NetworkOptions
from pydiffaccel.trainer.config.objective import NoiseSchedule, ObjectiveOptions
from pydiffaccel.trainer.config.parallel import ParallelOptions
from pydiffaccel.trainer.config.presets import fast
from pydiffaccel.trainer.config.reporting import ReportingOptions
from pydiffaccel.trainer.config.saving import SavingOptions
from pydiffaccel.trainer.config.schedules import ScheduleOptions, of_older_runs

__all__ = ["NoiseSchedule", "TrainOptions"]


# dataclasses collects fields from the last base to the first: so --help begins with the data.
@dataclass(frozen=True)
class TrainOptions(
    NetworkOptions,
    ScheduleOptions,
    CouplingOptions,
    KLOptions,
    ObjectiveOptions,
    ReportingOptions,
    SavingOptions,
    ParallelOptions,
    LoopOptions,
    DataOptions,
):
    """Train a diffusion model. Without arguments: on 1,797 handwritten digits that come with the package.

    The same command again continues an unfinished run from its newest checkpoint.
    """

    output_dir: Path | None = None
    """Folder of the run; by default runs/ and the name of the data."""
    dry_run: bool = False
    """Print what would be done and write nothing."""
    preset: Literal["none", "fast"] = "none"
    """fast: what measured best for the objective on small U-Nets (docs/evidence.md), where no flag says otherwise;
    vp then predicts the data. Times fewer steps to the best of plain training, by the evaluations of the sampler:
    digits: flow matching 5.6 at 4 and 2.3 at 20; vp, beside noise prediction 5.9 at 20; vp, beside v-prediction 7.1
    at 4 and 2.9 at 20; vp, beside data prediction 11.1 at 4 and 3.9 at 20; vp, where noise is predicted 1.5 at 20.
    CIFAR-10, 16 x 16 gray: flow matching 2.0 at 20; vp, beside noise prediction at least 8.0 at 20; vp, beside data
    prediction 3.4 at 20."""

    def __post_init__(self) -> None:
        self._apply_preset()
        for group in _GROUPS:
            group.check(self)
        self._check_pool(self.train_batch_size)
        if self.hungarian_labels != "within" and not (self.coupling == "hungarian" and self.class_conditional):
            raise UsageError(
                f"--hungarian_labels {self.hungarian_labels} needs --coupling hungarian and --class_conditional"
            )
        self._check_kl(self.forward, self.coupling)

    def _apply_preset(self) -> None:
        """Options that were left at their defaults become the preset's; the preset's name is then used up."""
        if self.preset == "fast":
            fields = (field.name for field in dataclasses.fields(self))
            given = {name: getattr(self, name) for name in fields if self._is_given(name)}
            for name, value in fast(given).items():
                object.__setattr__(self, name, value)
        elif self.preset != "none":
            raise UsageError(f"--preset must be none or fast, got {self.preset}")
        object.__setattr__(self, "preset", "none")

    @property
    def images_per_step(self) -> int:
        """Images of one optimizer step."""
        return self.train_batch_size * self.gradient_accumulation_steps

    @property
    def evaluations_per_image(self) -> int:
        """Network evaluations for each image of a batch."""
        return self.kl_evaluations if self.forward == "kl" else 1

    @property
    def folder(self) -> Path:
        """The run's folder."""
        return self.output_dir or Path("runs") / self.data_name

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready; ``from_dict`` reads it."""
        values = dataclasses.asdict(self)
        for name in ("dry_run", "preset"):
            values.pop(name)
        return {
            key: str(value) if isinstance(value, Path) else list(value) if isinstance(value, tuple) else value
            for key, value in values.items()
        }

    @classmethod
    def from_dict(cls, d: dict[str, Any]) -> TrainOptions:
        """The options that ``to_dict`` wrote.

        Raises:
            ValueError: unknown fields, or values out of range.
            TypeError: values of the wrong type.
        """
        known = {field.name for field in dataclasses.fields(cls)}
        if set(d) - known:
            raise ValueError(f"unknown options {sorted(set(d) - known)}")
        values = of_older_runs({key: tuple(value) if isinstance(value, list) else value for key, value in d.items()})
        for key in ("output_dir", "data", "cache_dir"):
            if values.get(key) is not None:
                values[key] = Path(values[key])
        return cls(**values)

    def differences(self, other: TrainOptions) -> list[str]:
        """How these options differ from a run's own in what changes its numbers, as ``--flag new (the run: old)``.

        A longer run is the continuation of a shorter one, unless something is spread over the number of steps.
        """
        free = {"output_dir", "dry_run"}.union(*(group.FREE for group in _GROUPS))
        if not self.is_spread_over_steps:
            free.add("max_train_steps")
        mine, theirs = self.to_dict(), other.to_dict()
        return [
            f"--{key} {_spelled(mine[key])} (the run: {_spelled(theirs[key])})"
            for key in mine
            if key not in free and mine[key] != theirs[key]
        ]


_GROUPS = (
    *(DataOptions, LoopOptions, ParallelOptions, SavingOptions, ReportingOptions, ObjectiveOptions),
    *(KLOptions, CouplingOptions, ScheduleOptions, NetworkOptions),
)


def _spelled(value: Any) -> str:
    return " ".join(map(str, value)) or "()" if isinstance(value, list) else str(value)
