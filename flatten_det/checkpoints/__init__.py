"""Checkpoints: read as data, and official ones into dense backbones: renamed, resized, reported."""

from .errors import CheckpointError
from .load import LoadReport, load_backbone
from .read import read_checkpoint
from .trust import trusted_checkpoints

__all__ = [
    "CheckpointError",
    "LoadReport",
    "load_backbone",
    "read_checkpoint",
    "trusted_checkpoints",
]
