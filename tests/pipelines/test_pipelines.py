"""PlanScheduler in pipelines of diffusers that know nothing of it, built here with random weights."""

from __future__ import annotations

import inspect
import itertools
import json
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from pydiffaccel.solvers import Plan, integrate, make_plan, wrap_model
from pydiffaccel.solvers.tail import step_starts, tail

diffusers = pytest.importorskip("diffusers")
from pydiffaccel.diffusers import PlanScheduler  # noqa: E402
from tests.pipelines.parts import (  # noqa: E402
    BETAS,
    PLANS,
    VP,
    as_images,
    generator,
    images,
    noise,
    quiet,
    unet,
)


@pytest.mark.parametrize("name", PLANS)
def test_a_pipeline_does_what_integrate_does(name: str) -> None:
    plan, network = PLANS[name], unet()
    pipeline = diffusers.DDPMPipeline(unet=network, scheduler=PlanScheduler.from_plan(plan))
    result = images(pipeline, plan.num_steps)
    expected = integrate(plan, wrap_model(network, prediction_type="epsilon"), noise(2, 1, 8, 8))
    assert torch.equal(result, as_images(expected))
    assert pipeline.scheduler.timesteps.shape == (plan.nfe,)
    assert pipeline.scheduler.num_inference_steps == plan.num_steps
    again = images(pipeline, plan.num_steps)
    assert torch.equal(again, result)


@pytest.mark.parametrize("prediction_type", ["sample", "v_prediction"])
def test_prediction_types(prediction_type: str) -> None:
    plan, network = PLANS["dpm_solver++3M"], unet()
    scheduler = PlanScheduler.from_plan(plan, prediction_type=prediction_type)
    result = images(diffusers.DDPMPipeline(unet=network, scheduler=scheduler), plan.num_steps)
    expected = integrate(plan, wrap_model(network, prediction_type=prediction_type), noise(2, 1, 8, 8))
    assert torch.equal(result, as_images(expected))


@pytest.mark.parametrize("per_sample", [False, True])
@pytest.mark.parametrize(
    "plan",
    [make_plan("ddim", VP, 5, eta=1.0), make_plan("dpm_solver++", VP, 5, stochastic=True)],
    ids=["ddim", "dpm_solver++"],
)
def test_noise_comes_from_the_pipelines_generator(plan: Plan, per_sample: bool) -> None:
    network = unet()
    pipeline = quiet(diffusers.DDPMPipeline(unet=network, scheduler=PlanScheduler.from_plan(plan)))

    def generators(*seeds: int) -> Any:
        return [generator(seed) for seed in seeds] if per_sample else generator(seeds[0])

    def run(*seeds: int) -> Tensor:
        result: Tensor = pipeline(
            batch_size=len(seeds), num_inference_steps=5, generator=generators(*seeds), output_type="pt"
        ).images
        return result

    from diffusers.utils.torch_utils import randn_tensor

    source = generators(4, 5)
    start = randn_tensor((2, 1, 8, 8), generator=source)
    denoiser = wrap_model(network, prediction_type="epsilon")
    expected = integrate(plan, denoiser, start, noise=lambda like, _: randn_tensor(like.shape, generator=source))
    assert torch.equal(run(4, 5), as_images(expected))
    if per_sample:  # a sample's noise is its own generator's
        assert torch.equal(run(4, 6)[0], run(4, 5)[0])
        assert not torch.equal(run(4, 6)[1], run(4, 5)[1])


FRESH = """
import sys, torch, warnings
warnings.simplefilter("ignore")
torch.set_num_threads(1)
import pydiffaccel.diffusers  # diffusers loads no component of a module that is not imported
from diffusers import DDPMPipeline
pipeline = DDPMPipeline.from_pretrained(sys.argv[1])
pipeline.set_progress_bar_config(disable=True)
result = pipeline(
    batch_size=2, num_inference_steps=5, generator=torch.Generator().manual_seed(3), output_type="pt"
).images
torch.save(result, sys.argv[2])
"""


def test_saved_and_loaded_in_a_fresh_process(tmp_path: Path) -> None:
    plan = PLANS["distilled"]
    pipeline = diffusers.DDPMPipeline(unet=unet(), scheduler=PlanScheduler.from_plan(plan))
    expected = images(pipeline, 5)
    pipeline.save_pretrained(tmp_path / "pipeline")
    index = json.loads((tmp_path / "pipeline" / "model_index.json").read_text())
    assert index["scheduler"] == ["pydiffaccel.diffusers", "PlanScheduler"]  # a promise to saved pipelines
    loaded = PlanScheduler.from_pretrained(tmp_path / "pipeline", subfolder="scheduler")
    assert loaded.plan == plan
    target = tmp_path / "images.pt"
    done = subprocess.run(
        [sys.executable, "-c", FRESH, str(tmp_path / "pipeline"), str(target)], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert torch.equal(torch.load(target), expected)


def test_a_changed_plan_is_refused(tmp_path: Path) -> None:
    PlanScheduler.from_plan(PLANS["distilled"]).save_pretrained(tmp_path)
    path = tmp_path / "scheduler_config.json"
    saved = json.loads(path.read_text())
    saved["plan"]["evaluations"][1]["updates"][0]["b"][0] *= 1.01
    path.write_text(json.dumps(saved))
    with pytest.raises(ValueError, match="the plan was changed after it was saved: checksum"):
        PlanScheduler.from_pretrained(tmp_path)


@pytest.mark.parametrize("settings", [{}, {"solver": "unipc", "solver_order": 3, "solver_options": {"variant": "bh1"}}])
def test_settings_survive_saving(tmp_path: Path, settings: dict[str, Any]) -> None:
    scheduler = PlanScheduler(timestep_spacing="karras", **settings)
    scheduler.set_timesteps(7)
    scheduler.save_pretrained(tmp_path)
    loaded = PlanScheduler.from_pretrained(tmp_path)
    copied = PlanScheduler.from_config(scheduler.config)
    for other in (loaded, copied):
        other.set_timesteps(7)
        assert other.plan == scheduler.plan


def test_importing_the_package_imports_nothing_heavy() -> None:
    script = "import sys, pydiffaccel; print({'diffusers', 'scipy', 'torch._dynamo'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"


def test_dit_with_learned_variance_and_guidance() -> None:
    torch.manual_seed(0)
    transformer = diffusers.DiTTransformer2DModel(
        sample_size=4,
        patch_size=2,
        num_layers=1,
        num_attention_heads=2,
        attention_head_dim=4,
        in_channels=4,
        out_channels=8,
        num_embeds_ada_norm=1000,
        norm_num_groups=1,
    ).eval()
    vae = diffusers.AutoencoderKL(
        in_channels=3, out_channels=3, block_out_channels=(8,), latent_channels=4, norm_num_groups=4, sample_size=4
    ).eval()
    plan = PLANS["unipc"]
    pipeline = quiet(diffusers.DiTPipeline(transformer=transformer, vae=vae, scheduler=PlanScheduler.from_plan(plan)))
    result = pipeline([1, 2], guidance_scale=1.0, num_inference_steps=5, generator=generator(3), output_type="np")
    denoiser = wrap_model(transformer, prediction_type="epsilon", condition={"class_labels": torch.tensor([1, 2])})
    latents = integrate(plan, denoiser, noise(2, 4, 4, 4))
    with torch.no_grad():
        decoded = as_images(vae.decode(latents / vae.config.scaling_factor).sample).permute(0, 2, 3, 1).numpy()
    assert abs(result.images - decoded).max() < 1e-6  # the pipeline evaluates a doubled batch
    guided = pipeline([1, 2], guidance_scale=4.0, num_inference_steps=5, generator=generator(3), output_type="np")
    assert abs(guided.images - decoded).max() > 1e-3


class Conditional(diffusers.DiffusionPipeline):  # type: ignore[misc, name-defined]
    """The loop of the Stable Diffusion pipelines (text to image, image to image) on given embeddings."""

    def __init__(self, unet: Any, scheduler: Any) -> None:
        super().__init__()
        self.register_modules(unet=unet, scheduler=scheduler)

    @torch.no_grad()
    def __call__(
        self,
        embeddings: Tensor,
        negative: Tensor,
        start: Tensor,
        steps: int | None,
        scale: float,
        image: Tensor | None = None,
        strength: float = 1.0,
        **grid: Any,
    ) -> Tensor:
        # the pipelines look for these names before they pass timesteps or sigmas of the user
        assert set(grid) <= set(inspect.signature(self.scheduler.set_timesteps).parameters)
        self.scheduler.set_timesteps(**(grid or {"num_inference_steps": steps}), device="cpu")
        timesteps = self.scheduler.timesteps
        latents = start * self.scheduler.init_noise_sigma
        if image is not None:
            assert steps is not None
            skipped = max(steps - min(int(steps * strength), steps), 0) * self.scheduler.order
            timesteps = self.scheduler.timesteps[skipped:]
            self.scheduler.set_begin_index(skipped)
            latents = self.scheduler.add_noise(image, start, timesteps[:1].repeat(len(image)))
        both = torch.cat([negative, embeddings])
        for t in timesteps:
            seen = self.scheduler.scale_model_input(torch.cat([latents] * 2), t)
            empty, text = self.unet(seen, t, encoder_hidden_states=both).sample.chunk(2)
            latents = self.scheduler.step(empty + scale * (text - empty), t, latents).prev_sample
        result: Tensor = latents
        return result


@pytest.fixture(scope="module")
def conditional_unet() -> Any:
    torch.manual_seed(0)
    return diffusers.UNet2DConditionModel(
        sample_size=8,
        in_channels=4,
        out_channels=4,
        block_out_channels=(8,),
        norm_num_groups=4,
        layers_per_block=1,
        down_block_types=("CrossAttnDownBlock2D",),
        up_block_types=("CrossAttnUpBlock2D",),
        cross_attention_dim=8,
        attention_head_dim=4,
    ).eval()


@pytest.mark.parametrize(
    ("solver", "strength"),
    [("pndm", None), *itertools.product(["dpm_solver++", "unipc", "edm_heun", "dpm_solver"], [None, 0.6, 0.25])],
)
def test_guided_and_from_an_image(conditional_unet: Any, solver: str, strength: float | None) -> None:
    scheduler = PlanScheduler(**BETAS, solver=solver, timestep_spacing="leading", steps_offset=1)
    pipeline = quiet(Conditional(conditional_unet, scheduler))
    embeddings, negative = noise(2, 3, 8, seed=5), noise(2, 3, 8, seed=6)
    start, image = noise(2, 4, 8, 8), 0.5 * noise(2, 4, 8, 8, seed=7)
    picture = {} if strength is None else {"image": image, "strength": strength}
    result = pipeline(embeddings, negative, start, 8, 3.0, **picture)
    plan = scheduler.plan
    assert plan is not None
    if strength is not None:
        plan = tail(plan, step_starts(plan)[8 - int(8 * strength)])
        start = plan.start.alpha * image + plan.start.sigma * start
    expected = integrate(
        plan,
        wrap_model(conditional_unet, prediction_type="epsilon"),
        start,
        condition={"encoder_hidden_states": embeddings},
        unconditional={"encoder_hidden_states": negative},
        guidance_scale=3.0,
    )
    torch.testing.assert_close(result, expected, rtol=2e-4, atol=2e-5)


@pytest.mark.parametrize("strength", [0.95, 0.6])
def test_stable_diffusions_own_configuration_from_an_image(conditional_unet: Any, strength: float) -> None:
    """PNDM without Runge-Kutta, two evaluations in its first step and one in the others: any begin index will do."""
    theirs = diffusers.PNDMScheduler(**BETAS, skip_prk_steps=True, steps_offset=1)
    pipeline = quiet(Conditional(conditional_unet, PlanScheduler.from_config(theirs.config)))
    embeddings, negative = noise(2, 3, 8, seed=5), noise(2, 3, 8, seed=6)
    start, image = noise(2, 4, 8, 8), 0.5 * noise(2, 4, 8, 8, seed=7)
    result = pipeline(embeddings, negative, start, 10, 3.0, image=image, strength=strength)
    plan = pipeline.scheduler.plan
    assert step_starts(plan)[:3] == [0, 2, 3]
    rest = tail(plan, 10 - int(10 * strength))
    expected = integrate(
        rest,
        wrap_model(conditional_unet, prediction_type="epsilon"),
        rest.start.alpha * image + rest.start.sigma * start,
        condition={"encoder_hidden_states": embeddings},
        unconditional={"encoder_hidden_states": negative},
        guidance_scale=3.0,
    )
    torch.testing.assert_close(result, expected, rtol=2e-4, atol=2e-4)


def test_pipelines_pass_timesteps_and_sigmas(conditional_unet: Any) -> None:
    embeddings, negative, start = noise(2, 3, 8, seed=5), noise(2, 3, 8, seed=6), noise(2, 4, 8, 8)
    pipeline = quiet(Conditional(conditional_unet, PlanScheduler(**BETAS)))
    times = diffusers.schedulers.AysSchedules["StableDiffusionTimesteps"]
    pipeline(embeddings, negative, start, None, 3.0, timesteps=times)
    assert pipeline.scheduler.timesteps.tolist() == times
    assert pipeline.scheduler.timesteps.dtype == torch.int64
    sigmas = diffusers.schedulers.AysSchedules["StableDiffusionSigmas"]
    result = pipeline(embeddings, negative, start, None, 3.0, sigmas=sigmas)
    assert pipeline.scheduler.timesteps.dtype == torch.float32  # between training indices
    torch.testing.assert_close(pipeline.scheduler.sigmas, torch.tensor(sigmas), rtol=1e-4, atol=0)
    assert result.isfinite().all()


def test_threads_do_not_disturb_each_other() -> None:
    """Pipelines that share a network, each with its own scheduler, in turns."""
    network = unet()
    names = ["ddim", "pndm", "dpm_solver++3M", "unipc"]
    barrier = threading.Barrier(len(names))

    class InTurns(nn.Module):
        config = network.config
        dtype = torch.float32

        def forward(self, x: Tensor, t: Tensor) -> Any:
            barrier.wait(timeout=60)  # all stand between two steps at once
            return network(x, t)

    def scheduler(name: str) -> PlanScheduler:
        return PlanScheduler.from_plan(PLANS[name])

    results: dict[str, Tensor] = {}

    def run(name: str, model: Any) -> Tensor:
        ours, x = scheduler(name), noise(2, 1, 8, 8, seed=len(name))
        ours.set_timesteps(None)
        with torch.no_grad():
            for t in ours.timesteps[:5]:
                x = ours.step(model(x, t).sample, t, x).prev_sample
        return x

    alone = {name: run(name, network) for name in names}

    def keep(name: str) -> None:
        results[name] = run(name, InTurns())

    threads = [threading.Thread(target=keep, args=(name,)) for name in names]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert {name: torch.equal(results[name], alone[name]) for name in names} == dict.fromkeys(names, True)
