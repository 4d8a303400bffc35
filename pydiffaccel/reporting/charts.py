"""Line charts as HTML: lines in an SVG that stretches, labels beside it that do not, so both fit any width."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

import numpy as np
from numpy.typing import NDArray

from pydiffaccel.reporting.curves import Values
from pydiffaccel.reporting.html import compact

__all__ = ["COLOURS", "DASHES", "Axis", "Line", "plot", "position_axis", "value_axis"]

COLOURS = 8  # --c0 to --c7 of the style sheet
DASHES = ("", "7 4", "2 3")  # runs beyond the colours
_WIDTH, _HEIGHT = 1000.0, 300.0


@dataclass(frozen=True)
class Axis:
    """From what is drawn to a share of the chart's width or height.

    Attributes:
        low, high: the ends; low < high, above 0 where logarithmic.
        log: whether equal factors are equal distances.
        ticks: numbers with a label, inside the ends.
    """

    low: float
    high: float
    log: bool
    ticks: tuple[float, ...]

    def place(self, values: Values) -> Values:
        """0 at the low end, 1 at the high end; NaN where values are not above 0 on a logarithmic axis."""
        low, high = self.low, self.high
        if self.log:
            low, high = math.log(low), math.log(high)
            with np.errstate(divide="ignore", invalid="ignore"):
                values = np.where(values > 0, np.log(values), np.nan)
        placed: Values = (values - low) / (high - low)
        return placed


@dataclass(frozen=True)
class Line:
    """One run in one chart.

    Attributes:
        run: its number, which gives colour and dash.
        name: its name.
        x, y: float64 ``[N]``.
        main, faint: places in them: of the line, and of the faint line behind (may be empty).
        raw: what the faint line shows, like y.
    """

    run: int
    name: str
    x: Values
    y: Values
    raw: Values
    main: NDArray[np.int64]
    faint: NDArray[np.int64]


def _step(span: float, count: int) -> float:
    """A round distance of ticks: 1, 2 or 5 times a power of ten, at most count of them in span."""
    rough = span / count
    power = 10.0 ** math.floor(math.log10(rough))
    return next(factor * power for factor in (1, 2, 5, 10) if factor * power >= rough * (1 - 1e-9))


def _linear_ticks(low: float, high: float, count: int) -> tuple[float, ...]:
    step = _step(high - low, count)
    first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
    return tuple(round(index * step, 12 - math.floor(math.log10(step))) for index in range(first, last + 1))


def _log_ticks(low: float, high: float) -> tuple[float, ...]:
    decades = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    apart = max(1, len(decades) // 6)
    factors = (1, 2, 5) if math.log10(high / low) < 2.5 else (1,)
    ticks = tuple(
        factor * 10.0**decade
        for decade in decades
        if decade % apart == 0
        for factor in factors
        if low <= factor * 10.0**decade <= high
    )
    return ticks if len(ticks) > 1 else _linear_ticks(low, high, 4)


def position_axis(high: float) -> Axis:
    """From 0 to high, for steps, evaluations and seconds."""
    high = high if math.isfinite(high) and high > 0 else 1.0
    return Axis(0.0, high, False, _linear_ticks(0.0, high, 5))


def value_axis(lines: Sequence[Line], *, log: bool) -> Axis:
    """An axis that holds all lines and nearly all of what is faint behind them.

    Logarithmic only where that is asked for, everything is above 0, and the greatest is three times the least.
    """
    parts = [line.y[line.main] for line in lines if len(line.main)]
    for line in lines:
        faint = line.raw[line.faint]
        parts += [np.quantile(faint, (0.01, 0.99))] if len(faint) else []
    values = np.concatenate(parts) if parts else np.zeros(1)
    low, high = float(values.min()), float(values.max())
    if log and low > 0 and high > 3 * low:
        margin = (high / low) ** 0.04
        low, high = low / margin, high * margin
        return Axis(low, high, True, _log_ticks(low, high))
    span = high - low
    margin = 0.05 * span if span > 1e-9 * abs(high) else max(0.05 * abs(high), 1e-12)
    # Zero is an end of its own where it is near: nothing falls below it.
    low = 0.0 if 0 <= low <= 0.3 * high else low - margin
    high += margin
    return Axis(low, high, False, _linear_ticks(low, high, 4))


def _points(line: Line, values: Values, places: NDArray[np.int64], x: Axis, y: Axis) -> list[str]:
    """The points of a line in the SVG, one text for each stretch without a gap."""
    across = x.place(line.x[places]) * _WIDTH
    up = _HEIGHT * (1 - y.place(values[places]))
    up = np.clip(up, -_HEIGHT, 2 * _HEIGHT)  # far outside is cut off anyway
    stretches: list[list[str]] = [[]]
    for a, b in zip(across.tolist(), up.tolist(), strict=True):
        if math.isfinite(a) and math.isfinite(b):
            stretches[-1].append(f"{a:.1f},{b:.1f}")
        elif stretches[-1]:
            stretches.append([])
    return [" ".join(stretch) for stretch in stretches if stretch]


def plot(lines: Sequence[Line], x: Axis, y: Axis, *, kind: str, unit: str, label: str) -> str:
    """One chart.

    Args:
        lines: what is drawn, the first one lowest.
        x, y: the axes.
        kind: a class of the element, by which the style sheet shows one of several.
        unit: what the horizontal axis counts.
        label: what the chart shows, for those who cannot see it.
    """
    grid = "".join(f"M{100 * place:.2f} 0V100" for place in x.place(np.array(x.ticks)))
    # Grid lines have a drawing area of their own, in per cent.
    rows = "".join(f"M0 {100 - 100 * place:.2f}H100" for place in y.place(np.array(y.ticks)))
    drawn = []
    for faint in (True, False):
        for line in lines:
            values, places = (line.raw, line.faint) if faint else (line.y, line.main)
            dash = DASHES[line.run // COLOURS % len(DASHES)]
            attributes = f'class="{"faint " if faint else ""}s{line.run % COLOURS}"'
            attributes += f' stroke-dasharray="{dash}"' if dash and not faint else ""
            attributes += "" if faint else f' data-name="{escape(line.name)}"'
            # A single point is a line to itself, drawn by its round ends.
            texts = [text if " " in text else f"{text} {text}" for text in _points(line, values, places, x, y)]
            drawn += [f'<polyline {attributes} points="{text}"/>' for text in texts]
    labels = [
        f'<span class="tick x" style="left:{100 * place:.2f}%">{compact(tick)}</span>'
        for tick, place in zip(x.ticks, x.place(np.array(x.ticks)), strict=True)
    ] + [
        f'<span class="tick y" style="bottom:{100 * place:.2f}%">{compact(tick)}</span>'
        for tick, place in zip(y.ticks, y.place(np.array(y.ticks)), strict=True)
    ]
    scale = f'data-x="{x.low!r} {x.high!r}" data-y="{y.low!r} {y.high!r}" data-log="{int(y.log)}" data-unit="{unit}"'
    scaled = " · vertical axis logarithmic" if y.log else ""
    return (
        f'<div class="plot {kind}"><div class="area" role="img" aria-label="{escape(label)}" {scale}>'
        f'<svg class="grid" viewBox="0 0 100 100" preserveAspectRatio="none" aria-hidden="true">'
        f'<path d="{grid}{rows}"/></svg>'
        f'<svg class="lines" viewBox="0 0 {_WIDTH:.0f} {_HEIGHT:.0f}" preserveAspectRatio="none" aria-hidden="true">'
        f"{''.join(drawn)}</svg>{''.join(labels)}</div>"
        f'<div class="unit" aria-hidden="true">{escape(unit)}{scaled}</div></div>'
    )
