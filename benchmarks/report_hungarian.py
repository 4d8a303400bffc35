"""The plot and the figures of docs/hungarian.md, from the JSON of bench_hungarian.py.

python benchmarks/report_hungarian.py benchmarks/results/cpu/hungarian_small.json benchmarks/results/cpu/hungarian.json
"""

from __future__ import annotations

import argparse
import json
import textwrap
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import matplotlib
from pages import with_parts

matplotlib.use("Agg")
import matplotlib.pyplot as plt

DOCS = Path(__file__).resolve().parents[1] / "docs"
WIDTH = 140
FLOOR = "a copy of the cost"
SHOWN = ("gmm", "patches", "cifar", "uniform")


def joined(records: list[dict[str, Any]]) -> dict[str, Any]:
    """Records of one machine as one; of a case that several have, the first one counts."""
    machines = {(record["device"], record["threads"]) for record in records}
    if len(machines) > 1:
        raise SystemExit(f"one table is of one machine, got {sorted(machines)}")
    cases: dict[str, Any] = {}
    rows: list[dict[str, Any]] = []
    for record in records:
        rows += [row for row in record["rows"] if row["case"] not in cases]
        cases |= {case: entry for case, entry in record["summary"]["cases"].items() if case not in cases}
    order = list(dict.fromkeys(case.partition(", B")[0] for case in cases))
    return {
        **records[0],
        "commit": " and ".join(record["commit"] for record in records),
        "date": records[-1]["date"],
        "rows": rows,
        "summary": {
            "cases": dict(sorted(cases.items(), key=lambda item: order.index(item[0].partition(", B")[0]))),
            "growth": {key: value for record in records for key, value in record["summary"]["growth"].items() if value},
        },
    }


def table(record: dict[str, Any]) -> str:
    """Times and ratios of every case, and the growth of every family."""
    summary = record["summary"]
    lines = [
        f"{record['device']}, {record['threads']} thread(s), commit {record['commit']}, {record['date']}. "
        "Times are medians in ms; ratios are against the peer in the same run.",
        "",
        "| case | ms | x scipy | x best peer | best peer |",
        "|---|---:|---:|---:|---|",
    ]
    for case, entry in summary["cases"].items():
        if case.startswith(("linear_sum_assignment", "tensors")):
            continue
        ratios = [f"{entry[key]:.1f}" if entry[key] else "" for key in ("x scipy", "x best peer")]
        lines.append(
            f"| {case} | {entry['milliseconds']:.3g} | {ratios[0]} | {ratios[1]} | {entry['best peer'] or ''} |"
        )
    grown = [f"{family} B^{exponent}" for family, exponent in summary["growth"].items() if exponent is not None]
    if grown:
        lines += ["", f"Growth from B = 1024 to the largest: {', '.join(grown)}."]
    return "\n".join(lines)


def ratios(values: Iterable[float], digits: int = 1) -> str:
    """The least and the greatest of ratios."""
    ends = sorted(values)
    told = [f"{value:.0f}" if value >= 20 else f"{value:.{digits}f}" for value in (ends[0], ends[-1])]
    return told[0] if told[0] == told[1] else " to ".join(told)


def door(record: dict[str, Any]) -> str:
    """How much faster than SciPy its door is."""
    cases = record["summary"]["cases"]

    def at(family: str) -> str:
        found = [cases[f"linear_sum_assignment: {family}, B = {rows}"]["x scipy"] for rows in (128, 512, 1024)]
        return " / ".join(f"{value:.0f}" if value >= 10 else f"{value:.1f}" for value in found)

    text = (
        f"At B = 128 / 512 / 1024 it is {at('gmm')} times as fast as SciPy on gmm, {at('uniform')} on uniform costs "
        f"and {at('integer 0..9')} on integers 0..9 (same runs as below)."
    )
    return textwrap.fill(text, WIDTH)


def words(record: dict[str, Any]) -> str:
    """Where peers are near, and what the data cost."""
    cases = record["summary"]["cases"]
    small = {case.partition(",")[0]: entry["x best peer"] for case, entry in cases.items() if case.endswith("B = 64")}
    behind = sorted(name for name, ratio in small.items() if ratio < 1 and ":" not in name)
    real = [cases[f"{family}, B = 1024"] for family in ("cifar", "patches")]
    large = [cases[f"{family}, B = 4096"] for family in ("cifar", "patches")]
    product = [1 / cases[f"tensors to permutation, B = {rows}"]["x best peer"] for rows in (512, 1024, 2048)]
    nearest = ratios((small[name] for name in behind), 2)
    text = f"""
        At B = 64 the best peer is ahead on {", ".join(behind)}: it takes {nearest} of our time. SciPy is fast on real
        images (cifar, patches): there it is {ratios(entry["x scipy"] for entry in real)} times behind at B = 1024 and
        {ratios(entry["x scipy"] for entry in large)} at 4096, the best peer
        {ratios(entry["x best peer"] for entry in real)} and {ratios(entry["x best peer"] for entry in large)} times.
        From data and noise to the permutation takes {ratios(product, 2)} times the matrix product alone at B = 512 to
        2048."""
    return textwrap.fill(" ".join(text.split()), WIDTH)


def parts(record: dict[str, Any]) -> dict[str, str]:
    return {"door": door(record), "words": words(record), "results": table(record)}


def plot(record: dict[str, Any], path: Path) -> None:
    """Time over size: ours and every peer, one panel a family."""
    times: dict[str, dict[str, dict[int, float]]] = {}
    for row in record["rows"]:
        family, _, size = row["case"].partition(", B = ")
        if family not in SHOWN:
            continue
        known = times.setdefault(family, {})
        if row["baseline"] == FLOOR:
            known.setdefault("pydiffaccel", {})[int(size)] = row["milliseconds"]
        known.setdefault(row["baseline"], {})[int(size)] = row["baseline_milliseconds"]
    figure, axes = plt.subplots(1, len(times), figsize=(3.2 * len(times), 3.4), sharey=True, squeeze=False)
    names = sorted({name for known in times.values() for name in known} - {"pydiffaccel", FLOOR})
    for axis, (family, known) in zip(axes[0], times.items(), strict=True):
        for name in ("pydiffaccel", *names, FLOOR):
            style = {"pydiffaccel": "k-o", FLOOR: "k:"}.get(name, "-")
            if name in known:
                color = {} if name in ("pydiffaccel", FLOOR) else {"color": f"C{names.index(name)}"}
                axis.loglog(list(known[name]), list(known[name].values()), style, label=name, markersize=3, **color)
        axis.set_title(family)
        axis.set_xlabel("B")
        axis.grid(alpha=0.3)
    axes[0][0].set_ylabel("ms")
    axes[0][0].legend(fontsize=6)
    figure.tight_layout()
    figure.savefig(path, dpi=110)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("json", type=Path, nargs="+", help="what bench_hungarian.py --json wrote, smaller sizes first")
    parser.add_argument("--docs", type=Path, default=DOCS, help="folder of hungarian.md and hungarian.png")
    chosen = parser.parse_args()
    record = joined([json.loads(path.read_text()) for path in chosen.json])
    plot(record, chosen.docs / "hungarian.png")
    page = chosen.docs / "hungarian.md"
    page.write_text(with_parts(page.read_text(), parts(record)))


if __name__ == "__main__":
    main()
