"""Hungarian: properties of the assignment, labels, pools, masks."""

from __future__ import annotations

import itertools

import pytest
import torch

from pydiffaccel.coupling import (
    Hungarian,
)
from pydiffaccel.noise import gaussian_noise
from tests.coupling.samples import DTYPES, data, rows, total


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_assignment_permutes_the_noise_rows(dtype: torch.dtype) -> None:
    x = data(33, 3, 4, dtype=dtype)
    noise = Hungarian()(x, seed=1, step=2)
    plain = gaussian_noise(x, 1, 2)
    assert rows(noise) == rows(plain)
    assert total(x, noise) < total(x, plain)
    assert torch.equal(noise, Hungarian().pair(x, plain))


@pytest.mark.parametrize("batch", range(1, 8))
@pytest.mark.parametrize("extra", [0, 1])
def test_assignment_equals_brute_force(batch: int, extra: int) -> None:
    x, noise = data(batch, 3, seed=batch), data(batch + extra, 3, seed=50 + batch)
    mask = data(batch, 3, seed=99) > -0.3
    for options in ({}, {"mask": mask}):
        paired = Hungarian().pair(x, noise, **options)
        squares = (x.unsqueeze(1) - noise).square() * options.get("mask", torch.ones_like(x)).unsqueeze(1)
        table = squares.sum(-1).tolist()
        tried = itertools.permutations(range(batch + extra), batch)
        best = min(sum(row[j] for row, j in zip(table, order, strict=True)) for order in tried)
        assert total(x, paired, **options) == pytest.approx(best, rel=1e-6)
        assert len(set(rows(paired))) == batch
        assert set(rows(paired)) <= set(rows(noise))


def test_assignment_of_one_row_is_the_identity() -> None:
    x, noise = data(1, 3, 2), data(1, 3, 2, seed=1)
    assert torch.equal(Hungarian().pair(x, noise), noise)
    assert torch.equal(Hungarian()(x, seed=2), gaussian_noise(x, 2))


def test_assignment_recovers_a_known_permutation() -> None:
    noise = data(40, 60)
    order = torch.randperm(40, generator=torch.Generator().manual_seed(1))
    x = noise[order] + 0.01 * data(40, 60, seed=2)
    assert torch.equal(Hungarian().pair(x, noise), noise[order])


def test_assignment_of_half_precision_is_that_of_float32() -> None:
    x, noise = data(24, 50, dtype=torch.float16), data(24, 50, seed=1, dtype=torch.float16)
    half, full = Hungarian().pair(x, noise), Hungarian().pair(x.float(), noise.float())
    assert torch.equal(half.float(), full)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(Hungarian().pair(x.float(), noise.float()), full)


def test_labels_within_never_cross() -> None:
    x, noise = data(41, 6), data(41, 6, seed=1)
    labels = torch.tensor([3, 7, 7, 0, 3, 9, 3] * 5 + [0, 0, 12, 9, 9, 9])
    paired = Hungarian().pair(x, noise, labels=labels)
    assert rows(paired) == rows(noise)
    for label in labels.unique():
        own = labels == label
        assert torch.equal(paired[own], Hungarian().pair(x[own], noise[own]))
    across = Hungarian("across").pair(x, noise, labels=labels)
    assert torch.equal(across, Hungarian().pair(x, noise))
    assert total(x, across) < total(x, paired) < total(x, noise)


def test_labels_within_share_a_pool_by_row() -> None:
    x, pool = data(7, 4), data(18, 4, seed=1)
    labels = torch.tensor([0, 1, 0, 1, 1, 0, 2])
    paired = Hungarian().pair(x, pool, labels=labels)
    of_noise = labels[torch.arange(18) % 7]
    for label in labels.unique():
        own = labels == label
        assert torch.equal(paired[own], Hungarian().pair(x[own], pool[of_noise == label]))


def test_noises_may_have_labels_of_their_own() -> None:
    x, noise = data(6, 4), data(11, 4, seed=1)
    labels = torch.tensor([5, 2, 5, 5, 2, -1])
    of_noise = torch.tensor([2, 9, 5, 5, -1, 2, 5, -1, 2, 5, 9])
    for kind in (torch.int64, torch.int32):
        paired = Hungarian().pair(x, noise, labels=labels, noise_labels=of_noise.to(kind))
        for label in labels.unique():
            own = labels == label
            assert torch.equal(paired[own], Hungarian().pair(x[own], noise[of_noise == label]))
    modulo = labels[torch.arange(11) % 6]
    assert torch.equal(
        Hungarian().pair(x, noise, labels=labels, noise_labels=modulo), Hungarian().pair(x, noise, labels=labels)
    )
    across = Hungarian("across").pair(x, noise, labels=labels, noise_labels=of_noise)
    assert torch.equal(across, Hungarian().pair(x, noise))


def test_a_class_of_its_own_keeps_its_noise() -> None:
    x = data(6, 4)
    assert torch.equal(Hungarian()(x, seed=1, labels=torch.arange(6)), gaussian_noise(x, 1))


def test_a_pool_holds_the_rows_own_noises_first() -> None:
    x = data(6, 4)
    assert torch.equal(Hungarian(pool=6)(x, seed=1), Hungarian()(x, seed=1))
    small, large = (Hungarian(pool=pool)(x, seed=1) for pool in (9, 60))
    assert total(x, Hungarian()(x, seed=1)) >= total(x, small) >= total(x, large)
    assert len(set(rows(large))) == 6


def test_a_pool_of_another_rank_is_another() -> None:
    # Two ranks of 4 rows draw 12 noises each: no noise may appear twice.
    x = data(4, 6)
    chosen = [row for first in (0, 4, 8) for row in rows(Hungarian(pool=12)(x, seed=1, first_sample=first))]
    assert len(set(chosen)) == 12


def test_padding_does_not_decide_the_assignment() -> None:
    x, noise = data(12, 5, 3), data(12, 5, 3, seed=1)
    mask = torch.arange(5) < torch.tensor([2, 3, 5, 1] * 3).unsqueeze(1)
    paired = Hungarian().pair(x, noise, mask=mask)
    assert rows(paired) == rows(noise)
    spoiled = torch.where(mask.unsqueeze(-1), x, 1e4)
    assert torch.equal(Hungarian().pair(spoiled, noise, mask=mask), paired)
    spoiled[~mask] = torch.nan
    assert torch.equal(Hungarian().pair(spoiled, noise, mask=mask), paired)
    everywhere = torch.ones(12, 1, dtype=torch.bool)
    assert torch.equal(Hungarian().pair(x, noise, mask=everywhere), Hungarian().pair(x, noise))


def test_labels_and_mask_together() -> None:
    x, noise = data(12, 5), data(12, 5, seed=1)
    mask, labels = data(12, 5, seed=2) > -0.5, torch.arange(12) % 3
    paired = Hungarian().pair(x, noise, labels=labels, mask=mask)
    for label in range(3):
        own = labels == label
        assert torch.equal(paired[own], Hungarian().pair(x[own], noise[own], mask=mask[own]))
