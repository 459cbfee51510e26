"""Name the annotation file behind an error, which itself does not."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from mmengine.config import Config

from ..datasets.coco_values import parse_json
from ..user_files import NotUtf8Error, why_not_read
from .errors import UserError


@contextmanager
def named_annotation_errors(cfg: Config) -> Iterator[None]:
    """Refuse what is no file, and turn errors within the block into ones that name the broken file.

    Raises:
        UserError: An annotation file of the config cannot be opened, or is not valid JSON.
    """
    files = list(dict.fromkeys(_annotation_files(cfg.to_dict())))
    for path in files:
        if reason := why_not_read(path):
            raise UserError(f"annotation file {path} {reason}: correct ann_file in the config")
    try:
        yield
    except (ValueError, RecursionError) as error:
        for path in files:
            reason = _json_error(path) if path.suffix == ".json" else None
            if reason:
                raise UserError(f"annotation file {path} {reason}") from error
        raise


def _annotation_files(node: Any, data_root: str = "") -> Iterator[Path]:
    """Every existing ``ann_file``, joined to the ``data_root`` of its own section; no folders."""
    if isinstance(node, dict):
        data_root = node.get("data_root") or data_root
        ann_file = node.get("ann_file")
        if isinstance(ann_file, str) and ann_file and isinstance(data_root, str):
            for path in (Path(data_root, ann_file), Path(ann_file)):
                if path.exists() and not path.is_dir():
                    yield path
        node = node.values()
    for child in node:
        if isinstance(child, dict | list | tuple):
            yield from _annotation_files(child, data_root)


def _json_error(path: Path) -> str | None:
    try:
        parse_json(path.read_bytes())
    except NotUtf8Error as error:
        return str(error)
    except (ValueError, RecursionError) as error:
        return f"is not valid JSON ({error}): get it again"
    return None
