"""Public names where they were before version 0.2: importing them from there still works, with a warning."""

import sys
import warnings
from importlib import import_module
from importlib.machinery import ModuleSpec
from types import ModuleType

# Old module: its public names, and where they are now.
_MOVED = {
    "flatten_det.checkpoints": {
        "CheckpointError": "flatten_det.errors",
        "LoadReport": "flatten_det.backbones.weights",
        "load_backbone": "flatten_det.backbones.weights",
        "read_checkpoint": "flatten_det.files.checkpoints",
        "trusted_checkpoints": "flatten_det.files.checkpoints",
    },
    "flatten_det.complexity": dict.fromkeys(
        (
            "SAMPLING",
            "Complexity",
            "build_without_values",
            "count_backbone",
            "count_macs",
            "count_model",
        ),
        "flatten_det.lab.complexity",
    ),
    "flatten_det.datasets": dict.fromkeys(
        ("ShapesDetDataset", "ShapesPanopticDataset", "ShapesSegDataset"), "flatten_det.data"
    ),
    "flatten_det.visualization": {"EnlargingDetVisualizer": "flatten_det.predict.drawing"},
}


class _OldPlaces:
    """Finds a module of ``_MOVED``, whose names are those of the new places."""

    @classmethod
    def find_spec(cls, name: str, path=None, target=None) -> ModuleSpec | None:
        return ModuleSpec(name, cls) if name in _MOVED else None

    @staticmethod
    def create_module(spec: ModuleSpec) -> None:
        return None

    @staticmethod
    def exec_module(module: ModuleType) -> None:
        places = _MOVED[module.__name__]
        where = ", ".join(sorted(set(places.values())))
        warnings.warn(
            f"{module.__name__} has moved: import from {where}; the old place goes with the next release",
            DeprecationWarning,
            stacklevel=2,
        )
        for name, place in places.items():
            if hasattr(import_module(place), name):  # Data sets are there if their framework is.
                setattr(module, name, getattr(import_module(place), name))
        module.__all__ = [name for name in places if hasattr(module, name)]


def find_old_places() -> None:
    """Let Python find the old modules, after all others."""
    sys.meta_path.append(_OldPlaces)
