"""Training to the end: metrics, progress and checkpoints around the steps of a Trainer."""

from __future__ import annotations

import contextlib
import math
import time
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from pydiffaccel.coupling import CouplingDiagnostics
from pydiffaccel.trainer.checkpoint import Checkpoint, CheckpointWriter, write_shards
from pydiffaccel.trainer.metrics import MetricsLog, Progress, coupling_figures
from pydiffaccel.trainer.run import RunFolder
from pydiffaccel.trainer.samples import columns_of, write_samples
from pydiffaccel.trainer.skips import Skips
from pydiffaccel.trainer.trackers import Trackers

if TYPE_CHECKING:
    from pydiffaccel.trainer.loop import Trainer

__all__ = ["fit"]


class _Recorder:
    """Metrics of the steps since the last write: one transfer from the device for all of them."""

    def __init__(self, trainer: Trainer, folder: RunFolder, trackers: Trackers) -> None:
        self._trainer = trainer
        self._trackers = trackers
        self._log = MetricsLog(folder.metrics, trainer.step, writes=trainer.ranks.is_main)
        self._skips = Skips(trainer, folder, self._log.skipped)
        self._progress = Progress(trainer.options.max_train_steps, trainer.step, "step")
        self._pending: list[tuple[int, Tensor, Tensor, float, float]] = []
        self._couplings: list[list[CouplingDiagnostics]] = []
        self._first = trainer.step
        self._begin, self._before = time.monotonic(), trainer.seconds

    def add(self, loss: Tensor, norm: Tensor, rate: float) -> None:
        """The step that the trainer has just done."""
        self._pending.append((self._trainer.step, loss, norm, rate, self._seconds()))
        self._couplings.append(self._trainer.diagnostics)

    def _seconds(self) -> float:
        """Seconds of training until now."""
        return self._before + time.monotonic() - self._begin

    def flush(self) -> None:
        """Writes what was added since the last time."""
        if not self._pending:
            return
        trainer, images = self._trainer, self._trainer.options.images_per_step
        losses = torch.stack([row[1] for row in self._pending]).tolist()
        norms = torch.stack([row[2] for row in self._pending]).tolist()
        trainer.seconds = self._seconds()
        figures = coupling_figures(self._couplings, trainer.mean_over_ranks)
        rows: list[dict[str, Any]] = []
        for (step, _, _, rate, seconds), loss, norm, coupled in zip(self._pending, losses, norms, figures, strict=True):
            rows.append(
                {
                    "step": step,
                    "loss": loss if math.isfinite(loss) else None,
                    "grad_norm": norm if math.isfinite(norm) else None,
                    "learning_rate": rate,
                    "images": step * images,
                    "evaluations": step * images * trainer.options.evaluations_per_image,
                    # A GPU may be behind; with the last step of a flush it has been waited for.
                    "seconds": round(trainer.seconds if step == trainer.step else seconds, 3),
                    **coupled,
                }
            )
            if self._skips.see(rows[-1], loss, norm):
                break
        self._log.write(rows)
        self._trackers.log(rows)
        self._skips.stop_if_too_many()
        self._pending.clear()
        self._couplings.clear()
        speed = (trainer.step - self._first) * images / max(1e-9, trainer.seconds - self._before)
        self._progress.advance(trainer.step, {"loss": f"{losses[-1]:.4f}", "images/s": f"{speed:,.0f}"})

    @contextlib.contextmanager
    def paused(self) -> Iterator[None]:
        """What happens inside is not training: its seconds do not count."""
        self.flush()
        begin = time.monotonic()
        try:
            yield
        finally:
            self._begin += time.monotonic() - begin

    def sync(self) -> None:
        """What was written is on the disk."""
        self._log.sync()

    def close(self) -> None:
        self._log.close()
        self._progress.close()


def fit(
    trainer: Trainer,
    folder: RunFolder,
    *,
    stop: Callable[[], bool] = lambda: False,
    on_checkpoint: Callable[[int], None] = lambda step: None,
    trackers: Trackers | None = None,
) -> bool:
    """Trains up to max_train_steps with metrics and checkpoints in folder; False where stop() ended it before.

    Raises:
        CommandError: too many steps in a row were skipped, or a checkpoint cannot be written.
    """
    o = trainer.options
    saved = trainer.step
    trackers = trackers or Trackers({})

    def checkpoint() -> None:
        nonlocal saved
        state = trainer.state()
        if trainer.is_sharded:
            with trainer.ranks.together():
                writer.wait()  # it would take the shards that are written now for remains
            path = folder.checkpoints / f".step_{state.step:08d}.shards"
            write_shards(path, state.tensors, trainer.ranks.control_group, is_main=trainer.ranks.is_main)
            state = Checkpoint(state.step, {}, state.state, path)
        if trainer.ranks.is_main:
            writer.save(state)
        saved = trainer.step
        on_checkpoint(trainer.step)

    trainer.network.train()
    with contextlib.ExitStack() as at_the_end:
        recorder = at_the_end.enter_context(contextlib.closing(_Recorder(trainer, folder, trackers)))
        writer = at_the_end.enter_context(
            CheckpointWriter(
                folder.checkpoints,
                o.checkpoints_total_limit,
                o.checkpoints_keep_every,
                ahead=o.checkpoint_async,
                before=recorder.sync,  # no checkpoint without the metrics of its steps
            )
        )
        at_the_end.callback(trainer.feed.forget_ahead)
        while trainer.step < o.max_train_steps and not stop():
            writer.check()
            recorder.add(*trainer.train_step())
            due = trainer.step % o.checkpointing_steps == 0 or trainer.step == o.max_train_steps
            if due or trainer.step % o.log_every == 0:
                recorder.flush()
            if o.sample_every and trainer.step % o.sample_every == 0 and trainer.data.is_pictures:
                # Before the checkpoint: a run that continues from it has the picture.
                with recorder.paused():
                    weights = trainer.weights() if trainer.is_sharded else {}
                    if trainer.ranks.is_main:
                        trackers.images(trainer.step, write_samples(trainer, folder, weights), columns_of(trainer))
            if due:
                checkpoint()
        recorder.flush()
        if trainer.step > saved:
            checkpoint()
    return trainer.step >= o.max_train_steps
