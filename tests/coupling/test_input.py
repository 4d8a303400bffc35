"""Settings and arguments that couplings refuse, with their sentences."""

from __future__ import annotations

import math

import pytest
import torch

from pydiffaccel.coupling import (
    KNN,
    Distributed,
    Hungarian,
    Independent,
    Scaled,
    Sinkhorn,
    Standardized,
    WarmUp,
    coupling_from_dict,
)
from tests.coupling.samples import data


@pytest.mark.parametrize(
    ("make", "error", "sentence"),
    [
        (lambda: Hungarian("both"), ValueError, "labels must be 'within' or 'across', got 'both'"),
        (lambda: Hungarian(pool=0), ValueError, "pool must be at least 1, got 0"),
        (lambda: Hungarian(pool=2.0), TypeError, "pool must be an int, got float"),
        (lambda: Hungarian(project=0), ValueError, "project must be at least 1, got 0"),
        (
            lambda: Hungarian(project=9, projection="pca"),
            ValueError,
            "projection must be 'pool' or 'random', got 'pca'",
        ),
        (lambda: Sinkhorn(0), ValueError, "epsilon must be positive and finite, got 0"),
        (lambda: Sinkhorn(math.inf), ValueError, "epsilon must be positive and finite, got inf"),
        (lambda: Sinkhorn(math.nan), ValueError, "epsilon must be positive and finite, got nan"),
        (lambda: Sinkhorn(1e-39), ValueError, r"epsilon must be in \[1e-06, 1e\+06\], got 1e-39"),
        (lambda: coupling_from_dict({"name": ["a"]}), ValueError, r"unknown coupling \['a'\]"),
        (
            lambda: coupling_from_dict({"name": "knn", "k": 2, "metric": "l2", "center": [[1.0], [1.0, 2.0]]}),
            ValueError,
            "center must be None, 'mean' or nested lists of numbers",
        ),
        (lambda: Sinkhorn("0.1"), TypeError, "epsilon must be a number, got str"),
        (lambda: Sinkhorn(iterations=-1), ValueError, "iterations must be at least 0, got -1"),
        (lambda: Sinkhorn(iterations=1.5), TypeError, "iterations must be an int, got float"),
        (lambda: Sinkhorn(output="plan"), ValueError, "output must be 'permutation' or 'sampled', got 'plan'"),
        (lambda: Sinkhorn(stride=0), ValueError, "stride must be at least 1, got 0"),
        (lambda: Sinkhorn(candidates=1), ValueError, "candidates must be at least 2, got 1"),
        (lambda: Sinkhorn(labels="both"), ValueError, "labels must be 'within' or 'across', got 'both'"),
        (lambda: Sinkhorn(project=0), ValueError, "project must be at least 1, got 0"),
        (lambda: Sinkhorn(projection="pca"), ValueError, "projection must be 'pool' or 'random', got 'pca'"),
        (lambda: KNN(0), ValueError, "k must be at least 1, got 0"),
        (lambda: KNN(True), TypeError, "k must be an int, got bool"),
        (lambda: KNN(2, "cosine"), ValueError, "metric must be 'l2' or 'dot', got 'cosine'"),
        (lambda: KNN(2, center="median"), ValueError, "center must be None, 'mean' or a tensor, got 'median'"),
        (lambda: KNN(2, center=3), TypeError, "center must be None, 'mean' or a floating-point tensor, got int"),
        (lambda: KNN(2, center=torch.tensor([torch.inf])), ValueError, "center must be finite"),
        (lambda: Scaled(0.0), ValueError, "factor must be positive and finite, got 0.0"),
        (lambda: Scaled("2"), TypeError, "factor must be a number, got str"),
        (lambda: Scaled(2.0, "knn"), TypeError, "coupling must be a Coupling, got str"),
        (lambda: Standardized(None), TypeError, "coupling must be a Coupling, got NoneType"),
        (lambda: Standardized(KNN(2), torch.ones(1)), ValueError, "mean and std come together, got mean without std"),
        (lambda: Standardized(KNN(2), std=torch.ones(1)), ValueError, "come together, got std without mean"),
        (lambda: Standardized(KNN(2), 0.0, 1.0), TypeError, "mean must be None or a floating-point tensor, got float"),
        (lambda: Standardized(KNN(2), torch.zeros(1), -torch.ones(1)), ValueError, "std must be at least 0, got -1.0"),
        (lambda: Standardized(KNN(2), torch.zeros(1) / 0, torch.ones(1)), ValueError, "mean must be finite"),
        (lambda: Standardized(WarmUp(1, Distributed(KNN(2)))), ValueError, "needs mean and std around Distributed"),
        (
            lambda: Standardized(KNN(2), torch.zeros(2), torch.ones(2))(data(4, 3)),
            ValueError,
            r"mean must broadcast to one sample \(3,\), got \(2,\)",
        ),
        (lambda: WarmUp(-1, KNN(2)), ValueError, "start_step must be at least 0, got -1"),
        (lambda: WarmUp(1.5, KNN(2)), TypeError, "start_step must be an int, got float"),
        (lambda: WarmUp(1, None), TypeError, "coupling must be a Coupling, got NoneType"),
        (lambda: coupling_from_dict([]), TypeError, "a coupling is described by a dict, got list"),
        (lambda: coupling_from_dict({"name": "nearest"}), ValueError, "unknown coupling 'nearest'; known: distributed"),
        (lambda: coupling_from_dict({"name": "knn", "k": 2}), ValueError, "a knn description has the fields"),
    ],
)
def test_bad_settings(make, error: type[Exception], sentence: str) -> None:
    with pytest.raises(error, match=sentence):
        make()


@pytest.mark.parametrize(
    ("call", "error", "sentence"),
    [
        (lambda x: Independent()(x.long()), TypeError, "x must be a floating-point tensor, got torch.int64"),
        (lambda x: Independent()([1.0]), TypeError, "x must be a floating-point tensor, got list"),
        (lambda x: Independent()(x[0, 0]), ValueError, "x must have a batch dimension, got a scalar"),
        (lambda x: Hungarian()(x, labels=x[:, 0]), TypeError, "labels must be integers, got dtype torch.float32"),
        (lambda x: Hungarian()(x, labels=torch.zeros(3, dtype=int)), ValueError, r"labels must have shape \(4,\)"),
        (lambda x: KNN(2)(x, mask=torch.ones(4, 3)), TypeError, "mask must be bool, True at real elements"),
        (lambda x: KNN(2)(x, mask=torch.ones(3, 4) > 0), ValueError, "mask must have the leading dimensions of x"),
        (lambda x: KNN(2)(x, mask=torch.ones(4, 3, 1) > 0), ValueError, "mask must have the leading dimensions of x"),
        (lambda x: KNN(2, center=torch.zeros(2))(x), ValueError, r"center must broadcast to one sample \(3,\)"),
        (lambda x: Hungarian(pool=3)(x), ValueError, "pool must be at least the batch size 4, got 3"),
        (lambda x: Hungarian()(x * torch.nan), ValueError, "NaN"),
        (
            lambda x: KNN(2)(x + torch.tensor([0, 0, torch.inf, 0])[:, None]),
            ValueError,
            "x must be finite .* row 2 is not",
        ),
        (lambda x: KNN(2)(x * torch.nan, mask=x > 0), ValueError, "x must be finite"),
        (lambda x: Sinkhorn()(x * 1e36), ValueError, "too large for products in torch.float32, got magnitudes"),
        (lambda x: Sinkhorn()(x * torch.nan), ValueError, "x and noise must be finite, got NaN or infinity"),
        (lambda x: Sinkhorn().pair(x, x / 0), ValueError, "x and noise must be finite, got NaN or infinity"),
        (lambda x: Sinkhorn().pair(x, x[:3]), ValueError, r"noise must have the shape of x, \(4, 3\), got \(3, 3\)"),
        (
            lambda x: Sinkhorn(project=2, projection="random")(x, mask=x > 0),
            ValueError,
            "a search in a cheaper space does not go with a mask, got project=2",
        ),
        (lambda x: Hungarian(project=2)(x), ValueError, r"needs samples of two dimensions or more, got \(3,\)"),
        (
            lambda x: Hungarian(project=2)(x.expand(2, 4, 4, 3).repeat(1, 1, 1, 4)),
            ValueError,
            r"shape \(4, 4, 12\) can be pooled to 192, 48, 12 numbers, none of which is at most project=2",
        ),
        (
            lambda x: Hungarian(project=2, projection="random")(x, mask=x > 0),
            ValueError,
            "a search in a cheaper space does not go with a mask, got project=2",
        ),
        (lambda x: Hungarian().pair(x, x[:3]), ValueError, r"noise must be \[P, \*\] with P >= 4 and rows of shape"),
        (lambda x: Hungarian().pair(x, x.tolist()), TypeError, "noise must be a tensor, got list"),
        (lambda x: Hungarian()(x, labels=[1, 2, 3, 4]), TypeError, "labels must be integers, got list"),
        (lambda x: KNN(2)(x, mask=[True] * 4), TypeError, "mask must be bool, True at real elements, got list"),
        (lambda x: Hungarian().pair(x, x.double()), TypeError, "the dtype of x, torch.float32, got torch.float64"),
        (lambda x: KNN(2).pair(x, x[:2].long()), TypeError, "the dtype of x, torch.float32, got torch.int64"),
        (lambda x: KNN(2).pair(x, x[:2].to("meta")), ValueError, "noise must be on the device of x, cpu, got meta"),
        (lambda x: Hungarian().pair(x, x.to("meta")), ValueError, "noise must be on the device of x, cpu, got meta"),
        (lambda x: Hungarian().pair(x, x, labels=torch.arange(5)), ValueError, r"must have shape \(4,\), got \(5,\)"),
        (
            lambda x: Hungarian().pair(x, x, labels=torch.arange(4), noise_labels=torch.arange(3)),
            ValueError,
            r"noise_labels must have shape \(4,\), got \(3,\)",
        ),
        (lambda x: Hungarian().pair(x, x, noise_labels=torch.arange(4)), ValueError, "need the labels of the rows"),
        (
            lambda x: Hungarian().pair(
                x, x, labels=torch.tensor([7, 7, 7, 2]), noise_labels=torch.tensor([2, 7, 2, 7])
            ),
            ValueError,
            "class 7 has 3 rows but only 2 noises",
        ),
        (
            lambda x: Hungarian().pair(x, x, labels=torch.tensor([1, 8, 1, 1]), noise_labels=torch.zeros(4).long() + 1),
            ValueError,
            "class 8 has 1 rows but only 0 noises",
        ),
        (lambda x: Independent().pair(x, x[:3]), ValueError, r"noise must have the shape of x, \(4, 3\), got \(3, 3\)"),
        (lambda x: KNN(5).pair(x, x), ValueError, r"noise must be \[B, k, \*\] = \(4, 5, 3\) or \[k, \*\] = \(5, 3\)"),
    ],
)
def test_bad_input(call, error: type[Exception], sentence: str) -> None:
    with pytest.raises(error, match=sentence):
        call(data(4, 3))
