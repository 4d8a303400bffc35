"""The modes of the KL loss: null settings, formulas, expected values, a random few of the terms."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
import torch
from torch import Tensor

from pydiffaccel import coupled_noises, diffusion_loss, kl_loss
from pydiffaccel.coupling import Independent
from pydiffaccel.forward import KLProcess, VPProcess
from pydiffaccel.losses import kl_inputs
from pydiffaccel.noise import gaussian_noise
from pydiffaccel.ops import kl_components
from pydiffaccel.schedule import ContinuousVPSchedule, VPSchedule
from tests.losses.networks import (
    CONTINUOUS,
    KIND_NAMES,
    KINDS,
    SCHEDULE,
    TYPES,
    Kind,
    Network,
    batch,
    process_of,
    step_of,
)

DTYPES = [torch.float32, torch.float64, torch.float16, torch.bfloat16]
PLACE: dict[str, Any] = {"seed": 3, "step": 2, "first_sample": 5}


def times(count: int = 7, schedule: VPSchedule | ContinuousVPSchedule = SCHEDULE) -> Tensor:
    return VPProcess(schedule=schedule).sample_timesteps(count, seed=1, step=2)


def drawn_terms(x0: Tensor, terms: int) -> Tensor:
    """Z, ``[B, terms, *]``."""
    ones = torch.ones(len(x0))
    return kl_components(x0, ones, ones, terms, **PLACE)[1]


# One term is DDPM.


@pytest.mark.parametrize("kind", TYPES)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("mode", ["component", "schedule", "path"])
@pytest.mark.parametrize("source", ["drawn", "coupled"])
@pytest.mark.parametrize("schedule", [SCHEDULE, CONTINUOUS], ids=["chain", "continuous"])
@pytest.mark.parametrize("basis", ["kl", "haar"])
def test_one_term_is_diffusion_bit_for_bit(
    kind: str,
    dtype: torch.dtype,
    mode: str,
    source: str,
    schedule: VPSchedule | ContinuousVPSchedule,
    basis: str,
) -> None:
    vp, kl = VPProcess(schedule=schedule, prediction_type=kind), KLProcess(schedule, 1, basis, kind)
    x0, t, noise = batch(7, 2, 4, dtype=dtype), times(7, schedule), None
    plain = gaussian_noise(x0, **PLACE)
    if source == "coupled":
        noise = plain if mode == "schedule" else coupled_noises(Independent(), x0, 1, **PLACE)
    expected = step_of(lambda network: diffusion_loss(network, x0, t, process=vp, noise=plain), dtype)
    where = t[:, None] if mode == "path" else t
    found = step_of(lambda network: kl_loss(network, x0, where, process=kl, mode=mode, noise=noise, **PLACE), dtype)
    assert torch.equal(expected[0], found[0])
    assert torch.equal(expected[1], found[1])


@pytest.mark.parametrize("terms", [1, 5])
def test_schedule_is_diffusion_for_any_number_of_terms(terms: int) -> None:
    x0, t, vp = batch(7, 4), times(), VPProcess(schedule=SCHEDULE)
    expected = step_of(lambda net: diffusion_loss(net, x0, t, process=vp, noise=gaussian_noise(x0, **PLACE)))
    network = Network()
    found = kl_loss(network, x0, t, process=KLProcess(SCHEDULE, terms), mode="schedule", **PLACE)
    assert torch.equal(found, expected[0])
    assert network.calls == [(7, 4)]


# Formulas.


@pytest.mark.parametrize("prediction_type", TYPES)
@pytest.mark.parametrize("given", [False, True])
@pytest.mark.parametrize("kind", KINDS, ids=KIND_NAMES)
def test_recombined_is_its_formula(kind: Kind, prediction_type: str, given: bool) -> None:
    process = process_of(kind, 3, prediction_type)
    x0, t, network = batch(7, 2, 4, dtype=torch.float64), times(7, kind[0]), Network()
    noise = drawn_terms(x0, 3)
    loss = kl_loss(network, x0, t, process=process, mode="recombined", noise=noise if given else None, **PLACE)
    assert network.calls == [(21, 2, 4)]
    total = torch.zeros_like(x0)
    for k in range(3):
        answer = network(process.add_noise(x0, noise[:, k], t), process.model_time(t))
        total += process.terms(t)[:, k, None, None] * (process.target(x0, noise[:, k], t) - answer)
    assert loss.item() == pytest.approx(total.square().mean().item(), rel=1e-12)


@pytest.mark.parametrize("prediction_type", TYPES)
@pytest.mark.parametrize("given", [False, True])
@pytest.mark.parametrize("kind", KINDS, ids=KIND_NAMES)
def test_path_is_its_formula(kind: Kind, prediction_type: str, given: bool) -> None:
    process = process_of(kind, 3, prediction_type)
    x0, network = batch(5, 2, 4, dtype=torch.float64), Network()
    t = times(20, kind[0]).view(5, 4)
    noise, weight = drawn_terms(x0, 3), batch(5, 4, seed=9).abs()
    options: dict[str, Any] = {"process": process, "mode": "path", "noise": noise if given else None, **PLACE}
    loss = kl_loss(network, x0, t, **options)
    assert network.calls == [(20, 2, 4)]
    each = torch.zeros(5, 4, dtype=torch.float64)
    for s in range(4):
        c = process.terms(t[:, s])
        eps = torch.einsum("bk,bkij->bij", c / c.norm(dim=1, keepdim=True), noise)
        answer = network(process.add_noise(x0, eps, t[:, s]), process.model_time(t[:, s]))
        each[:, s] = (answer - process.target(x0, eps, t[:, s])).square().mean((1, 2)).detach()
    # The operator's weights are float32.
    rel = 1e-12 if given else 1e-6
    assert loss.item() == pytest.approx(each.mean().item(), rel=rel)
    rows = kl_loss(network, x0, t, reduction="none", **options)
    assert rows.tolist() == pytest.approx(each.mean(1).tolist(), rel=rel)
    for factor in (weight, weight[:, 0]):
        weighted = kl_loss(network, x0, t, weight=factor, **options)
        expected = each * (factor if factor.dim() == 2 else factor[:, None])
        assert weighted.item() == pytest.approx(expected.mean().item(), rel=max(rel, 1e-7))


def test_a_path_is_smooth() -> None:
    """The noise of neighbouring times is nearly the same, that of far ones is not."""
    seen = []

    def watching(x: Tensor, time: Tensor) -> Tensor:
        seen.append(x)
        return x

    process = KLProcess(SCHEDULE, 6)
    t = torch.tensor([[5, 6, 35, 36]]).expand(4, 4)
    kl_loss(watching, torch.zeros(4, 500), t, process=process, mode="path", **PLACE)
    noise = seen[0].view(4, 4, 500) / process.levels(t.flatten())[1].view(4, 4, 1).float()
    correlation = (noise @ noise.mT / 500).mean(0)
    assert correlation.diagonal().tolist() == pytest.approx([1] * 4, abs=0.1)
    assert correlation[0, 1] > 0.9
    assert correlation[2, 3] > 0.9
    assert abs(correlation[0, 3]) < 0.5


# Expected values: data N(0, v I) and a network a x, for which they are known.

SCALE, VARIANCE, ROWS = 0.6, 1.7, 10_000


def linear(x: Tensor, time: Tensor) -> Tensor:
    return SCALE * x


def mean_of(process: KLProcess, time: float, **options: Any) -> tuple[float, float]:
    """The mean loss over many samples, and its standard error."""
    x0 = VARIANCE**0.5 * gaussian_noise(torch.empty(ROWS, 4), 77)
    t = torch.full((ROWS, 2) if options.get("mode") == "path" else (ROWS,), time)
    losses = kl_loss(linear, x0, t, process=process, reduction="none", seed=5, **options)
    return losses.mean().item(), (losses.std() / ROWS**0.5).item()


def errors(process: KLProcess, time: float) -> tuple[float, float]:
    """E|r|^2 and E|E[r | x_0]|^2 per element, for r = Z - a (alpha x_0 + s Z)."""
    alpha, level = (value.item() for value in process.levels(torch.tensor([time])))
    known = (SCALE * alpha) ** 2 * VARIANCE
    return (1 - SCALE * level) ** 2 + known, known


OPTIONS: list[dict[str, Any]] = [
    {},
    {"weights": "uniform"},
    {"draws": "orthogonal"},
    {"draws": "antithetic"},
    {"draws": "orthogonal", "weights": "uniform"},
    {"partial": 1},
    {"partial": 1, "weights": "uniform"},
    {"partial": 1, "partial_probabilities": "uniform"},
    {"mode": "schedule"},
    {"mode": "path"},
]


@pytest.mark.parametrize("terms", [1, 2, 5])
@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_the_expected_loss_does_not_depend_on_the_terms(terms: int, options: dict[str, Any]) -> None:
    process = KLProcess(SCHEDULE, terms)
    for index in (3, 25):
        mean, error = mean_of(process, index, **options)
        assert abs(mean - errors(process, index)[0]) < 4.5 * error


@pytest.mark.parametrize("kind", KINDS, ids=KIND_NAMES)
def test_the_expected_loss_is_that_of_the_levels_in_use(kind: Kind) -> None:
    for time in (0.05, 0.6) if kind[0] is CONTINUOUS else (3, 25):
        whole = []
        for terms in (2, 4):
            process = process_of(kind, terms)
            mean, error = mean_of(process, time)
            whole.append(errors(process, time)[0])
            assert abs(mean - whole[-1]) < 4.5 * error
        # Renormalised levels do not depend on the number of terms, truncated ones do.
        assert (whole[0] == whole[1]) == kind[2]


@pytest.mark.parametrize("terms", [1, 3, 6])
@pytest.mark.parametrize("kind", KINDS, ids=KIND_NAMES)
def test_recombined_has_its_bias(terms: int, kind: Kind) -> None:
    process = process_of(kind, terms)
    for time in (0.05, 0.45, 1.0) if kind[0] is CONTINUOUS else (2, 20, 39):
        whole, known = errors(process, time)
        c = process.terms(torch.tensor([time]))[0]
        first, second = c.square().sum().item(), c.sum().item() ** 2
        mean, error = mean_of(process, time, mode="recombined")
        assert abs(mean - (first * whole + (second - first) * known)) < 4.5 * error
        if (terms, kind[1], time) == (6, "kl", 20):  # and it is a bias indeed
            assert abs(mean - first * whole) > 20 * error


# A few of the terms.


def every_choice(process: KLProcess, t: Tensor, chosen: int, probabilities: str) -> list[tuple[float, float]]:
    """(u, length) for intervals of the draw u on which the choice of every sample stays the same."""
    c = process.terms(t).square()
    p = torch.full_like(c, 1 / c.shape[1]) if probabilities == "uniform" else c / c.sum(1, keepdim=True)
    ends = (chosen * p.cumsum(1)).remainder(1).flatten().tolist()
    grid = sorted({0.0, 1.0, *ends})
    pairs = itertools.pairwise(grid)
    return [((low + high) / 2, high - low) for low, high in pairs if high - low > 1e-13]  # else rounding


# Uniform weights of terms that are chosen by coefficients are refused for Haar terms.
CHOICES = [
    (basis, weights, probabilities)
    for basis in ("kl", "haar")
    for weights in ("coefficient", "uniform")
    for probabilities in ("coefficient", "uniform")
    if (basis, weights, probabilities) != ("haar", "uniform", "coefficient")
]


@pytest.mark.parametrize(("basis", "weights", "probabilities"), CHOICES)
@pytest.mark.parametrize("chosen", [1, 2, 3, 5])
@pytest.mark.parametrize("given", [False, True])
def test_partial_is_unbiased_exactly(
    monkeypatch: pytest.MonkeyPatch, weights: str, probabilities: str, chosen: int, given: bool, basis: str
) -> None:
    process, network = KLProcess(SCHEDULE, 5, basis), Network()
    x0, t = batch(4, 2, 4, dtype=torch.float64), torch.tensor([0, 7, 30, 39])
    options: dict[str, Any] = {"process": process, "weights": weights, "reduction": "none", **PLACE}
    options["noise"] = drawn_terms(x0, 5) if given else None
    whole = kl_loss(network, x0, t, **options)
    network.calls.clear()
    average = torch.zeros(4, dtype=torch.float64)
    for u, length in every_choice(process, t, chosen, probabilities):
        draws = torch.full((4,), u, dtype=torch.float64)
        monkeypatch.setattr(kl_inputs, "partial_uniforms", lambda *_, draws=draws: draws)
        part = kl_loss(network, x0, t, partial=chosen, partial_probabilities=probabilities, **options)
        average += length * part.detach()
    assert set(network.calls) == {(4 * chosen, 2, 4)}
    assert average.tolist() == pytest.approx(whole.tolist(), rel=1e-11)


@pytest.mark.parametrize("kind", TYPES)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("weights", ["coefficient", "uniform"])
@pytest.mark.parametrize("terms", [1, 4, 49])
def test_all_terms_are_the_whole_loss_bit_for_bit(kind: str, dtype: torch.dtype, weights: str, terms: int) -> None:
    process = KLProcess(SCHEDULE, terms, prediction_type=kind)
    x0, t = batch(7, 4, dtype=dtype), times()
    for noise in (None, drawn_terms(x0, terms)):
        options: dict[str, Any] = {"process": process, "weights": weights, "noise": noise, **PLACE}
        whole = step_of(lambda network, o=options: kl_loss(network, x0, t, **o), dtype)
        part = step_of(
            lambda network, o=options: kl_loss(network, x0, t, partial=terms, partial_probabilities="uniform", **o),
            dtype,
        )
        assert torch.equal(whole[0], part[0])
        assert torch.equal(whole[1], part[1])


def test_all_terms_also_without_noise_at_the_first_index() -> None:
    process, x0, t = KLProcess(VPSchedule([1.0, 0.9, 0.5]), 3), batch(3, 4), torch.tensor([0, 0, 2])
    for dtype in (torch.float32, torch.float64):
        whole = kl_loss(Network(), x0.to(dtype), t, process=process, **PLACE)
        part = kl_loss(Network(), x0.to(dtype), t, process=process, partial=3, partial_probabilities="uniform", **PLACE)
        assert torch.equal(whole, part)
    for mode in ("schedule", "recombined", "path"):
        where = t[:, None] if mode == "path" else t
        assert torch.isfinite(kl_loss(Network(), x0, where, process=process, mode=mode))


def test_chosen_noises_are_those_of_their_terms() -> None:
    process, x0, t = KLProcess(SCHEDULE, 6), batch(7, 4), times()
    options: dict[str, Any] = {"process": process, "partial": 2, **PLACE}
    own = kl_loss(Network(), x0, t, **options)
    assert torch.equal(own, kl_loss(Network(), x0, t, noise=drawn_terms(x0, 6), **options))
    # A sample's choice does not depend on the batch it is in.
    rows = kl_loss(Network(), x0, t, reduction="none", **options)
    later = {**options, "first_sample": PLACE["first_sample"] + 3}
    assert torch.equal(rows[3:], kl_loss(Network(), x0[3:], t[3:], reduction="none", **later))


def test_likely_terms_are_chosen_more_often() -> None:
    process = KLProcess(SCHEDULE, 4)
    p = process.terms(torch.tensor([30]))[0].square()
    p = p / p.sum()
    u = (torch.arange(1000) + 0.5).double() / 1000
    index = kl_inputs.chosen_terms(p.expand(1000, 4), 4, 2, u)
    counts = torch.bincount(index.flatten(), minlength=4)
    assert (counts / 1000).tolist() == pytest.approx((2 * p).tolist(), abs=2e-3)
    # A term without probability is never chosen, wherever it is.
    for p in ([0.0, 0.7, 0.3, 0.0], [0.1] * 10 + [0.0] * 5):
        row = torch.tensor(p, dtype=torch.float64).expand(1001, -1)
        ends = torch.cat([u, torch.tensor([0.0, 1 - 2**-40], dtype=torch.float64)])[:1001]
        ends[-1] = 1 - 2**-40
        for chosen in (1, 3):
            index = kl_inputs.chosen_terms(row, row.shape[1], chosen, ends)
            assert row.gather(1, index).min() > 0
