"""Timing shared by all benchmarks: ratios against a named baseline, measured alternately in the same run.

A benchmark lists comparisons; ``main`` times them, prints a table and writes JSON (machine, versions, commit).
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import re
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

import pydiffaccel as da


@dataclass(frozen=True)
class Comparison:
    """One line: ours against a baseline of the same work. bytes_moved: the least that ours reads and writes."""

    case: str
    baseline: str
    run: Callable[[], Any]
    run_baseline: Callable[[], Any]
    bytes_moved: int = 0


@dataclass(frozen=True)
class Options:
    device: torch.device
    quick: bool
    only: str | None = None  # regular expression
    seconds: float = 3.0  # for one comparison
    cpu_time: bool = False  # of this process, instead of the wall clock

    def wants(self, case: str) -> bool:
        """Whether a case was asked for."""
        return self.only is None or re.search(self.only, case) is not None


@dataclass(frozen=True)
class Row:
    case: str
    baseline: str
    milliseconds: float
    baseline_milliseconds: float
    times_faster: float
    spread: float
    gigabytes_per_second: float


SLOW = 5.0


def wall_clock(device: torch.device) -> float:
    """Seconds, after all work of the device."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()


def _seconds(function: Callable[[], Any], options: Options) -> float:
    if options.device.type == "cuda":
        start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        start.record()
        function()
        end.record()
        end.synchronize()
        return start.elapsed_time(end) / 1e3
    clock = time.process_time if options.cpu_time else time.perf_counter
    before = clock()
    function()
    return clock() - before


def compare(comparison: Comparison, options: Options) -> Row:
    """Medians of alternating runs; spread = interquartile range of ours over its median.

    A baseline of more than SLOW seconds is measured once, against five runs of ours.
    """
    comparison.run()
    ours, base, spent = [], [_seconds(comparison.run_baseline, options)], 0.0
    if base[0] > SLOW:
        ours = [_seconds(comparison.run, options) for _ in range(5)]
    else:
        comparison.run()
        comparison.run_baseline()
        base = []
    budget = 0.5 if options.quick else options.seconds
    while len(ours) < 5 or (spent < budget and len(ours) < 200):
        ours.append(_seconds(comparison.run, options))
        base.append(_seconds(comparison.run_baseline, options))
        spent += ours[-1] + base[-1]
    middle, baseline = statistics.median(ours), statistics.median(base)
    quarters = statistics.quantiles(ours, n=4)
    return Row(
        case=comparison.case,
        baseline=comparison.baseline,
        milliseconds=1e3 * middle,
        baseline_milliseconds=1e3 * baseline,
        times_faster=baseline / middle,
        spread=(quarters[2] - quarters[0]) / middle,
        gigabytes_per_second=comparison.bytes_moved / middle / 1e9,
    )


def environment(device: torch.device) -> dict[str, Any]:
    try:
        commit = subprocess.run(
            ["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, cwd=Path(__file__).parent
        ).stdout.strip()
    except FileNotFoundError:  # no git
        commit = ""
    cpu = (
        next(
            (
                line.split(":")[1].strip()
                for line in Path("/proc/cpuinfo").read_text().splitlines()
                if line.startswith("model name")
            ),
            platform.processor(),
        )
        if Path("/proc/cpuinfo").exists()
        else platform.processor()
    )
    return {
        "commit": commit or os.environ.get("COMMIT") or da.build_info()["commit"],
        "date": time.strftime("%Y-%m-%d"),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else cpu,
        "threads": torch.get_num_threads(),
        "build": da.build_info(),
    }


def main(
    name: str,
    comparisons: Callable[[Options], Iterable[Comparison]],
    arguments: list[str] | None = None,
    summarise: Callable[[list[Row]], dict[str, Any]] | None = None,
) -> None:
    parser = argparse.ArgumentParser(description=f"{name}: milliseconds and ratios against named baselines")
    parser.add_argument("--device", default="cpu", help="cpu or cuda")
    parser.add_argument("--threads", type=int, default=1, help="CPU threads (default 1)")
    parser.add_argument("--quick", action="store_true", help="smaller cases, half a second each")
    parser.add_argument("--only", help="regular expression: the cases to run")
    parser.add_argument("--seconds", type=float, default=3.0, help="time for one comparison (default 3)")
    parser.add_argument("--cpu_time", action="store_true", help="time on the CPU: for one thread of a busy machine")
    parser.add_argument("--json", type=Path, help="also write the rows here")
    chosen = parser.parse_args(arguments)
    if chosen.cpu_time and (chosen.threads != 1 or chosen.device != "cpu"):
        parser.error("--cpu_time needs --device cpu and --threads 1")
    torch.set_num_threads(chosen.threads)
    options = Options(torch.device(chosen.device), chosen.quick, chosen.only, chosen.seconds, chosen.cpu_time)
    rows = []
    print(f"{name} on {environment(options.device)['device']}, {chosen.threads} thread(s)")
    print(f"{'case':34} {'ms':>10} {'baseline':30} {'ms':>10} {'x faster':>9} {'spread':>7} {'GB/s':>7}")
    for comparison in comparisons(options):
        if not options.wants(comparison.case):
            continue
        row = compare(comparison, options)
        rows.append(row)
        print(
            f"{row.case:34} {row.milliseconds:10.3f} {row.baseline:30} {row.baseline_milliseconds:10.3f}"
            f" {row.times_faster:9.2f} {row.spread:7.1%} {row.gigabytes_per_second:7.1f}"
        )
        sys.stdout.flush()
    summary = {"summary": summarise(rows)} if summarise else {}
    if chosen.json:
        chosen.json.parent.mkdir(parents=True, exist_ok=True)
        record = {"benchmark": name, **environment(options.device), "rows": [asdict(row) for row in rows]} | summary
        if options.cpu_time:
            record["clock"] = "CPU time of the process"
        chosen.json.write_text(json.dumps(record, indent=1) + "\n")
