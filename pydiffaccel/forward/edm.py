"""EDM: noise added to the data as it is, and a preconditioned network (Karras et al. 2022, 2206.00364)."""

from __future__ import annotations

import math
from typing import Any, ClassVar

import torch
from torch import Tensor

from pydiffaccel._tensors import at_hand, compute_dtype, per_sample
from pydiffaccel.forward.process import Process, check_batch, timestep_normals
from pydiffaccel.schedule import EDMSchedule

__all__ = ["EDMProcess"]

EDM_PREDICTION_TYPES = ("edm", "epsilon", "sample")


class EDMProcess(Process):
    """``x_t = x_0 + t noise``: the time is the noise level sigma itself (2206.00364, table 1, last column).

    The network sees ``c_in x_t`` with ``c_in = 1 / sqrt(t^2 + sigma_data^2)`` and the time ``log(t) / 4``. With
    prediction type "edm" it answers with F of the denoiser ``c_skip x_t + c_out F``, where
    ``c_skip = sigma_data^2 / (t^2 + sigma_data^2)`` and ``c_out = t sigma_data / sqrt(t^2 + sigma_data^2)``; the mean
    square of F's error is the paper's loss (equation 8), weight included. "epsilon" and "sample" are plain predictions
    from the same input.

    Args:
        sigma_data: standard deviation of the data, positive.
        p_mean, p_std: log sigma of a training time is normal with this mean and standard deviation.
        sigma_max: where sampling starts; training times may exceed it.
        prediction_type: "edm", "epsilon" or "sample".

    Raises:
        TypeError: a number is none.
        ValueError: a number is not finite or not positive (p_mean may be anything finite), or an unknown prediction
            type.
    """

    name: ClassVar[str] = "edm"

    def __init__(
        self,
        sigma_data: float = 0.5,
        p_mean: float = -1.2,
        p_std: float = 1.2,
        *,
        sigma_max: float = 80.0,
        prediction_type: str = "edm",
    ) -> None:
        if prediction_type not in EDM_PREDICTION_TYPES:
            raise ValueError(
                f"prediction_type of an {self.name} process must be one of {', '.join(EDM_PREDICTION_TYPES)}, "
                f"got {prediction_type!r}"
            )
        for key, value in (("sigma_data", sigma_data), ("p_mean", p_mean), ("p_std", p_std)):
            if isinstance(value, bool) or not isinstance(value, (int, float)):
                raise TypeError(f"{key} must be a number, got {type(value).__name__}")
            if not math.isfinite(value) or (key != "p_mean" and value <= 0):
                raise ValueError(f"{key} must be finite{'' if key == 'p_mean' else ' and positive'}, got {value}")
        super().__init__(EDMSchedule(sigma_max), prediction_type)
        self.sigma_data, self.p_mean, self.p_std = float(sigma_data), float(p_mean), float(p_std)

    def levels(self, t: Tensor) -> tuple[Tensor, Tensor]:
        """1 and t, float64 ``[B]``.

        Raises:
            TypeError: t is not of a floating-point dtype.
            ValueError: a time is not positive and finite (looked for on the CPU alone).
        """
        if not t.is_floating_point():
            raise TypeError(f"times of an edm process are floating-point noise levels, got dtype {t.dtype}")
        t = t.double()
        if at_hand(t):
            outside = t[~((t > 0) & torch.isfinite(t))]
            if outside.numel():
                raise ValueError(f"t must be a positive noise level, got {float(outside[0])}")
        return torch.ones_like(t), t

    def sample_timesteps(
        self, n: int, *, seed: int, step: int, first_sample: int = 0, device: torch.device | str | None = None
    ) -> Tensor:
        """n log-normal noise levels, float64 ``[n]``: level j is a pure function of (seed, step, first_sample + j).

        They are drawn on the CPU, so that every device gets the same ones.
        """
        z = timestep_normals(n, seed, step, first_sample)
        return (z * self.p_std + self.p_mean).exp().to(device)

    def target(self, x0: Tensor, noise: Tensor, t: Tensor) -> Tensor:
        """As ``Process.target``; for "edm" ``(x0 - c_skip x_t) / c_out``, from x0 and noise without cancellation."""
        if self.prediction_type != "edm":
            return super().target(x0, noise, t)
        check_batch(x0, noise, t)
        dtype = compute_dtype(x0)
        _, sigma = self.levels(t)
        length = (sigma.square() + self.sigma_data**2).sqrt()
        of_data, of_noise = per_sample(sigma / (self.sigma_data * length), x0), per_sample(self.sigma_data / length, x0)
        return of_data * x0.to(dtype) - of_noise * noise.to(dtype)

    def model_input(self, x_t: Tensor, t: Tensor) -> Tensor:
        """c_in x_t, in x_t's dtype."""
        _, sigma = self.levels(t)
        scale = per_sample((sigma.square() + self.sigma_data**2).rsqrt(), x_t)
        return (scale * x_t.to(compute_dtype(x_t))).to(x_t.dtype)

    def model_time(self, t: Tensor) -> Tensor:
        """log(t) / 4, float32 ``[B]`` (c_noise)."""
        return (t.double().log() / 4).float()

    def denoised(self, answer: Tensor, x_t: Tensor, t: Tensor) -> Tensor:
        """The data that the network's answer at the state x_t stands for, in the dtype that x_t is computed in."""
        dtype = compute_dtype(x_t)
        answer, x = answer.to(dtype), x_t.to(dtype)
        if self.prediction_type == "sample":
            return answer
        _, sigma = self.levels(t)
        if self.prediction_type == "epsilon":
            return x - per_sample(sigma, x) * answer
        square = sigma.square() + self.sigma_data**2
        skip, out = self.sigma_data**2 / square, sigma * self.sigma_data / square.sqrt()
        return per_sample(skip, x) * x + per_sample(out, x) * answer

    def to_dict(self) -> dict[str, Any]:
        """``{"name": "edm", "sigma_data", "p_mean", "p_std", "sigma_max", "prediction_type"}``."""
        return {
            "name": self.name,
            "sigma_data": self.sigma_data,
            "p_mean": self.p_mean,
            "p_std": self.p_std,
            "sigma_max": self.schedule.noisy_end,
            "prediction_type": self.prediction_type,
        }

    def __repr__(self) -> str:
        return f"EDMProcess(sigma_data={self.sigma_data:g}, prediction_type={self.prediction_type!r})"
