from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy import stats

from pydiffaccel.noise import derive_seed, noise_for_seeds, uniform
from pydiffaccel.ops import gaussian_noise
from pydiffaccel.ops.reference import philox4x32_10


def test_reference_philox_known_answers() -> None:
    ones = 0xFFFFFFFF
    cases = [
        ([0, 0, 0, 0], (0, 0), [0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8]),
        ([ones] * 4, (ones, ones), [0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD]),
        (
            [0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344],
            (0xA4093822, 0x299F31D0),
            [0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1],
        ),
    ]
    for counter, key, expected in cases:
        assert philox4x32_10(np.array(counter, np.uint32), key).tolist() == expected


def test_rows_depend_on_their_index_alone() -> None:
    whole = gaussian_noise(torch.empty(10, 3, 7), 5, 2, 100)
    for first, size in ((0, 4), (4, 1), (5, 5)):
        part = gaussian_noise(torch.empty(size, 3, 7), 5, 2, 100 + first)
        assert torch.equal(part, whole[first : first + size])


def test_a_longer_sample_starts_like_a_shorter_one_by_groups() -> None:
    """Elements are laid out in groups of 64: a prefix of whole groups does not depend on D."""
    long, short = gaussian_noise(torch.empty(2, 1000), 3), gaussian_noise(torch.empty(2, 128), 3)
    assert torch.equal(long[:, :128], short)


def test_seed_step_and_sample_make_different_noise() -> None:
    x = torch.empty(2, 64)
    base = gaussian_noise(x, 1, 1, 1)
    others = [gaussian_noise(x, 2, 1, 1), gaussian_noise(x, 1, 2, 1), gaussian_noise(x, 1 + 2**32, 1, 1)]
    for other in [*others, base.flip(0)]:
        assert (other == base).sum() < 3


def test_every_dtype_holds_the_same_numbers_rounded() -> None:
    base = gaussian_noise(torch.empty(3, 200), 9)
    for dtype in (torch.float64, torch.float16, torch.bfloat16):
        assert torch.equal(gaussian_noise(torch.empty(3, 200, dtype=dtype), 9), base.to(dtype))


def test_law() -> None:
    z = gaussian_noise(torch.empty(1000, 1024), 17).double().numpy()
    assert stats.kstest(z.ravel(), "norm").pvalue > 1e-3
    n = z.size
    assert abs(z.mean()) < 5 / n**0.5
    assert abs((z**2).mean() - 1) < 5 * (2 / n) ** 0.5
    assert abs((z[:, :-1] * z[:, 1:]).mean()) < 5 / n**0.5  # neighbours
    assert abs((z[:, :-16] * z[:, 16:]).mean()) < 5 / n**0.5  # the two numbers of a Box-Muller pair
    assert abs((z[:, :-16] ** 2 * z[:, 16:] ** 2).mean() - 1) < 5 * (8 / n) ** 0.5
    assert abs((z[:-1] * z[1:]).mean()) < 5 / n**0.5  # samples


def test_uniform_and_seeds() -> None:
    u = uniform(100_000, seed=3)
    assert u.dtype == torch.float64
    assert float(u.min()) >= 0
    assert float(u.max()) < 1
    assert stats.kstest(u.numpy(), "uniform").pvalue > 1e-3
    assert torch.equal(uniform(5, seed=3, first_sample=7), u[7:12])
    assert derive_seed(1, "a") == derive_seed(1, "a")
    assert len({derive_seed(s, p) for s in (0, 1, -1) for p in ("a", "b")}) == 6
    noise = noise_for_seeds((2, 3), [4, 9, 4])
    assert torch.equal(noise[0], noise[2])
    assert torch.equal(noise[1:2], noise_for_seeds((2, 3), [9]))
    with pytest.raises(ValueError, match="64 bits, got 18446744073709551616"):
        derive_seed(2**64, "a")
    with pytest.raises(TypeError, match="seed must be an int, got float"):
        derive_seed(1.0, "a")  # type: ignore[arg-type]


def test_no_gradient_and_no_alias() -> None:
    x = torch.zeros(2, 3, requires_grad=True)
    out = gaussian_noise(x, 0)
    assert not out.requires_grad
    assert torch.equal(x, torch.zeros(2, 3))


@pytest.mark.parametrize(
    ("arguments", "error", "sentence"),
    [
        (([1.0], 0), TypeError, "like must be a torch.Tensor, got list"),
        ((torch.zeros(2, dtype=torch.int32), 0), TypeError, "like must be float32.*got torch.int32"),
        ((torch.zeros(()), 0), ValueError, r"sample dimension \[B, \*\], got a scalar"),
        ((torch.zeros(2, 2), 2**63), ValueError, f"seed must be in .* got {2**63}"),
        ((torch.zeros(2, 2), 1.5), TypeError, "seed must be an int, got float"),
        ((torch.zeros(2, 2), True), TypeError, "seed must be an int, got bool"),
        ((torch.zeros(2, 2), 0, -1), ValueError, "step must be in .* got -1"),
        ((torch.zeros(2, 2), 0, 2**32), ValueError, "step must be in .* got 4294967296"),
        ((torch.zeros(2, 2), 0, 0, -3), ValueError, "first_sample must be in .* got -3"),
        ((torch.zeros(2, 2), 0, 0, 2**32 - 1), ValueError, r"first_sample \+ B must be at most"),
        ((torch.zeros(2, 2).to_sparse(), 0), TypeError, "dense tensor"),
    ],
)
def test_bad_input(arguments: tuple[object, ...], error: type[Exception], sentence: str) -> None:
    with pytest.raises(error, match=sentence):
        gaussian_noise(*arguments)  # type: ignore[arg-type]
