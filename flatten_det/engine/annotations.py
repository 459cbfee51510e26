"""Name the annotation file behind a JSON error, which itself does not."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from mmengine.config import Config

from ..datasets.coco_values import parse_json
from .errors import UserError


@contextmanager
def named_annotation_errors(cfg: Config) -> Iterator[None]:
    """Turn a JSON error within the block into one that names the broken file of the config.

    Raises:
        UserError: An annotation file of the config is not valid JSON.
    """
    try:
        yield
    except (ValueError, RecursionError) as error:
        for path in _annotation_files(cfg.to_dict()):
            reason = _json_error(path)
            if reason:
                raise UserError(
                    f"annotation file {path} is not valid JSON ({reason}): get it again"
                ) from error
        raise


def _annotation_files(node: Any, data_root: str = "") -> Iterator[Path]:
    """Every existing JSON ``ann_file``, joined to the ``data_root`` of its own section."""
    if isinstance(node, dict):
        data_root = node.get("data_root") or data_root
        ann_file = node.get("ann_file")
        if isinstance(ann_file, str) and ann_file.endswith(".json"):
            candidates = (Path(data_root, ann_file), Path(ann_file))
            yield from (path for path in candidates if path.is_file())
        node = node.values()
    for child in node:
        if isinstance(child, dict | list | tuple):
            yield from _annotation_files(child, data_root)


def _json_error(path: Path) -> str | None:
    try:
        parse_json(path.read_bytes())
    except (ValueError, RecursionError) as error:
        return str(error)
    return None
