from __future__ import annotations

import pytest
import torch

from pydiffaccel.ops import solver_step


def test_same_bits_as_eager_float32() -> None:
    generator = torch.Generator().manual_seed(0)
    x, *m = (torch.randn(5, 3, 33, generator=generator) for _ in range(4))
    eager = 0.7 * x + 0.2 * m[0] + -1.3 * m[1] + 0.05 * m[2]
    assert torch.equal(solver_step(x, m, 0.7, [0.2, -1.3, 0.05]), eager)


def test_null_step_is_the_state() -> None:
    x = torch.randn(3, 5)
    assert torch.equal(solver_step(x, [], 1.0, []), x)
    assert torch.equal(solver_step(x, [torch.ones_like(x)], 1.0, [0.0]), x)


def test_float32_state_with_half_precision_outputs() -> None:
    generator = torch.Generator().manual_seed(1)
    x, m = torch.randn(4, 50, generator=generator), torch.randn(4, 50, generator=generator).bfloat16()
    out = solver_step(x, [m, m], 0.5, [0.25, 2.0])
    assert out.dtype == torch.float32
    assert torch.equal(out, 0.5 * x + 0.25 * m.float() + 2.0 * m.float())


def test_mixed_output_dtypes() -> None:
    x = torch.ones(3)
    out = solver_step(x, [x.double() * 2, x.half() * 3], 0.0, [1.0, 1.0])
    assert torch.equal(out, torch.full((3,), 5.0))


def test_mixed_output_dtypes_lose_nothing() -> None:
    x = torch.zeros(3)
    third = torch.full((3,), 1.0 / 3.0)
    assert torch.equal(solver_step(x, [x.half(), third], 0.0, [1.0, 1.0]), third)


@pytest.mark.parametrize("count", [0, 1, 3, 5, 9, 16])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16], ids=str)
def test_out_may_be_the_state_or_an_output(count: int, dtype: torch.dtype) -> None:
    generator = torch.Generator().manual_seed(2)
    x, *m = (torch.randn(7, 501, generator=generator).to(dtype) for _ in range(count + 1))
    b = [0.5 / (j + 1) for j in range(count)]
    expected = solver_step(x, m, -0.5, b)
    fresh = torch.empty_like(x)
    assert solver_step(x, m, -0.5, b, out=fresh) is fresh
    assert torch.equal(fresh, expected)
    for place in range(count):
        others = list(m)
        others[place] = m[place].clone()
        assert torch.equal(solver_step(x, others, -0.5, b, out=others[place]), expected)
    state = x.clone()
    assert solver_step(state, m, -0.5, b, out=state).data_ptr() == state.data_ptr()
    assert torch.equal(state, expected)


def test_out_passes_opcheck_and_compiles() -> None:
    x, m = torch.randn(4, 9), torch.randn(4, 9)
    torch.library.opcheck(torch.ops.diffaccel.solver_step.out, (x, [m], 0.5, [2.0]), {"out": torch.empty_like(x)})

    def twice(x: torch.Tensor, m: torch.Tensor) -> torch.Tensor:
        state = x.clone()
        solver_step(state, [m], 0.5, [2.0], out=state)
        return solver_step(state, [m], 0.5, [2.0], out=state)

    assert torch.equal(torch.compile(twice, backend="aot_eager", fullgraph=True)(x, m), twice(x, m))
    torch._dynamo.reset()


@pytest.mark.parametrize(
    "out",
    [torch.zeros(2), torch.zeros(3).double(), torch.zeros(3, device="meta"), torch.zeros(6)[::2]],
    ids=["shape", "dtype", "device", "strided"],
)
def test_unfit_out(out: torch.Tensor) -> None:
    with pytest.raises(ValueError, match=r"out must be contiguous, torch.float32 of shape \[3\] on cpu, got"):
        solver_step(torch.zeros(3), [], 1.0, [], out=out)
    if out.device.type == "cpu":
        with pytest.raises(RuntimeError, match="out must be contiguous with the shape, dtype and device of x"):
            torch.ops.diffaccel.solver_step.out(torch.zeros(3), [], 1.0, [], out=out)


def test_out_records_no_gradient() -> None:
    x = torch.zeros(3, requires_grad=True)
    with pytest.raises(ValueError, match="out cannot be given while a gradient is recorded"):
        solver_step(x, [], 1.0, [], out=torch.empty(3))
    with torch.no_grad():
        assert torch.equal(solver_step(x, [], 1.0, [], out=torch.empty(3)), x)


def test_half_precision_accumulates_in_float32() -> None:
    x = torch.full((4,), 1.0, dtype=torch.bfloat16)
    small = [torch.full((4,), 2.0**-9, dtype=torch.bfloat16)] * 4
    assert torch.equal(solver_step(x, small, 1.0, [1.0] * 4), torch.full((4,), 1.0 + 2.0**-7, dtype=torch.bfloat16))


@pytest.mark.parametrize(
    ("outputs", "b", "error", "sentence"),
    [
        ([torch.zeros(2)], [1.0], ValueError, r"outputs\[0\] must have x's shape \[3\], got \[2\]"),
        ([torch.zeros(3)], [], ValueError, "1 outputs need as many coefficients, got 0"),
        ([torch.zeros(3)] * 17, [1.0] * 17, ValueError, "at most 16 outputs, got 17"),
        ([torch.zeros(3).long()], [1.0], TypeError, r"outputs\[0\] must be float32"),
        ([torch.zeros(3, device="meta")], [1.0], ValueError, "must be on cpu, got meta"),
    ],
)
def test_bad_input(outputs: list[torch.Tensor], b: list[float], error: type[Exception], sentence: str) -> None:
    with pytest.raises(error, match=sentence):
        solver_step(torch.zeros(3), outputs, 1.0, b)
