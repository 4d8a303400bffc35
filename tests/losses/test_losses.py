"""Losses against their formulas, and the sentences for bad input."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from pydiffaccel.coupling import KNN, Hungarian, Independent
from pydiffaccel.forward import FlowProcess, KLProcess, Process, VPProcess
from pydiffaccel.losses import coupled_noises, diffusion_loss, kl_loss
from pydiffaccel.noise import derive_seed, gaussian_noise
from pydiffaccel.schedule import VPSchedule
from tests.losses.networks import TYPES, Network, batch

SCHEDULE = VPSchedule.linear(30, 1e-3, 0.3)

PROCESSES = [*(VPProcess(schedule=SCHEDULE, prediction_type=kind) for kind in TYPES), FlowProcess()]


@pytest.mark.parametrize("process", PROCESSES, ids=repr)
def test_diffusion_loss_is_the_mean_square(process: Process) -> None:
    x0, noise, network = batch(6, 3, 4), batch(6, 3, 4, seed=1), Network()
    t = process.sample_timesteps(6, seed=1, step=0)
    difference = network(process.add_noise(x0, noise, t), process.model_time(t)) - process.target(x0, noise, t)
    loss = diffusion_loss(network, x0, t, process=process, noise=noise)
    assert loss.item() == pytest.approx(difference.square().mean().item(), rel=1e-6)
    each = diffusion_loss(network, x0, t, process=process, noise=noise, reduction="none")
    assert each.shape == (6,)
    assert each.tolist() == pytest.approx(difference.square().mean((1, 2)).tolist(), rel=1e-6)
    weight = torch.arange(6.0)
    weighted = diffusion_loss(network, x0, t, process=process, noise=noise, weight=weight)
    assert weighted.item() == pytest.approx((each * weight).mean().item(), rel=1e-6)
    ones = diffusion_loss(network, x0, t, process=process, noise=noise, weight=torch.ones(6))
    assert torch.equal(ones, loss)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64], ids=str)
def test_loss_is_float32_or_wider(dtype: torch.dtype) -> None:
    x0, noise = batch(3, 4).to(dtype), batch(3, 4, seed=1).to(dtype)
    t = torch.tensor([1, 5, 20])
    wide = torch.float64 if dtype == torch.float64 else torch.float32
    assert diffusion_loss(Network(), x0, t, process=PROCESSES[0], noise=noise).dtype == wide
    assert kl_loss(Network(), x0, t, process=KLProcess(SCHEDULE, 2)).dtype == wide
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert diffusion_loss(Network(), x0, t, process=PROCESSES[0], noise=noise).dtype == wide


def test_an_answer_may_be_an_object_with_sample() -> None:
    x0, noise, t, network = batch(3, 4), batch(3, 4, seed=1), torch.tensor([1, 5, 20]), Network()
    plain = diffusion_loss(network, x0, t, process=PROCESSES[0], noise=noise)
    wrapped = diffusion_loss(
        lambda x, time: SimpleNamespace(sample=network(x, time)), x0, t, process=PROCESSES[0], noise=noise
    )
    assert torch.equal(plain, wrapped)


def terms_one_by_one(
    network: Network, x0: Tensor, t: Tensor, noise: Tensor, process: KLProcess, weights: str
) -> Tensor:
    """The component loss as its formula reads, sample by sample and term by term."""
    total = torch.zeros((), dtype=torch.float64)
    for i, index in enumerate(t.tolist()):
        alpha = float(process.schedule.alpha(index))
        level = float(process.base_schedule.sigma(index) if process.renormalise else process.sigma[index])
        c = process.coefficients[index]
        w = c**2 / (c**2).sum() if weights == "coefficient" else torch.full_like(c, 1 / len(c))
        for k in range(process.num_terms):
            z, x = noise[i, k], x0[i]
            target = {"epsilon": z, "sample": x, "v_prediction": alpha * z - level * x}[process.prediction_type]
            answer = network((alpha * x + level * z)[None], torch.tensor([float(index)]))[0]
            total = total + w[k] * (answer - target).square().mean() / len(x0)
    return total


@pytest.mark.parametrize("prediction_type", TYPES)
@pytest.mark.parametrize("weights", ["coefficient", "uniform"])
@pytest.mark.parametrize("renormalise", [True, False])
def test_kl_loss_is_its_formula(prediction_type: str, weights: str, renormalise: bool) -> None:
    process = KLProcess(SCHEDULE, 3, prediction_type=prediction_type, renormalise=renormalise)
    x0, noise = batch(5, 2, 4).double(), batch(5, 3, 2, 4, seed=1).double()
    t, network = torch.tensor([0, 3, 11, 29, 29]), Network()
    loss = kl_loss(network, x0, t, process=process, noise=noise, weights=weights)
    assert network.calls == [(15, 2, 4)]  # one call
    expected = terms_one_by_one(network, x0, t, noise, process, weights)
    assert loss.item() == pytest.approx(expected.item(), rel=1e-12)
    each = kl_loss(network, x0, t, process=process, noise=noise, weights=weights, reduction="none")
    weight = torch.arange(5.0)
    weighted = kl_loss(network, x0, t, process=process, noise=noise, weights=weights, weight=weight)
    assert weighted.item() == pytest.approx((each * weight).mean().item(), rel=1e-12)


@pytest.mark.parametrize("prediction_type", TYPES)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64], ids=str)
def test_kl_loss_with_its_own_noise_is_that_with_the_same_noise_given(prediction_type: str, dtype: torch.dtype) -> None:
    process = KLProcess(SCHEDULE, 4, prediction_type=prediction_type)
    x0, t, network = batch(5, 2, 4).to(dtype), torch.tensor([0, 3, 11, 29, 29]), Network()
    seen = []

    def watching(x: Tensor, time: Tensor) -> Tensor:
        seen.append(x)
        return network(x, time)

    own = kl_loss(watching, x0, t, process=process, seed=3, step=4, first_sample=5)
    assert torch.equal(own, kl_loss(network, x0, t, process=process, seed=3, step=4, first_sample=5))
    assert not torch.equal(own, kl_loss(network, x0, t, process=process, seed=3, step=5, first_sample=5))
    # The noises, from the inputs that the network saw.
    alpha, sigma = (level.to(dtype).view(-1, 1, 1, 1) for level in process.levels(t))
    noise = (seen[0].view(5, 4, 2, 4) - alpha * x0[:, None]) / sigma
    given = kl_loss(network, x0, t, process=process, noise=noise)
    eps = torch.finfo(dtype).eps
    assert own.item() == pytest.approx(given.item(), rel=1e3 * eps)
    assert torch.allclose(noise[:, 0], gaussian_noise(x0, 3, 4, 5), atol=1e3 * eps)
    # Terms are independent of each other.
    assert (noise[:, 0] - noise[:, 1]).abs().max() > 0.5


DIFFERENTIABLE: list[dict[str, Any]] = [
    {"mode": "component", "seed": 3},
    {"mode": "component", "draws": "antithetic"},
    {"mode": "component", "draws": "orthogonal"},
    {"mode": "component", "partial": 2},
    {"mode": "recombined"},
    {"mode": "path"},
    {"mode": "schedule"},
    *({"mode": mode, "noise": batch(2, 3, 4, seed=1).double()} for mode in ("component", "recombined", "path")),
]


@pytest.mark.parametrize("prediction_type", TYPES)
@pytest.mark.parametrize("options", DIFFERENTIABLE, ids=lambda options: " ".join(map(str, list(options.values())[:2])))
def test_kl_loss_is_differentiable_in_network_and_data(prediction_type: str, options: dict[str, Any]) -> None:
    process, t = KLProcess(SCHEDULE, 3, prediction_type=prediction_type), torch.tensor([3, 20])
    x0, network = batch(2, 4).double(), Network().double()
    where = torch.stack([t, t.flip(0)], 1) if options["mode"] == "path" else t

    def loss(x: Tensor, weight: Tensor) -> Tensor:
        def model(x_t: Tensor, time: Tensor) -> object:
            return torch.func.functional_call(network, {"weight": weight}, (x_t, time))

        return kl_loss(model, x, where, process=process, **options)

    assert torch.autograd.gradcheck(loss, (x0.requires_grad_(), network.weight), eps=1e-6, atol=1e-6)


def test_weights_at_an_index_without_noise_are_uniform() -> None:
    process = KLProcess(VPSchedule([1.0, 0.9, 0.5]), 2, prediction_type="sample")
    x0, t = batch(2, 4), torch.tensor([0, 2])
    assert bool(torch.isfinite(kl_loss(Network(), x0, t, process=process)))


def test_minimiser_is_that_of_diffusion() -> None:
    # With s from the schedule each term is a diffusion loss: their expectations agree for any network.
    process, vp = KLProcess(SCHEDULE, 4), VPProcess(schedule=SCHEDULE)
    x0, network = batch(1, 4).expand(20_000, 4), Network()
    t = torch.full((20_000,), 12)
    each = kl_loss(network, x0, t, process=process, seed=1, reduction="none").detach()
    plain = diffusion_loss(network, x0, t, process=vp, noise=gaussian_noise(x0, 2), reduction="none").detach()
    error = (each.var() / len(each) + plain.var() / len(plain)).sqrt()
    assert abs(each.mean() - plain.mean()) < 4 * error


@pytest.mark.parametrize("coupling", [Independent(), Hungarian(), KNN(4)], ids=repr)
def test_coupled_noises_draw_each_term_on_its_own(coupling: Independent) -> None:
    x, labels = batch(6, 3), torch.tensor([0, 1, 0, 1, 0, 1])
    noises = coupled_noises(coupling, x, 3, seed=5, step=2, first_sample=9, labels=labels)
    assert noises.shape == (6, 3, 3)
    assert torch.equal(noises[:, 0], coupling(x, seed=5, step=2, first_sample=9, labels=labels))
    for k in (1, 2):
        again = coupling(x, seed=derive_seed(5, f"kl-term-{k}"), step=2, first_sample=9, labels=labels)
        assert torch.equal(noises[:, k], again)
    assert torch.equal(coupled_noises(coupling, x, 2, seed=5, step=2, first_sample=9, labels=labels), noises[:, :2])
    with pytest.raises(ValueError, match="num_terms must be at least 1, got 0"):
        coupled_noises(coupling, x, 0)


def diffusion(**changes: object) -> Tensor:
    settings: dict = {
        "model": Network(), "x0": batch(3, 4), "t": torch.tensor([1, 2, 3]), "process": PROCESSES[0],
        "noise": batch(3, 4),
    }  # fmt: skip
    settings |= changes
    return diffusion_loss(settings.pop("model"), settings.pop("x0"), settings.pop("t"), **settings)


def kl(**changes: object) -> Tensor:
    settings: dict = {
        "model": Network(), "x0": batch(3, 4), "t": torch.tensor([1, 2, 3]), "process": KLProcess(SCHEDULE, 2),
    }  # fmt: skip
    settings |= changes
    return kl_loss(settings.pop("model"), settings.pop("x0"), settings.pop("t"), **settings)


EMPTY = {"x0": torch.empty(0, 4), "t": torch.empty(0, dtype=torch.int64)}


def test_an_empty_batch_has_no_losses() -> None:
    assert diffusion(**EMPTY, noise=torch.empty(0, 4), reduction="none").shape == (0,)
    assert kl(**EMPTY, reduction="none").shape == (0,)


@pytest.mark.parametrize("loss", [diffusion, kl])
@pytest.mark.parametrize(
    ("changes", "error", "sentence"),
    [
        ({"reduction": "sum"}, ValueError, "reduction must be 'mean' or 'none', got 'sum'"),
        ({"weight": torch.ones(3, 1)}, ValueError, r"weight must have shape \(3,\), got \(3, 1\)"),
        ({"x0": torch.ones(3, 4, dtype=int)}, TypeError, "x must be a floating-point tensor, got torch.int64"),
        ({"t": torch.tensor([1, 2])}, ValueError, r"t must have one time per sample, shape \(3,\), got \(2,\)"),
        ({"t": torch.tensor([1, 2, 30])}, ValueError, r"t must lie in 0 \.\. 29, got 30"),
        ({"model": lambda x, t: x[:, :2]}, ValueError, "the model must answer in the shape of its input"),
        ({"model": lambda x, t: (x,)}, TypeError, "the model must answer with a tensor or an object with .sample, got"),
    ],
)
def test_bad_input(loss: Callable[..., Tensor], changes: dict, error: type[Exception], sentence: str) -> None:
    with pytest.raises(error, match=sentence):
        loss(**changes)


@pytest.mark.parametrize(
    ("call", "error", "sentence"),
    [
        (lambda: kl(mode="sum"), ValueError, "mode must be 'component', 'schedule', .* or 'path', got 'sum'"),
        (lambda: kl(draws="odd"), ValueError, "draws must be 'iid', 'antithetic' or 'orthogonal', got 'odd'"),
        (lambda: kl(partial_probabilities="x"), ValueError, "partial_probabilities must be 'coefficient' or 'uniform'"),
        (lambda: kl(mode="path", draws="antithetic"), ValueError, "draws 'antithetic' goes with mode 'component', got"),
        (lambda: kl(mode="recombined", partial=1), ValueError, "partial 1 goes with mode 'component', got mode 'recom"),
        (lambda: kl(mode="schedule", weights="uniform"), ValueError, "weights 'uniform' goes with mode 'component'"),
        (lambda: kl(partial=0), ValueError, "partial must be at least 1, got 0"),
        (lambda: kl(partial=3), ValueError, "partial must be at most the number of terms, 2, got 3"),
        (lambda: kl(partial=1.0), TypeError, "partial must be an int, got float"),
        (lambda: kl(partial=True), TypeError, "partial must be an int, got bool"),
        (lambda: kl(partial=1, draws="orthogonal"), ValueError, "it goes with draws 'iid', got 'orthogonal'"),
        (lambda: kl(partial_probabilities="uniform"), ValueError, "partial_probabilities 'uniform' needs partial"),
        (
            lambda: kl(process=KLProcess(SCHEDULE, 2, "haar"), partial=1, weights="uniform"),
            ValueError,
            "weights 'uniform' over the basis 'haar' need partial_probabilities 'uniform'",
        ),
        (
            lambda: kl(noise=batch(3, 2, 4), draws="antithetic"),
            ValueError,
            "draws must be 'iid' for given noises, got 'antithetic'",
        ),
        (lambda: kl(mode="path"), ValueError, r"mode 'path' needs times \[B, S\] with S >= 1, got shape \(3,\)"),
        (lambda: kl(mode="path", t=torch.ones(3, 0, dtype=int)), ValueError, r"S >= 1, got shape \(3, 0\)"),
        (lambda: kl(mode="path", t=torch.ones(2, 2, dtype=int)), ValueError, r"t must have one time per sample"),
        (lambda: kl(t=torch.ones(3, 2, dtype=int)), ValueError, r"one time per sample, shape \(3,\), got \(3, 2\)"),
        (lambda: kl(mode="path", t=torch.full((3, 2), 30)), ValueError, r"t must lie in 0 \.\. 29, got 30"),
        (
            lambda: kl(mode="path", t=torch.ones(3, 2, dtype=int), weight=torch.ones(2)),
            ValueError,
            r"weight must have shape \(3,\) or \(3, 2\), got \(2,\)",
        ),
        (
            lambda: kl(mode="schedule", noise=batch(3, 2, 4)),
            ValueError,
            r"noise must be \[B, \*\] = \(3, 4\), got \(3, 2, 4\)",
        ),
        (lambda: kl(weights="equal"), ValueError, "weights must be 'coefficient' or 'uniform', got 'equal'"),
        (lambda: kl(process=PROCESSES[0]), TypeError, "kl_loss needs a KLProcess, got VPProcess"),
        (lambda: kl(noise=batch(3, 3, 4)), ValueError, r"noise must be \[B, M, \*\] = \(3, 2, 4\), got \(3, 3, 4\)"),
        (lambda: kl(**EMPTY), ValueError, "x0 must hold at least one sample for reduction 'mean'"),
        (lambda: diffusion(noise=batch(3, 1)), ValueError, r"noise must have the shape of x0, \(3, 4\), got \(3, 1\)"),
    ],
)
def test_bad_settings(call: Callable[[], Tensor], error: type[Exception], sentence: str) -> None:
    with pytest.raises(error, match=sentence):
        call()


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("process", [*PROCESSES, KLProcess(SCHEDULE, 3, renormalise=False)], ids=repr)
def test_the_gpu_computes_what_the_cpu_computes(process: Process) -> None:
    x0, noise = batch(6, 3, 4), batch(6, 3, 4, seed=1)
    t = process.sample_timesteps(6, seed=1, step=0)
    assert torch.equal(process.sample_timesteps(6, seed=1, step=0, device="cuda").cpu(), t)
    losses = []
    for device in ("cpu", "cuda"):
        network, data, times = Network().to(device), x0.to(device), t.to(device)
        losses.append(diffusion_loss(network, data, times, process=process, noise=noise.to(device)).cpu())
        if isinstance(process, KLProcess):
            losses[-1] = losses[-1] + kl_loss(network, data, times, process=process).cpu()
    assert torch.allclose(*losses, rtol=1e-4)
