"""Fixed densities of training times: those of Stable Diffusion 3 (2403.03206), and SpeeD's (2405.17403)."""

from pydiffaccel.densities.base import TimeDensity, TimeDistribution
from pydiffaccel.densities.laws import CosMap, LogitNormal, Mode
from pydiffaccel.densities.noise import NoiseDensity
from pydiffaccel.densities.speed import SpeedDensity

__all__ = ["CosMap", "LogitNormal", "Mode", "NoiseDensity", "SpeedDensity", "TimeDensity", "TimeDistribution"]
