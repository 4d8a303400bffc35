"""docs/kl.md shows what the package computes."""

from __future__ import annotations

import json
import re
import runpy
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PAGE = (ROOT / "docs" / "kl.md").read_text(encoding="utf-8")


def test_the_tables_are_those_that_the_package_computes_and_the_record_holds(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("matplotlib")
    monkeypatch.syspath_prepend(ROOT / "benchmarks")
    report = runpy.run_path(str(ROOT / "benchmarks" / "report_kl.py"))
    assert report["with_parts"](PAGE, report["parts"]()) == PAGE
    for plot in ("plot_basis", "plot_sigma"):
        report[plot](tmp_path / f"{plot}.png")
        assert (tmp_path / f"{plot}.png").stat().st_size > 10_000


def test_the_files_that_the_page_names_exist() -> None:
    for picture in re.findall(r"!\[[^]]*\]\(([^)]+)\)", PAGE):
        assert (ROOT / "docs" / picture).is_file()


def test_the_measured_draws_are_those_of_the_recorded_run() -> None:
    record = json.loads((ROOT / "benchmarks" / "results" / "cpu" / "kl_draws.json").read_text(encoding="utf-8"))
    ratios = {
        (row["measure"], row["times"], row["weights"], row["draws"], row["prediction_type"], row["terms"]): row["ratio"]
        for row in record["rows"]
    }

    def cells(*which: str, terms: tuple[int, ...] = (2, 4, 8)) -> str:
        kinds = ("epsilon", "sample", "v_prediction")
        return " | ".join(" / ".join(f"{ratios[(*which, kind, count)]:.2f}" for count in terms) for kind in kinds)

    pair = cells("step", "0..999", "coefficient", "antithetic", terms=(2,))
    for line in (
        f"| antithetic, M = 2 / 4 / 8 | {cells('noise', '0..999', 'uniform', 'antithetic')} |",
        f"| antithetic, M = 4, t in 0..49 | {cells('noise', '0..49', 'uniform', 'antithetic', terms=(4,))} |",
        f"| the same, 50..199 | {cells('noise', '50..199', 'uniform', 'antithetic', terms=(4,))} |",
        f"| the same, 200..499 | {cells('noise', '200..499', 'uniform', 'antithetic', terms=(4,))} |",
        f"| the same, 500..999 | {cells('noise', '500..999', 'uniform', 'antithetic', terms=(4,))} |",
        f"| orthogonal, M = 2 / 4 / 8 | {cells('noise', '0..999', 'uniform', 'orthogonal')} |",
        f"| coefficient weights, iid, M = 2 / 4 / 8 | {cells('noise', '0..999', 'coefficient', 'iid')} |",
        f"| iid, M = 2 / 4 / 8 | {cells('step', '0..999', 'uniform', 'iid')} |",
        f"| antithetic, M = 2 / 4 / 8 | {cells('step', '0..999', 'uniform', 'antithetic')} |",
        f"| orthogonal, M = 2 / 4 / 8 | {cells('step', '0..999', 'uniform', 'orthogonal')} |",
        f"| coefficient weights, antithetic, M = 2 | {pair} |",
    ):
        assert line in PAGE
    assert max(row["error"] / row["ratio"] for row in record["rows"]) < 0.03
