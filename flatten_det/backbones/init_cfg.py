"""mmengine's ``init_cfg`` in all its forms, with checkpoints that are loaded whole or refused."""

from collections.abc import Mapping, Sequence
from inspect import isclass
from typing import Any

from mmengine.logging import MMLogger
from mmengine.model import BaseModule, PretrainedInit, initialize, update_init_info
from mmengine.registry import WEIGHT_INITIALIZERS
from torch import nn

from ..files.checkpoints import read_checkpoint
from .weights import load_backbone


class ExplainedInit(PretrainedInit):
    """mmengine's ``Pretrained``, which leaves out what does not fit, with a look at every key.

    Args:
        checkpoint: as for :func:`read_checkpoint`.
        prefix: of the weights that are meant; None: all, of a detector or segmentor the backbone's.
        map_location: not looked at, as weights are copied to where the module's are.
    """

    def __call__(self, module: nn.Module) -> None:
        """Load a module, or a part of one.

        Raises:
            CheckpointError: if the file cannot be read or does not fit; it lists the keys.
        """
        report = load_backbone(
            module, read_checkpoint(self.checkpoint, self.prefix), self.checkpoint
        )
        MMLogger.get_current_instance().info(report.summary())
        if hasattr(module, "_params_init_info"):
            update_init_info(module, init_info=self._get_init_info())


class ExplainedModule(BaseModule):
    """A module whose ``init_cfg`` is one of mmengine's, or a list of them, with :class:`ExplainedInit`."""

    def init_weights(self) -> None:
        """Do what ``init_cfg`` says, checkpoints last; the constructor has initialised the rest.

        Raises:
            CheckpointError: if a file cannot be read or does not fit; it lists the keys.
        """
        given = self.init_cfg
        cfgs = [given] if isinstance(given, Mapping) else given or ()
        cfgs = [_explained(cfg) for cfg in cfgs]
        files = [cfg for cfg in cfgs if cfg["type"] is ExplainedInit]
        others = [cfg for cfg in cfgs if cfg["type"] is not ExplainedInit]
        if others or not files:
            self.init_cfg = others
            try:
                super().init_weights()
            finally:
                self.init_cfg = given
        initialize(self, files)
        self._is_init = True


def _explained(cfg: Mapping[str, Any]) -> dict[str, Any]:
    """The same with :class:`ExplainedInit` in place of mmengine's, in parts that override it too."""
    cfg = dict(cfg)
    kind = cfg.get("type")
    kind = kind if isclass(kind) else WEIGHT_INITIALIZERS.get(kind) if kind else None
    if isclass(kind) and issubclass(kind, PretrainedInit):
        cfg["type"] = ExplainedInit
    override = cfg.get("override")
    if isinstance(override, Mapping):
        cfg["override"] = _explained(override)
    elif isinstance(override, Sequence):
        cfg["override"] = [_explained(part) for part in override]
    return cfg
