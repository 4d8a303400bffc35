"""Couplings by the names that their descriptions carry."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields
from typing import Any

from pydiffaccel.coupling.base import Coupling
from pydiffaccel.coupling.distributed import Distributed
from pydiffaccel.coupling.hungarian import Hungarian
from pydiffaccel.coupling.independent import Independent
from pydiffaccel.coupling.knn import KNN
from pydiffaccel.coupling.queue import NoiseQueue
from pydiffaccel.coupling.scaled import Scaled
from pydiffaccel.coupling.sinkhorn import Sinkhorn
from pydiffaccel.coupling.standardized import Standardized
from pydiffaccel.coupling.warmup import WarmUp

__all__ = ["coupling_from_dict"]

# A new coupling is one more file and its class here and in the package's imports.
KINDS: tuple[type[Coupling], ...] = (
    Independent,
    Hungarian,
    Sinkhorn,
    NoiseQueue,
    Distributed,
    KNN,
    Scaled,
    Standardized,
    WarmUp,
)


def coupling_from_dict(d: Mapping[str, Any]) -> Coupling:
    """The coupling that ``to_dict`` described.

    Raises:
        TypeError: d is no mapping.
        ValueError: the name is unknown, or a field is missing, unknown or invalid.
    """
    if not isinstance(d, Mapping):
        raise TypeError(f"a coupling is described by a dict, got {type(d).__name__}")
    known: dict[str, type[Coupling]] = {kind.name: kind for kind in KINDS}
    name = d.get("name")
    if not isinstance(name, str) or name not in known:
        raise ValueError(f"unknown coupling {name!r}; known: {', '.join(sorted(known))}")
    kind = known[name]
    values = {key: value for key, value in d.items() if key != "name"}
    described = [field for field in fields(kind) if field.init and field.metadata.get("described", True)]  # type: ignore[arg-type]  # each kind is a dataclass
    expected = {field.name for field in described}
    # Fields that came later are left out where they have their default, so that old descriptions stay what they are.
    missing = expected - set(values) - {field.name for field in described if field.metadata.get("optional")}
    if missing or set(values) - expected:
        raise ValueError(f"a {name} description has the fields {sorted(expected)}, got {sorted(values)}")
    if "coupling" in values:
        values["coupling"] = coupling_from_dict(values["coupling"])
    return kind.from_fields(values)
