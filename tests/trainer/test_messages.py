"""What ranks tell each other comes back as it was."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from pydiffaccel.trainer.messages import from_bytes, to_bytes


def test_values_come_back() -> None:
    value = {
        "a": [1, 2.5, None, "x", True],
        "b": {"c": (0.1 + 0.2, -(2**62))},
        "": [],
        "nan": math.nan,
        "n": np.float64(3),
    }
    back = from_bytes(to_bytes(value))
    assert math.isnan(back.pop("nan"))
    assert back == {"a": [1, 2.5, None, "x", True], "b": {"c": [0.1 + 0.2, -(2**62)]}, "": [], "n": 3.0}


def test_arrays_and_tensors_come_back_as_such() -> None:
    rng = np.random.default_rng(0)
    arrays = [rng.normal(size=(3, 4)), rng.normal(size=(0, 4)), np.arange(6)[::2], rng.normal(size=(4, 3)).T]
    tensors = {"w": torch.randn(2, 3, dtype=torch.bfloat16), "view": torch.arange(6).view(2, 3).T}
    back_arrays, back_tensors = from_bytes(to_bytes((arrays, tensors)))
    for array, back in zip(arrays, back_arrays, strict=True):
        assert isinstance(back, np.ndarray)
        assert back.dtype == array.dtype
        np.testing.assert_array_equal(back, array)
    assert all(back_tensors[name].dtype == t.dtype and back_tensors[name].equal(t) for name, t in tensors.items())


@pytest.mark.parametrize("value", [object(), {1: 2}, [b"bytes"]])
def test_other_values_are_refused(value: object) -> None:
    with pytest.raises(TypeError, match="message"):
        to_bytes(value)
