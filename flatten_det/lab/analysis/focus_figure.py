"""A figure of what the focused map does to vectors: it pulls them to their nearest axis (Sec. 4.1)."""

from collections.abc import Sequence
from pathlib import Path

import torch
from matplotlib.figure import Figure

from ...attention.reference import focused_map
from .style import save

POWERS = (1, 2, 3, 8)


def fan(count: int) -> torch.Tensor:
    """``(count, 2)`` unit vectors at equal angles strictly between the two axes."""
    angles = (torch.arange(count, dtype=torch.float64) + 0.5) * torch.pi / 2 / count
    return torch.stack([angles.cos(), angles.sin()], dim=1)


def draw_focus(path: str | Path, powers: Sequence[float] = POWERS, count: int = 12) -> None:
    """Draw ``count`` unit vectors of the first quadrant after f_p, one panel for each power.

    Args:
        path: PNG.
        powers: the p of the panels; 1 leaves the vectors as they are.
        count: vectors; even, so that none lies on the diagonal, which f_p does not turn.

    Raises:
        ValueError: for no powers, or a count that is not even and positive.
    """
    if not powers:
        raise ValueError("powers needs at least one value of p")
    if count < 2 or count % 2:
        raise ValueError(f"count must be even and at least 2; got {count}")
    figure = Figure(figsize=(1.2 * len(powers) + 0.3, 2.0), layout="constrained")
    vectors = fan(count)
    for panel, power in zip(
        figure.subplots(1, len(powers), sharey=True, squeeze=False)[0], powers, strict=True
    ):
        for x, y in focused_map(vectors, power).tolist():
            # Nearest axis by line style as well as by colour: readable in greyscale.
            color, style = ("tab:blue", "-") if x > y else ("tab:orange", "--")
            panel.plot([0, x], [0, y], color=color, linestyle=style, linewidth=1.2)
            panel.plot(x, y, color=color, marker="o", markersize=3)
        panel.set(title=f"p = {power:g}", xlim=(0, 1.08), ylim=(0, 1.08), aspect="equal")
        panel.set(xticks=(0, 1), yticks=(0, 1), xlabel="$x_1$")
    figure.axes[0].set_ylabel("$x_2$")
    save(figure, Path(path))
