"""Folders of Stable Diffusion pipelines as models of the commands, with small random parts and a small vocabulary."""

from __future__ import annotations

import json
import string
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from pydiffaccel._cli import CommandError
from pydiffaccel.distill import main as distill
from pydiffaccel.models import load_model
from pydiffaccel.sample import main as sample
from pydiffaccel.sampler import start_noise
from pydiffaccel.solvers import load_plan

diffusers = pytest.importorskip("diffusers")
transformers = pytest.importorskip("transformers")
from pydiffaccel.diffusers import PlanScheduler  # noqa: E402

SMALL = ["--num_threads", "1", "--device", "cpu"]
WORDS = ["--prompt", "a dog", "two cats"]


def tokenizer(folder: Path) -> Any:
    """One token per letter."""
    letters = [letter + end for end in ("", "</w>") for letter in string.ascii_lowercase]
    tokens = ["<|startoftext|>", "<|endoftext|>", *letters]
    folder.mkdir()
    (folder / "vocab.json").write_text(json.dumps({token: number for number, token in enumerate(tokens)}))
    (folder / "merges.txt").write_text("#version: 0.2\n")
    (folder / "tokenizer_config.json").write_text(json.dumps({"model_max_length": 16}))
    return transformers.CLIPTokenizer.from_pretrained(folder)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("text")
    unet = diffusers.UNet2DConditionModel(
        sample_size=8,
        layers_per_block=1,
        block_out_channels=(32,),
        down_block_types=("CrossAttnDownBlock2D",),
        up_block_types=("CrossAttnUpBlock2D",),
        cross_attention_dim=32,
        norm_num_groups=8,
    )
    with torch.no_grad():  # so that the text matters
        for name, parameter in unet.named_parameters():
            if "attn2" in name:
                parameter.mul_(4)
    vae = diffusers.AutoencoderKL(block_out_channels=(32,), latent_channels=4, norm_num_groups=8, sample_size=8)
    text = transformers.CLIPTextConfig(
        hidden_size=32,
        intermediate_size=37,
        num_attention_heads=4,
        num_hidden_layers=2,
        vocab_size=60,
        max_position_embeddings=16,
        bos_token_id=0,
        eos_token_id=1,
        pad_token_id=1,
    )
    pipeline = diffusers.StableDiffusionPipeline(
        unet=unet.eval(),
        vae=vae.eval(),
        text_encoder=transformers.CLIPTextModel(text).eval(),
        tokenizer=tokenizer(path / "tokenizer"),
        scheduler=diffusers.DDIMScheduler(clip_sample=False, beta_schedule="scaled_linear"),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    pipeline.save_pretrained(path / "pipe")
    return path / "pipe"


def their_images(folder: Path, scheduler: Any, x: Tensor, prompts: list[str], scale: float, steps: int) -> np.ndarray:
    """What the unmodified pipeline makes of this noise, in [0, 1]."""
    pipeline = diffusers.StableDiffusionPipeline.from_pretrained(folder)
    pipeline.set_progress_bar_config(disable=True)
    pipeline.scheduler = scheduler
    images: np.ndarray = pipeline(
        prompts, latents=x, guidance_scale=scale, num_inference_steps=steps, output_type="np"
    ).images
    return images


def images(path: Path) -> np.ndarray:
    with np.load(path) as archive:
        result: np.ndarray = np.clip(archive["samples"].transpose(0, 2, 3, 1) / 2 + 0.5, 0, 1)
    return result


@pytest.mark.parametrize("scale", [1.0, 5.0])
def test_a_distilled_plan_runs_in_the_pipeline(folder: Path, tmp_path: Path, scale: float) -> None:
    path = tmp_path / "plan.json"
    told = [*WORDS, "--guidance_scale", str(scale)]
    fit = ["--teacher_multiplier", "3", "--fit_seeds", "0-7", "--held_out_seeds", "10-14", "--batch_size", "3"]
    assert distill([str(folder), "--steps", "3", "--output", str(path), "--force", *told, *fit, *SMALL]) == 0
    plan = load_plan(path)
    assert plan.metadata["distillation"]["condition"] == {"told": ["a dog", "two cats"], "guidance_scale": scale}
    flags = ["--plan", str(path), "--seeds", "0-2", "--batch_size", "2", "--output_dir", str(tmp_path)]
    assert sample([str(folder), *flags, *told, *SMALL]) == 0
    ours = images(tmp_path / "plan-plan.npz")
    x = start_noise(plan, load_model(str(folder)).shape, [0, 1, 2], "cpu")
    prompts = ["a dog", "two cats", "a dog"]
    theirs = their_images(folder, PlanScheduler.from_plan(plan), x, prompts, scale, 3)
    assert np.abs(ours - theirs).max() < 1e-5
    other = their_images(folder, PlanScheduler.from_plan(plan), x, ["x", "y", "z"], scale, 3)
    assert np.abs(other - theirs).max() > 1e-3


def test_negative_prompts_and_comparison(folder: Path, tmp_path: Path) -> None:
    flags = ["--steps", "2", "--seeds", "0-1", *WORDS, "--guidance_scale", "4", *SMALL]
    assert sample([str(folder), *flags, "--solver", "ddim", "--output_dir", str(tmp_path / "a")]) == 0
    negative = ["--negative_prompt", "blurred", "--output_dir", str(tmp_path / "b")]
    assert sample([str(folder), *flags, "--solver", "ddim", *negative]) == 0
    assert np.abs(images(tmp_path / "a" / "ddim-2.npz") - images(tmp_path / "b" / "ddim-2.npz")).max() > 1e-4
    compared = ["--compare", "ddim,unipc", "--fine_steps", "6", "--output_dir", str(tmp_path)]
    assert sample([str(folder), *flags, *compared]) == 0
    assert (tmp_path / "compare.png").exists()


@pytest.mark.parametrize(
    ("flags", "sentence"),
    [
        ([], "this is a text-to-image model, so it needs a --prompt"),
        ([*WORDS, "--classes", "3"], "--classes is for class-conditional models, and this one takes texts"),
        ([*WORDS, "--negative_prompt", "x"], "--negative_prompt does nothing without guidance; add --guidance_scale"),
    ],
)
@pytest.mark.parametrize("command", [sample, distill])
def test_what_is_refused(
    folder: Path, capsys: pytest.CaptureFixture[str], command: Any, flags: list[str], sentence: str
) -> None:
    assert command([str(folder), "--steps", "2", "--dry_run", *flags, *SMALL]) == 2
    assert sentence in capsys.readouterr().err


def test_a_network_that_takes_more_than_text(folder: Path, tmp_path: Path) -> None:
    copy = tmp_path / "pipe"
    copy.mkdir()
    for part in folder.iterdir():
        if part.name != "unet":
            (copy / part.name).symlink_to(part)
    unet = diffusers.UNet2DConditionModel.from_pretrained(folder / "unet")
    more = type(unet)(**{**unet.config, "time_cond_proj_dim": 8})
    more.save_pretrained(copy / "unet")
    with pytest.raises(CommandError, match=r"takes more than a text \(time_cond_proj_dim\)"):
        load_model(str(copy))
