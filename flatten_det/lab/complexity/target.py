"""What to count: a config file or the short name of a backbone."""

from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path
from typing import Any

import torch
from mmengine.config import Config

from ...backbones import BACKBONES, build_backbone
from ...config import blame_config, load_config
from ...errors import UserError
from ..training_size import training_size
from .counter import Complexity
from .models import build_without_values, count_backbone, count_model

CLASSIFICATION_SIZE = (224, 224)


@dataclass(frozen=True)
class Target:
    """A config or a backbone.

    Attributes:
        name: as given.
        cfg: of the config file; None: ``name`` is a backbone.
        is_changed: options on the command line changed the config.
    """

    name: str
    cfg: Config | None
    is_changed: bool = False

    def size(self) -> tuple[int, int]:
        """``(H, W)`` of the images if nothing else is said: the config's, or 224x224."""
        if self.cfg is None:
            return CLASSIFICATION_SIZE
        with blame_config(self.cfg):
            return training_size(self.cfg)

    def count(self, size: tuple[int, int]) -> Complexity:
        """Count it for images of ``(H, W)`` pixels.

        Raises:
            UserError: it is no model that can be counted.
        """
        if self.cfg is None:
            with torch.device("meta"):
                backbone = build_backbone(self.name)
            return count_backbone(backbone, size)
        with blame_config(self.cfg):
            return count_model(build_without_values(self.cfg), size)


def find_target(text: str, cfg_options: dict[str, Any] | None = None) -> Target:
    """The config file or backbone that is meant.

    Raises:
        UserError: it is neither, the file cannot be read, or it has no model.
    """
    if text in BACKBONES:
        if cfg_options:
            raise UserError(f"--cfg-options changes configs, and {text} is a backbone: drop it")
        return Target(text, None)
    if not text.endswith(".py") and not Path(text).is_file():
        close = get_close_matches(text, BACKBONES, n=1)
        hint = f"did you mean {close[0]}? " if close else ""
        raise UserError(
            f"{text} is neither a config file nor a backbone: {hint}Backbones are {', '.join(BACKBONES)}"
        )
    cfg = load_config(text, cfg_options)
    if "model" not in cfg:
        raise UserError(f"config file {text}: it has no model: give the config of a whole model")
    return Target(text, cfg, bool(cfg_options))
