"""Networks whose parameters are spread over the ranks (FSDP2), and the checkpoints that fit them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from pydiffaccel.trainer.checkpoint import Checkpoint, read_shards, shard_names

if TYPE_CHECKING:
    from torch.distributed.device_mesh import DeviceMesh

__all__ = ["fitting", "is_sharded", "shard", "whole", "whole_tensors"]


def shard(network: nn.Module, mesh: DeviceMesh) -> None:
    """Leaves each rank its part of network's parameters, on the mesh's device.

    What is gathered at a time is an entry of the network's lists of layers, as the blocks of a U-Net or a transformer,
    and the rest of the network.
    """
    from torch.distributed.fsdp import fully_shard

    for child in network.children():
        if isinstance(child, nn.ModuleList):
            for block in child:
                fully_shard(block, mesh=mesh)
    fully_shard(network, mesh=mesh)


def is_sharded(network: nn.Module) -> bool:
    """Whether ``shard`` was called on it."""
    if not torch.distributed.is_available():
        return False
    from torch.distributed.fsdp import FSDPModule

    return isinstance(network, FSDPModule)


def whole(tensor: Tensor) -> Tensor:
    """The tensor, gathered where it is in shards; then all ranks call."""
    gather = getattr(tensor, "full_tensor", None)
    if gather is None:
        return tensor
    gathered: Tensor = gather()
    return gathered


def whole_tensors(tensors: Mapping[str, Tensor], *, keep: bool) -> dict[str, Tensor]:
    """The tensors, gathered one at a time and moved to the host; all ranks call, those that keep have them."""
    found: dict[str, Tensor] = {}
    for name, tensor in tensors.items():
        full = whole(tensor)
        if keep:
            found[name] = full.detach().cpu()
    return found


def fitting(
    checkpoint: Checkpoint, modules: Mapping[str, nn.Module], optimizer: Optimizer
) -> dict[str, Mapping[str, Tensor]]:
    """The checkpoint's tensors as the modules (by the name of their group) and the optimizer hold theirs.

    Each of the two may be whole or in shards, of any number of ranks.

    Raises:
        KeyError: a group is missing.
        CommandError: a tensor in shards is missing, or has another shape.
    """
    targets: dict[str, Mapping[str, Tensor]] = {name: module.state_dict() for name, module in modules.items()}
    parameters = [p.detach() for group in optimizer.param_groups for p in group["params"]]
    if checkpoint.shards is None:
        stored = checkpoint.tensors["optimizer"]
        targets["optimizer"] = {
            name: _like_parameter(parameters, name, tensor.shape, tensor.dtype) for name, tensor in stored.items()
        }
        return {
            group: {name: _split_like(tensor, held.get(name)) for name, tensor in checkpoint.tensors[group].items()}
            for group, held in targets.items()
        }
    moments = shard_names(checkpoint.shards).get("optimizer", {})
    targets["optimizer"] = {name: _like_parameter(parameters, name, *about) for name, about in moments.items()}
    fresh = {
        group: {name: torch.empty_like(tensor) for name, tensor in held.items()} for group, held in targets.items()
    }
    read_shards(checkpoint.shards, fresh)
    return {**fresh}


def _like_parameter(parameters: list[Tensor], name: str, shape: torch.Size, dtype: torch.dtype) -> Tensor:
    """Room for the optimizer's entry ``<index>.<key>``: moments lie as their parameter does, counts are whole."""
    parameter = parameters[int(name.partition(".")[0])]
    if parameter.shape == shape:
        return torch.empty_like(parameter, dtype=dtype)
    return torch.empty(shape, dtype=dtype, device=parameter.device)


def _split_like(tensor: Tensor, target: Tensor | None) -> Tensor:
    """A whole tensor, which every rank has, in shards where target is."""
    if target is None or not hasattr(target, "full_tensor"):
        return tensor
    from torch.distributed.tensor import DTensor, distribute_tensor

    assert isinstance(target, DTensor)
    return distribute_tensor(tensor.to(target.device), target.device_mesh, target.placements, src_data_rank=None)
