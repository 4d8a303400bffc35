"""PlanScheduler in diffusers' own Stable Diffusion pipelines, with small random parts."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import pydiffaccel as da

diffusers = pytest.importorskip("diffusers")
transformers = pytest.importorskip("transformers")
from pydiffaccel.diffusers import PlanScheduler  # noqa: E402
from tests.pipelines.parts import generator  # noqa: E402

SCHEDULER = {
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "skip_prk_steps": True,
    "set_alpha_to_one": False,
    "steps_offset": 1,
}


@pytest.fixture(scope="module")
def parts() -> dict[str, Any]:
    torch.manual_seed(0)
    unet = diffusers.UNet2DConditionModel(
        sample_size=8,
        layers_per_block=1,
        block_out_channels=(32, 64),
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        cross_attention_dim=32,
        norm_num_groups=8,
    )
    vae = diffusers.AutoencoderKL(block_out_channels=(32,), latent_channels=4, norm_num_groups=8)
    text = transformers.CLIPTextConfig(
        hidden_size=32, intermediate_size=37, num_attention_heads=4, num_hidden_layers=2, vocab_size=1000
    )
    encoder = transformers.CLIPTextModel(text)
    return {"unet": unet.eval(), "vae": vae.eval(), "text_encoder": encoder.eval()}


def pipeline(kind: str, parts: dict[str, Any], scheduler: Any) -> Any:
    made = getattr(diffusers, kind)(
        **parts,
        scheduler=scheduler,
        tokenizer=None,
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    made.set_progress_bar_config(disable=True)
    return made


def images(made: Any, steps: int, **more: Any) -> np.ndarray:
    words, none = (torch.randn(1, 5, 32, generator=generator(seed)) for seed in (2, 3))
    result: np.ndarray = made(
        prompt_embeds=words,
        negative_prompt_embeds=none,
        num_inference_steps=steps,
        guidance_scale=3.0,
        generator=generator(1),
        output_type="np",
        **more,
    ).images
    return result


@pytest.mark.parametrize("name", ["PNDMScheduler", "DDIMScheduler", "DPMSolverMultistepScheduler"])
def test_swapped_as_users_do(parts: dict[str, Any], name: str) -> None:
    theirs = getattr(diffusers, name).from_config(diffusers.PNDMScheduler(**SCHEDULER).config)
    ours = PlanScheduler.from_config(theirs.config)
    expected, result = (images(pipeline("StableDiffusionPipeline", parts, s), 6) for s in (theirs, ours))
    assert np.abs(expected - result).max() < 1e-5


def test_image_to_image(parts: dict[str, Any]) -> None:
    theirs = diffusers.DPMSolverMultistepScheduler.from_config(diffusers.PNDMScheduler(**SCHEDULER).config)
    ours = PlanScheduler.from_config(theirs.config)
    start = {"image": torch.rand(1, 3, 8, 8, generator=generator(4)), "strength": 0.6}
    kind = "StableDiffusionImg2ImgPipeline"
    expected, result = (images(pipeline(kind, parts, s), 10, **start) for s in (theirs, ours))
    assert np.abs(expected - result).max() < 1e-5


def test_a_plan_is_saved_with_the_pipeline(parts: dict[str, Any], tmp_path: Path) -> None:
    plan = da.make_plan("dpm_solver", da.VPSchedule.scaled_linear(), 3, order=3)
    made = pipeline("StableDiffusionPipeline", parts, PlanScheduler.from_plan(plan))
    made.save_pretrained(tmp_path)
    again = diffusers.StableDiffusionPipeline.from_pretrained(tmp_path, tokenizer=None, safety_checker=None)
    again.set_progress_bar_config(disable=True)
    assert isinstance(again.scheduler, PlanScheduler)
    assert np.array_equal(images(again, 3), images(made, 3))
