"""COCO files: what they must hold, and what is made of masks to write them.

The doctor reports what does not fit, the preparation mends or refuses it.
"""

import gc
import json
import os
import sys
from collections import Counter
from collections.abc import Callable, Collection, Hashable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import PurePosixPath, PureWindowsPath
from typing import Any

import numpy as np
from pycocotools import mask as coco_mask
from rich.progress import track

from ..files.user_files import utf8_text

KEYS = ("images", "annotations", "categories")
# Why an annotation does not count, as of several.
CROWDS = "are crowds (iscrowd 1), which are left out"


class NotJsonError(ValueError):
    """A file whose content is no JSON; the message completes "it ..."."""


def parse_json(content: bytes | str) -> Any:
    """The content of a JSON file, if the frameworks can read it: they take UTF-8 without a mark.

    Raises:
        NotUtf8Error: It is in another encoding.
        NotJsonError: It is not JSON, or nested too deeply.
    """
    text = utf8_text(content) if isinstance(content, bytes) else content
    # Millions of new objects set it off again and again, and none of them is garbage.
    collects = gc.isenabled()
    gc.disable()
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise NotJsonError(f"is not valid JSON ({error})") from error
    finally:
        if collects:
            gc.enable()


def is_coco(content: Any) -> bool:
    """Whether a JSON file's content has the lists of a COCO file."""
    return isinstance(content, dict) and all(isinstance(content.get(key), list) for key in KEYS)


def is_id(value: Any) -> bool:
    """Whether this can be the id of an image, an object or a category."""
    return isinstance(value, int | str) and not isinstance(value, bool)


def is_size(value: Any) -> bool:
    """Whether this is a number of pixels."""
    return isinstance(value, int) and not isinstance(value, bool) and value > 0


def is_number(value: Any) -> bool:
    """Whether this is a finite number; JSON's may be larger than any float."""
    is_any = isinstance(value, int | float) and not isinstance(value, bool)
    return is_any and abs(value) <= sys.float_info.max


def is_box(value: Any) -> bool:
    """Whether this is a box: four finite numbers (x, y, width, height)."""
    return isinstance(value, list) and len(value) == 4 and all(map(is_number, value))


# What the entries of each list need: in words that complete "it has ...", and a test for it.
Needs = Sequence[tuple[str, Callable[[dict], bool]]]
NO_ID = "no id that is a whole number or a text"
ID_NEEDS: Needs = [(NO_ID, lambda entry: is_id(entry.get("id")))]
IMAGE_NEEDS: Needs = [
    *ID_NEEDS,
    ("no file_name", lambda e: bool(e.get("file_name")) and isinstance(e["file_name"], str)),
]
CATEGORY_NEEDS: Needs = [
    *ID_NEEDS,
    ("no name", lambda e: isinstance(e.get("name"), str) and bool(e["name"].strip())),
]


def repeated(values: Iterable[Hashable]) -> dict[Hashable, int]:
    """The values that occur more than once, and how often."""
    values = list(values)
    if len(set(values)) == len(values):  # Nearly always, and much faster than counting.
        return {}
    return {value: count for value, count in Counter(values).items() if count > 1}


def can_be_matched(id_: int | str) -> bool:
    """Whether pycocotools can note that an annotation of this id was found: as a number that is not 0."""
    try:
        return float(id_) != 0
    except (ValueError, OverflowError):
        return False


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

    ``used`` are the ids of the categories that have objects.
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


def why_not_learned(
    annotation: dict, size: tuple[int, int] | None = None, min_size: int = 0
) -> str | None:
    """Say why MMDetection leaves an annotation out, as of several ("are ..."); None if it learns from it.

    ``size`` is that of its image, (width, height), if it is known; ``min_size`` the shorter side of the
    smallest images that are not left out, in pixels.
    """
    if annotation.get("iscrowd"):
        return CROWDS
    if annotation.get("ignore"):
        return "are to be ignored (ignore)"
    if size and min(size) < min_size:
        return f"are in images smaller than {min_size} px (filter_cfg's min_size)"
    box, area = annotation.get("bbox"), annotation.get("area")
    is_seen = is_box(box) and min(box[2:]) >= 1 and not (is_number(area) and area <= 0)
    if is_seen and size:
        sides = zip(box[:2], box[2:], size, strict=True)
        is_seen = all(start < side and start + extent > 0 for start, extent, side in sides)
    return None if is_seen else "have no area within their image"


def mask_fields(mask: np.ndarray, iscrowd: int = 0) -> dict[str, Any]:
    """What a COCO annotation says of a mask: box, area and run lengths.

    ``mask`` is ``(H, W)`` of bool or 0 and 1; no copy is made if it is uint8, stored column by column.
    """
    rle = coco_mask.encode(np.asfortranarray(mask, np.uint8))
    return {
        "bbox": coco_mask.toBbox(rle).tolist(),
        "area": int(coco_mask.area(rle)),
        "iscrowd": iscrowd,
        "segmentation": {"size": rle["size"], "counts": rle["counts"].decode()},
    }


def in_threads(
    work: Callable, items: Collection, title: str, workers: int | None = None
) -> Iterator[Any]:
    """The results of ``work`` on each item, in order, with a progress bar; by default a thread per CPU.

    Threads, since drawing, decoding and encoding release the GIL; processes would each have to import this
    package first.
    """
    with ThreadPoolExecutor(workers or os.cpu_count()) as pool:
        try:
            yield from track(pool.map(work, items), title, total=len(items))
        except BaseException:
            pool.shutdown(cancel_futures=True)  # Ctrl-C need not wait for the rest.
            raise
