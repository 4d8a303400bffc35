from __future__ import annotations

import pytest
import torch

from pydiffaccel.ops import solver_gram


def test_recovers_planted_coefficients() -> None:
    generator = torch.Generator().manual_seed(0)
    directions = [torch.randn(50, 3, 40, generator=generator) for _ in range(3)]
    planted = torch.tensor([0.5, -2.0, 0.125], dtype=torch.float64)
    residual = sum(c * d.double() for c, d in zip(planted, directions, strict=True))
    gram, rhs = solver_gram(directions, residual)
    torch.testing.assert_close(torch.linalg.solve(gram, rhs), planted, atol=1e-12, rtol=1e-12)


def test_sums_in_float64() -> None:
    """1 + 2^-30 per element is lost in float32 sums."""
    ones = torch.ones(2**16)
    gram, rhs = solver_gram([ones], ones.double() * (1 + 2.0**-30))
    assert float(gram) == 2.0**16
    assert float(rhs) == 2.0**16 * (1 + 2.0**-30)


def test_parts_add_up() -> None:
    generator = torch.Generator().manual_seed(1)
    d, r = torch.randn(40, 100, generator=generator), torch.randn(40, 100, generator=generator)
    whole = solver_gram([d], r)
    parts = [solver_gram([d[i : i + 10]], r[i : i + 10]) for i in range(0, 40, 10)]
    for n in range(2):
        torch.testing.assert_close(sum(part[n] for part in parts), whole[n], rtol=1e-13, atol=0)


@pytest.mark.parametrize(
    ("directions", "error", "sentence"),
    [
        ([torch.zeros(2)], ValueError, r"directions\[0\] must have the residual's shape \[3\], got \[2\]"),
        ([torch.zeros(3)] * 17, ValueError, "at most 16 directions, got 17"),
        ([torch.zeros(3).int()], TypeError, r"directions\[0\] must be float32"),
    ],
)
def test_bad_input(directions: list[torch.Tensor], error: type[Exception], sentence: str) -> None:
    with pytest.raises(error, match=sentence):
        solver_gram(directions, torch.zeros(3))
