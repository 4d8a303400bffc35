"""Karhunen-Loeve noising by kl_sample, kl_path, kl_components against eager torch; zeros against dense coefficients.

Data are 256 x 3072 float32, 32 x 3072 where coefficients are sparse. The eager side is the fastest of the forms tried:
``randn`` for all Z_k, one batched product, ``addcmul``. Beside times the summary has the memory beyond the outputs,
measured, and the bytes that the CUDA kernels move, computed from sizes.
"""

from __future__ import annotations

import ctypes
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from harness import Comparison, Options, Row, main
from torch import Tensor

from pydiffaccel import ContinuousVPSchedule, KLProcess
from pydiffaccel.ops import kl_components, kl_path, kl_sample

ROWS, ELEMENTS = 256, 3072
SPARSE_TERMS = (16, 64, 256, 1024, 4096)


def eager_sample(x: Tensor, alpha: Tensor, coeff: Tensor) -> tuple[Tensor, Tensor]:
    z = torch.randn(x.shape[0], coeff.shape[-1], x.shape[1], device=x.device)
    sigma = coeff.norm(dim=-1, keepdim=True)
    if alpha.dim() == 2:
        noise = torch.bmm(coeff / sigma, z)
        return torch.addcmul(alpha[:, :, None] * x[:, None], sigma, noise), noise
    noise = torch.einsum("bm,bmd->bd", coeff / sigma, z)
    return torch.addcmul(alpha[:, None] * x, sigma, noise), noise


def eager_path(x: Tensor, alpha: Tensor, coeff: Tensor) -> Tensor:
    z = torch.randn(x.shape[0], coeff.shape[1], x.shape[1], device=x.device)
    return torch.baddbmm(alpha[None, :, None] * x[:, None], coeff.expand(x.shape[0], *coeff.shape), z)


def eager_components(x: Tensor, alpha: Tensor, sigma: Tensor, terms: int) -> tuple[Tensor, Tensor]:
    noise = torch.randn(x.shape[0], terms, x.shape[1], device=x.device)
    return torch.addcmul((alpha[:, None] * x)[:, None], sigma[:, None, None], noise), noise


def haar(terms: int) -> KLProcess:
    """A process whose coefficients are sparse: 1 + log2 M of them at any time."""
    return KLProcess(ContinuousVPSchedule.linear(), terms, "haar")


def moved_bytes(op: str, x: Tensor, times: int, terms: int) -> tuple[int, int]:
    """(bytes that the CUDA kernels read and write for the data, bytes of the outputs).

    x_0 is read once, by kl_components once for every four terms; the tables of coefficients are left out.
    """
    outputs = {"kl_sample": 2 * times, "kl_path": times, "kl_components": 2 * terms}[op]
    reads = -(-terms // 4) if op == "kl_components" else 1
    return (reads + outputs) * x.nbytes, outputs * x.nbytes


def work(op: str, rows: int, times: int, terms: int, device: torch.device) -> tuple[Any, Any, tuple[int, int]]:
    """Ours and eager torch on the same inputs, and the bytes."""
    generator = torch.Generator().manual_seed(0)

    def uniform(*shape: int) -> Tensor:
        return torch.rand(*shape, generator=generator).to(device)

    x = torch.randn(rows, ELEMENTS, generator=generator).to(device)
    moved = moved_bytes(op, x, times, terms)
    if op == "kl_path":
        alpha, coeff = uniform(times), uniform(times, terms)
        return lambda: kl_path(x, alpha, coeff, 1), lambda: eager_path(x, alpha, coeff), moved
    if op == "kl_components":
        a, s = uniform(rows), uniform(rows)
        return lambda: kl_components(x, a, s, terms, 1), lambda: eager_components(x, a, s, terms), moved
    shape = (rows, times) if times > 1 else (rows,)
    alpha, coeff = uniform(*shape), uniform(*shape, terms)
    return lambda: kl_sample(x, alpha, coeff, 1), lambda: eager_sample(x, alpha, coeff), moved


CASES = (
    *(("kl_sample", 1, terms) for terms in (1, 10, 64)),
    ("kl_sample", 4, 10),
    *(("kl_path", 4, terms) for terms in (1, 10, 64)),
    ("kl_path", 10, 10),
    *(("kl_components", 1, terms) for terms in (1, 10, 64)),
)


def name_of(op: str, times: int, terms: int) -> str:
    return op + (f", S = {times}" if times > 1 else "") + f", M = {terms}"


def comparisons(options: Options) -> Iterator[Comparison]:
    rows = 64 if options.quick else ROWS
    for op, times, terms in CASES:
        name = name_of(op, times, terms)
        if options.wants(name):
            ours, eager, moved = work(op, rows, times, terms, options.device)
            yield Comparison(name, "eager", ours, eager, moved[0])
    x, alpha = torch.randn(ROWS, ELEMENTS, device=options.device), torch.rand(ROWS, device=options.device)
    yield Comparison(
        "antithetic kl_components, M = 10",
        "iid draws",
        lambda: kl_components(x, alpha, alpha, 10, 1, draws="antithetic"),
        lambda: kl_components(x, alpha, alpha, 10, 1),
        moved_bytes("kl_components", x, 1, 10)[0],
    )
    few = x[:32].contiguous()
    for terms in SPARSE_TERMS[: 3 if options.quick else None]:
        process = haar(terms)
        at, path_at = (
            t.to(options.device)
            for t in (process.sample_timesteps(32, seed=0, step=0), torch.tensor([0.1, 0.4, 0.6, 0.9]))
        )
        sparse, dense = process.terms(at), torch.ones(32, terms, device=options.device)
        yield Comparison(
            f"sparse kl_sample, M = {terms}",
            "dense coefficients",
            lambda c=sparse: kl_sample(few, alpha[:32], c, 1),
            lambda c=dense: kl_sample(few, alpha[:32], c, 1),
            moved_bytes("kl_sample", few, 1, terms)[0],
        )
        yield Comparison(
            f"sparse terms and kl_sample, M = {terms}",
            "kl_sample alone",
            lambda p=process, t=at: kl_sample(few, alpha[:32], p.terms(t), 1),
            lambda c=sparse: kl_sample(few, alpha[:32], c, 1),
            moved_bytes("kl_sample", few, 1, terms)[0],
        )
        sparse, dense = process.terms(path_at), dense[:4].contiguous()
        yield Comparison(
            f"sparse kl_path, S = 4, M = {terms}",
            "dense coefficients",
            lambda c=sparse: kl_path(few, alpha[:4], c, 1),
            lambda c=dense: kl_path(few, alpha[:4], c, 1),
            moved_bytes("kl_path", few, 4, terms)[0],
        )


def growth(rows: list[Row], op: str) -> dict[str, float] | None:
    """Least squares of the sparse times by the terms that are not zero, a + b (1 + log2 M)."""
    found = [(int(row.case.split("M = ")[1]), row) for row in rows if row.case.startswith(f"sparse {op},")]
    if len(found) < 3:
        return None
    terms = np.array([m for m, _ in found], dtype=float)
    ours = np.array([row.milliseconds for _, row in found])
    dense = np.array([row.baseline_milliseconds for _, row in found])
    design = np.stack([np.ones_like(terms), 1 + np.log2(terms)], 1)
    (constant, slope), *_ = np.linalg.lstsq(design, ours, rcond=None)
    fitted = design @ [constant, slope]
    return {
        "milliseconds_constant": float(constant),
        "milliseconds_per_1_plus_log2_M": float(slope),
        "largest_relative_deviation": float(np.abs(ours / fitted - 1).max()),
        "times_slower_from_least_to_most_terms": float(ours[-1] / ours[0]),
        "the_same_of_1_plus_log2_M": float(design[-1, 1] / design[0, 1]),
        "the_same_of_the_baseline": float(dense[-1] / dense[0]),
    }


def resident(field: str) -> int:
    found = re.search(rf"{field}:\s+(\d+) kB", Path("/proc/self/status").read_text())
    assert found is not None
    return 1024 * int(found[1])


def probe(op: str, times: int, terms: int, which: str) -> int:
    """Peak resident bytes of one call beyond what there was before and its outputs (Linux, a process of its own)."""
    torch.set_num_threads(1)
    ours, eager, _ = work(op, 2, times, terms, torch.device("cpu"))
    run = ours if which == "ours" else eager
    run()
    ours, eager, _ = work(op, ROWS, times, terms, torch.device("cpu"))
    run = ours if which == "ours" else eager
    ctypes.CDLL(None).malloc_trim(0)
    Path("/proc/self/clear_refs").write_text("5")  # the peak starts here
    before = resident("VmRSS")
    outputs = run()
    outputs = outputs if isinstance(outputs, tuple) else (outputs,)
    return resident("VmHWM") - before - sum(t.nbytes for t in outputs)


def memory(op: str, times: int, terms: int) -> dict[str, float]:
    """MB beyond the outputs, ours and eager."""
    found = {}
    for which in ("ours", "eager"):
        script = f"from bench_kl import probe; print(probe({op!r}, {times}, {terms}, {which!r}))"
        done = subprocess.run(
            [sys.executable, "-c", script], capture_output=True, text=True, check=True, cwd=Path(__file__).parent
        )
        found[which] = int(done.stdout) / 1e6
    return found


def summarise(rows: list[Row]) -> dict[str, Any]:
    summary: dict[str, Any] = {
        "growth": {op: growth(rows, op) for op in ("kl_sample", "terms and kl_sample", "kl_path")}
    }
    data = torch.empty(ROWS, ELEMENTS, device="meta")
    computed, measured = {}, {}
    names = {row.case for row in rows}
    for op, times, terms in CASES:
        name = name_of(op, times, terms)
        if name not in names:
            continue
        moved, outputs = moved_bytes(op, data, times, terms)
        computed[name] = {"over_outputs": moved / outputs, "over_x0_and_outputs": moved / (outputs + data.nbytes)}
        if sys.platform == "linux" and terms == 10:
            measured[name] = memory(op, times, terms)
    summary["cuda_bytes_computed_from_sizes"] = computed
    summary["cpu_megabytes_beyond_outputs"] = measured
    for title, part in summary.items():
        print(title)
        for case, values in part.items():
            print(f"  {case}: {values}")
    return summary


if __name__ == "__main__":
    main("kl", comparisons, summarise=summarise)
