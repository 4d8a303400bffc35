"""What every forward process shares: x_t and the regression target from (x_0, noise, t)."""

from __future__ import annotations

import json
from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Any, ClassVar

import torch
from torch import Tensor

from pydiffaccel._tensors import compute_dtype, per_sample
from pydiffaccel.noise import derive_seed, gaussian_noise, uniform
from pydiffaccel.schedule import Schedule

__all__ = ["Process", "timestep_normals", "timestep_uniforms", "uniform_indices"]


class Process(ABC):
    """A forward process ``x_t = alpha(t) x_0 + sigma(t) noise`` together with what the network predicts.

    Instances are immutable, compare and hash by content, and survive ``process_from_dict(p.to_dict())``. x_0 and noise
    are ``[B, *]`` with any sample shape, t is ``[B]`` in the process' own time. Arithmetic runs in float32, or float64
    for float64 data, whatever autocast is doing.

    Attributes:
        name: the process' name in its description.
        schedule: the noise levels, for solvers.
        prediction_type: "epsilon" (noise), "sample" (x_0), "v_prediction" (alpha noise - sigma x_0, 2202.00512),
            "flow" (x_0 - noise, 2209.03003) or "edm" (``EDMProcess``).
        time_scale: the network receives ``time_scale * t``.
    """

    name: ClassVar[str]
    time_scale: float = 1.0

    def __init__(self, schedule: Schedule, prediction_type: str) -> None:
        self._schedule = schedule
        self._prediction_type = prediction_type

    @property
    def schedule(self) -> Schedule:
        """The noise levels."""
        return self._schedule

    @property
    def prediction_type(self) -> str:
        """What the network predicts."""
        return self._prediction_type

    @abstractmethod
    def levels(self, t: Tensor) -> tuple[Tensor, Tensor]:
        """alpha and sigma at the times t ``[B]``, each float64 ``[B]`` on t's device.

        Raises:
            TypeError: t has a dtype that this process' times cannot have.
            ValueError: a time is out of range (looked for on the CPU alone, and not inside a compiled graph: it would
                force a wait).
        """

    @abstractmethod
    def sample_timesteps(
        self, n: int, *, seed: int, step: int, first_sample: int = 0, device: torch.device | str | None = None
    ) -> Tensor:
        """n uniformly distributed training times: time j is a pure function of (seed, step, first_sample + j).

        They are drawn on the CPU, so that every device gets the same ones.
        """

    @abstractmethod
    def to_dict(self) -> dict[str, Any]:
        """A JSON-ready description; ``process_from_dict`` reads it."""

    def add_noise(self, x0: Tensor, noise: Tensor, t: Tensor) -> Tensor:
        """``alpha(t) x0 + sigma(t) noise``: two products and a sum, each rounded, returned in x0's dtype.

        Raises:
            TypeError: x0 is no floating-point tensor.
            ValueError: x0 and noise differ in shape, or t is not ``[B]``.
        """
        check_batch(x0, noise, t)
        dtype = compute_dtype(x0)
        alpha, sigma = (per_sample(level, x0) for level in self.levels(t))
        return (alpha * x0.to(dtype) + sigma * noise.to(dtype)).to(x0.dtype)

    def target(self, x0: Tensor, noise: Tensor, t: Tensor) -> Tensor:
        """What a perfect network outputs for ``add_noise(x0, noise, t)``: float32, or float64 for float64 data.

        Raises:
            TypeError: x0 is no floating-point tensor.
            ValueError: x0 and noise differ in shape, or t is not ``[B]``.
        """
        check_batch(x0, noise, t)
        dtype = compute_dtype(x0)
        if self.prediction_type == "epsilon":
            return noise.to(dtype)
        if self.prediction_type == "sample":
            return x0.to(dtype)
        if self.prediction_type == "flow":
            return x0.to(dtype) - noise.to(dtype)
        alpha, sigma = (per_sample(level, x0) for level in self.levels(t))
        return alpha * noise.to(dtype) - sigma * x0.to(dtype)

    def model_time(self, t: Tensor) -> Tensor:
        """What the network receives as time: ``time_scale * t``, float32 ``[B]``."""
        return (t.double() * self.time_scale).float()

    def model_input(self, x_t: Tensor, t: Tensor) -> Tensor:
        """What the network receives for the state x_t ``[B, *]``: x_t itself, except for a preconditioned network."""
        return x_t

    def __eq__(self, other: object) -> bool:
        return type(other) is type(self) and self.to_dict() == other.to_dict()

    def __hash__(self) -> int:
        return hash(json.dumps(self.to_dict(), sort_keys=True))


def check_batch(x0: Tensor, noise: Tensor, t: Tensor) -> None:
    """x0 and noise ``[B, *]`` alike, t ``[B]``."""
    compute_dtype(x0)
    if x0.dim() == 0:
        raise ValueError("x0 must have a batch dimension, got a scalar")
    if noise.shape != x0.shape:
        raise ValueError(f"noise must have the shape of x0, {tuple(x0.shape)}, got {tuple(noise.shape)}")
    if t.shape != x0.shape[:1]:
        raise ValueError(f"t must have one time per sample, shape ({x0.shape[0]},), got {tuple(t.shape)}")


def timestep_uniforms(n: int, seed: int, step: int, first_sample: int) -> Tensor:
    """The draws in [0, 1), float64 ``[n]`` on the CPU, that every distribution of training times is made from.

    Sharing them makes a curriculum at weight 0 the very times of the plain process.
    """
    return uniform(n, seed=derive_seed(seed, "timesteps"), step=step, first_sample=first_sample)


def timestep_normals(n: int, seed: int, step: int, first_sample: int) -> Tensor:
    """The standard normals, float64 ``[n]`` on the CPU, that ``timestep_uniforms`` are made of."""
    return gaussian_noise(torch.empty(n, 1), derive_seed(seed, "timesteps"), step, first_sample)[:, 0].double()


def uniform_indices(u: Tensor, num_train_timesteps: int) -> Tensor:
    """u in [0, 1) to equally likely int64 indices 0 .. num_train_timesteps - 1."""
    return (u * num_train_timesteps).long().clamp_(max=num_train_timesteps - 1)


def check_fields(d: Mapping[str, Any], expected: set[str]) -> None:
    """The description d has exactly the expected fields beside its name."""
    fields = set(d) - {"name"}
    if fields != expected:
        raise ValueError(f"a {d['name']} description has the fields {sorted(expected)}, got {sorted(fields)}")
