"""The kinds of models that wrap_model takes: diffusers' networks, EDM's and k-diffusion's denoisers."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from pydiffaccel.forward import EDMProcess
from pydiffaccel.schedule import EDMSchedule, FlowSchedule, VPSchedule
from pydiffaccel.solvers import integrate, make_plan, wrap_model
from pydiffaccel.solvers.point import points_at

VP, FLOW, EDM = VPSchedule.linear(), FlowSchedule(), EDMSchedule()
LEVELS = [(VP, 700.25), (FLOW, 0.3), (EDM, 2.5)]


def denoised(x: Tensor, sigma: Tensor, label: Tensor | None = None) -> Tensor:
    """The best data prediction for N(0, 0.25) data from x_0 + sigma noise, as EDM and k-diffusion denoisers give it."""
    assert sigma.dtype == torch.float32
    level = sigma.to(x.dtype).reshape(-1, *(1,) * (x.dim() - 1))
    shift = 0 if label is None else label.reshape(level.shape).to(x.dtype)
    return 0.25 / (0.25 + level**2) * x + shift


@pytest.mark.parametrize(("schedule", "t"), LEVELS)
def test_a_denoiser_of_data_in_its_own_coordinates(normal: Any, schedule: Any, t: float) -> None:
    (point,) = points_at(schedule, [t])
    x = normal(0, 5, 2, 3)
    wrapped = wrap_model(denoised, prediction_type="denoised")
    s = point.sigma / point.alpha
    best = 0.25 / (0.25 + s**2) * x / point.alpha
    torch.testing.assert_close(wrapped(x, point, "sample"), best, rtol=1e-6, atol=1e-7)
    noise = (x - point.alpha * best) / point.sigma
    torch.testing.assert_close(wrapped(x, point, "epsilon"), noise, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize(("schedule", "t"), LEVELS)
@pytest.mark.parametrize("sigma_data", [0.5, 1.3])
def test_edm_preconditioning_is_that_of_the_process(normal: Any, schedule: Any, t: float, sigma_data: float) -> None:
    (point,) = points_at(schedule, [t])
    process = EDMProcess(sigma_data=sigma_data)
    s = torch.full((5,), point.sigma / point.alpha, dtype=torch.float64)
    x = normal(0, 5, 4)
    seen: list[tuple[Tensor, Tensor]] = []

    def network(x: Tensor, t: Tensor) -> Tensor:
        seen.append((x, t))
        return torch.tanh(3 * x)

    result = wrap_model(network, prediction_type="edm", sigma_data=sigma_data)(x, point, "sample")
    scaled = x / point.alpha
    torch.testing.assert_close(seen[0][0], process.model_input(scaled, s))
    torch.testing.assert_close(seen[0][1], process.model_time(s), rtol=1e-6, atol=1e-7)
    expected = process.denoised(torch.tanh(3 * seen[0][0]), scaled, s)
    torch.testing.assert_close(result, expected)


@pytest.mark.parametrize("prediction_type", ["denoised", "edm"])
def test_pure_noise_has_no_finite_level(normal: Any, prediction_type: str) -> None:
    wrapped = wrap_model(denoised, prediction_type=prediction_type)
    with pytest.raises(ValueError, match="the noise level sigma / alpha is infinite at t = 0, where alpha is 0"):
        wrapped(normal(0, 3, 2), points_at(FLOW, [0.0])[0], "sample")


def test_a_wrapped_denoiser_takes_conditions(normal: Any) -> None:
    (point,) = points_at(EDM, [1.0])
    x, labels = normal(0, 3, 2), torch.tensor([1.0, 2.0, 3.0])
    wrapped = wrap_model(denoised, prediction_type="denoised", condition={"label": labels})
    plain = wrap_model(denoised, prediction_type="denoised")
    difference = wrapped(x, point, "sample") - plain(x, point, "sample")
    torch.testing.assert_close(difference, labels.double()[:, None].expand(3, 2))


def test_bad_settings() -> None:
    with pytest.raises(ValueError, match=r"unknown prediction type .eps.; known: .*, denoised, edm"):
        wrap_model(denoised, prediction_type="eps")
    with pytest.raises(ValueError, match="sigma_data must be positive and finite, got 0"):
        wrap_model(denoised, prediction_type="edm", sigma_data=0)


class Doubled(nn.Module):
    """Prediction and variance in one answer."""

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        return torch.cat([torch.tanh(x), torch.full_like(x, 7.0)], dim=1)


def test_learned_sigma_is_left_out(normal: Any) -> None:
    x, plan = normal(0, 3, 2, 5), make_plan("ddim", VP, 3)
    expected = integrate(plan, wrap_model(lambda x, t: torch.tanh(x), prediction_type="epsilon"), x)
    asked = wrap_model(Doubled(), prediction_type="epsilon", learned_sigma=True)
    assert torch.equal(integrate(plan, asked, x), expected)
    with pytest.raises(ValueError, match=r"must return the state's shape \(3, 2, 5\), got \(3, 4, 5\)"):
        integrate(plan, wrap_model(Doubled(), prediction_type="epsilon"), x)
    with pytest.raises(ValueError, match=r"must return twice the state's channels \(3, 4, 5\), got \(3, 2, 5\)"):
        integrate(plan, wrap_model(lambda x, t: x, prediction_type="epsilon", learned_sigma=True), x)


class Reversed(nn.Module):
    """The time is not the second parameter, as in diffusers' transformers."""

    def forward(self, hidden_states: Tensor, context: Tensor | None = None, timestep: Tensor | None = None) -> Tensor:
        assert context is None
        assert timestep is not None
        return hidden_states * (timestep[:, None] / 1000)


def test_timestep_is_passed_by_name_where_it_is_not_second(normal: Any) -> None:
    x, (point,) = normal(0, 3, 2), points_at(VP, [500.0])
    result = wrap_model(Reversed().double(), prediction_type="epsilon")(x, point, "epsilon")
    torch.testing.assert_close(result, x * 0.5)


def tiny_unet_config() -> dict[str, Any]:
    return {
        "sample_size": 8,
        "in_channels": 3,
        "out_channels": 3,
        "block_out_channels": (8,),
        "norm_num_groups": 4,
        "layers_per_block": 1,
    }


@pytest.mark.filterwarnings("ignore:.Transformer2DModelOutput:FutureWarning")  # theirs
def test_diffusers_networks(normal: Any) -> None:
    models = pytest.importorskip("diffusers.models")
    torch.manual_seed(0)
    plan = make_plan("ddim", VP, 3)
    x = normal(0, 2, 3, 8, 8, dtype=torch.float32)

    text = models.UNet2DConditionModel(
        **tiny_unet_config(),
        down_block_types=("CrossAttnDownBlock2D",),
        up_block_types=("CrossAttnUpBlock2D",),
        cross_attention_dim=8,
        attention_head_dim=4,
    ).eval()
    embeddings = normal(1, 2, 4, 8, dtype=torch.float32)
    by_hand = wrap_model(lambda x, t: text(x, t, encoder_hidden_states=embeddings), prediction_type="epsilon")
    expected = integrate(plan, by_hand, x)
    denoiser = wrap_model(text, prediction_type="epsilon")
    result = integrate(plan, denoiser, x, condition={"encoder_hidden_states": embeddings})
    assert torch.equal(result, expected)
    guided = integrate(
        plan,
        denoiser,
        x,
        condition={"encoder_hidden_states": embeddings},
        unconditional={"encoder_hidden_states": torch.zeros(1, 4, 8)},
        guidance_scale=4.0,
    )
    assert guided.shape == x.shape
    assert (guided - result).abs().max() > 1e-4

    dit = {"sample_size": 8, "patch_size": 2, "num_layers": 1, "num_attention_heads": 2, "attention_head_dim": 4}
    dit |= {"in_channels": 3, "num_embeds_ada_norm": 10, "norm_num_groups": 1}
    labels = torch.tensor([1, 2])
    for make in (models.DiTTransformer2DModel, models.Transformer2DModel):
        extra = {} if make is models.DiTTransformer2DModel else {"norm_type": "ada_norm_zero"}
        network = make(**dit, **extra, out_channels=6).eval()  # learned sigma, as the published DiTs

        def by_name(x: Tensor, t: Tensor, network: nn.Module = network) -> Tensor:
            return network(x, timestep=t, class_labels=labels).sample[:, :3]

        expected = integrate(plan, wrap_model(by_name, prediction_type="epsilon"), x)
        wrapped = wrap_model(network, prediction_type="epsilon", condition={"class_labels": labels})
        assert torch.equal(integrate(plan, wrapped, x), expected)
