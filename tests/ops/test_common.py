"""What every operator must do, over the shared cases."""

from __future__ import annotations

import ctypes
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import pydiffaccel as da
from pydiffaccel.ops import reference
from tests.cases import CASES, FLOATING, Case

OPS = sorted({case.op for case in CASES})
DIFFERENTIABLE = ("kl_components", "kl_path", "kl_sample", "solver_step")
# Kernels round once to the dtype from float32; references from float64.
TOLERANCE = {torch.float32: 4e-6, torch.float64: 4e-6, torch.float16: 4e-3, torch.bfloat16: 3e-2}

cuda = pytest.mark.cuda
needs_cuda = pytest.mark.skipif(
    not (torch.cuda.is_available() and da.build_info()["cuda_kernels"]),
    reason=f"no GPU or no CUDA kernels: {da.build_info()['cuda_note'] or 'torch sees no GPU'}",
)


def registered() -> list[str]:
    names = {
        name.split("::")[1].split(".")[0]
        for name in torch._C._dispatch_get_all_op_names()
        if name.startswith("diffaccel::")
    }
    return sorted(names)


def flatten(value: Any) -> list[Tensor]:
    if isinstance(value, Tensor):
        return [value]
    return [t for part in value for t in flatten(part)] if isinstance(value, (list, tuple)) else []


def assert_same(actual: Any, expected: Any, dtype: torch.dtype) -> None:
    for a, e in zip(flatten(actual), flatten(expected), strict=True):
        assert a.dtype == e.dtype
        assert a.shape == e.shape
        if a.dtype == torch.int64:
            assert torch.equal(a.cpu(), e.cpu())
        else:
            tolerance = TOLERANCE[dtype]
            torch.testing.assert_close(a.cpu(), e.cpu(), atol=tolerance, rtol=tolerance)


def assert_agrees(case: Case, actual: Any, expected: Any, arguments: tuple[Any, ...], dtype: torch.dtype) -> None:
    if case.op == "hungarian":
        assert_equal_totals(actual.cpu(), expected.cpu(), arguments[0].cpu())
    elif case.op == "hungarian_with_status":
        assert_same(actual[1], expected[1], dtype)
        solved = (expected[1] == 0).cpu()
        cost = arguments[0].cpu()[solved]
        assert_equal_totals(actual[0].cpu()[solved], expected[0].cpu()[solved], cost)
        assert bool((actual[0].cpu()[~solved] == -1).all())
    else:
        assert_same(actual, expected, dtype)


def assert_equal_totals(actual: Tensor, expected: Tensor, cost: Tensor) -> None:
    """Two assignments are as good as each other: ties allow several."""
    assert actual.dtype == expected.dtype == torch.int64
    assert actual.shape == expected.shape
    rows, columns = cost.shape[-2:]
    items = expected.numel() // rows if rows else 0
    matrices, several = cost.double().reshape(items, rows, columns), actual.reshape(items, rows)
    for item in range(items):
        used = [several[item][several[item] >= 0], expected.reshape(items, rows)[item]]
        assert used[0].unique().numel() == used[0].numel() == min(rows, columns)
        totals = [
            matrices[item][(chosen >= 0).nonzero()[:, 0], chosen[chosen >= 0]].sum()
            for chosen in (several[item], used[1])
        ]
        assert float(totals[0]) == pytest.approx(float(totals[1]), rel=1e-12, abs=1e-12)


def assert_bits(actual: Any, expected: Any) -> None:
    for a, e in zip(flatten(actual), flatten(expected), strict=True):
        assert torch.equal(a.cpu(), e.cpu())


def strided(value: Any) -> Any:
    """The same numbers in memory that is not contiguous."""
    if isinstance(value, Tensor) and value.dim() >= 1:
        wide = value.new_zeros(*value.shape[:-1], 2 * value.shape[-1])
        wide[..., ::2] = value
        return wide[..., ::2]
    if isinstance(value, list):
        return [strided(v) for v in value]
    return value


def test_every_operator_is_complete() -> None:
    assert registered() == OPS
    for op in OPS:
        assert torch._C._dispatch_has_kernel_for_dispatch_key(f"diffaccel::{op}", "CPU"), op
        assert callable(getattr(reference, op)), op
        assert callable(getattr(da.ops, op)), op
        fake = torch._library.simple_registry.singleton.find(f"diffaccel::{op}").fake_impl.kernel
        assert fake is not None, op
        if da.build_info()["cuda_kernels"]:
            assert torch._C._dispatch_has_kernel_for_dispatch_key(f"diffaccel::{op}", "CUDA"), op
        root = Path(__file__).parents[2]
        stem = op.split("_with_")[0]  # what returns more beside is the same operator
        bench = "kl" if stem.startswith("kl_") else stem
        for path in (
            f"csrc/ops/{stem}.cpp",
            f"csrc/cuda/{stem}.cu",
            f"tests/ops/test_{stem}.py",
            f"benchmarks/bench_{bench}.py",
        ):
            assert (root / path).exists(), path


@pytest.mark.parametrize("dtype", FLOATING, ids=str)
@pytest.mark.parametrize("case", CASES, ids=str)
def test_agrees_with_the_reference(case: Case, dtype: torch.dtype) -> None:
    arguments = case.arguments(dtype=dtype)
    actual, expected = getattr(da.ops, case.op)(*arguments), getattr(reference, case.op)(*arguments)
    assert_agrees(case, actual, expected, arguments, dtype)


@pytest.mark.parametrize("case", CASES, ids=str)
def test_strided_input_gives_the_same_bits(case: Case) -> None:
    arguments = case.arguments()
    op = getattr(da.ops, case.op)
    assert_bits(op(*(strided(a) for a in arguments)), op(*arguments))


@pytest.mark.parametrize("case", CASES, ids=str)
def test_thread_count_does_not_matter(case: Case) -> None:
    arguments = case.arguments()
    op = getattr(da.ops, case.op)
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        one = op(*arguments)
        torch.set_num_threads(3)
        assert_bits(op(*arguments), one)
    finally:
        torch.set_num_threads(before)


@pytest.mark.parametrize("case", CASES, ids=str)
def test_opcheck(case: Case) -> None:
    torch.library.opcheck(getattr(torch.ops.diffaccel, case.op).default, fill_defaults(case))


def fill_defaults(case: Case, device: str = "cpu", dtype: torch.dtype = torch.float32) -> tuple[Any, ...]:
    """Native arguments with the wrapper's defaults written out."""
    arguments = case.native(device, dtype)
    schema = getattr(torch.ops.diffaccel, case.op).default._schema.arguments
    missing = schema[len(arguments) :]
    return arguments + tuple(a.default_value if a.has_default_value() else 0 for a in missing)


@pytest.mark.parametrize("op", OPS)
def test_compiles_in_one_graph(op: str) -> None:
    case = next(case for case in CASES if case.op == op)
    function = getattr(da.ops, op)
    compiled = torch.compile(lambda *a: function(*a), backend="aot_eager", fullgraph=True)
    arguments = case.arguments()
    assert_bits(compiled(*arguments), function(*arguments))
    torch._dynamo.reset()


def test_compiles_with_the_default_backend() -> None:
    def step(x: Tensor) -> Tensor:
        noise = da.ops.gaussian_noise(x, 3)
        columns = da.ops.hungarian(-(x @ noise.T))
        return da.ops.solver_step(x, [noise[columns]], 0.5, [0.25])

    x = torch.randn(8, 12, generator=torch.Generator().manual_seed(0))
    compiled = torch.compile(step, fullgraph=True)
    assert torch.equal(compiled(x), step(x))
    torch._dynamo.reset()


@pytest.mark.parametrize("op", DIFFERENTIABLE)
def test_gradient(op: str) -> None:
    case = next(case for case in CASES if case.op == op and case.name == "odd")
    x, *rest = case.arguments(dtype=torch.float64)
    x.requires_grad_()
    outputs = rest[0] if op == "solver_step" else []
    for output in outputs:
        output.requires_grad_()

    def function(x: Tensor, *outputs: Tensor) -> Any:
        result = getattr(da.ops, op)(x, *([list(outputs), *rest[1:]] if outputs else rest))
        return result[0] if isinstance(result, tuple) else result

    assert torch.autograd.gradcheck(function, (x, *outputs))


@pytest.mark.parametrize("case", CASES, ids=str)
def test_callers_random_state_is_untouched(case: Case) -> None:
    arguments = case.arguments()
    before = torch.get_rng_state()
    getattr(da.ops, case.op)(*arguments)
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("level", ["portable", "avx2"])
def test_every_instruction_set_gives_the_same_bits(level: str) -> None:
    """Hashes all outputs of all cases in a process of its own, at a lower instruction set."""
    script = (
        "import hashlib, torch, pydiffaccel as da\n"
        "from tests.cases import CASES\n"
        "from tests.ops.test_common import flatten\n"
        "h = hashlib.sha256()\n"
        "for case in CASES:\n"
        "    for t in flatten(getattr(da.ops, case.op)(*case.arguments())):\n"
        "        h.update(t.numpy().tobytes())\n"
        "print(da.build_info()['simd'], h.hexdigest())\n"
    )

    def run(environment: dict[str, str]) -> list[str]:
        import os

        root = Path(__file__).parents[2]
        done = subprocess.run(
            [sys.executable, "-c", script], capture_output=True, text=True, cwd=root, env=os.environ | environment
        )
        assert done.returncode == 0, done.stderr
        return done.stdout.split()

    best, lower = run({}), run({"DIFFACCEL_SIMD": level})
    if best[0] == lower[0] and level != best[0]:
        pytest.skip(f"this machine has no level below {best[0]} named {level}")
    assert lower[1] == best[1]


def test_direct_calls_are_checked_too() -> None:
    x = torch.randn(3, 4)
    with pytest.raises(RuntimeError, match="step must be in"):
        torch.ops.diffaccel.gaussian_noise(x, 0, -1, 0)
    with pytest.raises(RuntimeError, match=r"alpha must be \[B\]"):
        torch.ops.diffaccel.kl_sample(x, torch.ones(2), torch.ones(3, 1), 0, 0, 0)
    with pytest.raises(RuntimeError, match=r"coeff must be \[B, M\], or \[B, S, M\] with alpha \[B, S\]"):
        torch.ops.diffaccel.kl_sample(x, torch.ones(3, 2), torch.ones(3, 1), 0, 0, 0)
    with pytest.raises(RuntimeError, match=r"draws must be 0 .* got 2"):
        torch.ops.diffaccel.kl_components(x, torch.ones(3), torch.ones(3), 2, 0, 0, 0, 2)
    with pytest.raises(RuntimeError, match="shape of x"):
        torch.ops.diffaccel.solver_step(x, [x[:2]], 1.0, [1.0])
    with pytest.raises(RuntimeError, match="holds NaN"):
        torch.ops.diffaccel.hungarian(torch.full((2, 2), torch.nan))
    with pytest.raises(RuntimeError, match="float32, float64, float16 or bfloat16"):
        torch.ops.diffaccel.gaussian_noise(torch.zeros(2, 2, dtype=torch.int32), 0, 0, 0)


def test_libraries_keep_to_the_stable_abi() -> None:
    audit = Path(sys.executable).with_name("torch-abi-audit")
    if not audit.exists():
        pytest.skip("torch-abi-audit is not installed")
    done = subprocess.run([audit, "--check", "torch", "-v", "pydiffaccel"], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


def test_schemas_and_library_agree_on_one_process() -> None:
    """The CPU library is opened once: a second copy would register every operator twice."""
    library = Path(da.__file__).parent / "libdiffaccel_ops.so"
    handle = ctypes.CDLL(str(library))
    assert handle is not None
    assert registered() == OPS


@cuda
@needs_cuda
@pytest.mark.parametrize("dtype", FLOATING, ids=str)
@pytest.mark.parametrize("case", CASES, ids=str)
def test_cuda_agrees_with_cpu(case: Case, dtype: torch.dtype) -> None:
    op = getattr(da.ops, case.op)
    arguments = case.arguments("cpu", dtype)
    assert_agrees(case, op(*case.arguments("cuda", dtype)), op(*arguments), arguments, dtype)


@cuda
@needs_cuda
@pytest.mark.parametrize("op", ["gaussian_noise", "kl_components", "kl_sample", "solver_step"])
def test_cuda_gives_the_same_bits(op: str) -> None:
    for case in CASES:
        if case.op == op:
            function = getattr(da.ops, op)
            assert_bits(function(*case.arguments("cuda")), function(*case.arguments("cpu")))


@cuda
@needs_cuda
@pytest.mark.parametrize("case", CASES, ids=str)
def test_cuda_opcheck(case: Case) -> None:
    torch.library.opcheck(getattr(torch.ops.diffaccel, case.op).default, fill_defaults(case, "cuda"))


@cuda
@needs_cuda
@pytest.mark.parametrize("op", OPS)
def test_cuda_never_synchronises_and_captures(op: str) -> None:
    case = next(case for case in CASES if case.op == op)
    arguments = case.arguments("cuda")
    function = getattr(da.ops, op)
    expected = function(*arguments)
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        stream = torch.cuda.Stream()
        with torch.cuda.stream(stream):
            function(*arguments)
        torch.cuda.set_sync_debug_mode("default")
        torch.cuda.synchronize()
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            captured = function(*arguments)
        graph.replay()
        torch.cuda.synchronize()
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert_bits(captured, expected)
