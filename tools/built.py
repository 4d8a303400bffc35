"""Says what the native build holds and what it left out."""

from __future__ import annotations

import sys
from pathlib import Path

import pydiffaccel as da

info = da.build_info()
tests = Path(__file__).parents[1] / "build" / f"cp{sys.version_info.major}{sys.version_info.minor}" / "diffaccel_tests"
cuda = f"nvcc {info['cuda']} for {info['archs']}" if info["cuda"] else "left out (no nvcc, or DIFFACCEL_CUDA=OFF)"
print(f"   operators: built by {info['compiler']} on torch {info['torch_built_with']}; this CPU runs {info['simd']}")
print(
    f"   CUDA kernels: {cuda}"
    + (f"; not loaded here: {info['cuda_note']}" if info["cuda"] and info["cuda_note"] else "")
)
print(f"   C++ tests: {'built' if tests.exists() else 'left out (GTest not found)'}")
