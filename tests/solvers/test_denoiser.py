"""From the network's raw output to what a solver wants."""

from __future__ import annotations

from itertools import product
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from pydiffaccel.schedule import FlowSchedule, VPSchedule
from pydiffaccel.solvers import integrate, make_plan, wrap_model
from pydiffaccel.solvers.denoiser import conversion
from pydiffaccel.solvers.point import PREDICTION_TYPES, output_parts, points_at

VP = VPSchedule.linear()
FLOW = FlowSchedule()


@pytest.mark.parametrize(("have", "want"), list(product(PREDICTION_TYPES, PREDICTION_TYPES)))
@pytest.mark.parametrize(("schedule", "t"), [(VP, 999.0), (VP, 400.25), (VP, 0.0), (FLOW, 0.25), (FLOW, 0.9)])
def test_conversions_are_exact_identities(normal: Any, have: str, want: str, schedule: Any, t: float) -> None:
    (point,) = points_at(schedule, [t])
    image, noise = normal(0, 3, 4), normal(1, 3, 4)
    x = point.alpha * image + point.sigma * noise

    def prediction(kind: str) -> Tensor:
        p, q = output_parts(kind, point.alpha, point.sigma)
        return p * image + q * noise

    c, d = conversion(have, want, point)
    torch.testing.assert_close(c * x + d * prediction(have), prediction(want), rtol=0, atol=1e-10)
    denoiser = wrap_model(lambda _x, _t: prediction(have), prediction_type=have)
    torch.testing.assert_close(denoiser(x, point, want), prediction(want), rtol=0, atol=1e-10)


def test_vp_conversions_are_the_textbook_ones() -> None:
    (point,) = points_at(VP, [321.0])
    alpha, sigma = point.alpha, point.sigma
    assert conversion("epsilon", "sample", point) == pytest.approx((1 / alpha, -sigma / alpha))
    assert conversion("sample", "epsilon", point) == pytest.approx((1 / sigma, -alpha / sigma))
    assert conversion("v_prediction", "sample", point) == pytest.approx((alpha, -sigma))
    assert conversion("v_prediction", "epsilon", point) == pytest.approx((sigma, alpha))


def test_matching_types_return_the_raw_output_itself(normal: Any) -> None:
    x = normal(0, 3, 4, dtype=torch.float32)
    output = x.clone()
    denoiser = wrap_model(lambda _x, _t: output, prediction_type="flow")
    assert denoiser(x, points_at(FLOW, [0.5])[0], "flow") is output


@pytest.mark.parametrize(
    ("schedule", "t", "have", "want"),
    [(FLOW, 0.0, "epsilon", "flow"), (FLOW, 1.0, "sample", "epsilon"), (VP, -1.0, "sample", "v_prediction")],
)
def test_conversions_that_do_not_exist(schedule: Any, t: float, have: str, want: str) -> None:
    with pytest.raises(ValueError, match=f"type '{have}' does not determine '{want}' at t = {t:g}, where alpha = "):
        conversion(have, want, points_at(schedule, [t])[0])


class Echo(nn.Module):
    """Keeps what it was called with."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.tensor(0.5))
        self.seen: list[tuple[Tensor, Tensor]] = []

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        self.seen.append((x, t))
        return self.weight * x


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float64])
def test_model_gets_its_own_dtype_and_float32_times(normal: Any, dtype: torch.dtype) -> None:
    model = Echo().to(dtype)
    plan = make_plan("ddim", VP, timesteps=[999, 700.123, 3])
    x = normal(0, 5, 2, dtype=torch.float32)
    result = integrate(plan, wrap_model(model, prediction_type="v_prediction"), x)
    assert result.dtype == torch.float32
    for (seen, t), expected in zip(model.seen, [999, 700.123, 3], strict=True):
        assert seen.dtype == dtype
        assert t.dtype == torch.float32
        assert torch.equal(t, torch.full((5,), expected))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_a_half_precision_model_keeps_a_float32_state(normal: Any, dtype: torch.dtype) -> None:
    class Half(nn.Module):
        def __init__(self, compute: torch.dtype) -> None:
            super().__init__()
            self.layer = nn.Linear(6, 6, dtype=compute)

        def forward(self, x: Tensor, t: Tensor) -> Tensor:
            return self.layer(x)

    torch.manual_seed(0)
    exact = Half(torch.float32)
    half = Half(dtype)
    half.load_state_dict(exact.state_dict())
    x = normal(0, 5, 6, dtype=torch.float32)
    plan = make_plan("dpm_solver++", VP, 20)
    outputs = [integrate(plan, wrap_model(m, prediction_type="v_prediction"), x) for m in (exact, half)]
    assert outputs[1].dtype == torch.float32
    # The model's rounding only: a state in half precision would lose another factor of the number of steps.
    torch.testing.assert_close(outputs[1], outputs[0], rtol=0, atol=0.05)
    assert not torch.equal(outputs[1], outputs[0])
    assert not torch.equal(outputs[1], outputs[1].to(dtype).float())


def test_dtype_can_be_given_for_a_function(normal: Any) -> None:
    seen = []

    def model(x: Tensor, t: Tensor) -> Tensor:
        seen.append(x.dtype)
        return x

    wrapped = wrap_model(model, prediction_type="sample", dtype=torch.bfloat16)
    integrate(make_plan("ddim", VP, 2), wrapped, normal(0, 3, 2))
    integrate(make_plan("ddim", VP, 2), wrap_model(model, prediction_type="sample"), normal(0, 3, 2))
    assert seen == [torch.bfloat16] * 2 + [torch.float64] * 2


@pytest.mark.parametrize(
    ("schedule", "options", "expected"),
    [
        (VP, {}, 250.5),
        (VP, {"time": "unit"}, 0.2515),
        (VP, {"time": "unit", "time_scale": 1000.0}, 251.5),
        (VP, {"time": "sigma"}, float(VP.sigma(250.5) / VP.alpha(250.5))),
        (FLOW, {}, 0.75),
        (FLOW, {"time": "unit", "time_scale": 1000}, 750.0),
        (FLOW, {"time": "sigma"}, 1 / 3),
    ],
)
def test_time_conventions(normal: Any, schedule: Any, options: dict[str, Any], expected: float) -> None:
    model = Echo()
    denoiser = wrap_model(model, prediction_type="sample", **options)
    denoiser(
        normal(0, 3, 2, dtype=torch.float32), points_at(schedule, [0.75 if schedule is FLOW else 250.5])[0], "sample"
    )
    assert torch.equal(model.seen[0][1], torch.full((3,), expected, dtype=torch.float32))


def test_sigma_of_pure_noise_is_refused(normal: Any) -> None:
    denoiser = wrap_model(Echo(), prediction_type="sample", time="sigma")
    with pytest.raises(ValueError, match='time="sigma" is infinite at t = 0, where alpha is 0'):
        denoiser(normal(0, 3, 2), points_at(FLOW, [0.0])[0], "sample")


def test_diffusers_outputs_are_unpacked(normal: Any) -> None:
    class Output:
        def __init__(self, sample: Tensor) -> None:
            self.sample = sample

    x = normal(0, 3, 2)
    plan = make_plan("ddim", VP, 3)
    plain = integrate(plan, wrap_model(lambda x, t: 0.5 * x, prediction_type="epsilon"), x)
    packed = integrate(plan, wrap_model(lambda x, t: Output(0.5 * x), prediction_type="epsilon"), x)
    assert torch.equal(plain, packed)


def test_a_diffusers_network_runs(normal: Any) -> None:
    models = pytest.importorskip("diffusers.models")
    network = models.UNet2DModel(
        sample_size=8,
        in_channels=1,
        out_channels=1,
        block_out_channels=(8,),
        norm_num_groups=4,
        layers_per_block=1,
        down_block_types=("DownBlock2D",),
        up_block_types=("UpBlock2D",),
    ).to(torch.bfloat16)
    x = normal(0, 2, 1, 8, 8, dtype=torch.float32)
    result = integrate(make_plan("ddim", VP, 3), wrap_model(network, prediction_type="epsilon"), x)
    assert result.shape == x.shape
    assert result.dtype == torch.float32
    assert result.isfinite().all()


def test_bad_models(normal: Any) -> None:
    x = normal(0, 3, 2)
    plan = make_plan("ddim", VP, 3)
    with pytest.raises(ValueError, match=r"the model must return the state's shape \(3, 2\), got \(3, 4\)"):
        integrate(plan, wrap_model(lambda x, t: torch.cat([x, x], 1), prediction_type="epsilon"), x)
    with pytest.raises(TypeError, match=r"the model must return a tensor or an object with .sample, got tuple"):
        integrate(plan, wrap_model(lambda x, t: (x,), prediction_type="epsilon"), x)


def test_bad_arguments() -> None:
    with pytest.raises(TypeError, match="model must be callable, got int"):
        wrap_model(3, prediction_type="epsilon")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="unknown prediction type 'eps'; known: epsilon, sample, v_prediction, flow"):
        wrap_model(Echo(), prediction_type="eps")
    with pytest.raises(ValueError, match="unknown time 'step'; known: index, sigma, unit"):
        wrap_model(Echo(), prediction_type="epsilon", time="step")
    for scale in (0.0, float("nan")):
        with pytest.raises(ValueError, match="time_scale must be finite and not 0, got"):
            wrap_model(Echo(), prediction_type="epsilon", time_scale=scale)
    with pytest.raises(TypeError, match=r"dtype must be a floating dtype, got torch.int64"):
        wrap_model(Echo(), prediction_type="epsilon", dtype=torch.int64)
