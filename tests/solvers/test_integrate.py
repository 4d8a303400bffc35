"""The loop: callback, trajectory, dtypes, empty batches, noise, gradients and refusals."""

from __future__ import annotations

import weakref
from typing import Any

import pytest
import torch
from torch import Tensor

from pydiffaccel.schedule import FlowSchedule, VPSchedule
from pydiffaccel.solvers import Denoiser, Evaluation, Plan, Point, Update, integrate, make_plan, wrap_model
from pydiffaccel.solvers.point import points_at

VP = VPSchedule.linear()
FLOW = FlowSchedule()
MODEL = wrap_model(lambda x, t: torch.tanh(x), prediction_type="epsilon")


def test_callback_sees_every_state(normal: Any) -> None:
    plan = make_plan("ddim", VP, 5)
    seen: list[tuple[int, Point, Tensor]] = []
    x = normal(0, 3, 4)
    result = integrate(plan, MODEL, x, callback=lambda done, point, x: seen.append((done, point, x.clone())))
    assert [done for done, _, _ in seen] == [1, 2, 3, 4, 5]
    assert [point.t for _, point, _ in seen] == [799, 599, 399, 199, -1]
    assert torch.equal(seen[-1][2], result)


def test_trajectory(normal: Any) -> None:
    plan = make_plan("dpm_solver++", VP, 5)
    x = normal(0, 3, 4)
    seen: list[Tensor] = []
    path = integrate(plan, MODEL, x, callback=lambda done, point, x: seen.append(x.clone()), return_trajectory=True)
    assert path.shape == (6, 3, 4)
    assert torch.equal(path[0], x)
    assert torch.equal(path[1:], torch.stack(seen))
    assert torch.equal(path[-1], integrate(plan, MODEL, x))


@pytest.mark.parametrize(
    ("given", "computed"),
    [
        (torch.float64, torch.float64),
        (torch.float32, torch.float32),
        (torch.bfloat16, torch.float32),
        (torch.float16, torch.float32),
    ],
)
def test_state_dtype(normal: Any, given: torch.dtype, computed: torch.dtype) -> None:
    x = normal(0, 3, 4, dtype=given)
    result = integrate(make_plan("ddim", VP, 4), MODEL, x)
    assert result.dtype == computed
    assert torch.equal(result, integrate(make_plan("ddim", VP, 4), MODEL, x.to(computed)))


def test_float32_follows_float64(normal: Any) -> None:
    plan = make_plan("dpm_solver++", VP, 50)
    x = normal(0, 16, 4)
    wide = integrate(plan, MODEL, x)
    torch.testing.assert_close(integrate(plan, MODEL, x.float()).double(), wide, rtol=5e-6, atol=5e-6)


@pytest.mark.parametrize("shape", [(3,), (3, 1), (3, 2, 4, 4), (2, 5, 3)])
def test_any_sample_shape(normal: Any, shape: tuple[int, ...]) -> None:
    x = normal(0, *shape)
    result = integrate(make_plan("ddim", VP, 4), MODEL, x)
    assert result.shape == shape
    # Samples are independent of each other, so of the batch they are in.
    torch.testing.assert_close(integrate(make_plan("ddim", VP, 4), MODEL, x[1:2]), result[1:2], rtol=0, atol=1e-12)


def test_strided_input_and_untouched_input(normal: Any) -> None:
    x = normal(0, 4, 3).T
    before = x.clone()
    plan = make_plan("ddim", VP, 4)
    assert torch.equal(integrate(plan, MODEL, x), integrate(plan, MODEL, x.contiguous()))
    assert torch.equal(x, before)


def test_empty_batch_does_not_reach_the_model() -> None:
    def never(x: Tensor, t: Tensor) -> Tensor:
        raise AssertionError("evaluated")

    denoiser = wrap_model(never, prediction_type="epsilon")
    x = torch.empty(0, 3, 8, 8)
    assert integrate(make_plan("ddim", VP, 4), denoiser, x).shape == (0, 3, 8, 8)
    assert integrate(make_plan("ddim", VP, 4), denoiser, x, return_trajectory=True).shape == (5, 0, 3, 8, 8)
    assert integrate(make_plan("ddim", VP, 4, eta=1.0), denoiser, x, seeds=[]).shape == (0, 3, 8, 8)


def test_result_is_an_ordinary_tensor(normal: Any) -> None:
    x = normal(0, 3, 4).requires_grad_()
    weight = torch.ones(4, dtype=torch.float64, requires_grad=True)
    result = integrate(make_plan("ddim", VP, 3), MODEL, x)
    assert not result.requires_grad
    assert not result.is_inference()
    (result * weight).sum().backward()
    torch.testing.assert_close(weight.grad, result.sum(0))


def test_model_runs_without_gradient(normal: Any) -> None:
    modes = []

    def model(x: Tensor, t: Tensor) -> Tensor:
        modes.append(torch.is_inference_mode_enabled())
        return x

    integrate(make_plan("ddim", VP, 2), wrap_model(model, prediction_type="sample"), normal(0, 3, 4))
    assert modes == [True, True]


def test_same_call_same_bits(normal: Any) -> None:
    x = normal(0, 3, 4, dtype=torch.float32)
    plan = make_plan("ddim", VP, 6, eta=1.0)
    rng = torch.get_rng_state()
    assert torch.equal(integrate(plan, MODEL, x, seeds=[1, 2, 3]), integrate(plan, MODEL, x, seeds=[1, 2, 3]))
    assert torch.equal(torch.get_rng_state(), rng)


def test_noise_of_a_sample_depends_on_its_seed_alone(normal: Any) -> None:
    x = normal(0, 3, 4)
    plan = make_plan("ddim", VP, 6, eta=1.0)
    result = integrate(plan, MODEL, x, seeds=[1, 2, 3])
    torch.testing.assert_close(integrate(plan, MODEL, x[2:], seeds=[3]), result[2:], rtol=0, atol=1e-12)
    other = integrate(plan, MODEL, x, seeds=[1, 5, 3])
    assert torch.equal(other[[0, 2]], result[[0, 2]])
    assert not torch.equal(other[1], result[1])


def test_noise_differs_between_steps_and_has_its_variance(isotropic: Any) -> None:
    class Nothing(Denoiser):
        def __call__(self, x: Tensor, point: Point, output_type: str) -> Tensor:
            return torch.zeros_like(x)

    points = points_at(FLOW, [0.0, 0.25, 0.5])
    rows = [
        Evaluation(points[i], "flow", (Update(points[i + 1], base=i, a=0.0, b=(1.0,), noise=noise),))
        for i, noise in enumerate((0.5, 2.0))
    ]
    plan = Plan("noise", FLOW, 2, points[0], tuple(rows))
    path = integrate(plan, Nothing(), torch.zeros(64, 500), seeds=range(64), return_trajectory=True)
    assert path[1].std().item() == pytest.approx(0.5, rel=0.03)
    assert path[2].std().item() == pytest.approx(2.0, rel=0.03)
    assert abs(torch.corrcoef(torch.stack([path[1].flatten(), path[2].flatten()]))[0, 1].item()) < 0.03
    # not the starting noise that the same seeds give
    from pydiffaccel.noise import noise_for_seeds

    start = noise_for_seeds((500,), range(64))
    assert abs(torch.corrcoef(torch.stack([path[1].flatten(), start.flatten()]))[0, 1].item()) < 0.03


def test_ddpm_like_sampling_has_the_data_variance(isotropic: Any, normal: Any) -> None:
    x = normal(0, 50, 200)
    result = integrate(make_plan("ddim", VP, 200, eta=1.0), isotropic, x, seeds=range(50))
    assert result.std().item() == pytest.approx(0.5, rel=0.04)


def test_outputs_that_nobody_needs_any_more_are_freed(normal: Any) -> None:
    alive: list[weakref.ref[Tensor]] = []
    most = 0

    def model(x: Tensor, t: Tensor) -> Tensor:
        nonlocal most
        most = max(most, sum(ref() is not None for ref in alive))
        output = torch.tanh(x)
        alive.append(weakref.ref(output))
        return output

    integrate(make_plan("dpm_solver++", VP, 20), wrap_model(model, prediction_type="sample"), normal(0, 3, 4))
    assert most == 1  # of the earlier outputs, 2M needs the last one


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("options", [{}, {"eta": 1.0}])
def test_cuda_agrees_and_never_synchronises(normal: Any, options: dict[str, Any]) -> None:
    x = normal(0, 3, 4)
    plan = make_plan("ddim", VP, 10, **options)
    expected = integrate(plan, MODEL, x, seeds=[1, 2, 3])
    on_device = x.cuda()
    integrate(plan, MODEL, on_device, seeds=[1, 2, 3])  # warm
    torch.cuda.set_sync_debug_mode("error")
    try:
        result = integrate(plan, MODEL, on_device, seeds=[1, 2, 3], check_finite=False)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    torch.testing.assert_close(result.cpu(), expected, rtol=1e-5, atol=1e-5)


def test_progress_bar(normal: Any, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("tqdm")
    plain = integrate(make_plan("ddim", VP, 3), MODEL, normal(0, 3, 4))
    assert capsys.readouterr().err == ""
    shown = integrate(make_plan("ddim", VP, 3), MODEL, normal(0, 3, 4), progress=True)
    assert torch.equal(plain, shown)
    assert "3/3" in capsys.readouterr().err


def test_bad_arguments(normal: Any) -> None:
    plan = make_plan("ddim", VP, 3)
    x = normal(0, 3, 4)
    with pytest.raises(TypeError, match="plan must be a Plan, got str"):
        integrate("ddim", MODEL, x)  # type: ignore[arg-type]
    with pytest.raises(
        TypeError, match=r"denoiser must be a Denoiser \(see wrap_model\), got builtin_function_or_method"
    ):
        integrate(plan, torch.tanh, x)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="x_T must be a tensor, got list"):
        integrate(plan, MODEL, [1.0])  # type: ignore[arg-type]
    with pytest.raises(TypeError, match=r"x_T must be floating point, got torch.int64"):
        integrate(plan, MODEL, torch.ones(3, 4, dtype=torch.int64))
    with pytest.raises(ValueError, match="x_T needs a batch dimension, got a scalar"):
        integrate(plan, MODEL, torch.tensor(1.0))
    with pytest.raises(ValueError, match="this ddim plan adds noise, so it needs seeds, one int per sample"):
        integrate(make_plan("ddim", VP, 3, eta=1.0), MODEL, x)
    with pytest.raises(ValueError, match="seeds must hold one int per sample, got 2 for 3 samples"):
        integrate(plan, MODEL, x, seeds=[1, 2])
