"""Solvers as tables: ``make_plan`` writes one, ``integrate`` runs it, ``distill_plan`` improves it."""

from pydiffaccel.solvers.clip import clip_denoised
from pydiffaccel.solvers.denoiser import Denoiser, wrap_model
from pydiffaccel.solvers.distill import distill_plan
from pydiffaccel.solvers.integrate import integrate
from pydiffaccel.solvers.make import make_plan
from pydiffaccel.solvers.plan import Evaluation, Plan, Update, load_plan
from pydiffaccel.solvers.point import Point

__all__ = [
    "Denoiser",
    "Evaluation",
    "Plan",
    "Point",
    "Update",
    "clip_denoised",
    "distill_plan",
    "integrate",
    "load_plan",
    "make_plan",
    "wrap_model",
]
