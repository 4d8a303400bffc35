"""Runs every CUDA kernel once per shared case and dtype: the program that compute-sanitizer watches."""

from __future__ import annotations

import sys
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).parents[1]))

import pydiffaccel as da
from tests.cases import CASES, FLOATING

for case in CASES:
    for dtype in FLOATING:
        getattr(da.ops, case.op)(*case.arguments("cuda", dtype))
torch.cuda.synchronize()
print(f"{len(CASES) * len(FLOATING)} calls done")
