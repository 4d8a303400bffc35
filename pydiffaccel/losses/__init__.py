"""Training objectives: mean squared error of a network's answer, plain and over Karhunen-Loeve terms.

A perfect network reaches zero under each of them, with every coupling and prediction type: the noise that made the
input is the noise in the target.
"""

from pydiffaccel.losses.common import Model
from pydiffaccel.losses.diffusion import diffusion_loss
from pydiffaccel.losses.draws import coupled_noises
from pydiffaccel.losses.kl import KLObjective, kl_loss, kl_loss_parts
from pydiffaccel.losses.min_snr import min_snr_weight
from pydiffaccel.losses.weights import LossWeighting

__all__ = [
    "KLObjective",
    "LossWeighting",
    "Model",
    "coupled_noises",
    "diffusion_loss",
    "kl_loss",
    "kl_loss_parts",
    "min_snr_weight",
]
