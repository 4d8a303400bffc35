"""Rows of arrays that are mapped from a file."""

from __future__ import annotations

import contextlib
import os
from typing import Any

import numpy as np
from numpy.typing import NDArray

__all__ = ["take_rows"]


def take_rows(array: NDArray[Any], indices: NDArray[np.int64]) -> NDArray[Any]:
    """array[indices], contiguous. A disk is told of all rows of a mapped array before the first is touched.

    Touching alone reads them one after the other, each with neighbours that nobody asked for.
    """
    if isinstance(array, np.memmap) and hasattr(os, "posix_fadvise"):
        with contextlib.suppress(OSError):  # advice: a file that was moved away is still mapped
            _announce(array, indices)
    return np.ascontiguousarray(array[indices])


def _announce(array: np.memmap[Any, Any], indices: NDArray[np.int64]) -> None:
    size = array.strides[0]
    if array.filename is None or size < max(array.strides):  # samples are no blocks of the file
        return
    handle = os.open(array.filename, os.O_RDONLY)
    try:
        for index in np.asarray(indices).tolist():
            os.posix_fadvise(handle, array.offset + index * size, size, os.POSIX_FADV_WILLNEED)
    finally:
        os.close(handle)
