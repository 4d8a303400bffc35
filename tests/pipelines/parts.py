"""What the tests of PlanScheduler share: a small network, plans, noise, a loop."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

import pydiffaccel as da
from pydiffaccel.solvers import Denoiser, make_plan
from pydiffaccel.solvers.distill import apply_lambdas

diffusers = pytest.importorskip("diffusers")


VP, FLOW, EDM = da.VPSchedule.linear(), da.FlowSchedule(), da.EDMSchedule()
BETAS = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}


def generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def unet(channels: int = 1, out_channels: int | None = None) -> Any:
    torch.manual_seed(0)
    return diffusers.UNet2DModel(
        sample_size=8,
        in_channels=channels,
        out_channels=out_channels or channels,
        block_out_channels=(8,),
        norm_num_groups=4,
        layers_per_block=1,
        down_block_types=("DownBlock2D",),
        up_block_types=("UpBlock2D",),
    ).eval()


def quiet(pipeline: Any) -> Any:
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def images(pipeline: Any, steps: int, seed: int = 3, **arguments: Any) -> Tensor:
    result: Tensor = quiet(pipeline)(
        batch_size=2, num_inference_steps=steps, generator=generator(seed), output_type="pt", **arguments
    ).images
    return result


def as_images(x: Tensor) -> Tensor:
    return (x / 2 + 0.5).clamp(0, 1)


def noise(*shape: int, seed: int = 3) -> Tensor:
    return torch.randn(shape, generator=generator(seed))


PLANS = {
    "ddim": make_plan("ddim", VP, 5),
    "pndm": make_plan("pndm", VP, 6),
    "ipndm": make_plan("ipndm", VP, 5),
    "dpm_solver-2": make_plan("dpm_solver", VP, 3, order=2),
    "dpm_solver++3M": make_plan("dpm_solver++", VP, 6, order=3),
    "deis": make_plan("deis", VP, 5),
    "unipc": make_plan("unipc", VP, 5, order=3),
    "heun": make_plan("edm_heun", VP, 4),
    "distilled": apply_lambdas(make_plan("ddim", VP, 5), [0.1, -0.2, 0.3, 0.0, 0.05]),
}


class Toy(Denoiser):
    """tanh as noise prediction."""

    def __call__(self, x: Tensor, point: Any, output_type: str) -> Tensor:
        c, d = da.solvers.denoiser.conversion("epsilon", output_type, point)
        return c * x + d * torch.tanh(x)


def loop(scheduler: Any, x: Tensor, steps: int | None = None, **arguments: Any) -> Tensor:
    scheduler.set_timesteps(steps, **arguments)
    for t in scheduler.timesteps:
        seen = scheduler.scale_model_input(x, t) if hasattr(scheduler, "scale_model_input") else x
        x = scheduler.step(torch.tanh(seen), t, x, return_dict=False)[0]
    return x
