"""Folders of class-conditional pipelines as models of the commands: DiTPipeline, and U-Nets with class embeddings."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from pydiffaccel._cli import CommandError, UsageError
from pydiffaccel.conditioning import ClassCondition, Wanted
from pydiffaccel.distill import main as distill
from pydiffaccel.models import load_model
from pydiffaccel.sample import main as sample
from pydiffaccel.sampler import draw, start_noise
from pydiffaccel.solvers import load_plan, make_plan
from pydiffaccel.solvers.point import points_at

diffusers = pytest.importorskip("diffusers")
from pydiffaccel.diffusers import PlanScheduler  # noqa: E402
from tests.pipelines.parts import unet  # noqa: E402

SMALL = ["--num_threads", "1", "--device", "cpu"]
FIT = ["--teacher_multiplier", "3", "--fit_seeds", "0-11", "--held_out_seeds", "100-107", "--batch_size", "5"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A DiT of 1000 classes (the pipeline's null class is 1000) with random weights, and its autoencoder."""
    torch.manual_seed(0)
    transformer = diffusers.DiTTransformer2DModel(
        num_attention_heads=2,
        attention_head_dim=8,
        in_channels=4,
        out_channels=8,
        num_layers=1,
        sample_size=8,
        patch_size=2,
        num_embeds_ada_norm=1000,
        norm_num_groups=4,
    )
    with torch.no_grad():  # the published initialisation answers 0
        for parameter in transformer.parameters():
            parameter.copy_(0.3 * torch.randn_like(parameter))
    vae = diffusers.AutoencoderKL(block_out_channels=(8,), latent_channels=4, norm_num_groups=4, sample_size=8)
    pipeline = diffusers.DiTPipeline(transformer.eval(), vae.eval(), diffusers.DDIMScheduler(clip_sample=False))
    path = tmp_path_factory.mktemp("dit") / "pipe"
    pipeline.save_pretrained(path)
    return path


def their_images(
    folder: Path, scheduler: Any, x: Tensor, classes: list[int], scale: float, steps: int, monkeypatch: Any
) -> np.ndarray:
    """What the unmodified pipeline makes of this noise, in [0, 1]."""
    import diffusers.pipelines.dit.pipeline_dit as module

    monkeypatch.setattr(module, "randn_tensor", lambda shape, **more: x.clone())
    pipeline = diffusers.DiTPipeline.from_pretrained(folder)
    pipeline.set_progress_bar_config(disable=True)
    pipeline.scheduler = scheduler(pipeline.scheduler.config)
    images: np.ndarray = pipeline(classes, guidance_scale=scale, num_inference_steps=steps, output_type="np").images
    return images


@pytest.mark.parametrize("scale", [1.0, 4.0])
def test_samples_are_those_of_the_pipeline(folder: Path, tmp_path: Path, monkeypatch: Any, scale: float) -> None:
    flags = ["--steps", "4", "--solver", "ddim", "--spacing", "leading", "--seeds", "3-5", "--classes", "207,1"]
    guided = ["--guidance_scale", str(scale), "--batch_size", "2", "--output_dir", str(tmp_path)]
    assert sample([str(folder), *flags, *guided, *SMALL]) == 0
    with np.load(tmp_path / "ddim-4.npz") as archive:
        samples, latents, told = archive["samples"], archive["latents"], archive["classes"]
    assert told.tolist() == ["207", "1", "207"]
    assert (samples.shape, latents.shape) == ((3, 3, 8, 8), (3, 4, 8, 8))
    model = load_model(str(folder))
    x = start_noise(make_plan("ddim", model.schedule, 4), model.shape, [3, 4, 5], "cpu")

    def same(config: Any) -> Any:
        return diffusers.DDIMScheduler.from_config(config, set_alpha_to_one=True)

    expected = their_images(folder, same, x, [207, 1, 207], scale, 4, monkeypatch)
    ours = np.clip(samples.transpose(0, 2, 3, 1) / 2 + 0.5, 0, 1)
    assert np.abs(ours - expected).max() < 1e-5
    other = np.abs(expected - their_images(folder, same, x, [5, 6, 7], scale, 4, monkeypatch)).max()
    assert other > 1e-3  # the class matters in this network


def test_a_distilled_plan_runs_in_the_pipeline(
    folder: Path, tmp_path: Path, monkeypatch: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "plan.json"
    told = ["--classes", "3,8,9", "--guidance_scale", "3"]
    assert distill([str(folder), "--steps", "3", "--output", str(path), *told, *FIT, *SMALL]) == 0
    out = capsys.readouterr().out
    assert "classes     3, 8, 9 in turn" in out
    assert f"python -m pydiffaccel.sample {folder} --plan {path} --guidance_scale 3" in out
    plan = load_plan(path)
    report = plan.metadata["distillation"]
    assert report["condition"] == {"told": ["3", "8", "9"], "guidance_scale": 3.0}
    assert report["held_out"]["error_distilled"][-1] < report["held_out"]["error_base"][-1]
    flags = ["--plan", str(path), "--seeds", "0-2", "--classes", "3", "--output_dir", str(tmp_path)]
    capsys.readouterr()
    assert sample([str(folder), *flags, *SMALL]) == 0
    assert "was fitted at guidance scale 3" in capsys.readouterr().err
    assert sample([str(folder), *flags, "--guidance_scale", "3", *SMALL]) == 0
    assert "note" not in capsys.readouterr().err
    with np.load(tmp_path / "plan-plan.npz") as archive:
        ours = np.clip(archive["samples"].transpose(0, 2, 3, 1) / 2 + 0.5, 0, 1)
    x = start_noise(plan, load_model(str(folder)).shape, [0, 1, 2], "cpu")
    theirs = their_images(folder, lambda config: PlanScheduler.from_plan(plan), x, [3, 3, 3], 3.0, 3, monkeypatch)
    assert np.abs(ours - theirs).max() < 1e-5


def test_comparison(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    flags = ["--compare", "ddim,unipc", "--steps", "2,3", "--fine_steps", "10", "--seeds", "0-4", "--batch_size", "3"]
    assert sample([str(folder), *flags, "--guidance_scale", "2", "--output_dir", str(tmp_path), *SMALL]) == 0
    assert (tmp_path / "compare.png").exists()
    results = json.loads((tmp_path / "compare.json").read_text())["results"]
    assert [(row["solver"], row["steps"]) for row in results] == [("ddim", 2), ("ddim", 3), ("unipc", 2), ("unipc", 3)]
    assert all(row["error"] > 0 for row in results)
    out = capsys.readouterr().out
    assert "5 of 4 x 8 x 8 as latents" in out
    assert "guidance    scale 2, each evaluation on a doubled batch" in out


def test_a_unet_with_class_embeddings(tmp_path: Path) -> None:
    torch.manual_seed(0)
    network = diffusers.UNet2DModel(**{**unet().config, "num_class_embeds": 10})
    diffusers.DDPMPipeline(network, diffusers.DDPMScheduler()).save_pretrained(tmp_path / "pipe")
    model = load_model(str(tmp_path / "pipe"))
    told = model.conditioned(4, Wanted("2,7"))
    assert told.told == ("2", "7", "2", "7")
    x = torch.randn(4, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    point = points_at(model.schedule, [500])[0]
    with torch.no_grad():
        expected = network.eval()(x, 500, class_labels=torch.tensor([2, 7, 2, 7])).sample
        torch.testing.assert_close(told.denoiser(x, point, "epsilon"), expected)
    assert draw(make_plan("ddim", model.schedule, 2), told.denoiser, (1, 8, 8), range(4), batch_size=3).isfinite().all()
    with pytest.raises(CommandError, match=r"has a label for that, and this one has none"):
        model.conditioned(4, Wanted(guidance_scale=2.0))


def test_classes_are_written_by_name_or_number() -> None:
    words = ClassCondition(("tench, Tinca tinca", "goldfish", "great white shark"), 3)
    assert words.parse("goldfish, Tinca tinca,great white shark,0") == [1, 0, 2, 0]
    numbers = ClassCondition(("3", "5"), None)
    assert numbers.parse("5,3") == [1, 0]
    for condition, text, unknown in ((words, "goldfish,cat", "cat"), (words, "3", "3"), (numbers, "0", "0")):
        with pytest.raises(UsageError, match=f"the model knows no class '{unknown}'; it knows"):
            condition.parse(text)


def test_names_of_classes_in_the_index(folder: Path, tmp_path: Path) -> None:
    copy = tmp_path / "pipe"
    copy.mkdir()
    for part in folder.iterdir():
        (copy / part.name).symlink_to(part)
    index = json.loads((folder / "model_index.json").read_text())
    (copy / "model_index.json").unlink()
    (copy / "model_index.json").write_text(json.dumps({**index, "id2label": {"207": "golden retriever, dog"}}))
    assert load_model(str(copy)).conditioned(2, Wanted("dog")).told == ("golden retriever, dog",) * 2


@pytest.mark.parametrize(
    ("flags", "code", "sentence"),
    [
        (["--classes", "1000"], 2, "--classes: the model knows no class '1000'; it knows 0, 1, 2"),
        (["--classes", ""], 2, "--classes: the model knows no class ''"),
        (["--prompt", "a dog"], 2, "--prompt is for text-to-image models, and this one takes classes"),
        (["--negative_prompt", "a cat"], 2, "--negative_prompt is for text-to-image models"),
        (["--guidance_scale", "nan"], 2, "--guidance_scale must be a finite number, got nan"),
    ],
)
@pytest.mark.parametrize("command", [sample, distill])
def test_what_is_refused(
    folder: Path, capsys: pytest.CaptureFixture[str], command: Any, flags: list[str], code: int, sentence: str
) -> None:
    assert command([str(folder), "--steps", "2", "--dry_run", *flags, *SMALL]) == code
    err = capsys.readouterr().err
    assert sentence in err
    assert len(err.strip().splitlines()) == 1


def test_autoencoders_that_are_not_known(folder: Path, tmp_path: Path) -> None:
    index = json.loads((folder / "model_index.json").read_text())
    copy = tmp_path / "pipe"
    copy.mkdir()
    for part in folder.iterdir():
        if part.name != "model_index.json":
            (copy / part.name).symlink_to(part)
    (copy / "model_index.json").write_text(json.dumps({**index, "vae": ["diffusers", "AutoencoderDC"]}))
    with pytest.raises(CommandError, match="has the autoencoder AutoencoderDC; known here: AutoencoderKL"):
        load_model(str(copy))
