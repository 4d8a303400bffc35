"""Antithetic and orthogonal noises: what they keep of independent ones, and what they change."""

from __future__ import annotations

import pytest
import torch
from scipy import stats
from torch import Tensor

from pydiffaccel import kl_loss
from pydiffaccel.forward import KLProcess
from pydiffaccel.losses.draws import orthogonal
from tests.losses.networks import SCHEDULE, batch

DRAWS = ["antithetic", "orthogonal"]


def noises_seen(draws: str, rows: int, terms: int, *shape: int, dtype: torch.dtype = torch.float64) -> Tensor:
    """The noises ``[rows, terms, *]`` that the loss draws, from what the network sees of data that is 0."""
    seen = []

    def watching(x: Tensor, time: Tensor) -> Tensor:
        seen.append(x)
        return x

    process, t = KLProcess(SCHEDULE, terms), torch.full((rows,), 30)
    kl_loss(watching, torch.zeros(rows, *shape, dtype=dtype), t, process=process, draws=draws, seed=3, step=4)
    return seen[0].view(rows, terms, *shape) / process.levels(t)[1][0]


@pytest.mark.parametrize("draws", DRAWS)
@pytest.mark.parametrize("size", [1, 2, 5, 16])
def test_each_noise_is_standard_normal(draws: str, size: int) -> None:
    noise = noises_seen(draws, 3000, 5, size)
    for k in range(5):
        z = noise[:, k]
        assert stats.kstest(z.flatten().numpy(), "norm").pvalue > 1e-4
        assert stats.kstest(z.square().sum(1).numpy(), "chi2", args=(size,)).pvalue > 1e-4
        direction = z @ torch.linspace(-1, 2, size, dtype=torch.float64)
        length = torch.linspace(-1, 2, size, dtype=torch.float64).norm().item()
        assert stats.kstest((direction / length).numpy(), "norm").pvalue > 1e-4


@pytest.mark.parametrize("draws", DRAWS)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64], ids=str)
def test_the_first_noise_is_the_independent_one(draws: str, dtype: torch.dtype) -> None:
    alike = noises_seen("iid", 9, 4, 3, 4, dtype=dtype)
    assert torch.equal(noises_seen(draws, 9, 4, 3, 4, dtype=dtype)[:, 0], alike[:, 0])
    assert torch.equal(noises_seen(draws, 9, 1, 3, 4, dtype=dtype), alike[:, :1])


@pytest.mark.parametrize("terms", [2, 3, 6])
def test_antithetic_noises_come_in_pairs(terms: int) -> None:
    noise = noises_seen("antithetic", 50, terms, 4)
    for k in range(1, terms, 2):
        assert torch.equal(noise[:, k], -noise[:, k - 1])
    for k in range(2, terms, 2):  # pairs are independent of each other
        assert abs(torch.corrcoef(torch.stack([noise[:, 0].flatten(), noise[:, k].flatten()]))[0, 1]) < 0.3


@pytest.mark.parametrize(("terms", "size"), [(2, 2), (4, 4), (5, 64), (10, 10), (20, 3072)])
def test_orthogonal_noises_are_orthogonal_and_keep_their_lengths(terms: int, size: int) -> None:
    noise = batch(40, terms, size, dtype=torch.float64)
    turned = orthogonal(noise)
    assert torch.allclose(turned.norm(dim=2), noise.norm(dim=2), rtol=1e-12)
    unit = turned / turned.norm(dim=2, keepdim=True)
    assert torch.allclose(unit @ unit.mT, torch.eye(terms, dtype=torch.float64), atol=1e-12)
    # Gram-Schmidt, no other frame: noise k is in the span of the first k, on its own noise's side.
    q, r = torch.linalg.qr(noise.mT)
    frame = (q * r.diagonal(dim1=1, dim2=2).sign().unsqueeze(1)).mT
    assert torch.allclose(unit, frame, atol=1e-6)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32], ids=str)
def test_orthogonal_up_to_the_rounding_of_the_dtype(dtype: torch.dtype) -> None:
    turned = orthogonal(batch(6, 5, 3, 100, dtype=dtype))
    assert turned.dtype == dtype
    assert turned.shape == (6, 5, 3, 100)
    flat = turned.double().flatten(2)
    cosines = flat @ flat.mT / (flat.norm(dim=2, keepdim=True) * flat.norm(dim=2)[:, None])
    assert (cosines - torch.eye(5)).abs().max() < 4 * torch.finfo(dtype).eps


def test_more_noises_than_dimensions_are_orthogonal_in_blocks() -> None:
    noise = batch(8, 7, 3, dtype=torch.float64)
    turned = orthogonal(noise)
    for first in (0, 3, 6):
        block = slice(first, first + 3)
        assert torch.allclose(turned[:, block], orthogonal(noise[:, block]), atol=1e-12)
        assert torch.equal(turned[:, first], noise[:, first])
    assert torch.equal(orthogonal(noise[:, :, :1]), noise[:, :, :1])  # one dimension: nothing to turn


def test_noises_without_a_frame_stay() -> None:
    noise = batch(3, 3, 8)
    noise[1, 2] = noise[1, 0]
    turned = orthogonal(noise)
    assert torch.equal(turned[1], noise[1])
    assert torch.equal(turned[[0, 2]], orthogonal(noise[[0, 2]]))
    assert orthogonal(torch.empty(0, 3, 8)).shape == (0, 3, 8)
    assert orthogonal(torch.empty(2, 3, 0)).shape == (2, 3, 0)


def test_antithetic_pairs_have_the_first_noise_of_each_pair() -> None:
    noise, alike = noises_seen("antithetic", 5, 6, 4), noises_seen("iid", 5, 6, 4)
    assert torch.equal(noise[:, ::2], alike[:, ::2])


@pytest.mark.parametrize("rows", [1, 5])
def test_orthogonal_noises_of_a_sample_do_not_depend_on_the_batch(rows: int) -> None:
    noise = batch(5, 4, 300)
    with torch.autocast("cpu", dtype=torch.bfloat16):  # which would round the products
        part = orthogonal(noise[:rows])
    assert torch.allclose(part, orthogonal(noise)[:rows], atol=1e-6)
