"""Name the annotation file or the list of images behind an error, which itself does not."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from mmengine.config import Config

from ..datasets.coco_values import parse_json
from ..user_files import NotUtf8Error, list_faults, why_not_read
from .errors import UserError


@contextmanager
def named_annotation_errors(cfg: Config) -> Iterator[None]:
    """Refuse what is no file, and turn errors within the block into ones that name the broken file.

    Raises:
        UserError: An annotation file of the config cannot be opened, is not valid JSON, or is a list
            that the frameworks misread.
    """
    files = list(dict.fromkeys(_annotation_files(cfg.to_dict())))
    for path in files:
        if reason := why_not_read(path):
            raise UserError(f"annotation file {path} {reason}: correct ann_file in the config")
    try:
        yield
    except Exception as error:
        of_json = isinstance(error, ValueError | RecursionError)
        for path in files:
            is_json = path.suffix == ".json"
            reason = _json_error(path) if is_json and of_json else None
            reason = _list_error(path) if path.suffix == ".txt" else reason
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


def _list_error(path: Path) -> str | None:
    try:
        return next(
            (f"is misread: line {n} {why}" for n, why in list_faults(path.read_bytes())), None
        )
    except NotUtf8Error as error:
        return str(error)
