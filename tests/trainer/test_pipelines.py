"""Diffusers pipelines' folders as models of the commands."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from pydiffaccel._cli import CommandError
from pydiffaccel.distill import main as distill
from pydiffaccel.models import load_model, state_hash
from pydiffaccel.pipelines import wrap_scheduled
from pydiffaccel.sample import main as sample
from pydiffaccel.schedule import EDMSchedule, FlowSchedule, VPSchedule
from pydiffaccel.solvers import load_plan
from pydiffaccel.solvers.point import points_at


def save_pipeline(folder: Path, scheduler: Any = None, **network: Any) -> Any:
    diffusers = pytest.importorskip("diffusers")
    torch.manual_seed(0)
    unet = diffusers.UNet2DModel(
        **{
            "sample_size": 8,
            "in_channels": 1,
            "out_channels": 1,
            "block_out_channels": (8, 8),
            "down_block_types": ("DownBlock2D", "DownBlock2D"),
            "up_block_types": ("UpBlock2D", "UpBlock2D"),
            "norm_num_groups": 4,
            "layers_per_block": 1,
            **network,
        }
    )
    pipeline = diffusers.DDPMPipeline(unet, scheduler or diffusers.DDPMScheduler())
    pipeline.save_pretrained(folder)
    return pipeline


def test_pipeline_folder(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    diffusers = pytest.importorskip("diffusers")
    folder = tmp_path / "pipe"
    pipeline = save_pipeline(
        folder, diffusers.DDPMScheduler(beta_schedule="squaredcos_cap_v2", prediction_type="v_prediction")
    )
    model = load_model(str(folder))
    assert model.schedule == VPSchedule.cosine()
    assert model.shape == (1, 8, 8)
    assert model.hash == state_hash(pipeline.unet)
    x = torch.randn(2, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    point = points_at(model.schedule, [500])[0]
    with torch.no_grad():
        torch.testing.assert_close(model.denoiser(x, point, "v_prediction"), pipeline.unet(x, 500).sample)
    flags = ["--steps", "3", "--teacher_multiplier", "2", "--fit_seeds", "0-7", "--held_out_seeds", "8-15", "--force"]
    assert distill([str(folder), *flags]) == 0
    assert "DDPMPipeline" in capsys.readouterr().out
    path = folder / "plans" / "ddim-3.json"
    assert load_plan(path).metadata["distillation"]["model"]["hash"] == model.hash
    assert sample([str(folder), "--plan", str(path), "--seeds", "0-1"]) == 0
    assert (folder / "samples" / "plan-ddim-3.png").exists()


def test_pipelines_that_are_not_known(tmp_path: Path) -> None:
    save_pipeline(tmp_path / "labels", class_embed_type="timestep")
    with pytest.raises(CommandError, match=r"takes classes as 'timestep', and known here are labels"):
        load_model(str(tmp_path / "labels"))
    save_pipeline(tmp_path / "text")
    index = json.loads((tmp_path / "text" / "model_index.json").read_text())
    index |= {"_class_name": "StableDiffusionXLPipeline", "unet": ["diffusers", "UNet2DConditionModel"]}
    (tmp_path / "text" / "model_index.json").write_text(json.dumps(index))
    with pytest.raises(CommandError, match="a StableDiffusionXLPipeline with a UNet2DConditionModel, and known here"):
        load_model(str(tmp_path / "text"))
    del index["scheduler"]
    (tmp_path / "text" / "model_index.json").write_text(json.dumps(index))
    with pytest.raises(CommandError, match="must have one of unet or transformer, and a scheduler"):
        load_model(str(tmp_path / "text"))


def test_damaged_pipeline(tmp_path: Path) -> None:
    save_pipeline(tmp_path / "pipe")
    (tmp_path / "pipe" / "unet" / "config.json").unlink()
    with pytest.raises(CommandError, match="cannot be read"):
        load_model(str(tmp_path / "pipe"))


@pytest.mark.parametrize(
    ("config", "match"),
    [
        ({"_class_name": "KarrasVeScheduler"}, "the noise levels of KarrasVeScheduler are not known here"),
        ({"beta_schedule": "magic"}, "unknown beta_schedule 'magic'"),
        ({"beta_schedule": "linear", "prediction_type": "magic"}, "unknown prediction type 'magic'"),
        ({"noise_schedule": "magic", "beta_schedule": "linear"}, "unknown noise_schedule 'magic'"),
        ({"_class_name": "EDMEulerScheduler", "prediction_type": "magic"}, "unknown prediction_type 'magic'"),
    ],
)
def test_schedulers_that_are_not_known(config: dict[str, Any], match: str) -> None:
    with pytest.raises(ValueError, match=match):
        wrap_scheduled(lambda x, t: x, config)


@pytest.mark.parametrize(
    "config",
    [
        {"_class_name": "FlowMatchEulerDiscreteScheduler"},
        {"_class_name": "PlanScheduler", "noise_schedule": "flow", "beta_schedule": "linear"},
    ],
)
def test_flow_matching_scheduler(config: dict[str, Any]) -> None:
    """There the time is 1000 at pure noise, and the velocity points from data to noise."""
    data = torch.full((3, 1, 2, 2), 0.4)

    def network(x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        sigma = (t / 1000).view(-1, 1, 1, 1)
        noise = (x - (1 - sigma) * data) / sigma
        return noise - data

    denoiser, schedule = wrap_scheduled(network, config)
    assert schedule == FlowSchedule()
    point = points_at(schedule, [0.3])[0]
    noise = torch.randn(3, 1, 2, 2, generator=torch.Generator().manual_seed(0))
    x = point.alpha * data + point.sigma * noise
    torch.testing.assert_close(denoiser(x, point, "flow"), data - noise)


@pytest.mark.parametrize("kind", ["epsilon", "v_prediction"])
def test_preconditioned_scheduler_like_diffusers(kind: str) -> None:
    diffusers = pytest.importorskip("diffusers")
    scheduler = diffusers.EDMEulerScheduler(prediction_type=kind, sigma_data=0.5)
    calls: list[tuple[torch.Tensor, torch.Tensor]] = []

    def network(x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        calls.append((x, t))
        return torch.tanh(x + t.view(-1, 1))

    denoiser, schedule = wrap_scheduled(network, dict(scheduler.config) | {"_class_name": "EDMEulerScheduler"})
    assert schedule == EDMSchedule(80.0)
    sigma = 3.0
    x = sigma * torch.randn(4, 5, generator=torch.Generator().manual_seed(0))
    found = denoiser(x, points_at(schedule, [sigma])[0], "sample")
    inner = scheduler.precondition_inputs(x, sigma)
    torch.testing.assert_close(calls[0][0], inner)
    torch.testing.assert_close(calls[0][1], scheduler.precondition_noise(sigma).expand(4))
    torch.testing.assert_close(found, scheduler.precondition_outputs(x, network(*calls[0]), sigma))


def test_a_pipeline_is_clipped(tmp_path: Path) -> None:
    save_pipeline(tmp_path / "pipe")
    for flags, inside in (([], False), (["--clip_sample"], True)):
        more = ["--solver", "ddim", "--steps", "3", "--seeds", "0-3", "--output_dir", str(tmp_path / "out"), *flags]
        assert sample([str(tmp_path / "pipe"), *more]) == 0
        with np.load(tmp_path / "out" / "ddim-3.npz") as found:
            assert (abs(found["samples"]).max() <= 1 + 1e-6) == inside
