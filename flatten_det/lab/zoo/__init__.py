"""The model zoo's index: metafiles and the zoo page, computed from the configs."""

from .update import Zoo, inspect_zoo

__all__ = ["Zoo", "inspect_zoo"]
