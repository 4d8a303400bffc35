"""Steps whose loss or gradient is no finite number: counted, and too many in a row end the run."""

from __future__ import annotations

import math
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from pydiffaccel._cli import CommandError
from pydiffaccel.trainer.checkpoint import write_json
from pydiffaccel.trainer.run import RunFolder

if TYPE_CHECKING:
    from pydiffaccel.trainer.loop import Trainer

__all__ = ["Skips"]


class Skips:
    """Counts skipped steps in a row, over the parts of an interrupted run.

    Args:
        trainer: whose steps they are.
        folder: of the run; nonfinite.json is written there.
        before: rows of the log of skipped steps that end it.
    """

    def __init__(self, trainer: Trainer, folder: RunFolder, before: Sequence[dict[str, Any]]) -> None:
        self._trainer, self._folder = trainer, folder
        self._row = [
            self._describe(row["step"], row["loss"], row["grad_norm"])
            for row in before
            if row["loss"] is None or not trainer.seeks_scale
        ]

    def see(self, row: dict[str, Any], loss: float, norm: float) -> bool:
        """Marks the row of a skipped step; whether there are now too many in a row."""
        if math.isfinite(loss) and math.isfinite(norm):
            self._row.clear()
            return False
        row["skipped"] = True
        # Under fp16 the scale of the loss is found by trying: a gradient that overflows is then no fault.
        if not (math.isfinite(loss) and self._trainer.seeks_scale):
            self._row.append(self._describe(row["step"], loss, norm))
            if len(self._row) == 1:
                print(
                    f"note: step {row['step']:,} is skipped: its loss is {loss:g}, its gradient's norm {norm:g}",
                    file=sys.stderr,
                )
        return self._too_many

    def stop_if_too_many(self) -> None:
        """Writes nonfinite.json and ends the run where too many steps in a row were skipped.

        Raises:
            CommandError: that is so.
        """
        if not self._too_many:
            return
        last = self._row[-1]
        if self._trainer.ranks.is_main:
            write_json(self._folder.nonfinite, {"data": self._trainer.data.name, "steps": self._row})
        raise CommandError(
            f"{len(self._row)} steps in a row, up to step {last['step']:,}, had no finite loss or gradient (loss "
            f"{last['loss']}, norm {last['grad_norm']}); {self._folder.nonfinite} names their images; "
            f"try a smaller --learning_rate or a longer --lr_warmup_steps"
        )

    @property
    def _too_many(self) -> bool:
        return len(self._row) >= self._trainer.options.max_skipped_steps

    def _describe(self, step: int, loss: float | None, norm: float | None) -> dict[str, Any]:
        # The step of the number n is the one before which n - 1 were done.
        indices = self._trainer.feed.indices(step - 1)
        return {"step": step, "loss": _spelled(loss), "grad_norm": _spelled(norm), "indices": indices.tolist()}


def _spelled(value: float | None) -> float | str:
    """JSON has no words for numbers that are not finite."""
    if value is None:
        return "not finite"
    return value if math.isfinite(value) else str(value)
