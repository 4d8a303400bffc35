"""Couplings: properties of the assignment, the law of the nearest noise, and what every coupling promises."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import torch
from scipy.stats import ks_2samp, kstest, norm
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
    coupling_from_dict,
)
from pydiffaccel.noise import gaussian_noise

COUPLINGS = [
    Independent(),
    Hungarian(),
    Hungarian(pool=96),
    KNN(4),
    KNN(4, "dot"),
    KNN(3, center="mean"),
    Hungarian(project=1, projection="random"),
    Sinkhorn(),
    Sinkhorn(0.1, iterations=5, output="sampled", project=1, projection="random"),
    Scaled(2.0, Hungarian()),
    Standardized(KNN(4)),
    Distributed(Hungarian(pool=96)),
    WarmUp(1, Hungarian()),
    WarmUp(1, Scaled(2.0, KNN(4))),
]
SHAPES = [(6, 3, 4, 4), (5, 7, 2), (8, 5), (4, 1), (1, 3, 4, 4), (0, 3, 4, 4), (0, 2)]
DTYPES = [torch.float32, torch.float64, torch.float16, torch.bfloat16]


def data(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


def rows(noise: Tensor) -> list[tuple[float, ...]]:
    """The rows as a sorted list: a multiset."""
    return sorted(tuple(row) for row in noise.flatten(1).tolist())


def total(x: Tensor, noise: Tensor, mask: Tensor | None = None) -> float:
    squares = (x.double() - noise.double()).square()
    return float((squares if mask is None else squares * mask).sum())


# Every coupling.


@pytest.mark.parametrize("coupling", COUPLINGS, ids=repr)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_noise_is_like_the_data(coupling: Coupling, shape: tuple[int, ...]) -> None:
    for dtype in DTYPES:
        x = data(*shape, dtype=dtype)
        noise = coupling(x, seed=1, step=2)
        assert noise.shape == x.shape
        assert noise.dtype == dtype
        assert noise.device == x.device
        assert bool(torch.isfinite(noise).all())


@pytest.mark.parametrize("coupling", COUPLINGS, ids=repr)
def test_no_gradient_and_generators_untouched(coupling: Coupling) -> None:
    x = data(6, 5).requires_grad_()
    before = torch.get_rng_state(), np.random.get_state()[1].copy()
    noise = coupling(x, seed=3)
    assert torch.equal(before[0], torch.get_rng_state())
    assert np.array_equal(before[1], np.random.get_state()[1])
    assert not noise.requires_grad
    assert torch.is_grad_enabled()


def test_no_coupling_runs_under_autograd() -> None:
    recorded = []

    class Recording(Independent):
        def _draw(self, x: Tensor, *arguments: object) -> Tensor:
            recorded.append(torch.is_grad_enabled())
            return x

        def _pair(self, x: Tensor, noise: Tensor, *arguments: object) -> Tensor:
            recorded.append(torch.is_grad_enabled())
            return noise

    Recording()(data(2, 3))
    Recording().pair(data(2, 3), data(2, 3))
    assert recorded == [False, False]


@pytest.mark.parametrize("coupling", COUPLINGS, ids=repr)
def test_a_draw_depends_on_seed_step_and_sample(coupling: Coupling) -> None:
    x = data(6, 40)
    noise = coupling(x, seed=3, step=4, first_sample=8)
    assert torch.equal(noise, coupling(x.clone(), seed=3, step=4, first_sample=8))
    for other in ({"seed": 4}, {"step": 5}, {"first_sample": 14}):
        assert not torch.equal(noise, coupling(x, **({"seed": 3, "step": 4, "first_sample": 8} | other)))


@pytest.mark.parametrize("coupling", COUPLINGS, ids=repr)
def test_strided_data_gives_the_same_noise(coupling: Coupling) -> None:
    x = data(6, 4, 5, 3)
    strided = x.to(memory_format=torch.channels_last)
    assert torch.equal(coupling(x, seed=3), coupling(strided, seed=3))
    assert torch.equal(coupling(x[::2], seed=3), coupling(x[::2].contiguous(), seed=3))


@pytest.mark.parametrize("coupling", [Independent(), KNN(4), KNN(4, "dot"), KNN(3, center=torch.full((5,), 0.3))])
def test_rows_are_independent_of_the_batch_split(coupling: Coupling) -> None:
    x = data(9, 5)
    mask = data(9, 5, seed=1) > -0.5
    for options in ({}, {"mask": mask}):
        whole = coupling(x, seed=1, step=2, first_sample=10, **options)
        parts = [
            coupling(x[a:b], seed=1, step=2, first_sample=10 + a, **{k: m[a:b] for k, m in options.items()})
            for a, b in ((0, 4), (4, 5), (5, 9))
        ]
        assert torch.equal(whole, torch.cat(parts))


@pytest.mark.parametrize(
    "coupling",
    [*COUPLINGS, Hungarian("across", pool=9), KNN(2, "dot", center=torch.tensor([[0.1, 1 / 3], [0.7, 2.0]]))],
    ids=repr,
)
def test_description_survives_a_round_trip(coupling: Coupling) -> None:
    again = coupling_from_dict(coupling.to_dict())
    assert again == coupling
    assert hash(again) == hash(coupling)
    if not (isinstance(coupling, KNN) and isinstance(coupling.center, Tensor)):
        assert coupling != KNN(17)
    x = data(8, 2, 2)
    assert torch.equal(again(x, seed=5), coupling(x, seed=5))


# Hungarian.


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


# KNN: the law.


def expected_maximum(k: int) -> float:
    """E max of k standard normals."""
    z = np.linspace(-10, 10, 200_001)
    return float(np.sum(z * k * norm.pdf(z) * norm.cdf(z) ** (k - 1)) * (z[1] - z[0]))


@pytest.mark.parametrize("k", [4, 8, 64])
@pytest.mark.parametrize("spread", [0.5, 1.0])
def test_norm_and_shift_of_the_nearest_are_as_predicted(k: int, spread: float) -> None:
    # methods: E|n|^2 / D falls by 2 m_k / (sqrt(D) sqrt(2 + 4 s^2)), <n, u> rises to m_k 2 s / sqrt(2 + 4 s^2).
    batch, size = 4096, 768
    x = spread * data(batch, size)
    unit = x / x.norm(dim=1, keepdim=True)
    largest, root = expected_maximum(k), math.sqrt(2 + 4 * spread**2)

    noise = KNN(k)(x, seed=11)
    drop = 1 - noise.square().mean().item()
    shift = (noise * unit).sum(1).mean().item()
    # Four standard errors, and 3 % for what the normal approximation of chi^2 leaves out.
    expected_drop = 2 * largest / (math.sqrt(size) * root)
    assert drop == pytest.approx(expected_drop, abs=4 * math.sqrt(2 / size / batch) + 0.03 * expected_drop)
    expected_shift = largest * 2 * spread / root
    assert shift == pytest.approx(expected_shift, abs=4 / math.sqrt(batch) + 0.03 * expected_shift)

    noise = KNN(k, "dot")(x, seed=11)
    assert (noise * unit).sum(1).mean().item() == pytest.approx(largest, abs=4 / math.sqrt(batch))
    # E a^2 of the largest of k is above 1, by less than its square.
    assert noise.square().mean().item() == pytest.approx(1, abs=4 * math.sqrt(2 / size / batch) + largest**2 / size)


def literal(x: Tensor, k: int, metric: str, seed: int) -> Tensor:
    """The paper's algorithm: draw k noises, keep the best."""
    candidates = data(len(x), k, *x.shape[1:], seed=seed)
    if metric == "l2":
        score = -(x.unsqueeze(1) - candidates).square().flatten(2).sum(2)
    else:
        score = (x.unsqueeze(1) * candidates).flatten(2).sum(2)
    return candidates[torch.arange(len(x)), score.argmax(1)]


def same_law(one: Tensor, other: Tensor, along: Tensor) -> None:
    """KS tests on the projection along a vector, on the norm and on two coordinates; seeds are fixed."""
    for a, b in (
        (one @ along, other @ along),
        (one.norm(dim=1), other.norm(dim=1)),
        (one[:, 0], other[:, 0]),
        (one[:, -1], other[:, -1]),
    ):
        assert ks_2samp(a.numpy(), b.numpy()).pvalue > 1e-3


@pytest.mark.parametrize("metric", ["l2", "dot"])
@pytest.mark.parametrize("size", [1, 2, 5, 40])
@pytest.mark.parametrize("k", [2, 9])
def test_nearest_has_the_law_of_the_literal_algorithm(metric: str, size: int, k: int) -> None:
    one = 0.8 * data(1, size, seed=size)
    x = one.expand(4000, size)
    same_law(KNN(k, metric)(x, seed=5), literal(x, k, metric, seed=6), one[0])


def test_the_law_test_tells_another_k() -> None:
    one = 0.8 * data(1, 5)
    x = one.expand(4000, 5)
    with pytest.raises(AssertionError):
        same_law(KNN(3)(x, seed=5), literal(x, 2, "l2", seed=6), one[0])


@pytest.mark.parametrize("metric", ["l2", "dot"])
def test_a_centre_ranks_by_what_is_left_of_the_data(metric: str) -> None:
    center = torch.tensor([1.5, -0.5, 0.2])
    x = torch.tensor([[1.0, 0.5, -0.4]]).expand(4000, 3)
    noise = KNN(6, metric, center)(x, seed=5)
    same_law(noise, literal(x - center, 6, metric, seed=6), (x - center)[0])
    assert torch.equal(noise, KNN(6, metric)(x - center, seed=5))


def test_half_precision_is_centred_in_float32() -> None:
    x, center = data(50, 30, dtype=torch.bfloat16) + 3, torch.full((30,), 3.001)
    assert torch.equal(KNN(4, center=center)(x, seed=1), KNN(4)(x.float() - center, seed=1).bfloat16())


def test_the_batch_mean_as_a_centre_takes_out_a_common_shift() -> None:
    x = data(2000, 30) + 2
    shifted = KNN(8)(x, seed=1).mean().item()
    centred = KNN(8, center="mean")(x, seed=1)
    assert shifted > 0.2
    assert abs(centred.mean().item()) < 4 / math.sqrt(centred.numel())
    assert torch.equal(centred, KNN(8, center=x.mean(0))(x, seed=1))


@pytest.mark.parametrize("metric", ["l2", "dot"])
def test_under_a_mask_the_law_is_that_of_the_real_elements(metric: str) -> None:
    one = torch.tensor([0.7, 30.0, -1.1, 0.4, -50.0])
    real = torch.tensor([True, False, True, True, False])
    x, mask = one.expand(4000, 5), real.expand(4000, 5)
    noise = KNN(6, metric)(x, seed=5, mask=mask)
    same_law(noise[:, real], literal(x[:, real], 6, metric, seed=6), one[real])
    for padding in noise[:, ~real].T:
        assert kstest(padding.numpy(), "norm").pvalue > 1e-3
    correlation = torch.corrcoef(noise.T)
    assert correlation[~real][:, real].abs().max() < 4 / math.sqrt(4000)


def test_padding_does_not_decide_the_nearest() -> None:
    x = data(10, 6, 2)
    mask = torch.arange(6) < torch.tensor([2, 2, 6, 0, 3]).repeat(2).unsqueeze(1)
    spoiled = torch.where(mask.unsqueeze(-1), x, torch.nan)
    for coupling in (KNN(5), KNN(5, "dot"), KNN(5, center="mean"), KNN(5, center=torch.full((2,), 0.2))):
        noise = coupling(x, seed=1, step=3, mask=mask)
        assert torch.equal(coupling(spoiled, seed=1, step=3, mask=mask), noise)
        assert bool(torch.isfinite(noise).all())
        candidates = data(10, 5, 6, 2, seed=4)
        assert torch.equal(coupling.pair(x, candidates, mask=mask), coupling.pair(spoiled, candidates, mask=mask))
    everything = torch.ones(10, 6, dtype=torch.bool)
    assert torch.equal(KNN(5)(x, seed=1, mask=everything), KNN(5)(x, seed=1))


def test_data_of_zeros_has_noise() -> None:
    noise = KNN(4)(torch.zeros(50, 7), seed=1)
    assert bool(torch.isfinite(noise).all())
    assert noise.square().mean() < 1


# KNN: given candidates.


@pytest.mark.parametrize("metric", ["l2", "dot"])
def test_given_candidates_are_ranked_literally(metric: str) -> None:
    x, candidates = data(9, 2, 3), data(9, 4, 2, 3, seed=1)
    assert torch.equal(KNN(4, metric).pair(x, candidates), literal(x, 4, metric, seed=1))
    pool = data(6, 2, 3, seed=2)
    shared = KNN(6, metric).pair(x, pool)
    assert torch.equal(shared, KNN(6, metric).pair(x, pool.expand(9, 6, 2, 3)))
    mask = torch.tensor([[True, False]]).expand(9, 2)
    masked = KNN(6, metric).pair(x, pool, mask=mask)
    alone = KNN(6, metric).pair(x[:, :1], pool[:, :1])
    assert torch.equal(masked[:, :1], alone)
    half = KNN(6, metric).pair(x.half(), pool.half())
    assert half.dtype == torch.float16
    assert half.shape == x.shape


def test_given_candidates_under_a_centre() -> None:
    x, candidates = data(9, 6), data(9, 4, 6, seed=1)
    center = torch.full((6,), 2.0)
    assert torch.equal(KNN(4, center=center).pair(x, candidates), KNN(4).pair(x - center, candidates))


def test_given_noise_never_brings_a_gradient() -> None:
    x = data(5, 3).requires_grad_()
    noise = data(5, 3, seed=1).requires_grad_()
    assert not Hungarian().pair(x, noise).requires_grad
    assert not KNN(5).pair(x, noise).requires_grad
    assert Independent().pair(x, noise) is noise


def test_no_candidates_for_an_empty_batch() -> None:
    assert KNN(3).pair(torch.empty(0, 4), data(3, 4)).shape == (0, 4)
    assert Hungarian().pair(torch.empty(0, 4), data(3, 4)).shape == (0, 4)
    assert Hungarian(pool=5)(torch.empty(0, 4)).shape == (0, 4)


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


# A cheaper space.


@pytest.mark.parametrize("projection", ["pool", "random"])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_a_projection_that_saves_nothing_is_the_exact_search(projection: str, dtype: torch.dtype) -> None:
    x, labels = data(24, 3, 4, 6, dtype=dtype), torch.arange(24) % 3
    for pool in (None, 50):
        for options in ({}, {"labels": labels}):
            exact = Hungarian(pool=pool)(x, seed=1, step=2, **options)
            for project in (72, 1000):
                cheap = Hungarian(pool=pool, project=project, projection=projection)
                assert torch.equal(cheap(x, seed=1, step=2, **options), exact)


def test_pooling_is_the_assignment_of_the_projections() -> None:
    x, noise = data(20, 2, 4, 6), data(20, 2, 4, 6, seed=1)
    means = torch.nn.functional.avg_pool2d
    # 48 numbers, pooled 2 by 2 to 12.
    for project in (12, 47):
        paired = Hungarian(project=project).pair(x, noise)
        order = [rows(noise).index(tuple(row)) for row in paired.flatten(1).tolist()]
        same = Hungarian().pair(means(x, 2), means(noise, 2))
        assert [rows(noise).index(tuple(row)) for row in _by_means(noise, same).flatten(1).tolist()] == order
    assert torch.equal(Hungarian(project=12).pair(x.double(), noise.double()).float(), paired)


def _by_means(noise: Tensor, means: Tensor) -> Tensor:
    """The noises that have the means."""
    table = torch.nn.functional.avg_pool2d(noise, 2).flatten(1)
    return noise[torch.stack([(table - mean).abs().sum(1).argmin() for mean in means.flatten(1)])]


def test_images_that_are_constant_in_windows_lose_nothing_by_pooling() -> None:
    x = data(30, 3, 4, 4).repeat_interleave(2, 2).repeat_interleave(2, 3)
    for options in ({}, {"labels": torch.arange(30) % 4}):
        for pool in (None, 70):  # the length of the whole noise counts
            exact, cheap = Hungarian(pool=pool), Hungarian(pool=pool, project=48)
            assert torch.equal(cheap(x, seed=1, **options), exact(x, seed=1, **options))


@pytest.mark.parametrize("projection", ["pool", "random"])
def test_a_cheaper_space_keeps_some_of_the_gain(projection: str) -> None:
    coarse = data(64, 3, 4, 4).repeat_interleave(2, 2).repeat_interleave(2, 3)
    x = coarse + 0.3 * data(64, 3, 8, 8, seed=1)
    plain, exact = gaussian_noise(x, 1), Hungarian()(x, seed=1)
    cheap = Hungarian(project=48, projection=projection)(x, seed=1)
    assert rows(cheap) == rows(plain)
    share = (total(x, plain) - total(x, cheap)) / (total(x, plain) - total(x, exact))
    assert (0.9 if projection == "pool" else 0.1) < share < 1


def test_a_random_projection_is_the_same_in_every_call() -> None:
    x = data(40, 30)
    coupling = Hungarian(project=10, projection="random")
    assert torch.equal(coupling(x, seed=1), coupling_from_dict(coupling.to_dict())(x.clone(), seed=1))


def test_descriptions_of_before_projections_are_read() -> None:
    assert Hungarian().to_dict() == {"name": "hungarian", "labels": "within", "pool": None}
    assert coupling_from_dict({"name": "hungarian", "labels": "within", "pool": None}) == Hungarian()
    assert Hungarian(project=9).to_dict() == {
        "name": "hungarian",
        "labels": "within",
        "pool": None,
        "project": 9,
        "projection": "pool",
    }
    assert Hungarian(project=9) != Hungarian()
    with pytest.raises(ValueError, match="a hungarian description has the fields"):
        coupling_from_dict({"name": "hungarian", "labels": "within", "pool": None, "speed": 3})


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


# Sentences.


@pytest.mark.parametrize(
    ("make", "error", "sentence"),
    [
        (lambda: Hungarian("both"), ValueError, "labels must be 'within' or 'across', got 'both'"),
        (lambda: Hungarian(pool=0), ValueError, "pool must be at least 1, got 0"),
        (lambda: Hungarian(pool=2.0), TypeError, "pool must be an int, got float"),
        (lambda: Hungarian(project=0), ValueError, "project must be at least 1, got 0"),
        (
            lambda: Hungarian(project=9, projection="pca"),
            ValueError,
            "projection must be 'pool' or 'random', got 'pca'",
        ),
        (lambda: Sinkhorn(0), ValueError, "epsilon must be positive and finite, got 0"),
        (lambda: Sinkhorn(math.inf), ValueError, "epsilon must be positive and finite, got inf"),
        (lambda: Sinkhorn(math.nan), ValueError, "epsilon must be positive and finite, got nan"),
        (lambda: Sinkhorn("0.1"), TypeError, "epsilon must be a number, got str"),
        (lambda: Sinkhorn(iterations=-1), ValueError, "iterations must be at least 0, got -1"),
        (lambda: Sinkhorn(iterations=1.5), TypeError, "iterations must be an int, got float"),
        (lambda: Sinkhorn(output="plan"), ValueError, "output must be 'permutation' or 'sampled', got 'plan'"),
        (lambda: Sinkhorn(stride=0), ValueError, "stride must be at least 1, got 0"),
        (lambda: Sinkhorn(candidates=1), ValueError, "candidates must be at least 2, got 1"),
        (lambda: Sinkhorn(labels="both"), ValueError, "labels must be 'within' or 'across', got 'both'"),
        (lambda: Sinkhorn(project=0), ValueError, "project must be at least 1, got 0"),
        (lambda: Sinkhorn(projection="pca"), ValueError, "projection must be 'pool' or 'random', got 'pca'"),
        (lambda: KNN(0), ValueError, "k must be at least 1, got 0"),
        (lambda: KNN(True), TypeError, "k must be an int, got bool"),
        (lambda: KNN(2, "cosine"), ValueError, "metric must be 'l2' or 'dot', got 'cosine'"),
        (lambda: KNN(2, center="median"), ValueError, "center must be None, 'mean' or a tensor, got 'median'"),
        (lambda: KNN(2, center=3), TypeError, "center must be None, 'mean' or a floating-point tensor, got int"),
        (lambda: KNN(2, center=torch.tensor([torch.inf])), ValueError, "center must be finite"),
        (lambda: Scaled(0.0), ValueError, "factor must be positive and finite, got 0.0"),
        (lambda: Scaled("2"), TypeError, "factor must be a number, got str"),
        (lambda: Scaled(2.0, "knn"), TypeError, "coupling must be a Coupling, got str"),
        (lambda: Standardized(None), TypeError, "coupling must be a Coupling, got NoneType"),
        (lambda: Standardized(KNN(2), torch.ones(1)), ValueError, "mean and std come together, got mean without std"),
        (lambda: Standardized(KNN(2), std=torch.ones(1)), ValueError, "come together, got std without mean"),
        (lambda: Standardized(KNN(2), 0.0, 1.0), TypeError, "mean must be None or a floating-point tensor, got float"),
        (lambda: Standardized(KNN(2), torch.zeros(1), -torch.ones(1)), ValueError, "std must be at least 0, got -1.0"),
        (lambda: Standardized(KNN(2), torch.zeros(1) / 0, torch.ones(1)), ValueError, "mean must be finite"),
        (lambda: Standardized(WarmUp(1, Distributed(KNN(2)))), ValueError, "needs mean and std around Distributed"),
        (
            lambda: Standardized(KNN(2), torch.zeros(2), torch.ones(2))(data(4, 3)),
            ValueError,
            r"mean must broadcast to one sample \(3,\), got \(2,\)",
        ),
        (lambda: WarmUp(-1, KNN(2)), ValueError, "start_step must be at least 0, got -1"),
        (lambda: WarmUp(1.5, KNN(2)), TypeError, "start_step must be an int, got float"),
        (lambda: WarmUp(1, None), TypeError, "coupling must be a Coupling, got NoneType"),
        (lambda: coupling_from_dict([]), TypeError, "a coupling is described by a dict, got list"),
        (lambda: coupling_from_dict({"name": "nearest"}), ValueError, "unknown coupling 'nearest'; known: distributed"),
        (lambda: coupling_from_dict({"name": "knn", "k": 2}), ValueError, "a knn description has the fields"),
    ],
)
def test_bad_settings(make, error: type[Exception], sentence: str) -> None:
    with pytest.raises(error, match=sentence):
        make()


@pytest.mark.parametrize(
    ("call", "error", "sentence"),
    [
        (lambda x: Independent()(x.long()), TypeError, "x must be a floating-point tensor, got torch.int64"),
        (lambda x: Independent()([1.0]), TypeError, "x must be a floating-point tensor, got list"),
        (lambda x: Independent()(x[0, 0]), ValueError, "x must have a batch dimension, got a scalar"),
        (lambda x: Hungarian()(x, labels=x[:, 0]), TypeError, "labels must be integers, got dtype torch.float32"),
        (lambda x: Hungarian()(x, labels=torch.zeros(3, dtype=int)), ValueError, r"labels must have shape \(4,\)"),
        (lambda x: KNN(2)(x, mask=torch.ones(4, 3)), TypeError, "mask must be bool, True at real elements"),
        (lambda x: KNN(2)(x, mask=torch.ones(3, 4) > 0), ValueError, "mask must have the leading dimensions of x"),
        (lambda x: KNN(2)(x, mask=torch.ones(4, 3, 1) > 0), ValueError, "mask must have the leading dimensions of x"),
        (lambda x: KNN(2, center=torch.zeros(2))(x), ValueError, r"center must broadcast to one sample \(3,\)"),
        (lambda x: Hungarian(pool=3)(x), ValueError, "pool must be at least the batch size 4, got 3"),
        (lambda x: Hungarian()(x * torch.nan), ValueError, "NaN"),
        (lambda x: Sinkhorn()(x * torch.nan), ValueError, "x and noise must be finite, got NaN or infinity"),
        (lambda x: Sinkhorn().pair(x, x / 0), ValueError, "x and noise must be finite, got NaN or infinity"),
        (lambda x: Sinkhorn().pair(x, x[:3]), ValueError, r"noise must have the shape of x, \(4, 3\), got \(3, 3\)"),
        (
            lambda x: Sinkhorn(project=2, projection="random")(x, mask=x > 0),
            ValueError,
            "a search in a cheaper space does not go with a mask, got project=2",
        ),
        (lambda x: Hungarian(project=2)(x), ValueError, r"needs samples of two dimensions or more, got \(3,\)"),
        (
            lambda x: Hungarian(project=2)(x.expand(2, 4, 4, 3).repeat(1, 1, 1, 4)),
            ValueError,
            r"shape \(4, 4, 12\) can be pooled to 192, 48, 12 numbers, none of which is at most project=2",
        ),
        (
            lambda x: Hungarian(project=2, projection="random")(x, mask=x > 0),
            ValueError,
            "a search in a cheaper space does not go with a mask, got project=2",
        ),
        (lambda x: Hungarian().pair(x, x[:3]), ValueError, r"noise must be \[P, \*\] with P >= 4 and rows of shape"),
        (lambda x: Hungarian().pair(x, x.tolist()), TypeError, "noise must be a tensor, got list"),
        (lambda x: Hungarian()(x, labels=[1, 2, 3, 4]), TypeError, "labels must be integers, got list"),
        (lambda x: KNN(2)(x, mask=[True] * 4), TypeError, "mask must be bool, True at real elements, got list"),
        (lambda x: Hungarian().pair(x, x.double()), TypeError, "the dtype of x, torch.float32, got torch.float64"),
        (lambda x: KNN(2).pair(x, x[:2].long()), TypeError, "the dtype of x, torch.float32, got torch.int64"),
        (lambda x: KNN(2).pair(x, x[:2].to("meta")), ValueError, "noise must be on the device of x, cpu, got meta"),
        (lambda x: Hungarian().pair(x, x.to("meta")), ValueError, "noise must be on the device of x, cpu, got meta"),
        (lambda x: Hungarian().pair(x, x, labels=torch.arange(5)), ValueError, r"must have shape \(4,\), got \(5,\)"),
        (
            lambda x: Hungarian().pair(x, x, labels=torch.arange(4), noise_labels=torch.arange(3)),
            ValueError,
            r"noise_labels must have shape \(4,\), got \(3,\)",
        ),
        (lambda x: Hungarian().pair(x, x, noise_labels=torch.arange(4)), ValueError, "need the labels of the rows"),
        (
            lambda x: Hungarian().pair(
                x, x, labels=torch.tensor([7, 7, 7, 2]), noise_labels=torch.tensor([2, 7, 2, 7])
            ),
            ValueError,
            "class 7 has 3 rows but only 2 noises",
        ),
        (
            lambda x: Hungarian().pair(x, x, labels=torch.tensor([1, 8, 1, 1]), noise_labels=torch.zeros(4).long() + 1),
            ValueError,
            "class 8 has 1 rows but only 0 noises",
        ),
        (lambda x: Independent().pair(x, x[:3]), ValueError, r"noise must have the shape of x, \(4, 3\), got \(3, 3\)"),
        (lambda x: KNN(5).pair(x, x), ValueError, r"noise must be \[B, k, \*\] = \(4, 5, 3\) or \[k, \*\] = \(5, 3\)"),
    ],
)
def test_bad_input(call, error: type[Exception], sentence: str) -> None:
    with pytest.raises(error, match=sentence):
        call(data(4, 3))


# On a GPU.


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("coupling", COUPLINGS, ids=repr)
def test_the_gpu_draws_what_the_cpu_draws(coupling: Coupling) -> None:
    x, labels = data(24, 6, 3), torch.arange(24) % 5
    mask = torch.arange(6) < torch.arange(24).remainder(6).add(1).unsqueeze(1)
    for options in ({}, {"labels": labels}, {"mask": mask}):
        host = coupling(x, seed=1, step=2, **options)
        device = coupling(x.cuda(), seed=1, step=2, **{key: value.cuda() for key, value in options.items()})
        assert device.is_cuda
        assert torch.allclose(device.cpu(), host, atol=1e-4)
