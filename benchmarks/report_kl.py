"""The plots and the table of docs/kl.md, computed by the package.

python benchmarks/report_kl.py
"""

from __future__ import annotations

import argparse
from pathlib import Path

import matplotlib
import numpy as np

matplotlib.use("Agg")
import matplotlib.pyplot as plt

from pydiffaccel.schedule import ContinuousVPSchedule
from pydiffaccel.schedule.kl_basis import kl_basis_functions
from pydiffaccel.schedule.kl_terms import BASES, kl_terms

DOCS = Path(__file__).resolve().parents[1] / "docs"
BEGIN, END = "<!-- table: begin -->", "<!-- table: end -->"
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
    before, _, rest = page.read_text().partition(BEGIN)
    _, _, after = rest.partition(END)
    page.write_text(f"{before}{BEGIN}\n{table()}\n{END}{after}")


if __name__ == "__main__":
    main()
