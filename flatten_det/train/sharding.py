"""Weights, gradients and optimizer state that processes share: ``train --strategy fsdp``."""

import contextlib
import copy
from collections.abc import Mapping
from typing import Any

import torch
from mmengine.device import get_device
from mmengine.dist import get_world_size, is_main_process
from mmengine.model import convert_sync_batchnorm
from mmengine.runner import Runner
from mmengine.utils import apply_to
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor

from ..backbones.base import DenseBackbone
from ..backbones.blocks import TransformerBlock
from ..config import find_field
from ..distributed import use_sync_bn_of_cpu
from ..errors import UserError

# What has the names of the model's weights in a checkpoint.
_BY_NAME = ("state_dict", "ema_state_dict", "gradients")


def shard(model: nn.Module) -> nn.Module:
    """Share a model's parameters out to all processes by PyTorch's FSDP2 (``fully_shard``), in place.

    A process has the whole weights of a block of our backbones only while it computes, and those of the rest
    of the model from its forward to its backward pass. All must fetch the same blocks equally often: a
    backbone that would compute images of several sizes one after the other does so at once, or is fetched as
    a whole.

    Raises:
        ValueError: a parameter has no dimension.
    """
    mesh = init_device_mesh(get_device(), (get_world_size(),))
    for backbone in [m for m in model.modules() if isinstance(m, DenseBackbone)]:
        backbone.in_one_pass = True
        units: list[nn.Module] = [backbone]
        if backbone.knows_padding or not backbone.mask_padding:
            units = [m for m in backbone.modules() if isinstance(m, TransformerBlock)]
        for unit in units:
            fully_shard(unit, mesh=mesh)
    return fully_shard(model, mesh=mesh, reshard_after_forward=False)


class ShardedRunner(Runner):
    """mmengine's Runner of a model that :func:`shard` shares out; its checkpoints are those of any other.

    mmengine's FlexibleRunner is made for such models, but resumes no weight average and gives checkpoints of
    an interruption the number of the next iteration; its ``FSDPStrategy`` knows FSDP1 and CUDA only.
    """

    def build_model(self, model: nn.Module | Mapping[str, Any]) -> nn.Module:
        """As mmengine's; keeps the config for :meth:`_copy`."""
        self._model_config = copy.deepcopy(model)
        return super().build_model(model)

    def wrap_model(
        self, model_wrapper_cfg: Mapping[str, Any] | None, model: nn.Module
    ) -> nn.Module:
        """Share the model out, with its first weights, which are made of whole parameters."""
        if not self.distributed:
            raise UserError(
                "--strategy fsdp shares a model out to several processes: add --processes N, or start it by "
                "torchrun or srun"
            )
        if find_field(self.cfg.model, "compile"):
            raise UserError(
                "--strategy fsdp does not work with model.backbone.compile: leave one of them out"
            )
        self.model = self._prepared(model)
        super()._init_model_weights()
        sharded = shard(self.model)
        sharded.__deepcopy__ = self._copy
        return sharded

    def _prepared(self, model: nn.Module) -> nn.Module:
        if kind := self.cfg.get("sync_bn"):
            model = convert_sync_batchnorm(model, kind)
        if get_device() == "cpu":
            use_sync_bn_of_cpu(model)
        return model.to(get_device())

    def _init_model_weights(self) -> None:
        """They have been made, before the optimizer was."""

    def _copy(self, memo: dict[int, Any]) -> nn.Module:
        """Another such model with equal weights: torch has no copies of them, and averages begin as one."""
        other = shard(self._prepared(super().build_model(copy.deepcopy(self._model_config))))
        other.load_state_dict(self.model.state_dict())
        return other

    def call_hook(self, fn_name: str, **kwargs: Any) -> None:
        """Call the hooks, between what turns checkpoints into shards and back.

        For a validation all weights are fetched once: there, processes may have different numbers of batches.
        """
        if fn_name == "after_load_checkpoint":
            self._share_out_weights(kwargs["checkpoint"])
        elif fn_name == "before_save_checkpoint":
            # mmengine has moved the shards to the CPU, where NCCL does not find them.
            kwargs["checkpoint"]["state_dict"] = self.model.state_dict()
            if "optimizer" in kwargs["checkpoint"]:
                kwargs["checkpoint"]["optimizer"] = self.optim_wrapper.state_dict()
        elif fn_name == "after_val_epoch":
            for unit in self._units():
                unit.reshard()
                unit.set_reshard_after_forward(unit is not self.model, recurse=False)
        super().call_hook(fn_name, **kwargs)
        if fn_name == "after_load_checkpoint" and self._resume:
            self._share_out_optimizer(kwargs["checkpoint"])
        elif fn_name == "before_save_checkpoint":
            _collect(kwargs["checkpoint"])
        elif fn_name == "before_val_epoch":
            for unit in self._units():
                unit.set_reshard_after_forward(False, recurse=False)
                unit.unshard()

    def _units(self) -> list[FSDPModule]:
        return [module for module in self.model.modules() if isinstance(module, FSDPModule)]

    def _share_out_weights(self, checkpoint: dict[str, Any]) -> None:
        own = self.model.state_dict()
        parts = [checkpoint[key] for key in _BY_NAME if key in checkpoint]
        for part in parts if "state_dict" in checkpoint else [checkpoint]:
            for name, value in part.items():
                part[name] = _shared_out(value, own.get(name.removeprefix("module.")))

    def _share_out_optimizer(self, checkpoint: dict[str, Any]) -> None:
        groups = self.optim_wrapper.optimizer.param_groups
        parameters = dict(enumerate(p for group in groups for p in group["params"]))
        for number, state in checkpoint.get("optimizer", {}).get("state", {}).items():
            for name, value in state.items():
                state[name] = _shared_out(value, parameters.get(number))

    def resume(self, filename: str) -> None:
        """Go on from a checkpoint, of which a GPU gets no more than its share."""
        super().resume(filename, map_location="cpu")

    def save_checkpoint(self, *args: Any, **kwargs: Any) -> None:
        """Write what all processes have, in the first one, as one process would."""
        with contextlib.suppress(_Collected):
            Runner.save_checkpoint.__wrapped__(self, *args, **kwargs)


class _Collected(Exception):
    """The first process has got this one's share, and writes."""


def _shared_out(value: Any, own: Any) -> Any:
    """This process's share of a tensor like ``own``, if that is shared out; anything else as it is."""
    if isinstance(own, DTensor) and getattr(value, "shape", None) == own.shape:
        return distribute_tensor(value, own.device_mesh, own.placements)
    return value


def _collect(checkpoint: dict[str, Any]) -> None:
    """Replace shares by whole tensors on the CPU; ends with :class:`_Collected` but in the first process."""

    def whole(value: torch.Tensor) -> torch.Tensor | None:
        if isinstance(value, DTensor):
            value = value.full_tensor()
        return value.cpu() if is_main_process() else None

    for key, value in checkpoint.items():
        checkpoint[key] = apply_to(value, lambda part: isinstance(part, torch.Tensor), whole)
        if hasattr(value, "_metadata"):  # The versions of modules.
            checkpoint[key]._metadata = value._metadata
    if not is_main_process():
        raise _Collected
