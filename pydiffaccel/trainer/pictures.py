"""Pictures of a run: its loss and its samples."""

from __future__ import annotations

import io
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from pydiffaccel.trainer.checkpoint import write_file

__all__ = ["image_grid", "save_comparison", "save_grid", "save_loss_plot", "to_uint8"]

_BACKGROUND = 128


def to_uint8(images: Tensor) -> NDArray[np.uint8]:
    """Images ``[N, C, H, W]`` in [-1, 1] (values outside are clipped) as uint8 0 to 255."""
    scaled = images.detach().float().clamp(-1, 1).add(1).mul(127.5).round()
    out: NDArray[np.uint8] = scaled.cpu().numpy().astype(np.uint8)
    return out


def image_grid(images: NDArray[np.uint8], columns: int | None = None, *, cell: int = 48, pad: int = 2) -> Image.Image:
    """Images uint8 ``[N, C, H, W]`` in rows, each enlarged by a whole factor to about `cell` pixels, with gaps.

    Pixels are repeated, not interpolated, so that one sees what was sampled. columns is by default the square root.
    """
    n, channels, height, width = images.shape
    columns = columns or math.ceil(math.sqrt(n))
    factor = max(1, round(cell / max(height, width)))
    big = images.repeat(factor, axis=2).repeat(factor, axis=3)
    step_y, step_x = height * factor + pad, width * factor + pad
    rows = math.ceil(n / columns)
    canvas = np.full((rows * step_y + pad, columns * step_x + pad, channels), _BACKGROUND, np.uint8)
    for index, image in enumerate(big):
        y, x = pad + index // columns * step_y, pad + index % columns * step_x
        canvas[y : y + step_y - pad, x : x + step_x - pad] = image.transpose(1, 2, 0)
    return Image.fromarray(canvas[:, :, 0] if channels == 1 else canvas)


def save_grid(path: Path, images: NDArray[np.uint8], columns: int | None = None) -> None:
    """The grid as PNG; the file appears whole or not at all."""
    out = io.BytesIO()
    image_grid(images, columns).save(out, "PNG")
    write_file(path, out.getvalue())


def _save_figure(path: Path, figure: Any) -> None:
    out = io.BytesIO()
    figure.savefig(out, format="png", dpi=100)
    write_file(path, out.getvalue())


def save_loss_plot(path: Path, rows: Sequence[Mapping[str, Any]], title: str) -> None:
    """Loss over steps as PNG: every step, and the running mean over a fiftieth of the run; skipped steps are gaps."""
    from matplotlib.figure import Figure

    rows = [row for row in rows if row["loss"] is not None]
    steps = np.array([row["step"] for row in rows], np.float64)
    losses = np.array([row["loss"] for row in rows], np.float64)
    figure = Figure(figsize=(8, 4.5), layout="constrained")
    axes = figure.add_subplot()
    axes.plot(steps, losses, color="tab:blue", alpha=0.3, linewidth=0.8, label="each step")
    window = max(1, len(losses) // 50)
    if window > 1:
        mean = np.convolve(losses, np.ones(window) / window, mode="valid")
        axes.plot(steps[window - 1 :], mean, color="tab:blue", label=f"mean of {window} steps")
        axes.legend()
    axes.set_yscale("log")
    axes.set_xlabel("optimizer step")
    axes.set_ylabel("loss")
    axes.set_title(title)
    axes.grid(alpha=0.3, which="both")
    _save_figure(path, figure)


def save_comparison(
    path: Path,
    rows: Sequence[str],
    columns: Sequence[str],
    cells: Mapping[tuple[int, int], tuple[Any, str]],
    title: str,
) -> None:
    """A labelled table of sample grids as one PNG.

    Args:
        path: where to.
        rows, columns: their labels.
        cells: (row, column) to images uint8 ``[N, C, H, W]`` and a line of text under them; missing ones stay empty.
        title: over everything.
    """
    from matplotlib.figure import Figure

    grids = {place: image_grid(images, columns=12, cell=56, pad=8) for place, (images, _) in cells.items()}
    width, height = next(iter(grids.values())).size
    figure = Figure(
        figsize=((len(columns) * (width + 30) + 110) / 100, (len(rows) * (height + 48) + 90) / 100),
        layout="constrained",
    )
    figure.suptitle(title)
    axes = figure.subplots(len(rows), len(columns), squeeze=False)
    for row, row_name in enumerate(rows):
        for column, column_name in enumerate(columns):
            ax = axes[row][column]
            ax.set_xticks([])
            ax.set_yticks([])
            if row == 0:
                ax.set_title(column_name)
            if column == 0:
                ax.set_ylabel(row_name)
            if (row, column) in grids:
                ax.imshow(np.asarray(grids[row, column].convert("RGB")), interpolation="nearest")
                ax.set_xlabel(cells[row, column][1])
            else:
                ax.set_frame_on(False)
    _save_figure(path, figure)
