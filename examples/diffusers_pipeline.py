"""A diffusers pipeline sampled by a plan: choose one, distil it in seconds, save it with the pipeline, load it again.

    python examples/diffusers_pipeline.py

The network is small and has random weights, so that nothing is downloaded: put your own pipeline in its place.
"""

from __future__ import annotations

import tempfile

import torch
from diffusers import DDIMScheduler, DDPMPipeline, UNet2DModel

import pydiffaccel as da
from pydiffaccel.diffusers import PlanScheduler  # import it before loading a pipeline that was saved with it


def main() -> torch.Tensor:
    torch.manual_seed(0)
    blocks = {"down_block_types": ("DownBlock2D",), "up_block_types": ("UpBlock2D",), "block_out_channels": (16,)}
    unet = UNet2DModel(16, 3, 3, **blocks, norm_num_groups=4, layers_per_block=1).eval()
    pipeline = DDPMPipeline(unet=unet, scheduler=DDIMScheduler(clip_sample=False))

    # Another solver on the same noise schedule:
    pipeline.scheduler = PlanScheduler.from_config(pipeline.scheduler.config, solver="unipc", solver_order=3)
    pipeline(num_inference_steps=8)

    # A plan of one's own, here distilled on 16 samples of noise; it is saved inside the scheduler's configuration:
    base = da.make_plan("ddim", da.VPSchedule.linear(), num_steps=5)
    denoiser = da.wrap_model(unet, prediction_type="epsilon")
    plan = da.distill_plan(base, denoiser, torch.randn(16, 3, 16, 16), teacher_multiplier=4)
    pipeline.scheduler = PlanScheduler.from_plan(plan)
    with tempfile.TemporaryDirectory() as folder:
        pipeline.save_pretrained(folder)
        pipeline = DDPMPipeline.from_pretrained(folder)
    images: torch.Tensor = pipeline(batch_size=4, num_inference_steps=5, output_type="pt").images
    return images


if __name__ == "__main__":
    print(tuple(main().shape))
