"""The figures in docs/distillation.md are those of the committed benchmark."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from pydiffaccel.solvers.make import FAMILIES

ROOT = Path(__file__).parents[1]
PAGE = (ROOT / "docs" / "distillation.md").read_text(encoding="utf-8")
RESULTS = json.loads((ROOT / "benchmarks" / "results" / "cpu" / "distill.json").read_text())
COLUMNS = ("base", "lambda", "history", "learned grid", "learned grid, lambda")

TABLED = (*COLUMNS[1:], "lambda, teacher dpm_solver++")


def figure(value: float) -> str:
    return f"{value:.4f}".removeprefix("0")


def test_toy_table() -> None:
    """Within 25 % of the figures that the method was designed with: DDIM, official, aligned at N = 5, 10, 20."""
    designed = {5: (0.0332, 0.0387, 0.0116), 10: (0.0175, 0.0127, 0.0022), 20: (0.0095, 0.0081, 0.0009)}
    assert [row["steps"] for row in RESULTS["table"]] == list(designed)
    for row in RESULTS["table"]:
        found = (row["ddim"], row["official"], row["aligned"])
        assert found == pytest.approx(designed[row["steps"]], rel=0.25)
        assert f"| {row['steps']} | {' | '.join(map(figure, found))} |" in PAGE


def test_families() -> None:
    solvers: dict[tuple[str, int], list[dict[str, float]]] = {}
    for row in RESULTS["families"]:
        solvers.setdefault((row["solver"], row["order"]), []).append(row["error"])
    # Every family in every order, at N = 5, 10, 20.
    assert set(solvers) == {(name, order) for name, family in FAMILIES.items() for order in family.orders}
    assert [row["steps"] for row in RESULTS["families"]] == [5, 10, 20] * len(solvers)
    text = PAGE.replace("*", "")
    for errors in solvers.values():
        assert len(errors) == 3
        columns = COLUMNS if "learned grid" in errors[0] else COLUMNS[:2]
        cells = [" / ".join(figure(error[column]) for error in errors) for column in columns]
        assert f"| {' | '.join(cells)} |" in text
    # Bold is what is worse than its base, and nothing else.
    worse = sum(e[c] > e["base"] for errors in solvers.values() for e in errors for c in TABLED if c in e)
    shown_twice = sum(e["lambda"] > e["base"] for e in solvers["dpm_solver", 2])
    assert sum(line.count("**") // 2 for line in PAGE.splitlines() if line.startswith("|")) == worse + shown_twice


def test_digits() -> None:
    for row in RESULTS["digits"]:
        cells = [figure(row["error"][column]) for column in ("base", "lambda", "history", "learned grid, lambda")]
        assert f", {row['nfe']} | {' | '.join(cells)} |" in PAGE
    (seconds,) = [
        row["seconds"]["lambda"] for row in RESULTS["digits"] if (row["solver"], row["steps"]) == ("ddim", 10)
    ]
    assert f"took {seconds:.0f} s" in PAGE
    assert seconds < 60
