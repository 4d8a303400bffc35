from __future__ import annotations

import pytest
import torch

from pydiffaccel.ops import gaussian_noise, kl_sample


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


@pytest.mark.parametrize(
    ("alpha", "coeff", "error", "sentence"),
    [
        (torch.ones(2), torch.ones(3, 2), ValueError, r"alpha must have shape \[3\], got \[2\]"),
        (torch.ones(3), torch.ones(2, 2), ValueError, r"coeff must have shape \[3, \*\], got \[2, 2\]"),
        (torch.ones(3), torch.ones(3), ValueError, r"coeff must have shape \[3, \*\], got \[3\]"),
        (torch.ones(3), torch.ones(3, 0), ValueError, "M must be in .* got 0"),
        (torch.ones(3).half(), torch.ones(3, 1), TypeError, "alpha must be float32 or float64, got torch.float16"),
        (torch.ones(3, device="meta"), torch.ones(3, 1), ValueError, "alpha must be on cpu, got meta"),
    ],
)
def test_bad_input(alpha: torch.Tensor, coeff: torch.Tensor, error: type[Exception], sentence: str) -> None:
    with pytest.raises(error, match=sentence):
        kl_sample(torch.zeros(3, 4), alpha, coeff, 0)
