"""A perfect network reaches zero loss under every objective, coupling and prediction type.

The network sees x_t and the time alone. It knows the data (or, to answer with the data, the noises) by heart and solves
``x_t = alpha x_0 + sigma noise`` for the rest. An objective that puts one noise into the input and another one into the
target therefore cannot reach zero; that such a mistake is found is tested as well.
"""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from pydiffaccel.coupling import (
    KNN,
    Coupling,
    Distributed,
    Hungarian,
    Independent,
    NoiseQueue,
    Scaled,
    Sinkhorn,
    Standardized,
    WarmUp,
)
from pydiffaccel.densities import CosMap, LogitNormal, Mode, NoiseDensity, SpeedDensity, TimeDensity
from pydiffaccel.forward import EDMProcess, FlowProcess, KLProcess, Process, VPProcess
from pydiffaccel.losses import LossWeighting, coupled_noises, diffusion_loss, kl_loss
from pydiffaccel.losses.weights import WEIGHTINGS
from pydiffaccel.schedule import ContinuousVPSchedule, VPSchedule

SCHEDULE = VPSchedule.linear(40, 1e-3, 0.2)
TYPES = ["epsilon", "sample", "v_prediction"]
BATCH, SIZE = 12, 5
LABELS = torch.arange(BATCH) % 3
MASK = torch.arange(SIZE) < torch.arange(BATCH).remainder(SIZE).add(1).unsqueeze(1)
ZERO = 1e-20

# Each gives the data as it is diffused, and for a seed the noise of each row.
Draw = Callable[[Tensor, int], Tensor]


def called(coupling: Coupling, **options: Tensor) -> Draw:
    return lambda x, seed: coupling(x, seed=seed, step=3, **options)


def anew(make: Callable[[], Coupling], **options: Tensor) -> Draw:
    """A coupling with a memory, made for each draw and warm after three steps."""

    def draw(x: Tensor, seed: int) -> Tensor:
        coupling = make()
        return [coupling(x, seed=seed, step=step, **options) for step in range(4)][-1]

    return draw


def paired(coupling: Coupling, *noise_shape: int, **options: Tensor) -> Draw:
    def draw(x: Tensor, seed: int) -> Tensor:
        noise = torch.randn(noise_shape, generator=torch.Generator().manual_seed(seed), dtype=x.dtype)
        return coupling.pair(x, noise, **options)

    return draw


DRAWS = {
    "independent": called(Independent()),
    "hungarian": called(Hungarian()),
    "hungarian within labels": called(Hungarian(), labels=LABELS),
    "hungarian across labels": called(Hungarian("across"), labels=LABELS),
    "hungarian pool": called(Hungarian(pool=30)),
    "hungarian mask": called(Hungarian(), mask=MASK),
    "knn l2": called(KNN(4)),
    "knn dot": called(KNN(4, "dot")),
    "knn centre": called(KNN(4, center="mean")),
    "knn mask": called(KNN(4), mask=MASK),
    "distributed": called(Scaled(2.0, Distributed(Hungarian())), labels=LABELS),
    "standardized": called(Standardized(Hungarian())),
    "projected hungarian": called(Hungarian(project=2, projection="random")),
    "sinkhorn": called(Sinkhorn()),
    "sinkhorn within labels": called(Sinkhorn(), labels=LABELS),
    "sinkhorn mask": called(Sinkhorn(), mask=MASK),
    "sinkhorn sampled": called(Sinkhorn(iterations=3, output="sampled"), labels=LABELS),
    "queue": anew(lambda: NoiseQueue(20)),
    "queue within labels": anew(lambda: NoiseQueue(4), labels=LABELS),
    "queue mask": anew(lambda: Scaled(2.0, NoiseQueue(20)), mask=MASK),
    "warm-up hungarian": called(WarmUp(3, Hungarian())),
    "warm-up knn": called(WarmUp(1, Scaled(2.0, KNN(4)))),
    "scaled hungarian": called(Scaled(2.0, Hungarian())),
    "paired independent": paired(Independent(), BATCH, SIZE),
    "paired hungarian": paired(Hungarian(), BATCH, SIZE),
    "paired sinkhorn": paired(Sinkhorn(), BATCH, SIZE),
    "paired hungarian pool": paired(Hungarian(), 2 * BATCH, SIZE, labels=LABELS),
    "paired knn": paired(KNN(4), BATCH, 4, SIZE),
    "paired knn pool": paired(KNN(9, "dot"), 9, SIZE),
}
PROCESSES = [*(VPProcess(schedule=SCHEDULE, prediction_type=kind) for kind in TYPES), FlowProcess()]
EDM = [EDMProcess(prediction_type=kind) for kind in ("edm", "epsilon", "sample")]
# Action chunks: 12 of up to 7 steps of 3 actions, the rest padding.
STEPS, ACTIONS = 7, 3
PADDED = torch.arange(STEPS) < torch.arange(BATCH).remainder(STEPS).add(1).unsqueeze(1)


def data() -> Tensor:
    return torch.randn(BATCH, SIZE, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


def times(process: Process) -> Tensor:
    t = process.sample_timesteps(BATCH, seed=1, step=3)
    return t * 0.99 if t.is_floating_point() else t


def perfect(kind: str, alpha: Tensor, sigma: Tensor, x0: Tensor, noise: Tensor) -> Callable[[Tensor, Tensor], Tensor]:
    """The perfect network; x0, noise and levels as the batch that it will see."""
    alpha, sigma = (level.reshape(-1, *(1,) * (x0.dim() - 1)) for level in (alpha, sigma))

    def network(x_t: Tensor, time: Tensor) -> Tensor:
        if kind == "sample":
            return (x_t - sigma * noise) / alpha
        found = (x_t - alpha * x0) / sigma
        return {"epsilon": found, "v_prediction": alpha * found - sigma * x0, "flow": x0 - found}[kind]

    return network


def loss_of_perfect_network(process: Process, draw: Draw) -> float:
    x0, t = data(), times(process)
    noise = draw(x0, 7)
    network = perfect(process.prediction_type, *process.levels(t), x0, draw(x0, 7))
    return diffusion_loss(network, x0, t, process=process, noise=noise).item()


@pytest.mark.parametrize("process", PROCESSES, ids=repr)
@pytest.mark.parametrize("draw", DRAWS.values(), ids=DRAWS)
def test_diffusion_loss_of_a_perfect_network_is_zero(process: Process, draw: Draw) -> None:
    assert loss_of_perfect_network(process, draw) < ZERO


def perfect_edm(process: EDMProcess, x0: Tensor, noise: Tensor, t: Tensor) -> Callable[[Tensor, Tensor], Tensor]:
    """The perfect network behind EDM's preconditioning; it knows the data, or to answer with the data the noise."""

    def network(scaled: Tensor, time: Tensor) -> Tensor:
        level = t.view(-1, *(1,) * (x0.dim() - 1))
        x_t = scaled * (level.square() + process.sigma_data**2).sqrt()
        if process.prediction_type == "sample":
            return x_t - level * noise
        return process.target(x0, (x_t - x0) / level, t)

    return network


@pytest.mark.parametrize("process", EDM, ids=repr)
@pytest.mark.parametrize("draw", DRAWS.values(), ids=DRAWS)
def test_edm_loss_of_a_perfect_network_is_zero(process: EDMProcess, draw: Draw) -> None:
    x0, t = data(), times(process)
    noise = draw(x0, 7)
    assert diffusion_loss(perfect_edm(process, x0, noise, t), x0, t, process=process, noise=noise).item() < ZERO
    # With other noise in the target than in the input it cannot be zero.
    other = noise.roll(1, 0)
    state = process.model_input(process.add_noise(x0, noise, t), t)
    answer = perfect_edm(process, x0, other, t)(state, process.model_time(t))
    assert (answer - process.target(x0, other, t)).square().mean() > 1e-3


CHUNK_COUPLINGS: dict[str, Callable[[], Coupling]] = {
    "independent": Independent,
    "hungarian": Hungarian,
    "hungarian pool": lambda: Hungarian(pool=30),
    "sinkhorn": Sinkhorn,
    "knn": lambda: KNN(4),
    "standardized": lambda: Standardized(Hungarian()),
    "knn dot": lambda: KNN(4, "dot"),
    "distributed": lambda: Distributed(Hungarian()),
    "queue": lambda: WarmUp(1, NoiseQueue(20)),
    "scaled": lambda: Scaled(2.0, Hungarian("across")),
}


@pytest.mark.parametrize("process", [*PROCESSES, EDM[0]], ids=repr)
@pytest.mark.parametrize("name", CHUNK_COUPLINGS)
@pytest.mark.parametrize("labels", [None, LABELS], ids=["", "labels"])
def test_action_chunks_under_a_mask(process: Process, name: str, labels: Tensor | None) -> None:
    generator = torch.Generator().manual_seed(0)
    x0 = torch.randn(BATCH, STEPS, ACTIONS, generator=generator, dtype=torch.float64)
    t, coupling = times(process), CHUNK_COUPLINGS[name]()
    noise = [coupling(x0, seed=7, step=step, mask=PADDED, labels=labels) for step in range(3)][-1]
    assert noise.shape == x0.shape
    if isinstance(process, EDMProcess):
        network = perfect_edm(process, x0, noise, t)
    else:
        network = perfect(process.prediction_type, *process.levels(t), x0, noise)
    losses = diffusion_loss(network, x0, t, process=process, noise=noise, reduction="none")
    assert losses.max().item() < ZERO


@pytest.mark.parametrize("kind", TYPES)
@pytest.mark.parametrize("draw", DRAWS.values(), ids=DRAWS)
@pytest.mark.parametrize("renormalise", [True, False])
def test_kl_loss_of_a_perfect_network_is_zero(kind: str, draw: Draw, renormalise: bool) -> None:
    terms = 3
    process = KLProcess(SCHEDULE, terms, prediction_type=kind, renormalise=renormalise)
    x0, t = data(), times(process)
    noise = torch.stack([draw(x0, seed) for seed in range(terms)], 1)
    alpha, level = process.levels(t)
    repeated = (value.repeat_interleave(terms, 0) for value in (alpha, level, x0))
    network = perfect(kind, *repeated, noise.flatten(0, 1))
    for weights in ("coefficient", "uniform"):
        loss = kl_loss(network, x0, t, process=process, noise=noise, weights=weights)
        assert loss.item() < ZERO


@pytest.mark.parametrize("kind", TYPES)
@pytest.mark.parametrize("coupling", [Independent(), Hungarian(), KNN(4)], ids=repr)
def test_kl_loss_with_drawn_and_coupled_noises(kind: str, coupling: Coupling) -> None:
    terms = 4
    process = KLProcess(SCHEDULE, terms, prediction_type=kind)
    x0, t = data(), times(process)
    alpha, level, rows = (value.repeat_interleave(terms, 0) for value in (*process.levels(t), x0))
    noise = coupled_noises(coupling, x0, terms, seed=7, step=3)
    network = perfect(kind, alpha, level, rows, noise.flatten(0, 1))
    assert kl_loss(network, x0, t, process=process, noise=noise).item() < ZERO
    if kind != "sample":  # knowing the data is enough, whatever noises the loss draws
        assert kl_loss(network, x0, t, process=process, seed=11).item() < ZERO


LAWS = [LogitNormal(), Mode(), CosMap()]


def densities(process: Process) -> list[TimeDensity]:
    made: list[TimeDensity] = [NoiseDensity(process, law, importance) for law in LAWS for importance in (True, False)]
    return made if isinstance(process, FlowProcess) else [*made, SpeedDensity(process, importance=True)]


@pytest.mark.parametrize(
    "process",
    [
        *PROCESSES,
        VPProcess(schedule=ContinuousVPSchedule.linear()),
        VPProcess(schedule=SCHEDULE.rescaled_to_zero_terminal_snr(), prediction_type="v_prediction"),
        KLProcess(SCHEDULE, 1, renormalise=False),
    ],
    ids=repr,
)
def test_no_density_or_weight_keeps_a_perfect_network_from_zero(process: Process) -> None:
    x0 = data()
    for density in densities(process):
        t = density.sample(3, BATCH, seed=1)
        noise = DRAWS["hungarian"](x0, 7)
        network = perfect(process.prediction_type, *process.levels(t), x0, noise)
        for name in WEIGHTINGS:
            if name == "change_aware" and isinstance(process, FlowProcess):
                continue
            weight = LossWeighting(process, name)(t) * density.weights(3, t)
            assert bool(weight.isfinite().all())
            loss = diffusion_loss(network, x0, t, process=process, noise=noise, weight=weight)
            # Weights may be large (up to 1e6 for sigma_sqrt), and rounding with them.
            assert loss.item() < ZERO * max(1.0, weight.max().item()), (density, name)
            # The weight is not 0 where the mistake is: another network does not reach zero.
            assert diffusion_loss(lambda x, time: x * 0, x0, t, process=process, noise=noise, weight=weight) > 1e-3


class MisPaired:
    """The mistake: the noise is permuted on its way into the input, the target has it as it was."""

    def add_noise(self, x0: Tensor, noise: Tensor, t: Tensor) -> Tensor:
        return super().add_noise(x0, Hungarian().pair(x0, noise), t)  # type: ignore[misc]


class MisPairedVP(MisPaired, VPProcess):
    pass


class MisPairedFlow(MisPaired, FlowProcess):
    pass


MISTAKEN = [*(MisPairedVP(schedule=SCHEDULE, prediction_type=kind) for kind in TYPES), MisPairedFlow()]


@pytest.mark.parametrize("process", MISTAKEN, ids=repr)
def test_a_permutation_of_the_input_alone_is_found(process: Process) -> None:
    assert loss_of_perfect_network(process, DRAWS["independent"]) > 1e-3
    # With the noise paired already there is nothing left to permute, and the mistake does no harm.
    assert loss_of_perfect_network(process, DRAWS["hungarian"]) < ZERO


@pytest.mark.parametrize("process", PROCESSES, ids=repr)
@pytest.mark.parametrize("name", [name for name in DRAWS if "independent" not in name])
def test_a_target_of_other_noise_is_found(process: Process, name: str) -> None:
    # The input has the coupled noise, the target the plain one.
    x0, t = data(), times(process)
    plain = DRAWS["independent"](x0, 7)
    network = perfect(process.prediction_type, *process.levels(t), x0, plain)
    coupled = DRAWS[name](x0, 7)
    answer = network(process.add_noise(x0, coupled, t), process.model_time(t))
    assert (answer - process.target(x0, plain, t)).square().mean() > 1e-3
