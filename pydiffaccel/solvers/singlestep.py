"""Single-step exponential integrators of orders 1 to 3, in noise prediction (DPM-Solver) or data prediction (++).

A step from lambda_s to lambda_t = lambda_s + h evaluates the model at inner stages lambda_s + r_1 h, lambda_s + r_2 h
(2206.00927, algorithms 1, 2, 4 and 5; 2211.01095, algorithm 1):

    order 2   the line through the outputs at s and r_1, by default r_1 = 1/2 (the midpoint)
    order 3   an inner stage r_2 from the line through s and r_1, then the line through s and r_2; r = 1/3, 2/3

``stages="log_snr"`` puts the stages there, between the points of the grid: NFE = order x steps (a step from pure noise
or to clean data is first order and costs 1). ``stages="grid"`` takes the grid's own points as stages, as the authors'
fast schedule of orders and diffusers do: NFE = steps, in blocks of 3 (or 2) and a remainder of lower order;
``lower_order_final=False`` keeps a last whole block that this schedule would end in lower orders.
``solver_type="heun"`` integrates the polynomial through all of a block's outputs; "midpoint" is the published form.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import islice, pairwise
from typing import Any

from pydiffaccel.solvers.exponential import (
    combine,
    evaluate_form,
    first_order,
    moments,
    nodes,
    scale,
    step_size,
)
from pydiffaccel.solvers.family import choice, flag, number
from pydiffaccel.solvers.point import Point
from pydiffaccel.solvers.table import Table, TableWriter

__all__ = ["SINGLESTEP_OPTIONS", "write_singlestep"]

SINGLESTEP_OPTIONS: dict[str, Any] = {
    "solver_type": "midpoint",
    "stages": "log_snr",
    "r1": None,
    "r2": None,
    "lower_order_final": None,
}


def write_singlestep(writer: TableWriter, form: str, order: int, options: Mapping[str, Any]) -> Table:
    """The whole table of a single-step method.

    Raises:
        ValueError: an unknown solver_type or stages, or r1, r2 not in 0 < r1 < r2 < 1.
    """
    solver_type = choice(options, "solver_type", ("midpoint", "heun"))
    where = choice(options, "stages", ("log_snr", "grid"))
    for name in ("r1", "r2") if where == "grid" else ("lower_order_final",):
        if options[name] is not None:
            raise ValueError(f'stages="{where}" has no {name}, got {options[name]!r}')
    if where == "grid":
        lower_final = options["lower_order_final"] is None or flag(options, "lower_order_final")
        start = 0
        for size in _block_sizes(writer.points, order, lower_final):
            _write_block(writer, form, writer.points[start : start + size + 1], solver_type, solver_type)
            start += size
        return writer.finish()
    ratios = _ratios(order, options)
    steps = list(pairwise(writer.points))
    regular = [(here, step_size(here, after)) for here, after in steps if not _singular(here, after)]
    stages = iter(writer.levels([here.log_snr + ratio * h for here, h in regular for ratio in ratios]))
    for here, after in steps:
        inner = [] if _singular(here, after) else list(islice(stages, len(ratios)))
        # The published third order integrates the inner stage's line exactly.
        _write_block(writer, form, [here, *inner, after], solver_type, "heun")
    return writer.finish()


def _write_block(writer: TableWriter, form: str, points: Sequence[Point], solver_type: str, inner_type: str) -> None:
    """A step over points ``[order + 1]``: start, inner stages, end."""
    start, base = points[0], writer.state
    if len(points) == 2:
        first_order(writer, form, points[1])
        return
    outputs = [first_order(writer, form, points[1])]
    for stage in range(2, len(points)):
        target = points[stage]
        outputs.append(evaluate_form(writer, form)[0])
        kind = solver_type if stage == len(points) - 1 else inner_type
        if stage == 3 and kind == "midpoint":  # the line through the start and the last stage
            used, through = [outputs[0], outputs[2]], [points[2]]
        else:
            used, through = outputs, list(points[1:stage])
        weights = moments(form, start, target, len(used))
        if stage == 2 and kind == "midpoint":
            weights[1] = 0.5 * weights[0]
        factors = combine(weights, nodes(start, target, through))
        writer.update(target, base, scale(form, start, target), dict(zip(used, factors, strict=True)))


def _block_sizes(points: Sequence[Point], order: int, lower_final: bool) -> list[int]:
    """Blocks of `order` steps and a remainder of lower order; a step at an infinite log-SNR is a block of its own."""
    num_steps = len(points) - 1
    head = [1] if points[0].alpha == 0 else []
    left = num_steps - len(head)
    blocks, rest = divmod(left, order)
    if order == 1:
        sizes = [1] * left
    elif rest == 0 and lower_final:
        # The authors' fast schedule ends in a lower order: .., 3, 2, 1 or .., 2, 1, 1.
        sizes = [order] * (blocks - 1) + ([order - 1, 1] if blocks else [])
    else:
        sizes = [order] * blocks + ([rest] if rest else [])
    if sizes and sizes[-1] > 1 and _singular(points[-2], points[-1]):
        sizes[-1:] = [sizes[-1] - 1, 1]
    return head + sizes


def _singular(start: Point, end: Point) -> bool:
    return start.alpha == 0 or end.sigma == 0


def _ratios(order: int, options: Mapping[str, Any]) -> list[float]:
    defaults = {1: [], 2: [0.5], 3: [1.0 / 3.0, 2.0 / 3.0]}[order]
    ratios: list[float] = []
    for name, default in zip(("r1", "r2"), [*defaults, None, None], strict=False):
        if default is None:
            if options[name] is not None:
                raise ValueError(f"order {order} has no stage {name}, got {name} = {options[name]}")
            continue
        ratios.append(default if options[name] is None else number(options, name, 0.0, 1.0))
    if any(not low < high for low, high in pairwise([0.0, *ratios, 1.0])):
        raise ValueError(f"stages must lie in 0 < r1 < r2 < 1, got {', '.join(f'{ratio:g}' for ratio in ratios)}")
    return ratios
