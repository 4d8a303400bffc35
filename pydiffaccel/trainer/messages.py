"""What ranks tell each other, as bytes without pickles: JSON, and safetensors for arrays and tensors in it."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import torch
from torch import Tensor

__all__ = ["from_bytes", "to_bytes"]

_ARRAY, _TENSOR = "\0array", "\0tensor"  # keys that no message has


def to_bytes(value: Any) -> bytes:
    """A message of dicts with str keys, lists, tuples (which become lists), str, numbers, None, arrays and tensors.

    Raises:
        TypeError: another kind of value.
    """
    from safetensors.torch import save

    tensors: dict[str, Tensor] = {}

    def plain(item: Any) -> Any:
        if isinstance(item, (Tensor, np.ndarray)):
            name = str(len(tensors))
            is_tensor = isinstance(item, Tensor)
            tensor = item.detach().cpu() if isinstance(item, Tensor) else torch.from_numpy(np.ascontiguousarray(item))
            tensors[name] = tensor.contiguous().clone()
            return {_TENSOR if is_tensor else _ARRAY: name}
        if isinstance(item, dict):
            if not all(isinstance(key, str) for key in item):
                raise TypeError("the keys of a message must be str")
            return {key: plain(entry) for key, entry in item.items()}
        if isinstance(item, (list, tuple)):
            return [plain(entry) for entry in item]
        if isinstance(item, np.generic):
            return item.item()
        if item is None or isinstance(item, (str, bool, int, float)):
            return item
        raise TypeError(f"a message cannot hold {type(item).__name__}")

    text = json.dumps(plain(value)).encode()
    return len(text).to_bytes(8, "little") + text + (save(tensors) if tensors else b"")


def from_bytes(message: bytes) -> Any:
    """What ``to_bytes`` was given."""
    from safetensors.torch import load

    end = 8 + int.from_bytes(message[:8], "little")
    tensors = load(message[end:]) if len(message) > end else {}

    def whole(item: Any) -> Any:
        if isinstance(item, dict):
            if _TENSOR in item:
                return tensors[item[_TENSOR]]
            if _ARRAY in item:
                return tensors[item[_ARRAY]].numpy()
            return {key: whole(entry) for key, entry in item.items()}
        return [whole(entry) for entry in item] if isinstance(item, list) else item

    return whole(json.loads(message[8:end]))
