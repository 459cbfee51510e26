"""Drawing predictions; importing this registers the visualizers in mmengine's ``VISUALIZERS``."""

from .enlarging import EnlargingDetVisualizer

__all__ = ["EnlargingDetVisualizer"]
