"""Typed, validated wrappers over the operators ``torch.ops.diffaccel.*``; one file per operator."""

from pydiffaccel.ops.gaussian_noise import gaussian_noise
from pydiffaccel.ops.hungarian import hungarian, hungarian_with_status, linear_sum_assignment
from pydiffaccel.ops.kl_components import kl_components
from pydiffaccel.ops.kl_path import kl_path
from pydiffaccel.ops.kl_sample import kl_sample
from pydiffaccel.ops.knn_noise import knn_noise
from pydiffaccel.ops.knn_select import knn_select
from pydiffaccel.ops.solver_gram import solver_gram
from pydiffaccel.ops.solver_step import solver_step

__all__ = [
    "gaussian_noise",
    "hungarian",
    "hungarian_with_status",
    "kl_components",
    "kl_path",
    "kl_sample",
    "knn_noise",
    "knn_select",
    "linear_sum_assignment",
    "solver_gram",
    "solver_step",
]
