"""Scaled, Standardized and WarmUp."""

from __future__ import annotations

import pytest
import torch

from pydiffaccel.coupling import (
    KNN,
    Coupling,
    Hungarian,
    Independent,
    NoiseQueue,
    Scaled,
    Standardized,
    WarmUp,
    coupling_from_dict,
)
from pydiffaccel.noise import gaussian_noise
from tests.coupling.samples import DTYPES, data

# Scaled.


def test_scaling_is_undone() -> None:
    x = data(4, 3, dtype=torch.float16)
    scaled = Scaled(4.0, Scaled(0.5, KNN(2)))
    assert torch.equal(scaled.scale_data(x), x * 2)
    assert torch.equal(scaled.unscale_data(scaled.scale_data(x)), x)
    assert scaled.scale_data(x).dtype == torch.float16
    assert torch.equal(scaled(x, seed=1), KNN(2)(x, seed=1))
    candidates = data(4, 2, 3, seed=1, dtype=torch.float16)
    assert torch.equal(scaled.pair(x, candidates), KNN(2).pair(x, candidates))


# Standardized.


def test_units_do_not_decide() -> None:
    # One coordinate in millimetres, one in metres, one that never moves.
    x = data(40, 6, 4) + 3
    units = torch.tensor([1000.0, 0.001, 1.0, 0.0])
    shift = torch.tensor([-5.0, 8.0, 0.0, 7.0])
    for inner in (Hungarian(), Hungarian(pool=60), NoiseQueue(9)):
        first, second = (coupling_from_dict(Standardized(inner).to_dict()) for _ in range(2))
        same = second((x * units + shift)[:, :, :3], seed=1)
        assert torch.equal(first(x[:, :, :3], seed=1), same)
    assert bool(torch.isfinite(Standardized(KNN(4))(x * units + shift)).all())


def test_standardizing_is_that_of_the_definition() -> None:
    x, noise = data(30, 5, 2) * torch.tensor([3.0, 0.1]) + 1, data(30, 5, 2, seed=1)
    z = (x - x.mean(0)) / x.std(0, unbiased=False)
    assert torch.equal(Standardized(Hungarian()).pair(x, noise), Hungarian().pair(z, noise))
    assert torch.equal(Standardized(KNN(4))(x, seed=1), KNN(4)(z, seed=1))
    mean, std = torch.tensor([1.0, 0.5]), torch.tensor([[3.0, 0.2]])
    fixed = Standardized(KNN(4), mean, std)
    assert torch.equal(fixed(x, seed=1), KNN(4)((x - mean) / std, seed=1))
    assert torch.equal(coupling_from_dict(fixed.to_dict())(x, seed=1), fixed(x, seed=1))
    assert fixed == coupling_from_dict(fixed.to_dict()) != Standardized(KNN(4))
    # Rows are their own under fixed statistics.
    assert torch.equal(fixed(x[7:9], seed=1, first_sample=7), fixed(x, seed=1)[7:9])


def test_padding_enters_no_statistic() -> None:
    x, mask = data(20, 5, 2), torch.arange(5) < torch.arange(20).remainder(5).add(1).unsqueeze(1)
    spoiled = torch.where(mask.unsqueeze(-1), x, torch.nan)
    for inner in (Hungarian(), KNN(4)):
        coupling = Standardized(inner)
        assert torch.equal(coupling(spoiled, seed=1, mask=mask), coupling(x, seed=1, mask=mask))
    everything = torch.ones(20, 1, dtype=torch.bool)
    masked, plain = (Standardized(Hungarian())(x, seed=1, **given) for given in ({"mask": everything}, {}))
    assert torch.equal(masked, plain)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_mean_zero_and_deviation_one_change_nothing(dtype: torch.dtype) -> None:
    x = data(12, 5, dtype=dtype)
    null = torch.zeros(1), torch.ones(1)
    for inner in (Hungarian(), Hungarian(pool=20), KNN(1), Independent()):
        assert torch.equal(Standardized(inner, *null)(x, seed=1, step=2), inner(x, seed=1, step=2))
    assert torch.equal(Standardized(Hungarian(), *null).pair(x, x.flip(0)), Hungarian().pair(x, x.flip(0)))


# WarmUp.


@pytest.mark.parametrize("inner", [Hungarian(), Hungarian(pool=20), KNN(4), Scaled(2.0, Hungarian())], ids=repr)
def test_before_its_step_a_coupling_draws_plain_noise(inner: Coupling) -> None:
    x, labels, mask = data(8, 5), torch.arange(8) % 3, data(8, 5, seed=1) > -0.5
    late = WarmUp(7, inner)
    for options in ({}, {"labels": labels}, {"mask": mask}):
        for step in (0, 6, 7, 8):
            noise = late(x, seed=3, step=step, first_sample=2, **options)
            coupled = inner(x, seed=3, step=step, first_sample=2, **options)
            plain = gaussian_noise(x, 3, step, 2)
            assert torch.equal(noise, plain if step < 7 else coupled)
            assert not torch.equal(plain, coupled)
    assert torch.equal(WarmUp(0, inner)(x, seed=3), inner(x, seed=3))


def test_given_noise_is_paired_at_any_time() -> None:
    x, noise = data(8, 5), data(8, 5, seed=1)
    assert torch.equal(WarmUp(7, Hungarian()).pair(x, noise), Hungarian().pair(x, noise))
    assert torch.equal(WarmUp(7, Scaled(2.0, KNN(2))).scale_data(x), 2 * x)
    assert torch.equal(WarmUp(7, Scaled(2.0, KNN(2))).unscale_data(x), x / 2)


def test_which_steps_are_plain() -> None:
    for inner, plain in ((Independent(), True), (KNN(1), True), (KNN(2), False), (Hungarian(), False)):
        late = Scaled(2.0, WarmUp(3, inner))
        assert [late.is_plain(step) for step in (0, 2, 3, 4)] == [True, True, plain, plain]


def test_a_coupling_without_memory_has_no_state() -> None:
    coupling = Scaled(2.0, WarmUp(3, Hungarian()))
    assert coupling.state_dict() == {}
    coupling.load_state_dict({})
    with pytest.raises(ValueError, match=r"a hungarian coupling has no state, got one with \['lanes'\]"):
        coupling.load_state_dict({"lanes": []})
