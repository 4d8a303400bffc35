"""Exact assignment of a ready float32 cost: against SciPy and the peers that are installed (lap, lapx, lapjv, POT).

On a GPU: against our own CPU solver, the copies included.

A peer whose next size would take longer than a limit is skipped, and said so. ``--json`` also writes, per case, the
ratio to SciPy and to the best peer, and per family the exponent of growth from B = 1024 on. ``report_hungarian.py``
makes the plot and the table of docs/hungarian.md from it.
"""

from __future__ import annotations

import importlib
import math
import time
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch
from assignment_families import available
from harness import Comparison, Options, Row, main
from scipy.optimize import linear_sum_assignment

import pydiffaccel as da
from pydiffaccel.coupling._assignment import assignment_cost
from pydiffaccel.ops import hungarian

Solve = Callable[[np.ndarray], Any]
COPY = "a copy of the cost"  # one pass over the matrix: no peer, but a floor
DOOR = "scipy, both on NumPy"


def peers() -> dict[str, Solve]:
    """float32 in, columns out; peers that solve float64 only convert, as their users must."""
    found: dict[str, Solve] = {"scipy": linear_sum_assignment}

    def add(name: str, module: str, wrap: Callable[[Any], Solve]) -> None:
        try:
            found[name] = wrap(importlib.import_module(module))
        except Exception as error:  # a wheel may be absent or broken
            print(f"{name} is left out: {error}")

    def double(solve: Callable[..., Any], **options: Any) -> Solve:
        return lambda cost: solve(cost.astype(np.float64), **options)

    add("lap.lapjv", "lap", lambda m: double(m.lapjv, return_cost=False))
    # lapx installs into the same package as lap: its modules are taken by name.
    add("lapx lapjvh", "lap._lapjv_rh", lambda m: double(m.lapjvh, return_cost=False))
    add("lapx lapjvx", "lap._lapjvx", lambda m: double(m.lapjvx, return_cost=False))
    add("lapx lapjvs", "lap._lapjvs", lambda m: double(m.lapjvs))
    add("lapjv", "lapjv", lambda m: m.lapjv)  # float32 as it is
    add("POT emd", "ot.lp", lambda m: double(lambda cost: m.emd([], [], cost, numItermax=10**9)))
    return found


class Patience:
    """Times a peer's calls, and foretells from one size whether the next takes longer than the limit (growth B^3)."""

    def __init__(self, limit: float) -> None:
        self.limit = limit
        self.last: dict[tuple[str, str], tuple[int, float]] = {}

    def skips(self, family: str, peer: str, rows: int) -> bool:
        if (family, peer) not in self.last:
            return False
        before, seconds = self.last[family, peer]
        foretold = seconds * (rows / before) ** 3
        if foretold > self.limit:
            print(f"{family}, B = {rows}: {peer} is skipped, it would take about {foretold:.0f} s")
        return foretold > self.limit

    def timed(self, family: str, peer: str, rows: int, solve: Callable[[], Any]) -> Callable[[], Any]:
        def run() -> Any:
            before = time.perf_counter()
            answer = solve()
            self.last[family, peer] = rows, time.perf_counter() - before
            return answer

        return run


def against_the_host(options: Options) -> Iterator[Comparison]:
    """On a GPU: against copying the cost to the host, our CPU solver there, and copying the answer back."""

    def baseline(cost: torch.Tensor) -> torch.Tensor:
        return hungarian(cost.cpu()).to(cost.device)

    def comparison(case: str, cost: torch.Tensor) -> Comparison:
        ready = cost.to(options.device)
        return Comparison(case, "copy to the host, CPU solver", lambda: hungarian(ready), lambda: baseline(ready))

    families = available()
    for rows in (128, 1024) if options.quick else (128, 512, 1024, 2048, 4096, 8192):
        for family, (make, _) in families.items():
            if rows <= 1024 or family in ("gmm", "images", "uniform", "integer 0..9"):
                yield comparison(f"{family}, B = {rows}", make(rows))
    generator = torch.Generator().manual_seed(0)
    for shape in (
        ((64, 256, 256),) if options.quick else ((4096, 16, 16), (64, 256, 256), (208, 300, 300), (16, 1024, 1024))
    ):
        yield comparison(f"{' x '.join(map(str, shape))} uniform", torch.rand(shape, generator=generator))
    yield comparison("1024 x 2048 uniform", torch.rand(1024, 2048, generator=generator))


def comparisons(options: Options) -> Iterator[Comparison]:
    if options.device.type == "cuda":
        yield from against_the_host(options)
        return
    solvers = peers()
    patience = Patience(1 if options.quick else 60)
    for family, (make, sizes) in available().items():
        for rows in (64, 128) if options.quick else sizes:
            case = f"{family}, B = {rows}"
            door = f"linear_sum_assignment: {case}"
            if not (options.wants(case) or options.wants(door)):
                continue
            cost = make(rows)
            array = cost.numpy()
            yield Comparison(case, COPY, lambda c=cost: hungarian(c), cost.clone, 4 * rows * rows)
            for peer, solve in solvers.items():
                if patience.skips(family, peer, rows):
                    continue
                run = patience.timed(family, peer, rows, lambda s=solve, a=array: s(a))
                yield Comparison(case, peer, lambda c=cost: hungarian(c), run)
            if rows <= 1024 and not patience.skips(family, "scipy", rows):
                yield Comparison(
                    door,
                    DOOR,
                    lambda a=array: da.linear_sum_assignment(a),
                    lambda a=array: linear_sum_assignment(a),
                )
    for rows in (128,) if options.quick else (512, 1024, 2048):
        # The least that a pairing costs: one product of the data and the noises.
        x, noise = torch.randn(2, rows, 3072, generator=torch.Generator().manual_seed(0))
        yield Comparison(
            f"tensors to permutation, B = {rows}",
            "the product alone",
            lambda x=x, n=noise: hungarian(assignment_cost(x, n, None)),
            lambda x=x, n=noise: x @ n.T,
        )
    items = 8 if options.quick else 64
    for family in ("gmm", "uniform"):
        case = f"{items} x 256 x 256 {family}"
        if not options.wants(case):
            continue
        make, _ = available()[family]
        # The blocks of one large matrix: problems of their own.
        batch = make(2048).view(8, 256, 8, 256).transpose(1, 2).reshape(64, 256, 256)[:items]
        for peer, solve in solvers.items():
            yield Comparison(
                case,
                f"{peer} in a loop",
                lambda b=batch: hungarian(b),
                lambda s=solve, b=batch: [s(item) for item in b.numpy()],
            )


def growth(milliseconds: dict[int, float]) -> float | None:
    """The exponent e of time ~ B^e: least squares on logarithms, B >= 1024; None below three sizes."""
    known = {rows: ms for rows, ms in milliseconds.items() if rows >= 1024}
    if len(known) < 3:
        return None
    slope, _ = np.polyfit([math.log(rows) for rows in known], [math.log(ms) for ms in known.values()], 1)
    return round(float(slope), 2)


def summary(rows: list[Row]) -> dict[str, Any]:
    """Per case the ratios to SciPy and to the best peer, in the same run; per family the growth."""
    cases: dict[str, dict[str, Any]] = {}
    times: dict[str, dict[int, float]] = {}
    for row in rows:
        entry = cases.setdefault(row.case, {"x scipy": None, "x best peer": None, "best peer": None})
        if row.baseline == COPY:
            family, size = row.case.split(", B = ")
            times.setdefault(family, {})[int(size)] = row.milliseconds
            entry["milliseconds"] = row.milliseconds
            continue
        if row.baseline.startswith("scipy"):
            entry["x scipy"] = row.times_faster
        if entry["x best peer"] is None or row.times_faster < entry["x best peer"]:
            entry |= {"x best peer": row.times_faster, "best peer": row.baseline}
        entry.setdefault("milliseconds", row.milliseconds)
    print(f"\n{'case':50} {'ms':>10} {'x scipy':>9} {'x best peer':>12}")
    for case, entry in cases.items():
        ratios = [f"{entry[key]:.2f}" if entry[key] else "-" for key in ("x scipy", "x best peer")]
        print(f"{case:50} {entry['milliseconds']:10.3f} {ratios[0]:>9} {ratios[1]:>12}  {entry['best peer'] or ''}")
    exponents = {family: growth(known) for family, known in times.items()}
    for family, exponent in exponents.items():
        if exponent is not None:
            print(f"growth of {family} from B = 1024: B^{exponent}")
    return {"cases": cases, "growth": exponents}


if __name__ == "__main__":
    main("hungarian", comparisons, summarise=summary)
