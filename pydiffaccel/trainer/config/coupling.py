"""Flags of the coupling of images and noise."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

from pydiffaccel._cli import UsageError
from pydiffaccel.trainer.config.base import OptionGroup

__all__ = ["CouplingOptions"]


@dataclass(frozen=True)
class CouplingOptions(OptionGroup):
    """Which noise each image gets."""

    FREE: ClassVar[frozenset[str]] = frozenset({"coupling_ahead"})

    coupling: Literal["none", "hungarian", "sinkhorn", "queue", "knn"] = "none"
    """Which noise each image gets: independent, the assignment with the least total distance, nearly that one in less
    memory (for huge batches), the same over several steps (for small batches), the nearest of k."""
    hungarian_pool: int | None = None
    """Noises to choose from under --coupling hungarian; by default one per image."""
    hungarian_project: int | None = None
    """Search in a space of at most this many dimensions under --coupling hungarian: cheaper, not exact."""
    hungarian_projection: Literal["pool", "random"] = "pool"
    """How --hungarian_project gets there: averages over windows of pixels, or a random projection."""
    hungarian_labels: Literal["within", "across"] = "within"
    """Under --coupling hungarian and --class_conditional: pair inside each class, so that no class starts from noise of
    its own kind, or across all images."""
    sinkhorn_epsilon: float = 0.3
    """Temperature of the plan under --coupling sinkhorn, in standard deviations of the cost."""
    sinkhorn_iterations: int = 1
    """Iterations under --coupling sinkhorn; 0 is independent."""
    sinkhorn_output: Literal["permutation", "sampled"] = "permutation"
    """What --coupling sinkhorn makes of the plan: a permutation of the noises, or samples, which repeat some."""
    sinkhorn_project: int | None = None
    """Search in a space of at most this many dimensions (averages over windows of pixels) under --coupling sinkhorn."""
    queue_size: int = 64
    """Noises that wait between steps under --coupling queue; 0 is hungarian."""
    knn_k: int = 4
    """Candidates under --coupling knn; 1 is none."""
    knn_metric: Literal["l2", "dot"] = "l2"
    """What nearest means under --coupling knn."""
    coupling_window: int = 1
    """Batches whose images are paired as one under --coupling hungarian or sinkhorn: the gain of a larger batch."""
    coupling_start_step: int = 0
    """Optimizer steps of independent noise before the coupling begins."""
    coupling_ahead: bool = False
    """Pair the next batch while the network works on this one; the numbers are the same."""
    data_scale: float = 1.0
    """Factor on the data before noise is added, undone on samples."""

    def check(self) -> None:
        self._at_least(
            knn_k=1,
            queue_size=0,
            sinkhorn_iterations=0,
            coupling_window=1,
            coupling_start_step=0,
            hungarian_project=1,
            sinkhorn_project=1,
        )
        self._positive("data_scale", "sinkhorn_epsilon")
        if self.coupling_window > 1 and self.coupling not in ("hungarian", "sinkhorn"):
            raise UsageError(
                f"--coupling_window needs --coupling hungarian or sinkhorn, got --coupling {self.coupling}"
            )

    def _check_pool(self, batch_size: int) -> None:
        """There is a noise for each image that is paired."""
        if self.hungarian_pool is None or self.hungarian_pool >= batch_size * self.coupling_window:
            return
        least = f"--train_batch_size {batch_size}"
        if self.coupling_window > 1:
            least += f" times --coupling_window {self.coupling_window}, {batch_size * self.coupling_window}"
        raise UsageError(f"--hungarian_pool must be at least {least}, got {self.hungarian_pool}")
