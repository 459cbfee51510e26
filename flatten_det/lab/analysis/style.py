"""How the figures look: one paper column wide, told apart without colour."""

import io
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure
from PIL import Image

from ...files.atomic import write_atomically

WIDTH = 3.3  # inches
FONT, SMALL_FONT = 7, 6
_DPI = 220
_PALETTE = 64  # colours, which make a file a third as large and look the same
_ORDER = (
    "softmax",
    "softmax + conv.",
    "plain linear",
    "plain + conv.",
    "focused linear",
    "focused + conv.",
)
# From dark to light in greyscale; with a dash and a hatch of its own each.
_COLOURS = ("#1b1b3a", "#3b528b", "#b5651d", "#c98a4b", "#2a9d6f", "#9fd8b5")
_DASHES = ("-", (0, (1, 1)), "--", (0, (6, 2)), "-.", (0, (3, 1, 1, 1, 1, 1)))
_HATCHES = ("", "....", "////", "xxxx", "\\\\\\\\", "----")


def in_order(names: Iterable[str]) -> list[str]:
    """Variants as figures list them, each once."""
    return sorted(set(names), key=_ORDER.index)


def line_style(name: str) -> dict[str, Any]:
    """Of a variant's curve."""
    number = _ORDER.index(name)
    return dict(color=_COLOURS[number], linestyle=_DASHES[number], linewidth=1.2)


def bar_style(name: str) -> dict[str, Any]:
    """Of a variant's bars."""
    number = _ORDER.index(name)
    return dict(
        facecolor=_COLOURS[number], hatch=_HATCHES[number], edgecolor="white", linewidth=0.3
    )


def save(figure: Figure, path: Path) -> None:
    """Write a PNG; its folder is made."""
    drawn, content = io.BytesIO(), io.BytesIO()
    figure.savefig(drawn, dpi=_DPI)
    with Image.open(drawn) as image:
        image.convert("RGB").quantize(_PALETTE).save(content, "png", optimize=True)
    write_atomically(path, content.getvalue())
