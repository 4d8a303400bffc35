"""Every acceleration at its null setting is the plain baseline, bit for bit."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from pydiffaccel.coupling import KNN, Coupling, Distributed, Independent, Scaled, Sinkhorn, WarmUp
from pydiffaccel.curriculum import TimestepCurriculum
from pydiffaccel.densities import Mode, NoiseDensity, SpeedDensity
from pydiffaccel.forward import FlowProcess, KLProcess, Process, VPProcess
from pydiffaccel.losses import LossWeighting, coupled_noises, diffusion_loss, kl_loss
from pydiffaccel.noise import gaussian_noise
from pydiffaccel.optim import MomentumDecay
from pydiffaccel.schedule import ContinuousVPSchedule, VPSchedule

SCHEDULE = VPSchedule.linear(60)
DTYPES = [torch.float32, torch.float64, torch.float16, torch.bfloat16]
SHAPES = [(6, 3, 4, 4), (5, 7, 2), (8, 5), (1, 4), (0, 4)]
NULL = [
    Independent(),
    KNN(1),
    KNN(1, "dot"),
    KNN(1, center="mean"),
    Sinkhorn(iterations=0),
    Sinkhorn(iterations=0, output="sampled"),
    Scaled(1),
    Scaled(1.0, KNN(1)),
    WarmUp(5, KNN(1)),
    Distributed(KNN(1)),
]


def data(shape: tuple[int, ...], dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64).to(dtype)


@pytest.mark.parametrize("coupling", NULL, ids=repr)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_null_couplings_draw_the_plain_noise(coupling: Coupling, dtype: torch.dtype, shape: tuple[int, ...]) -> None:
    x = data(shape, dtype)
    mask = torch.ones(shape[:1], dtype=torch.bool)
    labels = torch.zeros(shape[:1], dtype=torch.int64)
    plain = gaussian_noise(x, 3, 4, 5)
    assert torch.equal(coupling(x, seed=3, step=4, first_sample=5), plain)
    assert torch.equal(coupling(x, seed=3, step=4, first_sample=5, mask=mask, labels=labels), plain)


@pytest.mark.parametrize("coupling", NULL, ids=repr)
def test_null_couplings_hand_back_what_they_are_given(coupling: Coupling) -> None:
    x, noise = data((6, 5)), data((6, 5)) + 1
    assert coupling.pair(x, noise) is noise
    assert coupling.scale_data(x) is x
    assert coupling.unscale_data(x) is x


def test_one_candidate_is_chosen() -> None:
    x, noise = data((6, 5)), data((6, 5)) + 1
    assert torch.equal(KNN(1).pair(x, noise.unsqueeze(1)), noise)
    assert torch.equal(KNN(1).pair(x, noise[:1]), noise[:1].expand(6, 5))


def step_of(loss: Callable[[torch.nn.Module], Tensor], dtype: torch.dtype) -> tuple[Tensor, list[Tensor]]:
    torch.manual_seed(0)
    network = torch.nn.Sequential(torch.nn.Linear(5, 9), torch.nn.SiLU(), torch.nn.Linear(9, 5)).to(dtype)
    value = loss(network)
    value.backward()
    return value.detach(), [p.grad for p in network.parameters()]


@pytest.mark.parametrize("kind", ["epsilon", "sample", "v_prediction"])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("weights", ["coefficient", "uniform"])
@pytest.mark.parametrize("source", ["drawn", "coupled", "given"])
def test_one_kl_term_is_diffusion_on_the_vp_process(kind: str, dtype: torch.dtype, weights: str, source: str) -> None:
    vp, kl = VPProcess(schedule=SCHEDULE, prediction_type=kind), KLProcess(SCHEDULE, 1, prediction_type=kind)
    x0 = data((7, 5), dtype)
    t = kl.sample_timesteps(7, seed=1, step=2)
    assert torch.equal(t, vp.sample_timesteps(7, seed=1, step=2))
    plain = Independent()(x0, seed=3, step=2)
    noise = {"drawn": None, "coupled": coupled_noises(Independent(), x0, 1, seed=3, step=2), "given": plain[:, None]}

    def scaled(network: torch.nn.Module) -> Callable[[Tensor, Tensor], Tensor]:
        return lambda x, time: network(x) * (1 + time[:, None].to(x))

    one, its_gradients = step_of(lambda network: diffusion_loss(scaled(network), x0, t, process=vp, noise=plain), dtype)
    other, gradients = step_of(
        lambda network: kl_loss(
            scaled(network), x0, t, process=kl, seed=3, step=2, noise=noise[source], weights=weights
        ),
        dtype,
    )
    assert torch.equal(one, other)
    assert all(torch.equal(a, b) for a, b in zip(its_gradients, gradients, strict=True))


@pytest.mark.parametrize("step", [0, 7, 10, 1000])
def test_a_curriculum_of_no_weight_draws_the_plain_times(step: int) -> None:
    for count in (1000, 37):
        process: Process = VPProcess(schedule=VPSchedule.linear(count))
        plain = process.sample_timesteps(500, seed=9, step=step, first_sample=4)
        nothing = TimestepCurriculum(count, 10, max_weight=0.0, importance=True)
        assert torch.equal(nothing.sample(step, 500, seed=9, first_sample=4), plain)
        assert torch.equal(nothing.weights(step, plain), torch.ones(500))
        first = TimestepCurriculum(count, 10).sample(0, 500, seed=9, first_sample=4)
        assert torch.equal(first, process.sample_timesteps(500, seed=9, step=0, first_sample=4))


def test_a_curriculum_of_no_weight_rounds_like_the_plain_times(monkeypatch: pytest.MonkeyPatch) -> None:
    # Draws on the bounds between two indices, where adding up probabilities would round to the other side.
    bounds = torch.arange(1000, dtype=torch.float64) / 1000
    for module in ("pydiffaccel.curriculum", "pydiffaccel.forward.vp"):
        monkeypatch.setattr(f"{module}.timestep_uniforms", lambda *arguments: bounds)
    plain = VPProcess().sample_timesteps(1000, seed=0, step=5)
    assert torch.equal(TimestepCurriculum(1000, 10, max_weight=0.0).sample(5, 1000), plain)


@pytest.mark.parametrize("step", [0, 7])
def test_null_densities_draw_the_plain_times(step: int) -> None:
    place = {"n": 300, "seed": 9, "step": step, "first_sample": 4}
    for process in (VPProcess(), VPProcess(schedule=ContinuousVPSchedule.linear()), KLProcess(VPSchedule.linear(), 3)):
        null = SpeedDensity(process, suppression=1.0, threshold=0.3, importance=True)
        plain = process.sample_timesteps(**place)
        assert torch.equal(null.sample(**place), plain)
        assert torch.equal(null.weights(step, plain), torch.ones(300))
    flow, mode = FlowProcess(), NoiseDensity(FlowProcess(), Mode(0.0), importance=True)
    assert torch.equal(mode.sample(**place), flow.sample_timesteps(**place))
    assert torch.equal(mode.weights(step, mode.sample(**place)), torch.ones(300))


@pytest.mark.parametrize("kind", ["epsilon", "sample", "v_prediction", "flow"])
def test_a_null_weighting_is_no_weight(kind: str) -> None:
    process = FlowProcess() if kind == "flow" else VPProcess(schedule=SCHEDULE, prediction_type=kind)
    x0, noise = data((7, 5)), data((7, 5)) + 1
    t = process.sample_timesteps(7, seed=1, step=2)
    results = [
        step_of(
            lambda network, weight=weight: diffusion_loss(
                lambda x, time: network(x), x0, t, process=process, noise=noise, weight=weight
            ),
            torch.float32,
        )
        for weight in (None, LossWeighting(process, kind)(t))
    ]
    (one, gradients), (other, its_gradients) = results
    assert torch.equal(one, other)
    assert all(torch.equal(a, b) for a, b in zip(gradients, its_gradients, strict=True))


@pytest.mark.parametrize("kind", [torch.optim.Adam, torch.optim.AdamW])
@pytest.mark.parametrize("parts", ["both", "lr_only", "beta_only"])
@pytest.mark.parametrize("options", [{"foreach": False}, {"foreach": True}, {"fused": True}], ids=str)
@pytest.mark.parametrize("warmup", [False, True])
def test_momentum_decay_of_no_strength_is_no_scheduler(
    kind: type[torch.optim.Optimizer], options: dict[str, bool], warmup: bool, parts: str
) -> None:
    def train(with_decay: bool) -> list[Tensor]:
        torch.manual_seed(0)
        network = torch.nn.Linear(5, 3)
        optimizer = kind(network.parameters(), lr=0.03, weight_decay=0.1, **options)
        schedulers = []
        if warmup:
            schedulers.append(torch.optim.lr_scheduler.LambdaLR(optimizer, lambda i: min(1, (i + 1) / 7)))
        if with_decay:
            schedulers.append(MomentumDecay(optimizer, 20, warmup_steps=3, strength=0.0, parts=parts))
        for step in range(30):
            optimizer.zero_grad()
            network(gaussian_noise(torch.empty(4, 5), 1, step)).square().mean().backward()
            optimizer.step()
            for scheduler in schedulers:
                scheduler.step()
        return [p.detach() for p in network.parameters()]

    assert all(torch.equal(a, b) for a, b in zip(train(True), train(False), strict=True))


def test_plain_flow_times_are_untouched_by_couplings() -> None:
    # The pairing never moves the times: they are drawn from a seed of their own.
    process, x = FlowProcess(), data((6, 5))
    before = process.sample_timesteps(6, seed=3, step=4)
    KNN(4)(x, seed=3, step=4)
    assert torch.equal(process.sample_timesteps(6, seed=3, step=4), before)
    noise = gaussian_noise(before.view(6, 1), 3, 4)[:, 0]
    assert not torch.equal(torch.special.ndtr(noise), before)
