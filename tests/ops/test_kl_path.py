from __future__ import annotations

import math

import pytest
import torch

from pydiffaccel.ops import kl_path, kl_sample


def test_a_path_at_one_time_is_the_sample() -> None:
    x = torch.randn(4, 130, generator=torch.Generator().manual_seed(0))
    coeff = torch.tensor([[0.4, -0.3, 0.2], [0.1, 0.5, -0.6]])
    alpha = torch.tensor([0.8, 0.3])
    path = kl_path(x, alpha, coeff, 5, 6, 7)
    for s in range(2):
        x_t, _ = kl_sample(x, alpha[s].expand(4), coeff[s].expand(4, 3), 5, 6, 7)
        torch.testing.assert_close(path[:, s], x_t, atol=2e-6, rtol=2e-6)


def test_times_do_not_influence_each_other() -> None:
    x = torch.randn(2, 70, generator=torch.Generator().manual_seed(0))
    alpha, coeff = torch.linspace(0.1, 0.9, 40), torch.linspace(-1, 1, 120).reshape(40, 3)
    path = kl_path(x, alpha, coeff, 1)
    assert torch.equal(kl_path(x, alpha[17:18], coeff[17:18], 1)[:, 0], path[:, 17])


def test_zeros_leave_no_trace() -> None:
    x = torch.randn(2, 70, generator=torch.Generator().manual_seed(0))
    alpha, few = torch.linspace(0.1, 0.9, 5), torch.linspace(-1, 1, 10).reshape(5, 2)
    few[3] = 0
    path = kl_path(x, alpha, torch.cat([few, torch.zeros(5, 40)], 1), 1)
    assert torch.equal(path, kl_path(x, alpha, few, 1))
    assert torch.equal(path[:, 3], alpha[3] * x)


@pytest.mark.parametrize(
    ("alpha", "coeff", "sentence"),
    [
        (torch.ones(2, 2), torch.ones(2, 2), r"alpha must have shape \[\*\], got \[2, 2\]"),
        (torch.ones(2), torch.ones(3, 2), r"coeff must have shape \[2, \*\], got \[3, 2\]"),
        (torch.ones(2), torch.ones(2, 0), "M must be in .* got 0"),
        (torch.tensor([1.0, math.inf]), torch.ones(2, 2), r"alpha must be finite, got inf at \[1\]"),
        (torch.ones(2), torch.tensor([[1.0, 2.0], [3.0, math.nan]]), r"coeff must be finite, got nan at \[1, 1\]"),
    ],
)
def test_bad_input(alpha: torch.Tensor, coeff: torch.Tensor, sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        kl_path(torch.zeros(3, 4), alpha, coeff, 0)
