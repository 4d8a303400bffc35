"""Argument checks that the operator wrappers share: one sentence with the value seen, before native code."""

from __future__ import annotations

from enum import IntEnum
from typing import Any

import torch
from torch import Tensor

from pydiffaccel._tensors import at_hand

FLOATING = (torch.float32, torch.float64, torch.float16, torch.bfloat16)
_MAX_INDEX = 2**32


class Metric(IntEnum):
    """How a candidate noise is ranked: squared L2 distance or dot product."""

    l2 = 0
    dot = 1


def metric_code(op: str, metric: str) -> int:
    if not isinstance(metric, str) or metric not in Metric.__members__:
        raise ValueError(f"{op}: metric must be 'l2' or 'dot', got {metric!r}")
    return int(Metric[metric])


class Draws(IntEnum):
    """How the noises of one sample hang together: independent, or every second the negative of the one before."""

    iid = 0
    antithetic = 1


def draws_code(op: str, draws: str) -> int:
    if not isinstance(draws, str) or draws not in Draws.__members__:
        raise ValueError(f"{op}: draws must be 'iid' or 'antithetic', got {draws!r}")
    return int(Draws[draws])


def check_tensor(op: str, name: str, value: Any) -> None:
    if not isinstance(value, Tensor):
        raise TypeError(f"{op}: {name} must be a torch.Tensor, got {type(value).__name__}")


def check_floating(op: str, name: str, value: Any) -> None:
    check_tensor(op, name, value)
    if value.dtype not in FLOATING:
        raise TypeError(f"{op}: {name} must be float32, float64, float16 or bfloat16, got {value.dtype}")
    if value.layout is not torch.strided:
        raise TypeError(f"{op}: {name} must be a dense tensor, got layout {value.layout}")


def check_samples(op: str, name: str, value: Any) -> None:
    """A floating tensor [B, *]."""
    check_floating(op, name, value)
    if value.dim() == 0:
        raise ValueError(f"{op}: {name} must have a sample dimension [B, *], got a scalar")


def check_int(op: str, name: str, value: Any, low: int, high: int) -> None:
    """low <= value < high; symbolic sizes of a traced graph pass."""
    if isinstance(value, bool) or not isinstance(value, (int, torch.SymInt)):
        raise TypeError(f"{op}: {name} must be an int, got {type(value).__name__}")
    if isinstance(value, int) and not low <= value < high:
        raise ValueError(f"{op}: {name} must be in [{low}, {high}), got {value}")


def check_stream(op: str, rows: int, seed: Any, step: Any, first_sample: Any) -> None:
    check_int(op, "seed", seed, -(2**63), 2**63)
    check_int(op, "step", step, 0, _MAX_INDEX)
    check_int(op, "first_sample", first_sample, 0, _MAX_INDEX)
    if isinstance(rows, int) and isinstance(first_sample, int) and first_sample + rows > _MAX_INDEX:
        raise ValueError(f"{op}: first_sample + B must be at most 2**32, got {first_sample} + {rows}")


def check_table(op: str, name: str, value: Any, shape: tuple[int | None, ...], device: torch.device) -> None:
    """A finite float32 / float64 table on the data's device; None in shape is any size.

    Whether it is finite is seen on the CPU only: elsewhere it would be waited for.
    """
    check_tensor(op, name, value)
    if value.dtype not in (torch.float32, torch.float64):
        raise TypeError(f"{op}: {name} must be float32 or float64, got {value.dtype}")
    fits = value.dim() == len(shape) and all(n is None or n == m for n, m in zip(shape, value.shape, strict=True))
    if not fits:
        wanted = ", ".join("*" if n is None else str(n) for n in shape)
        raise ValueError(f"{op}: {name} must have shape [{wanted}], got {list(value.shape)}")
    if value.device != device:
        raise ValueError(f"{op}: {name} must be on {device}, got {value.device}")
    if at_hand(value) and not bool(value.isfinite().all()):
        place = tuple((~value.isfinite()).nonzero()[0].tolist())
        raise ValueError(f"{op}: {name} must be finite, got {value[place].item()} at {list(place)}")


def check_terms(op: str, terms: Any) -> None:
    check_int(op, "the number of terms M", terms, 1, 2**24 + 1)
