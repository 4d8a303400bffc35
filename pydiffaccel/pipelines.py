"""Folders of unconditional diffusers pipelines: their network, and the noise levels their scheduler describes."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from pydiffaccel._cli import CommandError
from pydiffaccel._diffusers import schedule_of
from pydiffaccel.schedule import FlowSchedule, Schedule
from pydiffaccel.solvers import Denoiser, wrap_model
from pydiffaccel.trainer.checkpoint import read_json

__all__ = ["INDEX", "Pipeline", "load_pipeline", "wrap_scheduled"]

INDEX = "model_index.json"
_NETWORKS = ("unet", "transformer")
_AUTOENCODERS = ("vae", "vqvae")
# What a configuration leaves out; the defaults of diffusers' schedulers.
_VP: dict[str, Any] = {
    "num_train_timesteps": 1000,
    "beta_start": 1e-4,
    "beta_end": 0.02,
    "trained_betas": None,
    "rescale_betas_zero_snr": False,
}


@dataclass(frozen=True)
class Pipeline:
    """What solvers need to know of a pipeline.

    Attributes:
        class_name: of the pipeline.
        scheduler: class of its scheduler.
        network: in eval mode, on its device.
        denoiser: the network as solvers see it.
        schedule: the noise levels it was trained on.
        shape: of one sample.
        latent: whether an autoencoder makes the images.
    """

    class_name: str
    scheduler: str
    network: nn.Module
    denoiser: Denoiser
    schedule: Schedule
    shape: tuple[int, ...]
    latent: bool


def load_pipeline(path: Path, device: torch.device | str = "cpu") -> Pipeline:
    """The pipeline in a folder that ``save_pretrained`` wrote. Nothing is downloaded.

    Raises:
        CommandError: a part is missing or damaged, the network needs a condition, or the scheduler is of a kind whose
            noise levels are not known here.
    """
    index = read_json(path / INDEX)
    names = [name for name in _NETWORKS if isinstance(index.get(name), list)]
    if len(names) != 1 or not isinstance(index.get("scheduler"), list):
        raise CommandError(f"the pipeline in {path} must have one of {' or '.join(_NETWORKS)}, and a scheduler")
    class_name = str(index[names[0]][1])
    if class_name != "UNet2DModel":
        raise CommandError(
            f"the pipeline in {path} has a {class_name}, which needs a condition; give package.module:function that"
            f" binds one"
        )
    try:
        from diffusers import UNet2DModel

        network = UNet2DModel.from_pretrained(path / names[0], local_files_only=True)  # type: ignore[no-untyped-call]
    except ImportError as error:
        raise CommandError(f"pipelines need diffusers: {error}") from error
    except (OSError, ValueError, RuntimeError) as error:
        raise CommandError(f"the network in {path / names[0]} cannot be read: {_line(error)}") from error
    if network.config.num_class_embeds is not None or network.config.class_embed_type is not None:
        raise CommandError(f"the network in {path} needs class labels; give package.module:function that binds them")
    size = network.config.sample_size
    if size is None:
        raise CommandError(f"the network in {path} does not say how large its images are (sample_size)")
    height, width = (size, size) if isinstance(size, int) else size
    network = network.to(device).eval()
    config = read_json(path / "scheduler" / "scheduler_config.json")
    try:
        denoiser, schedule = wrap_scheduled(network, config)
    except (ValueError, TypeError) as error:
        raise CommandError(f"the scheduler in {path}: {error}") from error
    return Pipeline(
        str(index.get("_class_name")),
        str(index["scheduler"][1]),
        network,
        denoiser,
        schedule,
        (int(network.config.in_channels), int(height), int(width)),
        any(isinstance(index.get(name), list) for name in _AUTOENCODERS),
    )


def wrap_scheduled(network: Callable[..., Any], config: Mapping[str, Any]) -> tuple[Denoiser, Schedule]:
    """The network as solvers see it and the schedule it was trained on, from a diffusers scheduler's configuration.

    Args:
        network: ``network(x, timestep)`` with a tensor or an object with ``.sample`` as its answer.
        config: as in scheduler_config.json.

    Raises:
        ValueError: noise levels or a prediction type that are not known here.
    """
    kind = str(config.get("_class_name", ""))
    if "FlowMatch" in kind:
        scale = float(config.get("num_train_timesteps", 1000))

        def flow(x: Tensor, t: Tensor) -> Tensor:
            # There the time is the noise's factor times 1000 and the velocity points from data to noise.
            return -_tensor(network(x, scale * (1.0 - t)))

        return wrap_model(flow, prediction_type="flow", dtype=_dtype(network)), FlowSchedule()
    if kind.startswith("EDM"):
        return _edm(network, config)
    if "beta_schedule" not in config:
        raise ValueError(f"the noise levels of {kind or 'this configuration'} are not known here")
    schedule = schedule_of({**_VP, **config, "noise_schedule": "vp"})
    return wrap_model(network, prediction_type=str(config.get("prediction_type", "epsilon"))), schedule


def _edm(network: Callable[..., Any], config: Mapping[str, Any]) -> tuple[Denoiser, Schedule]:
    kind = str(config.get("prediction_type", "epsilon"))
    if kind not in ("epsilon", "v_prediction"):
        raise ValueError(f"unknown prediction_type {kind!r} of a preconditioned network; known: epsilon, v_prediction")

    def turned(x: Tensor, t: Tensor) -> Tensor:
        return -_tensor(network(x, t))

    schedule = schedule_of({"sigma_max": 80.0, **config, "noise_schedule": "edm"})
    inner = network if kind == "epsilon" else turned  # 2206.00364, table 1, up to the sign
    data = float(config.get("sigma_data", 0.5))
    return wrap_model(inner, prediction_type="edm", dtype=_dtype(network), sigma_data=data), schedule


def _tensor(answer: Any) -> Tensor:
    result: Tensor = answer if isinstance(answer, Tensor) else answer.sample
    return result


def _dtype(network: Callable[..., Any]) -> torch.dtype | None:
    if isinstance(network, nn.Module):
        return next((parameter.dtype for parameter in network.parameters() if parameter.is_floating_point()), None)
    return None


def _line(error: Exception) -> str:
    return str(error).strip().splitlines()[0]
