"""Official classification checkpoints into dense backbones: read, rename, resize, report."""

from .errors import CheckpointError
from .load import LoadReport, load_backbone
from .read import read_checkpoint

__all__ = ["CheckpointError", "LoadReport", "load_backbone", "read_checkpoint"]
