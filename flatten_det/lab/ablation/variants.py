"""Variants of a config's attention by their names: ``p3-k5``, ``p1-k0``, ``softmax``."""

import inspect
import re
from collections.abc import Mapping

from mmengine.config import Config
from mmengine.registry import MODELS, init_default_scope

from ...config import type_name
from ...errors import UserError

SOFTMAX = "softmax"
_LINEAR = re.compile(r"p(\d+(?:\.\d+)?)-k(\d+)")


def vary(cfg: Config, name: str, path: str) -> None:
    """Exchange the attention of a config's backbone for a variant's.

    Args:
        cfg: changed: ``model.backbone`` gets ``focusing_factor`` and ``kernel_size``, or softmax attention
            in all of its stages.
        name: ``p<focusing factor>-k<kernel size>``, or ``softmax``.
        path: of the config, for messages.

    Raises:
        UserError: the name says no variant, or the backbone has no such attention.
    """
    match = _LINEAR.fullmatch(name)
    if not match and name != SOFTMAX:
        raise UserError(
            f"variant {name} of --config: give p<focusing factor>-k<kernel size>, such as p3-k5, or {SOFTMAX}"
        )
    backbone = cfg.get("model", {}).get("backbone") or {}
    options = _options(cfg, backbone.get("type"))
    if "focusing_factor" not in options:
        raise UserError(
            f"{path}: its backbone {type_name(backbone) or None} has no focused linear attention to vary: "
            "give a config with one of flatten_det's"
        )
    if match:
        power, kernel = float(match[1]), int(match[2])
        backbone.focusing_factor = int(power) if power.is_integer() else power
        backbone.kernel_size = kernel
    else:
        backbone.attn_types = "S" * len(options["attn_types"].default)


def _options(cfg: Config, kind: str | type | None) -> Mapping[str, inspect.Parameter]:
    """The arguments of a backbone's class; none if there is no such class."""
    init_default_scope(cfg.get("default_scope", "mmdet"))
    found = MODELS.get(kind) if isinstance(kind, str) else kind
    return {} if found is None else inspect.signature(found).parameters
