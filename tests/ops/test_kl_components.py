from __future__ import annotations

import math

import pytest
import torch

from pydiffaccel.ops import gaussian_noise, kl_components


def test_first_component_is_the_plain_forward_process() -> None:
    x = torch.randn(6, 3, 40, generator=torch.Generator().manual_seed(0))
    alpha = torch.rand(6, generator=torch.Generator().manual_seed(1))
    sigma = (1 - alpha**2).sqrt()
    noised, noise = kl_components(x, alpha, sigma, 4, 5, 6, 7)
    assert noised.shape == noise.shape == (6, 4, 3, 40)
    assert torch.equal(noise[:, 0], gaussian_noise(x, 5, 6, 7))
    a, s = alpha[:, None, None, None], sigma[:, None, None, None]
    assert torch.equal(noised, a * x[:, None] + s * noise)


def test_fewer_terms_are_a_prefix_and_terms_differ() -> None:
    x = torch.zeros(2, 64)
    one = torch.ones(2)
    _, many = kl_components(x, one, one, 5, 1)
    _, few = kl_components(x, one, one, 2, 1)
    assert torch.equal(many[:, :2], few)
    assert abs(float((many[:, 0] * many[:, 1]).mean())) < 5 / 128**0.5


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.float16], ids=str)
@pytest.mark.parametrize("terms", [1, 4, 7])
def test_antithetic_terms_are_negatives_of_the_ones_before(terms: int, dtype: torch.dtype) -> None:
    x = torch.randn(3, 70, generator=torch.Generator().manual_seed(0)).to(dtype)
    alpha, sigma = torch.tensor([0.9, 0.5, 0.1]), torch.tensor([0.2, 0.6, 0.9])
    noised, noise = kl_components(x, alpha, sigma, terms, 5, 6, 7, draws="antithetic")
    plain_noised, plain = kl_components(x, alpha, sigma, terms, 5, 6, 7)
    assert torch.equal(noise[:, ::2], plain[:, ::2])
    assert torch.equal(noised[:, ::2], plain_noised[:, ::2])
    assert torch.equal(noise[:, 1::2], -noise[:, : terms - 1 : 2])
    wide = torch.float64 if dtype == torch.float64 else torch.float32
    a, s = alpha[:, None, None].to(wide), sigma[:, None, None].to(wide)
    assert torch.equal(noised, (a * x[:, None].to(wide) + s * noise.to(wide)).to(dtype))


def test_antithetic_gradient() -> None:
    x = torch.randn(2, 5, generator=torch.Generator().manual_seed(0), dtype=torch.float64, requires_grad=True)
    alpha = torch.tensor([0.9, 0.5])
    assert torch.autograd.gradcheck(lambda y: kl_components(y, alpha, alpha, 3, 1, draws="antithetic")[0], (x,))


@pytest.mark.parametrize("draws", ["orthogonal", 1, None])
def test_unknown_draws(draws: object) -> None:
    with pytest.raises(ValueError, match=f"draws must be 'iid' or 'antithetic', got {draws!r}"):
        kl_components(torch.zeros(3, 4), torch.ones(3), torch.ones(3), 2, 0, draws=draws)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("sigma", "terms", "error", "sentence"),
    [
        (torch.ones(2), 2, ValueError, r"sigma must have shape \[3\], got \[2\]"),
        (torch.ones(3), 0, ValueError, "M must be in .* got 0"),
        (torch.tensor([1.0, 1.0, math.inf]), 2, ValueError, r"sigma must be finite, got inf at \[2\]"),
        (torch.ones(3), 1.0, TypeError, "M must be an int, got float"),
        (torch.ones(3).long(), 1, TypeError, "sigma must be float32 or float64, got torch.int64"),
    ],
)
def test_bad_input(sigma: torch.Tensor, terms: object, error: type[Exception], sentence: str) -> None:
    with pytest.raises(error, match=sentence):
        kl_components(torch.zeros(3, 4), torch.ones(3), sigma, terms, 0)  # type: ignore[arg-type]
