"""Small pieces of HTML: escaped text, numbers for readers, tables."""

from __future__ import annotations

import math
from collections.abc import Sequence
from html import escape

MISSING = "\u2013"  # an en dash, where there is no number

__all__ = ["MISSING", "compact", "counted", "duration", "number", "table"]


def number(value: object, digits: int = 4) -> str:
    """A number with so many significant digits, whole ones with separators; a dash for what is none."""
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value):
        return MISSING
    if value == int(value) and abs(value) < 1e15:
        return f"{int(value):,}"
    if 1 <= abs(value) < 1e15:
        text = f"{value:,.{max(0, digits - 1 - math.floor(math.log10(abs(value))))}f}"
        return text.rstrip("0").rstrip(".") if "." in text else text
    return f"{value:.{digits}g}"


def counted(count: int, thing: str) -> str:
    """1 step, 2 steps."""
    return f"{count:,} {thing}" if count == 1 else f"{count:,} {thing}s"


def compact(value: float) -> str:
    """A number for an axis: 1500 is 1.5k."""
    for factor, letter in ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k")):
        if abs(value) >= factor:
            return f"{value / factor:.4g}{letter}"
    return f"{value:.3g}"


def duration(seconds: float | None) -> str:
    """Seconds as 12.3 s, 4 min 5 s or 3 h 20 min; a dash for none."""
    if seconds is None or not math.isfinite(seconds):
        return MISSING
    if seconds < 60:
        return f"{seconds:.3g} s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest} s" if minutes < 60 else f"{minutes // 60:,} h {minutes % 60} min"


def _numeric(text: str) -> bool:
    return text == MISSING or text.lstrip("-")[:1].isdigit()


def _cell(text: str, tag: str, *, scope: str = "", right: bool = False) -> str:
    where = f' scope="{scope}"' if scope else ""
    kind = ' class="n"' if right else ""
    return f"<{tag}{where}{kind}>{escape(text)}</{tag}>"


def table(head: Sequence[str], rows: Sequence[Sequence[str]], caption: str) -> str:
    """A table that scrolls on its own where it is too wide; the first cell of each row is its heading.

    Columns of numbers are set to the right. All texts are escaped.
    """
    right = [index > 0 and bool(rows) and all(_numeric(row[index]) for row in rows) for index in range(len(head))]
    top = "".join(_cell(text, "th", scope="col", right=n) for text, n in zip(head, right, strict=True))
    body = "".join(
        "<tr>"
        + _cell(row[0], "th", scope="row")
        + "".join(_cell(text, "td", right=n) for text, n in zip(row[1:], right[1:], strict=True))
        + "</tr>"
        for row in rows
    )
    return (
        f'<div class="scroll" tabindex="0" role="region" aria-label="{escape(caption)}">'
        f"<table><caption>{escape(caption)}</caption>"
        f"<thead><tr>{top}</tr></thead><tbody>{body}</tbody></table></div>"
    )
