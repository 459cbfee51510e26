"""Test pipelines that leave images as large as they are."""

from collections.abc import Mapping, Sequence
from typing import Any

from ..engine.config import type_name

RESIZES = ("Resize", "FixScaleResize", "FixShapeResize", "ResizeShortestEdge")


def without_resizing(pipeline: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """A pipeline of mmdet or mmseg whose resizes change no size.

    They stay in it, by a factor of 1: detectors need the factor that they note down.
    """
    return [_by_factor_1(step) or dict(step) for step in pipeline]


def _by_factor_1(step: Mapping[str, Any]) -> dict[str, Any] | None:
    if type_name(step) not in RESIZES:
        return None
    scope, dot, _ = step["type"].partition(".") if isinstance(step["type"], str) else ("",) * 3
    kind = f"{scope}{dot}Resize" if dot else "Resize"
    return {"type": kind, "scale_factor": 1.0, "keep_ratio": True}
