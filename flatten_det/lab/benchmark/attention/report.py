"""Results as files."""

from collections.abc import Sequence
from pathlib import Path

import torch

from ..machine import describe_machine, device_name
from ..report import write_csv, write_json
from .plot import draw
from .result import Result
from .run import Plan

JSON, CSV, FIGURE = "results.json", "results.csv", "figure.png"


def save_results(
    results: Sequence[Result], plan: Plan, device: torch.device, command: str, folder: Path
) -> None:
    """Write ``results.json`` (machine, settings and all times), ``results.csv`` and ``figure.png``."""
    content = {
        "command": command,
        "machine": describe_machine(device),
        "baseline": plan.baseline,
        "rounds": plan.rounds,
        "warmup": plan.warmup,
        "copy_bandwidth": plan.bandwidth,
        "cells": [result.record() for result in results],
    }
    write_json(content, folder / JSON)
    write_csv([result.row() for result in results], folder / CSV)
    draw(results, plan.baseline, device_name(device), folder / FIGURE)
