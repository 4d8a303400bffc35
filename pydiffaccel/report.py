"""Runs side by side on one HTML page: ``python -m pydiffaccel.report --help``."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from pydiffaccel._cli import OK, CommandError, UsageError, run_command

PROGRAM = "python -m pydiffaccel.report"


@dataclass(frozen=True)
class ReportOptions:
    """Write one self-contained HTML page about training runs, finished or not: curves, samples over time, what the
    couplings cost and gain, evaluations, and the options that differ."""

    runs: tuple[Path, ...]
    """Folders of runs."""
    output: Path = Path("report.html")
    """The page; an older one is replaced."""
    title: str | None = None
    """Title of the page; by default the names of the runs."""
    smoothing: float = 0.02
    """Lines are means over this share of a run's steps; 0 shows single steps."""
    grids: int = 8
    """The most pictures of samples for each run."""
    dry_run: bool = False
    """Print what would be done and write nothing."""

    def __post_init__(self) -> None:
        if not self.runs:
            raise UsageError("give at least one folder of a run")
        if not 0 <= self.smoothing <= 1:
            raise UsageError(f"--smoothing must be in [0, 1], got {self.smoothing}")
        if self.grids < 0:
            raise UsageError(f"--grids must be at least 0, got {self.grids}")


def main(argv: Sequence[str] | None = None) -> int:
    """The command line; returns the exit code."""
    return run_command(ReportOptions, run, argv, program=PROGRAM)


def run(options: ReportOptions) -> int:
    """Reads the runs and writes the page; returns the exit code."""
    from pydiffaccel.reporting.page import page
    from pydiffaccel.reporting.runs import names_of, read_run
    from pydiffaccel.trainer.checkpoint import write_file

    if options.output.is_dir():
        raise CommandError(f"{options.output} is a folder; give a file as --output")
    names = names_of(options.runs)
    runs = [read_run(path, name, grids=options.grids) for path, name in zip(options.runs, names, strict=True)]
    for read in runs:
        print(f"{read.name:<24}{read.steps:,} steps, {len(read.grids)} grids of samples")
        for note in read.notes:
            print(f"note: {read.name}: {note}", file=sys.stderr)
    if options.dry_run:
        print("dry run: nothing was written")
        return OK
    text = page(runs, title=options.title or _title(names), smoothing=options.smoothing)
    options.output.parent.mkdir(parents=True, exist_ok=True)
    content = text.encode()
    write_file(options.output, content)
    print(f"{options.output} holds the report, {len(content) / 1e6:.1f} MB")
    return OK


def _title(names: Sequence[str]) -> str:
    shown = ", ".join(names[:4])
    return shown if len(names) <= 4 else f"{shown} and {len(names) - 4} more"


if __name__ == "__main__":
    sys.exit(main())
