"""What the values of a stranger's COCO file must be like."""

import json
import sys
from collections.abc import Iterable
from pathlib import PurePosixPath, PureWindowsPath
from typing import Any


def parse_json(content: bytes) -> Any:
    """The content of a JSON file, if the frameworks can read it: they take UTF-8 without a mark.

    Raises:
        ValueError: It is not JSON, or JSON in another encoding.
        RecursionError: It is nested too deeply.
    """
    return json.loads(content.decode("utf-8"))


def is_id(value: Any) -> bool:
    """Whether this can be the id of an image, an object or a category."""
    return isinstance(value, int | str) and not isinstance(value, bool)


def can_be_matched(id_: int | str) -> bool:
    """Whether pycocotools can note that an annotation of this id was found: as a number that is not 0."""
    try:
        return float(id_) != 0
    except (ValueError, OverflowError):
        return False


def are_of_one_type(ids: Iterable[int | str]) -> bool:
    """Whether pycocotools can sort these ids."""
    return len(set(map(type, ids))) < 2


def is_size(value: Any) -> bool:
    """Whether this is a number of pixels."""
    return isinstance(value, int) and not isinstance(value, bool) and value > 0


def is_number(value: Any) -> bool:
    """Whether this is a finite number; JSON's may be larger than any float."""
    is_any = isinstance(value, int | float) and not isinstance(value, bool)
    return is_any and abs(value) <= sys.float_info.max


def stays_inside(name: str) -> bool:
    """Whether a file of this name, relative to a folder, lies in it, on any system."""
    posix, windows = PurePosixPath(name), PureWindowsPath(name)
    is_absolute = posix.is_absolute() or bool(windows.anchor) or "://" in name
    return not is_absolute and ".." not in (*posix.parts, *windows.parts) and "\0" not in name
