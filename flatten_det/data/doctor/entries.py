"""What holds for the images and categories of any COCO file: ids once, names as the config has them."""

from collections import Counter
from collections.abc import Hashable, Iterable, Iterator

from ..coco_values import are_of_one_type, root_categories
from .data_sets import DataSet
from .findings import Finding, quoted
from .json_file import CocoContent
from .kinds import (
    CATEGORY_ORDER,
    DUPLICATE_CATEGORY,
    DUPLICATE_FILE_NAME,
    DUPLICATE_IMAGE_ID,
    IGNORED_CATEGORY,
    MISREAD_ID,
    MISSING_CATEGORY,
    ROOT_CATEGORY,
    UNUSED_CATEGORY,
    Kind,
)


def repeated(values: Iterable[Hashable]) -> dict[Hashable, int]:
    """The values that occur more than once, and how often."""
    values = list(values)
    if len(set(values)) == len(values):  # Nearly always, and much faster than counting.
        return {}
    return {value: count for value, count in Counter(values).items() if count > 1}


def duplicate_entries(
    data_set: DataSet, content: CocoContent, used: set[Hashable]
) -> Iterator[Finding]:
    """Images and categories that share an id or a name.

    Args:
        data_set: where they belong.
        content: of its annotation file.
        used: ids of the categories that objects have.
    """
    images, roots = content.images, root_categories(content.categories, used)
    categories = [category for category in content.categories if category not in roots]
    for root in roots:
        id_, name = quoted(root["id"]), quoted(root["name"])
        what = f"category {id_} ({name}), which has no object, is the root of a Roboflow export, and no class"
        yield data_set.finding(ROOT_CATEGORY, what, root["id"])
    for values, kind, what in (
        ([image["id"] for image in images], DUPLICATE_IMAGE_ID, "image id"),
        ([image["file_name"] for image in images], DUPLICATE_FILE_NAME, "file name"),
        ([category["id"] for category in categories], DUPLICATE_CATEGORY, "category id"),
        ([category["name"] for category in categories], DUPLICATE_CATEGORY, "category name"),
    ):
        yield from _duplicates(data_set, kind, what, values)


def mixed_id_findings(data_set: DataSet, content: CocoContent) -> Iterator[Finding]:
    """Images or categories whose ids an evaluation cannot sort."""
    for noun, entries in (("image", content.images), ("category", content.categories)):
        ids = [entry["id"] for entry in entries]
        if not are_of_one_type(ids):
            number, text = (next(id_ for id_ in ids if type(id_) is kind) for kind in (int, str))
            what = (
                f"{noun} ids are numbers and texts, such as {quoted(number)} and {quoted(text)!r}"
            )
            yield data_set.finding(MISREAD_ID, what)


def _duplicates(data_set: DataSet, kind: Kind, what: str, values: list) -> Iterator[Finding]:
    for value, count in repeated(values).items():
        yield data_set.finding(kind, f"{what} {quoted(value)} occurs {count} times", value)


def classes_of(data_set: DataSet, content: CocoContent) -> dict[Hashable, dict]:
    """The file's categories, by id, that are classes of the config."""
    return {
        category["id"]: category
        for category in content.categories
        if not data_set.classes or category["name"] in data_set.classes
    }


def category_findings(
    data_set: DataSet, content: CocoContent, used: set[Hashable]
) -> Iterator[Finding]:
    """Compare the file's categories with the config's classes and with what the objects use.

    Args:
        data_set: with the config's classes.
        content: of its annotation file.
        used: ids of the categories that objects have.
    """
    categories, classes = content.categories, data_set.classes
    if not classes:  # A config that takes the classes as they come.
        classes = tuple(category["name"] for category in categories)
    roots = root_categories(categories, used)  # They have been reported.
    names, of_model = {category["name"] for category in categories}, set(classes)
    for name in classes:
        if name not in names:
            yield data_set.finding(
                MISSING_CATEGORY, f"class {quoted(name)} is not in the file", str(name)
            )
    for category in categories:
        name, id_ = quoted(category["name"]), category["id"]
        if category["name"] not in of_model:
            yield data_set.finding(
                IGNORED_CATEGORY, f"category {id_} ({name}) is no class of the config", id_
            )
        elif id_ not in used and category not in roots:
            yield data_set.finding(UNUSED_CATEGORY, f"category {id_} ({name}) has no object", id_)
    of_file = [c["name"] for c in categories if c["name"] in of_model]
    of_config = [name for name in classes if name in names]
    if of_file != of_config and len(of_file) == len(of_config):
        label = next(
            i for i, pair in enumerate(zip(of_file, of_config, strict=True)) if len({*pair}) > 1
        )
        yield data_set.finding(
            CATEGORY_ORDER,
            f"of the {len(of_file)} classes, the first that differs is label {label}: "
            f"{quoted(of_file[label])} in the file, {quoted(of_config[label])} in the config",
        )
