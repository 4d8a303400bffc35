"""Couplings over the ranks of a run."""

from __future__ import annotations

import dataclasses

from pydiffaccel.coupling import KNN, Coupling, Distributed, Hungarian, Independent, Scaled, WarmUp
from pydiffaccel.coupling.base import Wrapper
from pydiffaccel.trainer.parallel import Ranks

__all__ = ["chooses_by_row", "over_ranks"]


def over_ranks(coupling: Coupling, ranks: Ranks) -> Coupling:
    """The coupling with an assignment over the batches of all ranks, where it has one that can be found so."""
    if ranks.count == 1:
        return coupling
    if isinstance(coupling, (Scaled, WarmUp)):
        return dataclasses.replace(coupling, coupling=over_ranks(coupling.inner, ranks))
    if isinstance(coupling, Hungarian) and coupling.project is None:
        return Distributed(coupling, ranks.pairing_group)
    return coupling


def chooses_by_row(coupling: Coupling) -> bool:
    """Whether a rank may pair its rows of the batch without those of the others."""
    if isinstance(coupling, Distributed):
        return True
    if isinstance(coupling, Wrapper):
        return coupling.name in ("scaled", "warmup") and chooses_by_row(coupling.inner)
    return isinstance(coupling, Independent) or (isinstance(coupling, KNN) and not isinstance(coupling.center, str))
