"""The plots and the tables of docs/kl.md: computed by the package, and from the JSON of bench_kl.py.

python benchmarks/report_kl.py
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from pages import with_parts

matplotlib.use("Agg")
import matplotlib.pyplot as plt

from pydiffaccel.schedule import ContinuousVPSchedule
from pydiffaccel.schedule.kl_basis import kl_basis_functions
from pydiffaccel.schedule.kl_terms import BASES, kl_terms

DOCS = Path(__file__).resolve().parents[1] / "docs"
RESULTS = Path(__file__).resolve().parent / "results" / "cpu" / "kl.json"
SCHEDULE = ContinuousVPSchedule.linear()
NAMES = {"kl": "sines", "haar": "Haar"}
TERMS, TIMES = (1, 3, 10, 30, 100), (0.01, 0.5, 1.0)


def table() -> str:
    """sigma_M^2 / sigma^2, a row per number of terms, a column per basis and time."""
    columns = [(basis, t) for basis in BASES for t in TIMES]
    lines = [
        "| M | " + " | ".join(f"{NAMES[basis]}, t = {t:g}" for basis, t in columns) + " |",
        "|---:|" + "---:|" * len(columns),
    ]
    for terms in TERMS:
        ratios = {basis: _variance_ratio(basis, terms, np.array(TIMES)) for basis in BASES}
        cells = [_short(ratios[basis][TIMES.index(t)]) for basis, t in columns]
        lines.append(f"| {terms} | {' | '.join(cells)} |")
    return "\n".join(lines)


def speed(record: dict[str, Any]) -> str:
    """Times, memory beyond the outputs, and bytes of a GPU, a row per case against eager torch."""
    memory = record["summary"]["cpu_megabytes_beyond_outputs"]
    moved = record["summary"]["cuda_bytes_computed_from_sizes"]
    lines = [
        f"{record['device']}, {record['threads']} thread, commit {record['commit']}, {record['date']}.",
        "",
        "| 256 x 3072 | ms | x eager | MB beyond outputs: ours, eager | CUDA: bytes / outputs | / (x_0 and outputs) |",
        "|---|---:|---:|---:|---:|---:|",
    ]
    for row in record["rows"]:
        if row["baseline"] != "eager":
            continue
        case = row["case"]
        extra = f"{memory[case]['ours']:.2f}, {memory[case]['eager']:.0f}" if case in memory else ""
        bytes_ = moved[case]
        lines.append(
            f"| {case} | {row['milliseconds']:.3g} | {row['times_faster']:.1f} | {extra} | "
            f"{bytes_['over_outputs']:.2f} | {bytes_['over_x0_and_outputs']:.2f} |"
        )
    return "\n".join(lines)


def parts() -> dict[str, str]:
    return {"table": table(), "speed": speed(json.loads(RESULTS.read_text(encoding="utf-8")))}


def plot_basis(path: Path, terms: int = 6) -> None:
    """phi_k and c_k over time, a column per basis."""
    t = np.linspace(0, SCHEDULE.T, 2001)
    figure, axes = plt.subplots(2, len(BASES), figsize=(9, 5), sharex=True, squeeze=False)
    for column, basis in enumerate(BASES):
        functions = kl_basis_functions(SCHEDULE, terms, basis, t)
        coefficients = kl_terms(SCHEDULE, terms, basis).coefficients(t)
        for row, (values, name) in enumerate(((functions, "phi_k(t)"), (coefficients, "c_k(t)"))):
            for k in range(terms):
                axes[row][column].plot(t, values[:, k], label=f"k = {k + 1}", linewidth=1)
            axes[row][column].set_ylabel(name)
            axes[row][column].grid(alpha=0.3)
        axes[0][column].set_title(NAMES[basis])
        axes[1][column].set_xlabel("t")
    axes[0][0].legend(fontsize=6)
    figure.tight_layout()
    figure.savefig(path, dpi=100)


def plot_sigma(path: Path) -> None:
    """sigma_M / sigma over time, a panel per basis."""
    t = np.linspace(1e-3, SCHEDULE.T, 2001)
    figure, axes = plt.subplots(1, len(BASES), figsize=(9, 3.2), sharey=True, squeeze=False)
    for axis, basis in zip(axes[0], BASES, strict=True):
        for terms in TERMS:
            axis.plot(t, np.sqrt(_variance_ratio(basis, terms, t)), label=f"M = {terms}", linewidth=1)
        axis.set_title(NAMES[basis])
        axis.set_xlabel("t")
        axis.grid(alpha=0.3)
    axes[0][0].set_ylabel("sigma_M / sigma")
    axes[0][0].legend(fontsize=6)
    figure.tight_layout()
    figure.savefig(path, dpi=100)


def _variance_ratio(basis: str, terms: int, t: np.ndarray) -> np.ndarray:
    return np.square(kl_terms(SCHEDULE, terms, basis).sigma(t) / SCHEDULE.sigma(t))


def _short(ratio: float) -> str:
    return f"{ratio:.3f}" if ratio >= 5e-4 else f"{ratio:.0e}".replace("e-0", "e-")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--docs", type=Path, default=DOCS, help="folder of kl.md and its pictures")
    docs = parser.parse_args().docs
    plot_basis(docs / "kl_basis.png")
    plot_sigma(docs / "kl_sigma.png")
    page = docs / "kl.md"
    page.write_text(with_parts(page.read_text(), parts()))


if __name__ == "__main__":
    main()
