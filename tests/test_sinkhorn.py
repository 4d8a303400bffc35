"""Sinkhorn: the plan against a dense float64 one, memory, the rounding to a permutation, samples of the plan."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from pydiffaccel.coupling import Hungarian, Sinkhorn, _transport, sinkhorn_potentials
from pydiffaccel.coupling._transport import Scores, auction, candidates, column_potentials, sampled
from pydiffaccel.noise import gaussian_noise
from pydiffaccel.ops import hungarian
from tests.coupling.samples import data, rows, total


def images(count: int, side: int = 16, seed: int = 0) -> Tensor:
    """Smooth random images of different brightness and contrast, ``[count, 3, side, side]``."""
    coarse = data(count, 3, side // 4, side // 4, seed=seed)
    smooth = torch.nn.functional.interpolate(coarse, size=(side, side), mode="bilinear")
    contrast = 0.2 + data(count, 1, 1, 1, seed=seed + 1).abs()
    return (0.5 * contrast * smooth + 0.3 * data(count, 1, 1, 1, seed=seed + 2)).clamp(-1, 1)


def dense(x: Tensor, noise: Tensor, epsilon: float, iterations: int) -> tuple[Tensor, Tensor, Tensor]:
    """(f, g, s) by the definition: both halves on the whole matrix, in the logarithm; then the row's half."""
    score = x @ noise.T
    deviation = (x - x.mean(0)).square().sum(1).mean().sqrt()
    unit = epsilon * deviation
    g = -noise @ x.mean(0)

    def rows_half() -> Tensor:
        return -unit * ((score + g) / unit).logsumexp(1).sub(math.log(len(noise)))

    for _ in range(iterations):
        g = -unit * ((score + rows_half()[:, None]) / unit).logsumexp(0).sub(math.log(len(x)))
    return rows_half(), g, deviation


def plan(x: Tensor, noise: Tensor, epsilon: float, found: tuple[Tensor, Tensor, Tensor]) -> Tensor:
    f, g, deviation = found
    logits = (x @ noise.T + f[:, None] + g) / (epsilon * deviation)
    return logits.double().exp() / (len(x) * len(noise))


# The plan.


@pytest.mark.parametrize(("size", "noises"), [(2, 1), (7, 3), (40, 40), (300, 211)])
@pytest.mark.parametrize("epsilon", [2.0, 0.3, 0.05])
@pytest.mark.parametrize("iterations", [0, 1, 7])
def test_potentials_are_those_of_the_definition(size: int, noises: int, epsilon: float, iterations: int) -> None:
    x = data(size, 6, seed=1, dtype=torch.float64) + 2
    noise = data(noises, 6, seed=2, dtype=torch.float64)
    found = sinkhorn_potentials(x, noise, epsilon, iterations)
    for ours, expected in zip(found, dense(x, noise, epsilon, iterations), strict=True):
        torch.testing.assert_close(ours, expected, rtol=1e-9, atol=1e-9)
    single = sinkhorn_potentials(x.float(), noise.float(), epsilon, iterations)
    for ours, exact in zip(single, found, strict=True):
        assert ours.dtype == torch.float32
        torch.testing.assert_close(ours, exact.float(), rtol=2e-4, atol=2e-4)


def test_marginals_converge() -> None:
    x, noise = data(500, 20, seed=1), data(400, 20, seed=2)
    errors = []
    for iterations in (0, 1, 4, 16, 64):
        whole = plan(x, noise, 0.2, sinkhorn_potentials(x, noise, 0.2, iterations))
        torch.testing.assert_close(whole.sum(1), torch.full((500,), 1 / 500, dtype=torch.float64), rtol=1e-4, atol=0)
        errors.append(float((whole.sum(0) * 400 - 1).abs().mean()))
    assert all(later < 0.8 * earlier for earlier, later in itertools.pairwise(errors))
    assert errors[-1] < 0.01


def test_potentials_go_on_where_they_stopped() -> None:
    x, noise = data(90, 8, dtype=torch.float64), data(90, 8, seed=1, dtype=torch.float64)
    first = sinkhorn_potentials(x, noise, 0.2, 3)
    again = sinkhorn_potentials(x, noise, 0.2, 4, start=first[1])
    for ours, expected in zip(again, sinkhorn_potentials(x, noise, 0.2, 7), strict=True):
        torch.testing.assert_close(ours, expected, rtol=1e-9, atol=1e-9)


def test_some_rows_tell_the_potentials_of_all() -> None:
    x, noise = images(4096).flatten(1), data(256, 768, seed=5)
    whole = sinkhorn_potentials(x, noise, 1.0, 6)[1]
    some = sinkhorn_potentials(x, noise, 1.0, 6, stride=8)[1]
    assert not torch.equal(whole, some)
    assert float(torch.corrcoef(torch.stack([whole, some]))[0, 1]) > 0.95


@pytest.mark.parametrize("size", [1, 6])
def test_equal_rows_have_the_uniform_plan(size: int) -> None:
    x, noise = torch.full((size, 3), 0.7), data(5, 3)
    f, g, deviation = sinkhorn_potentials(x, noise, 0.1, 3, start=torch.ones(5))
    assert float(deviation) == 0
    torch.testing.assert_close(x @ noise.T + f[:, None] + g, torch.zeros(size, 5), rtol=0, atol=1e-6)


def test_the_cost_of_the_plan_falls_to_the_exact_one() -> None:
    x, noise = images(300).flatten(1).double(), data(300, 768, seed=5, dtype=torch.float64)
    score = x @ noise.T
    best = float(score.gather(1, hungarian(-score)[:, None]).mean())
    shares = []
    for epsilon in (1.0, 0.3, 0.1, 0.03):
        weights = plan(x, noise, epsilon, sinkhorn_potentials(x, noise, epsilon, 200))
        shares.append(float((weights * score).sum()) / best)
    assert shares == sorted(shares)
    assert shares[0] < 0.9
    assert 0.98 < shares[-1] <= 1.01  # column sums are not quite met yet


# Samples of the plan.


@pytest.mark.parametrize("noises", [1, 2, 37, 40])
def test_samples_follow_the_plan(noises: int) -> None:
    x, noise = data(7, 5, dtype=torch.float64), data(noises, 5, seed=1, dtype=torch.float64)
    scores, draws = Scores(x, noise), 1000
    columns = column_potentials(scores, 0.5, 3, 1, x.new_zeros(noises))
    counts = torch.zeros(7, noises, dtype=torch.float64)
    for draw in range(draws):
        uniforms = torch.full((7,), (draw + 0.5) / draws, dtype=torch.float64)
        counts[torch.arange(7), sampled(scores, 0.5, columns, uniforms)] += 1
    expected = 7 * plan(x, noise, 0.5, sinkhorn_potentials(x, noise, 0.5, 3))
    torch.testing.assert_close(counts / draws, expected, rtol=0, atol=1.01 / draws)


def test_samples_are_drawn_by_seed_step_and_row() -> None:
    coupling = Sinkhorn(0.5, 4, "sampled")
    x = data(200, 12)
    noise = coupling(x, seed=1, step=2)
    plain = gaussian_noise(x, 1, 2)
    assert set(rows(noise)) < set(rows(plain))
    assert total(x, noise) < total(x, plain)
    assert torch.equal(coupling.pair(x, plain), coupling.pair(x, plain))
    # The same problem with other uniforms.
    others = [torch.equal(coupling._choose(x, plain, None, None, (5, step, 0)), noise) for step in range(3)]
    assert not any(others)


# Permutations.


@pytest.mark.parametrize("count", [2, 5, 16])
@pytest.mark.parametrize("noises", [16, 17, 31, 32, 33, 255, 600])
def test_candidates_are_the_best_of_the_plan(noises: int, count: int) -> None:
    x, noise = data(70, 9, dtype=torch.float64), data(noises, 9, seed=1, dtype=torch.float64)
    columns = data(noises, seed=2, dtype=torch.float64)
    scores = Scores(x, noise)
    logits = (x - x.mean(0)) @ noise.T / (0.3 * scores.deviation) + columns
    expected = logits.topk(count, 1)
    values, places = candidates(scores, 0.3, columns, count)
    torch.testing.assert_close(values, expected.values)
    assert torch.equal(places, expected.indices)


@pytest.mark.parametrize("size", [2, 3, 17, 60])
def test_the_auction_is_within_its_step_of_the_best(size: int) -> None:
    values = data(size, size, dtype=torch.float64)
    step = torch.tensor(0.01, dtype=torch.float64)
    order = values.sort(1, descending=True)
    chosen, row_of = auction(order.values, order.indices, step, size)
    assert torch.equal(row_of[chosen], torch.arange(size))
    best = values.gather(1, hungarian(values, maximize=True)[:, None]).sum()
    assert values.gather(1, chosen[:, None]).sum() >= best - size * step


def test_the_auction_leaves_free_what_finds_nothing() -> None:
    places = torch.tensor([[0, 1]] * 5)
    values = torch.tensor([[3.0, 1.0]] * 5)
    chosen, row_of = auction(values, places, torch.tensor(0.1), 6)
    taken = (chosen >= 0).nonzero()[:, 0]
    assert sorted(chosen[taken].tolist()) == [0, 1]
    assert torch.equal(row_of[chosen[taken]], taken)
    assert row_of[2:].tolist() == [-1] * 4


@pytest.mark.parametrize(
    "coupling",
    [Sinkhorn(), Sinkhorn(0.1, 4), Sinkhorn(candidates=2), Sinkhorn(project=48), Sinkhorn(1e-4), Sinkhorn(1e4)],
    ids=repr,
)
def test_noises_are_permuted(coupling: Sinkhorn) -> None:
    x = images(257)
    plain = gaussian_noise(x, 1, 2)
    noise = coupling(x, seed=1, step=2)
    assert rows(noise) == rows(plain)
    assert total(x, noise) < total(x, plain)
    assert torch.equal(noise, coupling(x, seed=1, step=2))
    assert torch.equal(noise, coupling.pair(x, plain))


@pytest.mark.parametrize(
    ("coupling", "share"),
    [(Sinkhorn(), 0.99), (Sinkhorn(0.1, 6), 0.99), (Sinkhorn(project=48), 0.9), (Sinkhorn(candidates=8), 0.97)],
    ids=repr,
)
def test_the_gain_is_near_the_exact_one(coupling: Sinkhorn, share: float) -> None:
    x = images(1200)
    plain, exact = total(x, gaussian_noise(x, 3)), total(x, Hungarian()(x, seed=3))
    assert share * (plain - exact) < plain - total(x, coupling(x, seed=3)) <= (plain - exact) * (1 + 1e-6)


@pytest.mark.parametrize("offset", [0.0, 1e4])
def test_what_all_rows_share_does_not_count(offset: float) -> None:
    x, noise = images(300).double(), gaussian_noise(images(300).double(), 1)
    assert torch.equal(Sinkhorn().pair(x + offset, noise), Sinkhorn().pair(x, noise))


@pytest.mark.parametrize("scale", [1e-12, 1e12])
def test_the_scale_of_the_data_does_not_count(scale: float) -> None:
    x = images(300)
    power = 2.0 ** round(torch.tensor(scale).log2().item())
    assert torch.equal(Sinkhorn()(x * power, seed=1), Sinkhorn()(x, seed=1))


def hard_batches() -> dict[str, Tensor]:
    few = images(5).repeat(60, 1, 1, 1)
    return {
        "all equal": torch.full((300, 3, 4, 4), 0.3),
        "all zero": torch.zeros(300, 3, 4, 4),
        "five images": few,
        "one apart": torch.cat([torch.zeros(299, 3, 4, 4), torch.full((1, 3, 4, 4), 9.0)]),
        "heavy tails": data(300, 3, 4, 4).pow(9),
        "one element": data(300, 1),
        "two rows": data(2, 7),
    }


@pytest.mark.parametrize("name", hard_batches())
@pytest.mark.parametrize(
    "limits", [{}, {"_DENSE": 16, "_AUCTION_ROUNDS": 4}, {"_DENSE": 1, "_AUCTION_ROUNDS": 0}], ids=str
)
def test_every_row_gets_a_noise(name: str, limits: dict[str, int], monkeypatch: pytest.MonkeyPatch) -> None:
    for limit, value in limits.items():
        monkeypatch.setattr(_transport, limit, value)
    x = hard_batches()[name]
    plain = gaussian_noise(x, 1)
    for coupling in (Sinkhorn(), Sinkhorn(0.01, 3), Sinkhorn(candidates=2)):
        noise = coupling(x, seed=1)
        assert rows(noise) == rows(plain)
    assert Sinkhorn(output="sampled")(x, seed=1).isfinite().all()


@pytest.mark.parametrize(("batch", "share"), [(700, 0.96), (2500, 0.97)])
@pytest.mark.parametrize("dimensions", [1, 2, 3, 5])
def test_few_dimensions(dimensions: int, batch: int, share: float) -> None:
    """There the candidates of a row are those of its neighbours, too, and many rows are left over."""
    x, noise = data(batch, dimensions), data(batch, dimensions, seed=1)
    plain, exact = total(x, noise), total(x, Hungarian().pair(x, noise))
    assert share * (plain - exact) < plain - total(x, Sinkhorn().pair(x, noise)) <= (plain - exact) * (1 + 1e-6)


def test_padding_may_be_anything() -> None:
    mask = (torch.arange(6) < 3).expand(40, 6)
    x = torch.where(mask, data(40, 6), torch.nan)
    assert torch.equal(Sinkhorn()(x, mask=mask), Sinkhorn()(x.nan_to_num(7.0), mask=mask))


def test_rows_left_over_are_a_problem_of_the_same_kind(monkeypatch: pytest.MonkeyPatch) -> None:
    x, solved = images(600), []
    whole = _transport.permutation

    def counted(cheap: Scores, *arguments: object) -> Tensor:
        solved.append(len(cheap.x))
        return whole(cheap, *arguments)

    monkeypatch.setattr("pydiffaccel.coupling.sinkhorn.permutation", counted)
    monkeypatch.setattr(_transport, "permutation", counted)
    monkeypatch.setattr(_transport, "_DENSE", 20)
    monkeypatch.setattr(_transport, "_AUCTION_ROUNDS", 2)
    noise = Sinkhorn().pair(x, gaussian_noise(x, 1))
    assert rows(noise) == rows(gaussian_noise(x, 1))
    assert len(solved) > 2
    assert all(later <= earlier // 2 for earlier, later in itertools.pairwise(solved))


# Labels and masks.


@pytest.mark.parametrize("output", ["permutation", "sampled"])
def test_labels_within_never_cross(output: str) -> None:
    coupling = Sinkhorn(output=output)
    x, noise = data(41, 6), data(41, 6, seed=1)
    labels = torch.tensor([3, 7, 7, 0, 3, 9, 3] * 5 + [0, 0, 12, 9, 9, 9])
    paired = coupling.pair(x, noise, labels=labels)
    for label in labels.unique():
        own = labels == label
        assert set(rows(paired[own])) <= set(rows(noise[own]))
        if output == "permutation":
            assert torch.equal(paired[own], coupling.pair(x[own], noise[own]))
    across = Sinkhorn(output=output, labels="across").pair(x, noise, labels=labels)
    assert torch.equal(across, coupling.pair(x, noise))


def test_padding_does_not_decide() -> None:
    x, noise = data(200, 5, 3), data(200, 5, 3, seed=1)
    mask = torch.arange(5) < torch.tensor([2, 3, 5, 1] * 50).unsqueeze(1)
    paired = Sinkhorn().pair(x, noise, mask=mask)
    assert rows(paired) == rows(noise)
    assert torch.equal(Sinkhorn().pair(torch.where(mask.unsqueeze(-1), x, 1e4), noise, mask=mask), paired)
    exact = total(x, Hungarian().pair(x, noise, mask=mask), mask.unsqueeze(-1))
    before = total(x, noise, mask.unsqueeze(-1))
    assert before - total(x, paired, mask.unsqueeze(-1)) > 0.98 * (before - exact)


# Memory.


class Largest(TorchDispatchMode):
    """The elements of the largest tensor that any operation returned."""

    def __init__(self) -> None:
        super().__init__()
        self.elements = 0

    def __torch_dispatch__(self, function, types, arguments=(), keywords=None):  # type: ignore[no-untyped-def]
        out = function(*arguments, **(keywords or {}))
        for value in out if isinstance(out, (tuple, list)) else (out,):
            if isinstance(value, Tensor):
                self.elements = max(self.elements, value.numel())
        return out


@pytest.mark.parametrize(
    "coupling",
    [Sinkhorn(), Sinkhorn(0.3, 2, "sampled"), Sinkhorn(project=4, projection="random")],
    ids=repr,
)
def test_no_array_of_the_size_of_the_cost(coupling: Sinkhorn) -> None:
    size = 8192
    x = data(size, 24)
    with Largest() as largest:
        coupling(x, seed=1)
    assert size * 32 <= largest.elements <= size**2 // 7


def test_the_memory_test_sees_the_exact_search() -> None:
    with Largest() as largest:
        Hungarian()(data(600, 24), seed=1)
    assert largest.elements == 600**2


@pytest.mark.parametrize(
    ("call", "error", "sentence"),
    [
        (lambda x: sinkhorn_potentials(x.long(), x, 0.1, 1), TypeError, "x must be a floating-point tensor"),
        (
            lambda x: sinkhorn_potentials(x, x.double(), 0.1, 1),
            TypeError,
            "dtype of x, torch.float32, got torch.float64",
        ),
        (lambda x: sinkhorn_potentials(x, None, 0.1, 1), TypeError, "dtype of x, torch.float32, got NoneType"),
        (lambda x: sinkhorn_potentials(x, x[:, :2], 0.1, 1), ValueError, r"got \(4, 3\) and \(4, 2\)"),
        (lambda x: sinkhorn_potentials(x[:0], x, 0.1, 1), ValueError, r"B, P >= 1, got \(0, 3\) and \(4, 3\)"),
        (lambda x: sinkhorn_potentials(x, x.to("meta"), 0.1, 1), ValueError, "on the device of x, cpu, got meta"),
        (lambda x: sinkhorn_potentials(x, x, -1, 1), ValueError, "epsilon must be positive and finite, got -1"),
        (lambda x: sinkhorn_potentials(x, x, 1e39, 1), ValueError, "epsilon must be in"),
        (lambda x: sinkhorn_potentials(x * torch.nan, x, 0.1, 1), ValueError, "x and noise must be finite"),
        (lambda x: sinkhorn_potentials(x, x, 0.1, 1, start=x[:, 0] / 0), ValueError, "start must be finite"),
        (lambda x: sinkhorn_potentials(x, x, True, 1), TypeError, "epsilon must be a number, got bool"),
        (lambda x: sinkhorn_potentials(x, x, 0.1, -1), ValueError, "iterations must be at least 0, got -1"),
        (lambda x: sinkhorn_potentials(x, x, 0.1, 1, stride=0), ValueError, "stride must be at least 1, got 0"),
        (
            lambda x: sinkhorn_potentials(x, x, 0.1, 1, start=x[0]),
            ValueError,
            r"start must be a tensor \[4\], got \(3,\)",
        ),
    ],
)
def test_bad_input(call, error: type[Exception], sentence: str) -> None:
    with pytest.raises(error, match=sentence):
        call(data(4, 3))


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_on_a_gpu() -> None:
    x = images(3000)
    noise = gaussian_noise(x, 1)
    exact, before = total(x, Hungarian().pair(x, noise)), total(x, noise)
    paired = Sinkhorn().pair(x.cuda(), noise.cuda())
    assert torch.equal(paired, Sinkhorn().pair(x.cuda(), noise.cuda()))
    assert rows(paired.cpu()) == rows(noise)
    assert before - total(x, paired.cpu()) > 0.99 * (before - exact)
    flat = x.flatten(1).double(), noise.flatten(1).double()
    host = sinkhorn_potentials(*flat, 0.3, 5)
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        device = sinkhorn_potentials(*(tensor.cuda(non_blocking=True) for tensor in flat), 0.3, 5)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    for ours, expected in zip(device, host, strict=True):
        torch.testing.assert_close(ours.cpu(), expected, rtol=1e-8, atol=1e-8)
