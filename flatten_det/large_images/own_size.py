"""Test pipelines that leave images as large as they are."""

from collections.abc import Mapping, Sequence
from typing import Any

RESIZES = ("Resize", "FixScaleResize", "FixShapeResize", "ResizeShortestEdge")


def without_resizing(pipeline: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """A pipeline of mmdet or mmseg whose resizes change no size.

    They stay in it, by a factor of 1: detectors need the factor that they note down.
    """
    return [_by_factor_1(step["type"]) or dict(step) for step in pipeline]


def _by_factor_1(kind: str) -> dict[str, Any] | None:
    scope, dot, name = kind.rpartition(".")
    if name not in RESIZES:
        return None
    return {"type": f"{scope}{dot}Resize", "scale_factor": 1.0, "keep_ratio": True}
