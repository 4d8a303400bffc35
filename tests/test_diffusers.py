"""PlanScheduler in pipelines of diffusers that know nothing of it, built here with random weights."""

from __future__ import annotations

import copy
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

import pydiffaccel as da
from pydiffaccel.schedule import TruncatedVPSchedule
from pydiffaccel.solvers import Denoiser, Plan, integrate, make_plan, wrap_model
from pydiffaccel.solvers.distill import apply_lambdas
from pydiffaccel.solvers.tail import step_starts, tail

diffusers = pytest.importorskip("diffusers")
from pydiffaccel.diffusers import PlanScheduler  # noqa: E402

VP, FLOW, EDM = da.VPSchedule.linear(), da.FlowSchedule(), da.EDMSchedule()
BETAS = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}


@pytest.fixture(autouse=True)
def _one_thread() -> Any:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


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


def test_plans_on_truncated_noise_levels() -> None:
    schedule = TruncatedVPSchedule(VP, num_terms=3)
    plan = make_plan("dpm_solver++", schedule, 5)
    scheduler = PlanScheduler.from_config(PlanScheduler.from_plan(plan).config)
    assert scheduler.init_noise_sigma == schedule.prior_std < 1
    x = noise(2, 3)
    expected = integrate(plan, Toy(), x * schedule.prior_std)
    assert torch.equal(loop(scheduler, x * scheduler.init_noise_sigma), expected)
    t = torch.tensor([999.0, 20.5])
    noised = scheduler.add_noise(torch.zeros(2, 3), torch.ones(2, 3), t)
    torch.testing.assert_close(noised[:, 0], torch.from_numpy(schedule.sigma(t.numpy())).float())


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


def test_importing_the_package_imports_no_diffusers() -> None:
    script = "import sys, pydiffaccel; print('diffusers' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"


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


def test_copies_are_independent() -> None:
    first = PlanScheduler.from_plan(PLANS["dpm_solver++3M"])
    x = noise(2, 3)
    state = first.step(torch.tanh(x), first.timesteps[0], x).prev_sample
    second = copy.deepcopy(first)
    assert second.step_index == 1
    loop(second, x)
    assert first.step_index == 1
    assert first.step(torch.tanh(state), first.timesteps[1], state).prev_sample.isfinite().all()


SOURCES: list[tuple[str, dict[str, Any], float]] = [
    ("DDIMScheduler", {"clip_sample": False}, 1e-5),
    ("DDIMScheduler", {"clip_sample": False, "steps_offset": 1, "set_alpha_to_one": False, **BETAS}, 1e-5),
    ("DDIMScheduler", {"clip_sample": False, "timestep_spacing": "trailing", "prediction_type": "v_prediction"}, 1e-5),
    (
        "DDIMScheduler",
        {
            "clip_sample": False,
            "timestep_spacing": "trailing",
            "prediction_type": "v_prediction",
            "rescale_betas_zero_snr": True,
        },
        1e-5,
    ),
    ("PNDMScheduler", {"skip_prk_steps": True, "steps_offset": 1, **BETAS}, 1e-5),
    ("PNDMScheduler", {"steps_offset": 1, **BETAS}, 1e-5),
    ("EulerDiscreteScheduler", {}, 1e-5),
    ("EulerDiscreteScheduler", {"timestep_spacing": "leading"}, 1e-5),
    ("HeunDiscreteScheduler", {"timestep_spacing": "leading"}, 1e-5),
    ("KDPM2DiscreteScheduler", {}, 1e-5),
    ("DPMSolverMultistepScheduler", {}, 1e-5),
    ("DPMSolverMultistepScheduler", {"beta_schedule": "squaredcos_cap_v2", "prediction_type": "sample"}, 1e-5),
    ("DPMSolverMultistepScheduler", {"solver_order": 3, "final_sigmas_type": "sigma_min"}, 1e-5),
    ("DPMSolverMultistepScheduler", {"solver_type": "heun", "timestep_spacing": "leading", "steps_offset": 1}, 1e-5),
    ("DPMSolverMultistepScheduler", {"use_karras_sigmas": True}, 1e-5),
    ("DPMSolverSinglestepScheduler", {"solver_order": 3}, 1e-5),
    ("DEISMultistepScheduler", {"solver_order": 2}, 1e-5),
    ("UniPCMultistepScheduler", {"solver_order": 3}, 1e-5),
    ("UniPCMultistepScheduler", {"solver_type": "bh1", "predict_x0": False, "final_sigmas_type": "sigma_min"}, 1e-5),
    ("EDMEulerScheduler", {}, 1e-5),
    ("EDMDPMSolverMultistepScheduler", {"prediction_type": "v_prediction"}, 1e-5),
    ("EDMDPMSolverMultistepScheduler", {"sigma_schedule": "exponential", "solver_order": 3}, 1e-5),
    ("FlowMatchEulerDiscreteScheduler", {"shift": 3.0}, 1e-5),
]


@pytest.mark.filterwarnings("ignore:__array_wrap__:DeprecationWarning")  # theirs
@pytest.mark.parametrize("saved", [False, True])
@pytest.mark.parametrize(("name", "config", "tolerance"), SOURCES)
def test_configurations_of_diffusers(
    name: str, config: dict[str, Any], tolerance: float, saved: bool, tmp_path: Path
) -> None:
    """PlanScheduler from their configuration is their method, at their timesteps."""
    theirs = getattr(diffusers, name)(**config)
    if saved:
        theirs.save_pretrained(tmp_path)
        ours = PlanScheduler.from_pretrained(tmp_path)
    else:
        ours = PlanScheduler.from_config(theirs.config)
    for steps in (5, 10):
        theirs.set_timesteps(steps)
        ours.set_timesteps(steps)
        start = noise(4, 3) * ours.init_noise_sigma
        # theirs hold x_0 + sigma noise, and some start a little off the noise level they name
        scale = float(theirs.sigmas.max() ** 2 + 1) ** 0.5 if name.startswith(("Euler", "Heun", "KDPM2")) else 1.0
        expected = loop(theirs, start * scale, steps)
        result = loop(ours, start, steps)
        assert float((result - expected).abs().max() / expected.abs().max()) < tolerance, steps
        if "use_karras_sigmas" not in config:  # theirs rounds the times of these to training indices
            places = 1e-3 if name.startswith("KDPM2") else 1e-5  # its inner times are interpolated in log sigma
            torch.testing.assert_close(ours.timesteps.float(), theirs.timesteps.float(), rtol=places, atol=1e-5)
        assert ours.order == getattr(theirs, "order", 1)
        assert ours.init_noise_sigma == (80.0 if name.startswith("EDM") else 1.0)


def test_ddpm_configuration_is_its_posterior() -> None:
    """All of DDPM's steps: mean and variance of its own scheduler, from the same noise."""
    theirs = diffusers.DDPMScheduler(20, beta_end=0.3, clip_sample=False)
    ours = PlanScheduler.from_config(theirs.config)
    ours.set_timesteps(20)
    theirs.set_timesteps(20)
    a = b = noise(4, 3)
    source = [generator(1), generator(1)]
    for t in theirs.timesteps:
        a = theirs.step(torch.tanh(a), t, a, generator=source[0]).prev_sample
        b = ours.step(torch.tanh(b), t, b, generator=source[1]).prev_sample
    torch.testing.assert_close(b, a, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("spacing", ["linspace", "leading"])
def test_euler_ancestral_configuration(spacing: str) -> None:
    theirs = diffusers.EulerAncestralDiscreteScheduler(**BETAS, timestep_spacing=spacing, steps_offset=1)
    ours = PlanScheduler.from_config(theirs.config)
    ours.set_timesteps(10)
    theirs.set_timesteps(10)
    torch.testing.assert_close(ours.timesteps.float(), theirs.timesteps.float(), rtol=1e-5, atol=1e-4)
    x = noise(4, 3)
    expected, source = x * float(theirs.sigmas[0] ** 2 + 1) ** 0.5, [generator(1), generator(1)]
    for ours_t, t in zip(ours.timesteps, theirs.timesteps, strict=True):
        answer = torch.tanh(theirs.scale_model_input(expected, t))
        expected = theirs.step(answer, t, expected, generator=source[0]).prev_sample
        x = ours.step(torch.tanh(x), ours_t, x, generator=source[1]).prev_sample
    torch.testing.assert_close(x, expected, rtol=1e-4, atol=1e-4)


def test_another_solver_on_a_configuration() -> None:
    theirs = diffusers.DPMSolverMultistepScheduler(**BETAS, timestep_spacing="trailing", solver_order=3)
    ours = PlanScheduler.from_config(theirs.config, solver="unipc", timestep_spacing="log_snr")
    ours.set_timesteps(6)
    expected = make_plan("unipc", da.VPSchedule.scaled_linear(), 6, spacing="log_snr")
    assert ours.plan == expected


def test_clipping_is_taken_over() -> None:
    """DDIM's use_clipped_model_output: the noise follows the clamped data."""
    theirs = diffusers.DDIMScheduler(clip_sample_range=0.7)
    ours = PlanScheduler.from_config(theirs.config)
    theirs.set_timesteps(10)
    x = noise(4, 3)
    expected = x
    for t in theirs.timesteps:
        expected = theirs.step(torch.tanh(expected), t, expected, use_clipped_model_output=True).prev_sample
    result = loop(ours, x, 10)
    torch.testing.assert_close(result, expected, rtol=1e-4, atol=1e-5)
    assert result.abs().max() <= 0.7 + 1e-6
    ours.register_to_config(clip_sample=False)
    assert loop(ours, x, 10).abs().max() > 0.7


@pytest.mark.parametrize(
    ("name", "config", "sentence"),
    [
        ("DDIMScheduler", {"thresholding": True}, "no plan has thresholding=True of this DDIMScheduler"),
        ("DPMSolverMultistepScheduler", {"use_lu_lambdas": True}, "no plan has use_lu_lambdas=True of this"),
        ("DPMSolverMultistepScheduler", {"euler_at_final": True}, "no plan has euler_at_final=True of this"),
        ("DDPMScheduler", {"variance_type": "fixed_large"}, "no plan has variance_type='fixed_large' of this DDPM"),
        (
            "DDPMScheduler",
            {"beta_schedule": "sigmoid"},
            "unknown beta_schedule 'sigmoid'; known: linear",
        ),
        ("EDMEulerScheduler", {"final_sigmas_type": "sigma_min"}, "no plan has final_sigmas_type='sigma_min' of this"),
        ("LCMScheduler", {}, "PlanScheduler reads configurations of DDIMScheduler, .*, got 'LCMScheduler'"),
    ],
)
def test_configurations_that_no_plan_has(name: str, config: dict[str, Any], sentence: str, tmp_path: Path) -> None:
    getattr(diffusers, name)(**config).save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=sentence):
        PlanScheduler.from_pretrained(tmp_path)


def test_add_noise_and_velocity_are_those_of_training() -> None:
    theirs = diffusers.DDPMScheduler(**BETAS)
    ours = PlanScheduler(**BETAS)
    x, z, t = noise(6, 2, 3), noise(6, 2, 3, seed=4), torch.tensor([0, 1, 17, 500, 998, 999])
    torch.testing.assert_close(ours.add_noise(x, z, t), theirs.add_noise(x, z, t), rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(ours.get_velocity(x, z, t), theirs.get_velocity(x, z, t), rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(ours.alphas_cumprod, theirs.alphas_cumprod, rtol=1e-5, atol=0)
    real = torch.tensor([0.25, 12.5, 300.125, 998.75, 999.0, 0.0], dtype=torch.float64)
    schedule = da.VPSchedule.scaled_linear()
    alpha = torch.from_numpy(schedule.alpha(real.numpy()))[:, None, None]
    sigma = torch.from_numpy(schedule.sigma(real.numpy()))[:, None, None]
    torch.testing.assert_close(ours.add_noise(x.double(), z.double(), real), alpha * x + sigma * z)
    half = ours.add_noise(x.half(), z.half(), t)
    assert half.dtype == torch.float16
    rescaled = PlanScheduler(rescale_betas_zero_snr=True, prediction_type="v_prediction")
    assert torch.equal(rescaled.add_noise(x, z, torch.full((6,), 999)), z)
    assert len(ours) == 1000


def test_flow_and_edm_levels() -> None:
    x, z = noise(2, 3), noise(2, 3, seed=4)
    flow = PlanScheduler(noise_schedule="flow", solver="euler", prediction_type="flow_prediction")
    theirs = diffusers.FlowMatchEulerDiscreteScheduler()
    theirs.set_timesteps(10)
    t = theirs.timesteps[[2, 7]]
    torch.testing.assert_close(flow.scale_noise(x, t, z), theirs.scale_noise(x, t, z))
    assert torch.equal(flow.get_velocity(x, z, t), z - x)
    edm = PlanScheduler(noise_schedule="edm", solver="edm_heun")
    edm.set_timesteps(5)
    torch.testing.assert_close(edm.add_noise(x, z, edm.timesteps[:2]), x + edm.sigmas[:2, None] * z)


def test_dynamic_shifting() -> None:
    config = {"use_dynamic_shifting": True, "base_shift": 0.5, "max_shift": 1.15}
    theirs = diffusers.FlowMatchEulerDiscreteScheduler(**config)
    ours = PlanScheduler.from_config(theirs.config)
    sigmas = torch.linspace(1.0, 0.1, 10).tolist()
    theirs.set_timesteps(sigmas=sigmas, mu=0.8)
    ours.set_timesteps(sigmas=sigmas, mu=0.8)
    torch.testing.assert_close(ours.sigmas, theirs.sigmas)
    with pytest.raises(ValueError, match="this scheduler shifts dynamically, so set_timesteps needs mu"):
        ours.set_timesteps(10)


def test_edm_network_is_that_of_wrap_model() -> None:
    def network(x: Tensor, t: Tensor) -> Tensor:
        return torch.tanh(3 * x) + t.reshape(-1, 1)

    scheduler = PlanScheduler(noise_schedule="edm", solver="edm_heun", sigma_max=40.0, sigma_data=0.7)
    scheduler.set_timesteps(6)
    plan = scheduler.plan
    assert plan is not None
    start = x = noise(4, 3) * scheduler.init_noise_sigma
    for t in scheduler.timesteps:
        x = scheduler.step(network(scheduler.scale_model_input(x, t), t), t, x).prev_sample
    denoiser = wrap_model(network, prediction_type="edm", sigma_data=0.7)
    torch.testing.assert_close(x, integrate(plan, denoiser, start), rtol=1e-5, atol=1e-5)


def test_half_precision_keeps_a_float32_state() -> None:
    plan = make_plan("dpm_solver++", VP, 40)
    scheduler = PlanScheduler.from_plan(plan)
    start = noise(8, 32)
    exact = integrate(plan, Toy(), start.bfloat16())
    with torch.no_grad():
        x = start.bfloat16()
        for t in scheduler.timesteps:
            x = scheduler.step(torch.tanh(x.float()), t, x).prev_sample
            assert x.dtype == torch.bfloat16
    kept = (x.float() - exact).square().mean()
    x = start.bfloat16()
    scheduler.set_timesteps()
    for t in scheduler.timesteps:
        x = scheduler.step(torch.tanh(x.float()), t, x.clone()).prev_sample
    lost = (x.float() - exact).square().mean()
    assert kept < 0.5 * lost


def test_a_changed_sample_replaces_the_state() -> None:
    """As inpainting does between steps, in place or not, in any precision."""
    plan = make_plan("ddim", VP, 4)
    for dtype in (torch.float32, torch.bfloat16):
        results = []
        for in_place in (True, False):
            scheduler, x = PlanScheduler.from_plan(plan), noise(3, 4).to(dtype)
            for index, t in enumerate(scheduler.timesteps):
                x = scheduler.step(torch.tanh(x), t, x).prev_sample
                if index == 1 and in_place:
                    x[:, 0] = 0.25
                elif index == 1:
                    x = torch.cat([torch.full_like(x[:, :1], 0.25), x[:, 1:]], dim=1)
            results.append(x)
        # the other columns of a half-precision state are rounded when it is replaced, in both
        assert torch.equal(results[0], results[1])


def test_no_step_asks_the_device_for_a_value() -> None:
    """On the meta device every question for a value raises."""
    for plan in (PLANS["dpm_solver++3M"], PLANS["heun"], make_plan("ddim", VP, 4, eta=1.0)):
        scheduler = PlanScheduler.from_plan(plan)
        scheduler.set_timesteps(plan.num_steps, device="meta")
        scheduler.set_begin_index(0)
        x = torch.empty(2, 3, device="meta")
        for t in scheduler.timesteps:
            x = scheduler.step(torch.tanh(scheduler.scale_model_input(x, t)), t, x).prev_sample
        assert x.shape == (2, 3)
        assert scheduler.add_noise(x, x, scheduler.timesteps[:1].repeat(2)).device.type == "meta"


def test_what_is_refused() -> None:
    scheduler = PlanScheduler.from_plan(PLANS["ddim"])
    x = noise(2, 3)
    with pytest.raises(ValueError, match="holds a ddim plan of 5 steps, got num_inference_steps = 50"):
        scheduler.set_timesteps(50)
    with pytest.raises(ValueError, match="holds a ddim plan with timesteps of its own; give none"):
        scheduler.set_timesteps(timesteps=[1, 0])
    with pytest.raises(ValueError, match="timestep 998 is none of the run's: 999, 799, 599, 399, 199"):
        scheduler.step(x, 998, x)
    with pytest.raises(ValueError, match=r"model_output must have the sample's shape \(2, 3\), got \(2, 4\)"):
        scheduler.step(noise(2, 4), 999, x)
    loop(scheduler, x)
    with pytest.raises(ValueError, match="all 5 evaluations are done; call set_timesteps for another run"):
        scheduler.step(x, 199, x)
    scheduler.set_timesteps(5)
    scheduler.step(x, 999, x)
    with pytest.raises(ValueError, match="step 1 of this run is at timestep 799, got 599"):
        scheduler.step(x, 599, x)
    scheduler.set_timesteps(5)
    scheduler.set_begin_index(9)
    with pytest.raises(ValueError, match="begin_index must be one of the 5 timesteps, got 9"):
        scheduler.step(x, 199, x)
    fresh = PlanScheduler()
    with pytest.raises(ValueError, match="call set_timesteps before the first step"):
        fresh.step(x, 999, x)
    for steps in (0, -1, None, 2.5):
        with pytest.raises(ValueError, match="num_inference_steps must be a positive int, got"):
            fresh.set_timesteps(steps)
    with pytest.raises(ValueError, match="give timesteps or sigmas, not both"):
        fresh.set_timesteps(timesteps=[1], sigmas=[1.0])
    with pytest.raises(ValueError, match="num_inference_steps is 3, but 2 steps were given"):
        fresh.set_timesteps(3, timesteps=[900, 100])
    with pytest.raises(ValueError, match="times must run strictly from the noisy end"):
        fresh.set_timesteps(timesteps=[100, 900])
    with pytest.raises(ValueError, match="sigmas must not be negative"):
        fresh.set_timesteps(sigmas=[1.0, -1.0])
    for settings, sentence in (
        ({"prediction_type": "eps"}, "unknown prediction_type 'eps'; known: epsilon, sample"),
        ({"noise_schedule": "ve"}, "unknown noise_schedule 've'; known: vp, flow, edm"),
        ({"noise_schedule": "edm", "prediction_type": "sample"}, "an edm network predicts epsilon or v_prediction"),
        ({"trained_betas": [0.1, 0.2]}, "trained_betas holds 2 values for 1000 training steps"),
        ({"plan": {}}, "this is no pydiffaccel.plan file: its format is None"),
    ):
        with pytest.raises(ValueError, match=sentence):
            PlanScheduler(**settings)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="plan must be a Plan, got str"):
        PlanScheduler.from_plan("ddim")  # type: ignore[arg-type]
    stages = PlanScheduler.from_plan(PLANS["dpm_solver-2"])
    stages.set_begin_index(1)
    with pytest.raises(ValueError, match="this dpm_solver plan cannot start at evaluation 1"):
        stages.step(x, stages.timesteps[1], x)


def test_compatible_schedulers() -> None:
    names = {kind.__name__ for kind in PlanScheduler().compatibles}
    assert {"DDIMScheduler", "PNDMScheduler", "DPMSolverMultistepScheduler", "EDMEulerScheduler"} <= names
    back = diffusers.DDIMScheduler.from_config(PlanScheduler(**BETAS).config)
    assert back.config.beta_schedule == "scaled_linear"
