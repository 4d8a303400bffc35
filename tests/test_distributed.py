"""Distributed: two and three ranks pair as one process does on the concatenated batch, bit for bit."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor

from pydiffaccel.coupling import KNN, Coupling, Distributed, Hungarian, Independent, NoiseQueue, Scaled, WarmUp
from pydiffaccel.coupling import distributed as module
from pydiffaccel.coupling._assignment import assignment_cost, split_invariant_cost
from pydiffaccel.noise import gaussian_noise
from tests.coupling.samples import data, rows
from tests.ranks import join_group, leave_group, run_ranks

SIZES = {2: [(16, 16), (5, 11), (0, 9), (1, 1)], 3: [(8, 8, 8), (7, 2, 12), (4, 0, 5), (1, 1, 1)]}
COUPLINGS: dict[str, Coupling] = {
    "hungarian": Hungarian(),
    "across": Hungarian("across"),
    "pool": Hungarian(pool=70),
    "independent": Independent(),
    "knn": KNN(4),
}
DTYPES = [torch.float32, torch.float64, torch.float16, torch.bfloat16]
SEED, STEP, FIRST = 3, 4, 10


def global_batch(count: int, dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor, Tensor]:
    """Data ``[count, 5, 3]``, labels and a mask."""
    x = data(count, 5, 3, seed=count, dtype=dtype) + 0.3
    labels = torch.arange(count) * 7 % 3
    mask = torch.arange(5) < torch.arange(count).remainder(5).add(1).unsqueeze(1)
    return x, labels, mask


def cases() -> list[tuple[str, str, torch.dtype]]:
    plain = [(name, "", torch.float32) for name in COUPLINGS]
    options = [(name, given, torch.float32) for name in COUPLINGS for given in ("labels", "mask", "labels mask")]
    return plain + options + [("hungarian", "labels", dtype) for dtype in DTYPES[1:]]


def options_of(given: str, labels: Tensor, mask: Tensor) -> dict[str, Tensor]:
    return {key: value for key, value in (("labels", labels), ("mask", mask)) if key in given.split()}


def one_rank(rank: int, count: int, folder: str) -> None:
    """What each process does: its rows of every case, and the sentences of calls that do not fit together."""
    torch.set_num_threads(1 + rank)  # ranks need not be alike
    join_group(rank, count, folder)
    noises: dict[Any, Tensor] = {}
    for sizes in SIZES[count]:
        before = sum(sizes[:rank])
        mine = slice(before, before + sizes[rank])
        for name, given, dtype in cases():
            x, labels, mask = global_batch(sum(sizes), dtype)
            options = options_of(given, labels[mine], mask[mine])
            place = {"seed": SEED, "step": STEP, "first_sample": FIRST + before}
            noises[sizes, name, given, dtype] = Distributed(COUPLINGS[name])(x[mine], **place, **options)
        x = global_batch(sum(sizes))[0][torch.arange(sum(sizes)) // 2]  # every sample is there twice: ties
        noises[sizes, "twice"] = Distributed(Hungarian())(x[mine], seed=SEED, first_sample=before)
    x = data(3, 4)
    inner = Distributed(Hungarian())
    handles = [inner.start(x + rank, seed=1, step=step, first_sample=3 * rank) for step in range(4)]
    beside = [handle.result() for handle in handles]
    at_once = [inner(x + rank, seed=1, step=step, first_sample=3 * rank) for step in range(4)]
    assert all(torch.equal(a, b) for a, b in zip(beside, at_once, strict=True))
    said = []
    for call in (
        lambda: Distributed(Hungarian())(x, step=rank, first_sample=3 * rank),
        lambda: Distributed(Hungarian())(x, first_sample=0),
        lambda: Distributed(Hungarian())(x, first_sample=3 * rank, labels=torch.arange(3) if rank else None),
        lambda: Distributed(Hungarian(pool=5))(x, first_sample=3 * rank),
        lambda: Distributed(Hungarian())(x * torch.nan if rank else x, first_sample=3 * rank),
        lambda: Distributed(Hungarian())(x[:, : 4 - rank], first_sample=3 * rank),
    ):
        try:
            call()
        except ValueError as error:
            said.append(str(error))
        else:
            said.append("nothing")
    half = dist.new_group([0])
    alone = Distributed(Hungarian(), half)(x, seed=1) if rank == 0 else None
    try:
        Distributed(Hungarian(), half)(x, seed=1, first_sample=3 * rank)
        said.append("nothing")
    except ValueError as error:
        said.append(str(error))
    leave_group(rank, folder, (noises, said, alone))


@pytest.fixture(scope="module", params=[2, 3])
def ranks(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> list[Any]:
    """What each of 2 or 3 processes found."""
    count: int = request.param
    return run_ranks(one_rank, count, tmp_path_factory.mktemp(f"ranks{count}"))


@pytest.mark.parametrize(("name", "given", "dtype"), cases(), ids=str)
def test_ranks_pair_as_one_process(ranks: list[Any], name: str, given: str, dtype: torch.dtype) -> None:
    for sizes in SIZES[len(ranks)]:
        x, labels, mask = global_batch(sum(sizes), dtype)
        options = options_of(given, labels, mask)
        together = torch.cat([noises[sizes, name, given, dtype] for noises, _, _ in ranks])
        place = {"seed": SEED, "step": STEP, "first_sample": FIRST}
        assert torch.equal(together, Distributed(COUPLINGS[name])(x, **place, **options))
        # Here no two assignments are so nearly equal that rounding would decide.
        assert torch.equal(together, COUPLINGS[name](x, **place, **options))


def test_ties_are_broken_alike(ranks: list[Any]) -> None:
    for sizes in SIZES[len(ranks)]:
        x = global_batch(sum(sizes))[0][torch.arange(sum(sizes)) // 2]
        together = torch.cat([noises[sizes, "twice"] for noises, _, _ in ranks])
        assert torch.equal(together, Distributed(Hungarian())(x, seed=SEED))


def test_ranks_use_the_noises_of_the_whole_batch(ranks: list[Any]) -> None:
    for sizes in SIZES[len(ranks)]:
        parts = [noises[sizes, "hungarian", "", torch.float32] for noises, _, _ in ranks]
        assert [len(part) for part in parts] == list(sizes)
        plain = gaussian_noise(torch.empty(sum(sizes), 5, 3), SEED, STEP, FIRST)
        assert rows(torch.cat(parts)) == rows(plain)
        starts = [sum(sizes[:rank]) for rank in range(len(sizes))]
        if min(sizes) > 1:  # noise went to other ranks
            own = [rows(plain[start : start + size]) for start, size in zip(starts, sizes, strict=True)]
            assert [rows(part) for part in parts] != own


def test_all_ranks_refuse_alike(ranks: list[Any]) -> None:
    count = len(ranks)
    said = ranks[0][1][:-1]
    assert all(rank[1][:-1] == said for rank in ranks)
    assert said[0] == f"all ranks must pair with the same step, got {list(range(count))}"
    assert said[1] == (
        "first_sample of a rank must follow the rows of the rank before: rank 1 must have first_sample=3, got 0"
    )
    assert said[2] == f"all ranks must pair with the same labels given (1) or not (0), got {[0, *[1] * (count - 1)]}"
    assert said[3] == f"pool must be at least the batch size {3 * count}, got 5"
    assert "NaN" in said[4]
    assert (
        said[5] == f"all ranks must pair with the same elements of a sample, got {[4 - rank for rank in range(count)]}"
    )


def test_a_group_of_some_ranks(ranks: list[Any]) -> None:
    assert torch.equal(ranks[0][2], Distributed(Hungarian())(data(3, 4), seed=1))
    assert [rank[1][-1] for rank in ranks] == [
        "nothing",
        *["this process is no member of the group that Distributed was given"] * (len(ranks) - 1),
    ]


# The cost that no split changes.


@pytest.mark.parametrize("size", [1, 2, 3, 17, 300, 3072])
@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("norms", [False, True])
def test_a_block_of_the_cost_is_the_whole_cost_bit_for_bit(size: int, masked: bool, norms: bool) -> None:
    x, noise = data(40, size) * torch.logspace(-30, 20, 40).unsqueeze(1), gaussian_noise(data(70, size), 1)
    x[3] = 0
    mask = data(40, size, seed=2) > -0.5 if masked else None
    whole = split_invariant_cost(x, noise, mask, norms)
    for own in (slice(0, 1), slice(3, 4), slice(5, 38), slice(39, 40)):
        for columns in (slice(0, 70), slice(69, 70), slice(11, 50)):
            block = split_invariant_cost(x[own], noise[columns], None if mask is None else mask[own], norms)
            assert torch.equal(block, whole[own, columns])
    # The order of the elements does not matter either, which a plain product cannot say.
    order = torch.randperm(size, generator=torch.Generator().manual_seed(1))
    shuffled = split_invariant_cost(x[:, order], noise[:, order], None if mask is None else mask[:, order], norms)
    assert torch.equal(shuffled, whole)


def test_the_float32_cost_does_depend_on_the_order() -> None:
    x, noise, order = data(40, 3072), data(70, 3072, seed=1), torch.randperm(3072)
    assert not torch.equal(assignment_cost(x[:, order], noise[:, order], None), assignment_cost(x, noise, None))


@pytest.mark.parametrize("size", [1, 30, 3072])
@pytest.mark.parametrize("masked", [False, True])
def test_the_cost_is_right(size: int, masked: bool) -> None:
    x, noise = data(20, size), gaussian_noise(data(30, size), 1)
    mask = data(20, size, seed=2) > -0.5 if masked else None
    real = torch.ones(20, size, dtype=torch.float64) if mask is None else mask.double()
    products = -(x.double() * real) @ noise.double().T
    scale = float(x.norm(dim=1).max() * noise.norm(dim=1).max())
    for norms, exact in ((False, products), (True, products + 0.5 * real @ noise.double().square().T)):
        assert split_invariant_cost(x, noise, mask, norms).double().sub(exact).abs().max() < 1e-6 * scale


# One process.


def test_alone_and_in_small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    x, labels, mask = global_batch(23)
    for coupling in (Hungarian(), Hungarian(pool=60)):
        for options in ({}, {"labels": labels}, {"mask": mask}):
            expected = coupling(x, seed=1, step=2, **options)
            monkeypatch.setattr(module, "_BLOCK_ELEMENTS", 1 << 22)
            assert torch.equal(Distributed(coupling)(x, seed=1, step=2, **options), expected)
            for elements in (1, 100):
                monkeypatch.setattr(module, "_BLOCK_ELEMENTS", elements)
                assert torch.equal(Distributed(coupling)(x, seed=1, step=2, **options), expected)


def test_noises_on_a_gpu_are_made_in_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    class Elsewhere:
        """Indices that claim to be on a GPU."""

        type = "cuda"

    class Indices(Tensor):
        @property
        def device(self) -> Any:
            return Elsewhere()

    x = data(6, 5, 3)
    source = module._Source(x, 1, 2, 10, 6, 20)
    chosen = torch.tensor([0, 19, 7, 5, 6, 12])
    whole = source.block(0, 20)
    assert torch.equal(source.rows(chosen), whole[chosen])
    for elements in (1, 45, 1 << 22):
        monkeypatch.setattr(module, "_BLOCK_ELEMENTS", elements)
        assert torch.equal(source.rows(chosen.as_subclass(Indices)).as_subclass(Tensor), whole[chosen])


def test_around_it_and_inside_it() -> None:
    x, noise = data(9, 4), data(9, 4, seed=1)
    inner = Distributed(Hungarian())
    assert torch.equal(Scaled(2.0, WarmUp(1, inner))(x, seed=1, step=1), Hungarian()(x, seed=1, step=1))
    assert torch.equal(inner.pair(x, noise), Hungarian().pair(x, noise))
    assert Distributed(KNN(1)).is_plain(0)
    assert not inner.is_plain(0)
    assert Distributed(Hungarian())(torch.empty(0, 4)).shape == (0, 4)
    assert Distributed(Hungarian())(data(5), seed=1).shape == (5,)


@pytest.mark.parametrize(
    ("make", "error", "sentence"),
    [
        (lambda: Distributed(Scaled(2.0)), TypeError, "Distributed takes Hungarian, Independent or KNN, got Scaled"),
        (lambda: Distributed(NoiseQueue(3)), TypeError, "Distributed takes Hungarian, Independent or KNN, got NoiseQ"),
        (lambda: Distributed(None), TypeError, "got NoneType"),
        (lambda: Distributed(Hungarian(project=9)), ValueError, "searches in the full space, got project=9"),
        (lambda: Distributed(KNN(4, center="mean")), ValueError, "would take each rank's own mean"),
    ],
)
def test_bad_settings(make: Any, error: type[Exception], sentence: str) -> None:
    with pytest.raises(error, match=sentence):
        make()
