"""What the values of a stranger's COCO file must be like."""

import json
import os
import sys
from collections.abc import Collection, Iterable, Sequence
from pathlib import PurePosixPath, PureWindowsPath
from typing import Any

from ..files.user_files import utf8_text


def parse_json(content: bytes) -> Any:
    """The content of a JSON file, if the frameworks can read it: they take UTF-8 without a mark.

    Raises:
        NotUtf8Error: It is in another encoding.
        ValueError: It is not JSON.
        RecursionError: It is nested too deeply.
    """
    return json.loads(utf8_text(content))


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


def is_of_windows(name: str, folder: str) -> bool:
    """Whether a file name is written with backslashes, and so names nothing on this system."""
    return "\\" in name and os.sep != "\\" and not os.path.isfile(os.path.join(folder, name))


def root_categories(categories: Sequence[Any], used: Collection[int | str]) -> list[dict[str, Any]]:
    """The categories that Roboflow adds above all classes, and that are named like one of these.

    Args:
        categories: of a COCO file, whatever they are.
        used: ids of the categories that have objects.
    """
    good = [category for category in categories if isinstance(category, dict)]
    names = [category.get("name") for category in good]
    return [
        category
        for category in good
        if category.get("supercategory") == "none"
        and names.count(category.get("name")) > 1
        and is_id(category.get("id"))
        and category["id"] not in used
    ]
