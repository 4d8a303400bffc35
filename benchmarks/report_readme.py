"""The README's tables of speed, from the JSON of the benchmarks.

python benchmarks/report_readme.py
"""

from __future__ import annotations

import json
import textwrap
from pathlib import Path
from typing import Any

from pages import with_parts

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "benchmarks" / "results" / "cpu"

# op, case, baseline as the table calls them; the JSON's baseline and cases.
OPERATORS = (
    ("gaussian_noise", "1024 x 3072 float32", "`torch.randn`", "torch.randn", ("1024 x 3072 float32",)),
    (
        "knn_noise",
        "1024 x 3072, k = 4 / 64",
        "the published recipe",
        "recipe",
        ("1024 x 3072, k = 4", "1024 x 3072, k = 64"),
    ),
    (
        "knn_noise",
        "1024 x 3072, k = 4 / 64 / 10^6",
        "`gaussian_noise` (the floor)",
        "gaussian_noise",
        tuple(f"1024 x 3072, l2, k = {k}" for k in (4, 64, 1000000)),
    ),
    (
        "knn_select",
        "256 / 1024 x 3072, shared k = 64",
        "`torch.cdist`",
        "torch.cdist",
        ("256 x 3072, shared k = 64", "1024 x 3072, shared k = 64"),
    ),
    *(
        (
            op,
            "256 x 3072, M = 1 / 10 / 64",
            "eager",
            "eager",
            tuple(f"{op}, M = {terms}" for terms in (1, 10, 64)),
        )
        for op in ("kl_sample", "kl_components")
    ),
    ("kl_sample", "256 x 3072, 4 times, M = 10", "eager", "eager", ("kl_sample, S = 4, M = 10",)),
    (
        "kl_path",
        "256 x 3072, 4 / 10 times, M = 10",
        "eager",
        "eager",
        ("kl_path, S = 4, M = 10", "kl_path, S = 10, M = 10"),
    ),
    (
        "solver_step",
        "64 x 3 x 64 x 64, third order / the same in place",
        "eager",
        "eager",
        ("64 x 3 x 64 x 64", "64 x 3 x 64 x 64, in place"),
    ),
    (
        "solver_step",
        "64 x 3 x 64 x 64, third order",
        "a copy of as many bytes",
        "clone, same bytes",
        ("64 x 3 x 64 x 64",),
    ),
    ("solver_gram", "100 x 3072, 4 directions", "eager in float64", "eager", ("100 x 3072, J = 4",)),
)
FILES = {"kl_sample": "kl", "kl_path": "kl", "kl_components": "kl"}
FAMILIES = {
    "gmm": "gmm",
    "patches": "patches",
    "cifar": "cifar",
    "uniform": "uniform",
    "integers 0..9": "integer 0..9",
}
SIZES = (128, 1024, 4096)


def read(name: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((RESULTS / f"{name}.json").read_text(encoding="utf-8"))
    return found


def spoken(ratio: float) -> str:
    """A ratio with as many digits as it deserves."""
    return f"{ratio:.0f}" if ratio >= 20 else f"{ratio:.1f}" if ratio >= 1 else f"{ratio:.2f}"


def operators() -> str:
    """How many times faster than their baselines the operators are."""
    lines = ["| op | case | baseline | times faster |", "|---|---|---|---|"]
    for op, case, baseline, key, cases in OPERATORS:
        rows = {(row["case"], row["baseline"]): row["times_faster"] for row in read(FILES.get(op, op))["rows"]}
        lines.append(f"| `{op}` | {case} | {baseline} | {' / '.join(spoken(rows[one, key]) for one in cases)} |")
    return "\n".join(lines)


def growth() -> str:
    """What more terms cost in the Haar basis, and what memory they take."""
    summary = read("kl")["summary"]
    grown, memory = summary["growth"], summary["cpu_megabytes_beyond_outputs"].values()
    sample, path, both = (grown[name] for name in ("kl_sample", "kl_path", "terms and kl_sample"))
    slower, dense = "times_slower_from_least_to_most_terms", "the_same_of_the_baseline"
    ours, eager = ([entry[side] for entry in memory] for side in ("ours", "eager"))
    text = f"""
        `kl_sample`, `kl_path` and `kl_components` take at most {max(ours):.2f} MB beyond their outputs where eager
        torch takes {min(eager):.0f} to {max(eager):.0f}. In the Haar basis all but 1 + log2 M coefficients are zero:
        from M = 16 to 4096, where 1 + log2 M grows by {sample["the_same_of_1_plus_log2_M"]:.1f}, `kl_sample` takes
        {sample[slower]:.1f} times as long ({both[slower]:.1f} with `process.terms(t)` before it) and `kl_path` (4
        times) {path[slower]:.1f} times; with dense coefficients {sample[dense]:.0f} and {path[dense]:.0f} times."""
    return textwrap.fill(" ".join(text.split()), 120)


def assignment() -> str:
    """How many times faster than SciPy and than the best peer ``hungarian`` is."""
    cases: dict[str, Any] = {}
    for name in ("hungarian_small", "hungarian"):
        cases |= read(name)["summary"]["cases"]
    lines = ["| family | B | times faster than SciPy | than the best peer |", "|---|---|---|---|"]
    rows = [(name, " / ".join(map(str, SIZES)), [f"{key}, B = {B}" for B in SIZES]) for name, key in FAMILIES.items()]
    rows.append(("64 problems of 256: gmm / uniform", "256", [f"64 x 256 x 256 {name}" for name in ("gmm", "uniform")]))
    for name, sizes, wanted in rows:
        ratios = (" / ".join(spoken(cases[case][key]) for case in wanted) for key in ("x scipy", "x best peer"))
        lines.append(f"| {name} | {sizes} | {' | '.join(ratios)} |")
    return "\n".join(lines)


def parts() -> dict[str, str]:
    return {"operators": operators(), "growth": growth(), "assignment": assignment()}


def main() -> None:
    page = ROOT / "README.md"
    page.write_text(with_parts(page.read_text(encoding="utf-8"), parts()), encoding="utf-8")


if __name__ == "__main__":
    main()
