"""Further inputs of a network (labels, embeddings, ...) by name: a tensor holds one row per sample, or one for all."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

__all__ = ["check_mapping", "expanded", "repeated", "rows", "sliced"]


def check_mapping(name: str, inputs: Mapping[str, Any] | None) -> None:
    """inputs are a mapping, or None.

    Raises:
        TypeError: they are not.
    """
    if inputs is not None and not isinstance(inputs, Mapping):
        raise TypeError(f"{name} must be a mapping of the model's keyword arguments, got {type(inputs).__name__}")


def rows(name: str, value: Any, samples: int) -> Any:
    """value with one row per sample; what is no tensor of rows stays.

    Raises:
        ValueError: a tensor of neither one row nor one per sample.
    """
    if not isinstance(value, Tensor) or value.dim() == 0 or len(value) == samples:
        return value
    if len(value) != 1:
        raise ValueError(f"the condition {name!r} holds {len(value)} rows for a batch of {samples}")
    return value.expand(samples, *value.shape[1:])


def expanded(inputs: Mapping[str, Any], samples: int) -> dict[str, Any]:
    """The inputs with one row per sample in each tensor."""
    return {name: rows(name, value, samples) for name, value in inputs.items()}


def repeated(inputs: Mapping[str, Any] | None, samples: int, count: int) -> dict[str, Any]:
    """The inputs for ``[samples * count]`` evaluations, those of a sample next to each other.

    Raises:
        TypeError: inputs are no mapping.
        ValueError: a tensor of neither one row nor one per sample.
    """
    check_mapping("condition", inputs)
    return {
        name: value.repeat_interleave(count, 0) if count > 1 and isinstance(value, Tensor) and value.dim() else value
        for name, value in expanded(inputs or {}, samples).items()
    }


def sliced(inputs: Mapping[str, Any], first: int, last: int) -> dict[str, Any]:
    """The rows first .. last - 1 of every tensor that has more than one."""
    return {
        name: value[first:last] if isinstance(value, Tensor) and value.dim() and len(value) > 1 else value
        for name, value in inputs.items()
    }
