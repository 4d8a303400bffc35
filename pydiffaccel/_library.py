"""Loads the native libraries: the operators and their CPU kernels, then the CUDA kernels where torch has CUDA."""

from __future__ import annotations

from pathlib import Path
from types import ModuleType
from typing import Any

import torch

_PACKAGE = Path(__file__).parent
_CUDA_LIBRARY = _PACKAGE / "libdiffaccel_ops_cuda.so"


def _likely_causes(error: BaseException) -> str:
    causes = []
    built = sorted(p.name for p in _PACKAGE.glob("*.so"))
    version = tuple(int(part) for part in torch.__version__.split("+")[0].split(".")[:2])
    if not any(name.startswith("_C.") for name in built):
        causes.append(
            "the native part was not built: run `pip install --no-build-isolation -e .` in the source folder"
            " (in the source folder itself, Python finds the unbuilt package first)"
        )
    if version < (2, 10):
        causes.append(f"torch is {torch.__version__}, older than the oldest supported 2.10")
    causes.append("it was built for another Python version or another machine: build it again")
    causes.append("a library it needs is missing: `ldd` on the file named above shows which")
    lines = "\n".join(f"  {n}. {cause}" for n, cause in enumerate(causes, 1))
    found = ", ".join(built) if built else "none"
    return (
        f"pydiffaccel cannot load its native module: {error}\nNative files in {_PACKAGE}: {found}\n"
        f"Likely causes, the likeliest first:\n{lines}"
    )


def _load() -> ModuleType:
    try:
        from pydiffaccel import _C
    except ImportError as error:
        raise ImportError(_likely_causes(error)) from error
    module: ModuleType = _C
    return module


def _load_cuda() -> str:
    """Registers the CUDA kernels; says why not in one sentence ("" when it did)."""
    if not _CUDA_LIBRARY.exists():
        return "built without CUDA kernels (no nvcc at build time, or DIFFACCEL_CUDA=OFF)"
    if torch.version.cuda is None:
        return "this torch has no CUDA"
    try:
        torch.ops.load_library(str(_CUDA_LIBRARY))
    except OSError as error:
        return f"the CUDA kernels do not load: {error}"
    return ""


native = _load()
cuda_note = _load_cuda()


def build_info() -> dict[str, Any]:
    """What this build is: version, commit, compiler, cuda (nvcc version or ""), archs, torch_built_with, torch_target,
    simd (the instruction set in use), cuda_kernels (whether they are loaded), cuda_note (why not)."""
    info: dict[str, Any] = dict(native.build_info())
    info["cuda_kernels"] = cuda_note == ""
    info["cuda_note"] = cuda_note
    return info
