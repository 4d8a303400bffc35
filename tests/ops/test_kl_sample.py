from __future__ import annotations

import math

import pytest
import torch

from pydiffaccel.ops import gaussian_noise, kl_components, kl_sample


def test_one_term_is_the_plain_forward_process() -> None:
    x = torch.randn(6, 3, 40, generator=torch.Generator().manual_seed(0))
    alpha = torch.rand(6, generator=torch.Generator().manual_seed(1))
    sigma = (1 - alpha**2).sqrt()
    x_t, noise = kl_sample(x, alpha, sigma[:, None], 5, 6, 7)
    assert torch.equal(noise, gaussian_noise(x, 5, 6, 7))
    assert torch.equal(x_t, alpha[:, None, None] * x + sigma[:, None, None] * noise)


def test_noise_has_unit_variance_whatever_the_coefficients() -> None:
    coeff = torch.tensor([[0.1, -2.0, 0.3, 0.7]]).expand(200, 4)
    _, noise = kl_sample(torch.zeros(200, 500), torch.ones(200), coeff, 1)
    assert float(noise.mean()) == pytest.approx(0, abs=5 / 1e5**0.5)
    assert float(noise.var()) == pytest.approx(1, abs=5 * (2 / 1e5) ** 0.5)


def tables(rows: int, times: int, terms: int) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(2)
    alpha = torch.rand(rows, times, generator=generator)
    return alpha, torch.rand(rows, times, terms, generator=generator) - 0.4


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16], ids=str)
@pytest.mark.parametrize("times", [1, 5, 70])
def test_each_of_several_times_is_the_one_time_form(times: int, dtype: torch.dtype) -> None:
    x = torch.randn(3, 2, 67, generator=torch.Generator().manual_seed(0)).to(dtype)
    alpha, coeff = tables(3, times, 6)
    coeff[1, 0] = 0
    coeff[:, -1, 2:] = 0
    x_t, noise = kl_sample(x, alpha, coeff, 5, 6, 7)
    assert x_t.shape == noise.shape == (3, times, 2, 67)
    for s in range(times):
        one = kl_sample(x, alpha[:, s], coeff[:, s], 5, 6, 7)
        assert torch.equal(x_t[:, s], one[0])
        assert torch.equal(noise[:, s], one[1])


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_zeros_leave_no_trace(dtype: torch.dtype) -> None:
    """Coefficients with zeros between give the bits of their terms alone."""
    x = torch.randn(4, 130, generator=torch.Generator().manual_seed(0)).to(dtype)
    alpha, coeff = tables(4, 1, 3)
    few = coeff[:, 0].double()
    wide = torch.cat([few, torch.zeros(4, 97, dtype=torch.float64)], 1)
    for a, b in zip(kl_sample(x, alpha[:, 0], wide, 5), kl_sample(x, alpha[:, 0], few, 5), strict=True):
        assert torch.equal(a, b)
    tiny = wide.clone()
    tiny[:, 3:] = 1e-60  # no zeros, but weights that float32 rounds to zero
    for a, b in zip(kl_sample(x, alpha[:, 0], tiny, 5), kl_sample(x, alpha[:, 0], few, 5), strict=True):
        assert torch.equal(a, b)


def test_a_row_with_one_coefficient_is_that_component() -> None:
    x = torch.randn(4, 130, generator=torch.Generator().manual_seed(0))
    alpha = torch.full((4, 3), 0.6)
    coeff = torch.zeros(4, 3, 5)
    for s, k in enumerate((4, 0, 2)):
        coeff[:, s, k] = 0.8
    x_t, noise = kl_sample(x, alpha, coeff, 5, 6, 7)
    noised, each = kl_components(x, alpha[:, 0], torch.full((4,), 0.8), 5, 5, 6, 7)
    assert torch.equal(noise, each[:, [4, 0, 2]])
    assert torch.equal(x_t, noised[:, [4, 0, 2]])


def test_gradient_of_several_times() -> None:
    x = torch.randn(3, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64, requires_grad=True)
    alpha, coeff = tables(3, 5, 2)
    assert torch.autograd.gradcheck(lambda y: kl_sample(y, alpha, coeff, 1)[0], (x,))
    (grad,) = torch.autograd.grad(kl_sample(x, alpha, coeff, 1)[0].sum(), x)
    torch.testing.assert_close(grad, alpha.double().sum(1, keepdim=True).expand(3, 4))


@pytest.mark.parametrize(
    ("alpha", "coeff", "error", "sentence"),
    [
        (torch.ones(3, 2), torch.ones(3, 4), ValueError, r"coeff must have shape \[3, 2, \*\], got \[3, 4\]"),
        (torch.ones(3, 2), torch.ones(3, 1, 4), ValueError, r"coeff must have shape \[3, 2, \*\], got \[3, 1, 4\]"),
        (torch.ones(2, 2), torch.ones(2, 2, 4), ValueError, r"alpha must have shape \[3, \*\], got \[2, 2\]"),
        (torch.ones(3, 2, 1), torch.ones(3, 2, 1, 4), ValueError, r"alpha must have shape \[3\], got \[3, 2, 1\]"),
        (1.0, torch.ones(3, 2), TypeError, "alpha must be a torch.Tensor, got float"),
        (torch.ones(2), torch.ones(3, 2), ValueError, r"alpha must have shape \[3\], got \[2\]"),
        (torch.ones(3), torch.ones(2, 2), ValueError, r"coeff must have shape \[3, \*\], got \[2, 2\]"),
        (torch.ones(3), torch.ones(3), ValueError, r"coeff must have shape \[3, \*\], got \[3\]"),
        (torch.ones(3), torch.ones(3, 0), ValueError, "M must be in .* got 0"),
        (torch.ones(3).half(), torch.ones(3, 1), TypeError, "alpha must be float32 or float64, got torch.float16"),
        (torch.tensor([1.0, math.nan, 1.0]), torch.ones(3, 2), ValueError, r"alpha must be finite, got nan at \[1\]"),
        (torch.ones(3), torch.full((3, 2), -math.inf), ValueError, r"coeff must be finite, got -inf at \[0, 0\]"),
        (torch.ones(3, device="meta"), torch.ones(3, 1), ValueError, "alpha must be on cpu, got meta"),
    ],
)
def test_bad_input(alpha: torch.Tensor, coeff: torch.Tensor, error: type[Exception], sentence: str) -> None:
    with pytest.raises(error, match=sentence):
        kl_sample(torch.zeros(3, 4), alpha, coeff, 0)
