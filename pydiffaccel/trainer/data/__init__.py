"""Training data as tensors in the model's range, and the order in which it is visited.

A batch is a pure function of (seed, step): the set is visited in epochs, each a permutation that depends only on the
seed and the epoch's number, so the step is the whole state of the data stream.
"""

from __future__ import annotations

from pydiffaccel.trainer.data.cache import default_cache_dir
from pydiffaccel.trainer.data.dataset import DataKind, TrainData
from pydiffaccel.trainer.data.decode import DataError
from pydiffaccel.trainer.data.load import load_data, load_digits
from pydiffaccel.trainer.data.order import BatchOrder

__all__ = [
    "BatchOrder",
    "DataError",
    "DataKind",
    "TrainData",
    "default_cache_dir",
    "load_data",
    "load_digits",
]
