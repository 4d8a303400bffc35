"""A perfect network reaches zero in every mode, on every kind of process, with every coupling and every draw.

It sees x_t and the time alone and knows the data by heart; to answer with the data it knows the noises of the sample
instead, and answers with what the one that fits leaves over.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from pydiffaccel import KNN, Coupling, Hungarian, Independent, KLProcess, NoiseQueue, Scaled, Sinkhorn, coupled_noises
from pydiffaccel import kl_loss as loss_of
from pydiffaccel.losses.draws import orthogonal
from pydiffaccel.ops import kl_components, kl_sample
from tests.losses.networks import KIND_NAMES, KINDS, TYPES, Kind, batch, process_of

ROWS, TERMS, TIMES = 9, 3, 2
PLACE: dict[str, Any] = {"seed": 7, "step": 3, "first_sample": 1}
ZERO = 1e-19
SETTINGS: list[dict[str, Any]] = [
    {"mode": "component"},
    {"mode": "component", "weights": "uniform"},
    {"mode": "component", "partial": 2},
    {"mode": "component", "partial": 2, "partial_probabilities": "uniform", "weights": "uniform"},
    {"mode": "schedule"},
    {"mode": "recombined"},
    {"mode": "path"},
]
COUPLINGS: dict[str, Callable[[], Coupling | None]] = {
    "drawn": lambda: None,
    "independent": Independent,
    "hungarian": lambda: Scaled(2.0, Hungarian()),
    "sinkhorn": Sinkhorn,
    "queue": lambda: NoiseQueue(20),
    "knn": lambda: KNN(4, "dot"),
}
CASES = [(settings, name) for settings in SETTINGS for name in COUPLINGS]
CASES += [({"mode": "component", "draws": draws}, "drawn") for draws in ("antithetic", "orthogonal")]


def batch_of(process: KLProcess, settings: dict[str, Any]) -> tuple[Tensor, Tensor]:
    t = process.sample_timesteps(ROWS * TIMES, seed=1, step=0).view(ROWS, TIMES)
    return batch(ROWS, 5, dtype=torch.float64), t if settings["mode"] == "path" else t[:, 0]


def noises(process: KLProcess, x0: Tensor, t: Tensor, settings: dict[str, Any], z: Tensor | None) -> Tensor:
    """What may be in an input of a sample: ``[B, ?, *]``; z is given or what the loss draws."""
    if settings["mode"] == "path":
        c = process.terms(t.flatten()).view(*t.shape, TERMS)
        unit = c / c.norm(dim=2, keepdim=True)
        if z is None:
            alpha, level = (value.view(t.shape) for value in process.levels(t.flatten()))
            return kl_sample(x0, alpha, level.unsqueeze(2) * unit, **PLACE)[1]
        return unit @ z
    if z is None:
        ones = torch.ones(len(x0))
        z = kl_components(x0, ones, ones, TERMS, **PLACE)[1]
        if settings.get("draws") == "orthogonal":
            z = orthogonal(z)
        elif settings.get("draws") == "antithetic":
            z = torch.cat([z, -z], 1)
    return z.unsqueeze(1) if z.dim() == x0.dim() else z


class Perfect:
    def __init__(self, process: KLProcess, x0: Tensor, t: Tensor, known: Tensor) -> None:
        self.process, self.x0, self.known = process, x0, known
        self.alpha, self.level = (value.view(len(x0), -1, 1) for value in process.levels(t.flatten()))

    def __call__(self, x_t: Tensor, time: Tensor) -> Tensor:
        x = x_t.view(len(self.x0), -1, 5)
        x0 = self.x0.unsqueeze(1)
        if self.process.prediction_type == "sample":
            left = (x.unsqueeze(2) - self.level.unsqueeze(2) * self.known.unsqueeze(1)) / self.alpha.unsqueeze(2)
            best = (left - x0.unsqueeze(1)).square().sum(3).argmin(2)
            answer = left.gather(2, best[:, :, None, None].expand(-1, -1, 1, 5)).squeeze(2)
        else:
            found = (x - self.alpha * x0) / self.level
            answer = found if self.process.prediction_type == "epsilon" else self.alpha * found - self.level * x0
        return answer.reshape(x_t.shape)


def loss_of_perfect_network(
    kind: Kind, prediction_type: str, settings: dict[str, Any], name: str, wrong: bool = False
) -> float:
    process = process_of(kind, TERMS, prediction_type)
    x0, t = batch_of(process, settings)
    coupling, z = COUPLINGS[name](), None
    if coupling is not None:
        z = coupling(x0, **PLACE) if settings["mode"] == "schedule" else coupled_noises(coupling, x0, TERMS, **PLACE)
    network = Perfect(process, x0, t, noises(process, x0, t, settings, z))
    if wrong:
        network.x0, network.known = network.x0.roll(1, 0), network.known.roll(1, 0)
    return loss_of(network, x0, t, process=process, noise=z, **settings, **PLACE).item()


@pytest.mark.parametrize("kind", KINDS, ids=KIND_NAMES)
@pytest.mark.parametrize(("settings", "name"), CASES, ids=str)
def test_a_perfect_network_reaches_zero(kind: Kind, settings: dict[str, Any], name: str) -> None:
    for prediction_type in TYPES:
        assert loss_of_perfect_network(kind, prediction_type, settings, name) < ZERO


@pytest.mark.parametrize(("settings", "name"), CASES, ids=str)
def test_a_network_for_other_samples_does_not(settings: dict[str, Any], name: str) -> None:
    for prediction_type in TYPES:
        assert loss_of_perfect_network(KINDS[0], prediction_type, settings, name, wrong=True) > 1e-3
