"""Checkpoints written by a thread while training goes on."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable
from pathlib import Path

from pydiffaccel._cli import CommandError
from pydiffaccel.trainer.checkpoint.folder import Checkpoint, list_checkpoints, prune_checkpoints, save_checkpoint

__all__ = ["CheckpointWriter"]


class CheckpointWriter:
    """Writes checkpoints below a folder and removes old ones; at most one is being written at any time.

    Used as a context: leaving it waits for the last one.

    Args:
        folder: where the checkpoints are.
        keep: how many of the newest stay; 0 keeps all.
        every: checkpoints of multiples of this step stay as well; 0 for none of them.
        ahead: ``save`` takes a copy of the tensors and returns; False writes before it returns.
        before: called by whoever writes, before a checkpoint gets its final name.
    """

    def __init__(
        self,
        folder: Path,
        keep: int = 0,
        every: int = 0,
        *,
        ahead: bool = True,
        before: Callable[[], None] = lambda: None,
    ) -> None:
        self._folder, self._keep, self._every = folder, keep, every
        self._ahead, self._before = ahead, before
        self._thread: threading.Thread | None = None
        self._step = 0
        self._error: Exception | None = None

    def __enter__(self) -> CheckpointWriter:
        return self

    def __exit__(self, *exc: object) -> None:
        self._join()
        if exc[1] is None:
            self.check()

    def save(self, checkpoint: Checkpoint) -> None:
        """Begins to write a checkpoint, once the one before is written.

        Raises:
            CommandError: this one, or the one before, could not be written.
        """
        self.wait()
        self._step = checkpoint.step
        if not self._ahead:
            self._write(checkpoint)
            self.check()
            return
        copied = checkpoint.copied()
        self._thread = threading.Thread(target=self._write, args=(copied,), name="pydiffaccel-checkpoint")
        self._thread.start()

    def check(self) -> None:
        """Raises what the writing came upon, without waiting for it.

        Raises:
            CommandError: a checkpoint could not be written.
        """
        error, self._error = self._error, None
        if error is None:
            return
        if not isinstance(error, OSError):
            raise error
        found: list[tuple[int, Path]] = []
        with contextlib.suppress(OSError):  # the folder may be what cannot be read
            found = list_checkpoints(self._folder)
        kept = (
            f"the same command continues from step {found[-1][0]:,}, which is whole" if found else "no other is there"
        )
        raise CommandError(
            f"the checkpoint of step {self._step:,} could not be written to {self._folder} "
            f"({error.strerror or error}); {kept}"
        ) from error

    def wait(self) -> None:
        """Returns when nothing is being written any more.

        Raises:
            CommandError: a checkpoint could not be written.
        """
        self._join()
        self.check()

    def _join(self) -> None:
        if self._thread is not None:
            self._thread.join()
            self._thread = None

    def _write(self, checkpoint: Checkpoint) -> None:
        try:
            self._before()
            save_checkpoint(self._folder, checkpoint)
            prune_checkpoints(self._folder, self._keep, self._every)
        except Exception as error:
            self._error = error
