"""Folders of diffusers pipelines: their network, what it can be told, and the noise levels of their scheduler."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from pydiffaccel._cli import CommandError
from pydiffaccel._diffusers import schedule_of
from pydiffaccel.conditioning import ClassCondition, Condition, PromptCondition
from pydiffaccel.schedule import FlowSchedule, Schedule
from pydiffaccel.solvers import Denoiser, wrap_model
from pydiffaccel.trainer.checkpoint import read_json

__all__ = ["INDEX", "Pipeline", "load_pipeline", "wrap_scheduled"]

INDEX = "model_index.json"
_NETWORKS = ("unet", "transformer")
_AUTOENCODERS = ("vae", "vqvae")
_AUTOENCODER_CLASSES = ("AutoencoderKL", "AutoencoderTiny", "VQModel")
_TEXT_TO_IMAGE = "StableDiffusionPipeline"
_DECODED = 8  # latents at once
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
        condition: what the network can be told; None for an unconditional one.
        decode: latents ``[N, *shape]`` to images float32 ``[N, C, H, W]`` on the CPU, in [-1, 1]; None where samples
            are images.
    """

    class_name: str
    scheduler: str
    network: nn.Module
    denoiser: Denoiser
    schedule: Schedule
    shape: tuple[int, ...]
    condition: Condition | None = None
    decode: Callable[[Tensor], Tensor] | None = None


def load_pipeline(path: Path, device: torch.device | str = "cpu") -> Pipeline:
    """The pipeline in a folder that ``save_pretrained`` wrote. Nothing is downloaded.

    Unconditional pipelines, class-conditional ones (DiT; a U-Net with class embeddings) and StableDiffusionPipeline.

    Raises:
        CommandError: a part is missing or damaged, the network is of a kind that is not known here, or the scheduler's
            noise levels are not.
    """
    index = read_json(path / INDEX)
    names = [name for name in _NETWORKS if isinstance(index.get(name), list)]
    if len(names) != 1 or not isinstance(index.get("scheduler"), list):
        raise CommandError(f"the pipeline in {path} must have one of {' or '.join(_NETWORKS)}, and a scheduler")
    pipeline_class, network_class = str(index.get("_class_name")), str(index[names[0]][1])
    folder = path / names[0]
    if network_class == "UNet2DModel":
        network = _part(folder, network_class)
        condition: Condition | None = _unet_classes(network.config, folder)
    elif network_class == "DiTTransformer2DModel" or pipeline_class == "DiTPipeline":
        network = _part(folder, "DiTTransformer2DModel")  # once saved as Transformer2DModel
        condition = _dit_classes(network.config, index.get("id2label"))
    elif pipeline_class == _TEXT_TO_IMAGE:
        network, condition = _text_to_image(path, device)
    else:
        raise CommandError(
            f"the pipeline in {path} is a {pipeline_class} with a {network_class}, and known here are unconditional"
            f" ones, DiTPipeline and {_TEXT_TO_IMAGE}; give package.module:function that binds its condition"
        )
    size = network.config.sample_size
    if size is None:
        raise CommandError(f"the network in {folder} does not say how large its images are (sample_size)")
    height, width = (size, size) if isinstance(size, int) else size
    network = network.to(device).eval()
    config = read_json(path / "scheduler" / "scheduler_config.json")
    try:
        denoiser, schedule = wrap_scheduled(network, config)
    except (ValueError, TypeError) as error:
        raise CommandError(f"the scheduler in {path}: {error}") from error
    return Pipeline(
        pipeline_class,
        str(index["scheduler"][1]),
        network,
        denoiser,
        schedule,
        (int(network.config.in_channels), int(height), int(width)),
        condition,
        _decoder(path, index, device),
    )


def _part(folder: Path, class_name: str) -> Any:
    """The model of a pipeline that lies in folder."""
    try:
        import diffusers

        return getattr(diffusers, class_name).from_pretrained(folder, local_files_only=True)
    except ImportError as error:
        raise CommandError(f"pipelines need diffusers: {error}") from error
    except (OSError, ValueError, RuntimeError, KeyError) as error:
        raise CommandError(f"the {class_name} in {folder} cannot be read: {_line(error)}") from error


def _unet_classes(config: Any, folder: Path) -> ClassCondition | None:
    if config.class_embed_type is not None:
        raise CommandError(
            f"the network in {folder} takes classes as {config.class_embed_type!r}, and known here are labels; give"
            f" package.module:function that binds them"
        )
    if config.num_class_embeds is None:
        return None
    # Which label stands for none, if any does, is not written down.
    return ClassCondition(tuple(map(str, range(config.num_class_embeds))), null=None)


def _dit_classes(config: Any, names: Mapping[str, str] | None) -> ClassCondition:
    count = int(config.num_embeds_ada_norm)
    labels = {int(label): str(name) for label, name in (names or {}).items()}
    return ClassCondition(tuple(labels.get(label, str(label)) for label in range(count)), null=count)


def _text_to_image(path: Path, device: torch.device | str) -> tuple[Any, PromptCondition]:
    try:
        import diffusers

        kind: Any = diffusers.StableDiffusionPipeline
        pipeline = kind.from_pretrained(path, local_files_only=True, safety_checker=None, requires_safety_checker=False)
    except ImportError as error:
        raise CommandError(f"text-to-image pipelines need diffusers and transformers: {_line(error)}") from error
    except (OSError, ValueError, RuntimeError, KeyError, TypeError, AttributeError) as error:
        raise CommandError(f"the pipeline in {path} cannot be read: {_line(error)}") from error
    config = pipeline.unet.config
    for name in ("addition_embed_type", "class_embed_type", "num_class_embeds", "time_cond_proj_dim"):
        if getattr(config, name, None) is not None:
            raise CommandError(
                f"the network in {path / 'unet'} takes more than a text ({name}), which is not known here"
            )
    if config.in_channels != config.out_channels:
        raise CommandError(
            f"the network in {path / 'unet'} must have as many input channels as output channels, got"
            f" {config.in_channels} and {config.out_channels}"
        )
    encoder = pipeline.text_encoder.to(device).eval()

    @torch.no_grad()
    def encode(texts: Sequence[str]) -> Tensor:
        result: Tensor = pipeline.encode_prompt(list(texts), encoder.device, 1, False)[0]
        return result

    return pipeline.unet, PromptCondition(encode)


def _decoder(path: Path, index: Mapping[str, Any], device: torch.device | str) -> Callable[[Tensor], Tensor] | None:
    """What makes images of latents; None for a pipeline without an autoencoder."""
    names = [name for name in _AUTOENCODERS if isinstance(index.get(name), list)]
    if not names:
        return None
    class_name = str(index[names[0]][1])
    if class_name not in _AUTOENCODER_CLASSES:
        known = ", ".join(_AUTOENCODER_CLASSES)
        raise CommandError(f"the pipeline in {path} has the autoencoder {class_name}; known here: {known}")
    autoencoder = _part(path / names[0], class_name).to(device).eval()
    scale = float(autoencoder.config.scaling_factor)
    shift = float(getattr(autoencoder.config, "shift_factor", None) or 0.0)

    @torch.no_grad()
    def decode(latents: Tensor) -> Tensor:
        parts = []
        for part in latents.split(_DECODED):
            scaled = (part / scale + shift).to(autoencoder.device, autoencoder.dtype)
            parts.append(autoencoder.decode(scaled).sample.float().cpu())
        return torch.cat(parts)

    return decode


def wrap_scheduled(network: Callable[..., Any], config: Mapping[str, Any]) -> tuple[Denoiser, Schedule]:
    """The network as solvers see it and the schedule it was trained on, from a diffusers scheduler's configuration.

    Args:
        network: ``network(x, timestep)`` with a tensor or an object with ``.sample`` as its answer.
        config: as in scheduler_config.json.

    Raises:
        ValueError: noise levels or a prediction type that are not known here.
    """
    kind = str(config.get("_class_name", ""))
    noise = config.get("noise_schedule")  # of a PlanScheduler
    if "FlowMatch" in kind or noise == "flow":
        scale = float(config.get("num_train_timesteps", 1000))

        def flow(x: Tensor, t: Tensor, **condition: Any) -> Tensor:
            # There the time is the noise's factor times 1000 and the velocity points from data to noise.
            return -_tensor(network(x, scale * (1.0 - t), **condition))

        return wrap_model(flow, prediction_type="flow", dtype=_dtype(network)), FlowSchedule()
    if kind.startswith("EDM") or noise == "edm":
        return _edm(network, config)
    if "beta_schedule" not in config:
        raise ValueError(f"the noise levels of {kind or 'this configuration'} are not known here")
    schedule = schedule_of({**_VP, **config, "noise_schedule": noise or "vp"})
    return wrap_model(network, prediction_type=str(config.get("prediction_type", "epsilon"))), schedule


def _edm(network: Callable[..., Any], config: Mapping[str, Any]) -> tuple[Denoiser, Schedule]:
    kind = str(config.get("prediction_type", "epsilon"))
    if kind not in ("epsilon", "v_prediction"):
        raise ValueError(f"unknown prediction_type {kind!r} of a preconditioned network; known: epsilon, v_prediction")

    def turned(x: Tensor, t: Tensor, **condition: Any) -> Tensor:
        return -_tensor(network(x, t, **condition))

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
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
