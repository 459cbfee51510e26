"""Results as files."""

from collections.abc import Mapping
from pathlib import Path

import torch

from ..machine import describe_machine, device_name
from ..report import write_csv, write_json, write_text
from .comparison import Comparison
from .plot import draw
from .previous import FORMAT
from .table import to_markdown

JSON, CSV, MARKDOWN, FIGURE = "results.json", "results.csv", "table.md", "figure.png"


def save_results(
    comparison: Comparison,
    how: Mapping[str, object],
    device: torch.device,
    command: str,
    folder: Path,
) -> None:
    """Write ``results.json`` (machine, all times, exponents, crossovers) and what is made of it.

    Args:
        comparison: the results.
        how: see :func:`~.previous.load_previous`.
        device: of the run.
        command: that measured.
        folder: is made if need be; gets ``results.csv``, ``table.md`` and ``figure.png`` too.
    """
    content = {
        "format": FORMAT,
        "command": command,
        "machine": describe_machine(device),
        "how": how,
        "baseline": comparison.baseline,
        "exponents": comparison.exponents_record(),
        "crossovers": comparison.crossovers_record(),
        "cells": [
            {**result.record(), "figures": comparison.row(result)} for result in comparison.results
        ],
    }
    write_json(content, folder / JSON)
    write_csv([comparison.row(result) for result in comparison.results], folder / CSV)
    machine = device_name(device)
    write_text(f"`{command}`\n\n{machine}\n\n{to_markdown(comparison)}", folder / MARKDOWN)
    draw(comparison, machine, folder / FIGURE)
