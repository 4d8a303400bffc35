"""Which noise each sample is trained with.

Plain diffusion training gives every sample an independent noise. Pairing samples with noises near them ("immiscible
diffusion", 2406.12303 and 2505.18521) untangles the paths from noise to data. Only the noise is chosen: data, labels
and times stay where they are, and the loss must use the chosen noise for the input and for the target.

    x = coupling.scale_data(x)
    noise = coupling(x, seed=seed, step=step)
    loss = diffusion_loss(model, x, t, process=process, noise=noise)

Samples may have any shape: images, latents, action chunks ``[B, T, A]``, vectors ``[B, D]``.
"""

from pydiffaccel.coupling.base import Coupling
from pydiffaccel.coupling.diagnostics import CouplingDiagnostics, diagnose
from pydiffaccel.coupling.distributed import Distributed
from pydiffaccel.coupling.hungarian import Hungarian
from pydiffaccel.coupling.independent import Independent
from pydiffaccel.coupling.knn import KNN
from pydiffaccel.coupling.pending import PendingNoise, start_drawing
from pydiffaccel.coupling.queue import NoiseQueue
from pydiffaccel.coupling.registry import coupling_from_dict
from pydiffaccel.coupling.scaled import Scaled
from pydiffaccel.coupling.sinkhorn import Sinkhorn, sinkhorn_potentials
from pydiffaccel.coupling.standardized import Standardized
from pydiffaccel.coupling.warmup import WarmUp

__all__ = [
    "KNN",
    "Coupling",
    "CouplingDiagnostics",
    "Distributed",
    "Hungarian",
    "Independent",
    "NoiseQueue",
    "PendingNoise",
    "Scaled",
    "Sinkhorn",
    "Standardized",
    "WarmUp",
    "coupling_from_dict",
    "diagnose",
    "sinkhorn_potentials",
    "start_drawing",
]
