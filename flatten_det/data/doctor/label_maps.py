"""Semantic label maps: which files belong together, and one pair at a time."""

import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from mmengine.fileio import list_dir_or_file

from ..coco_values import is_of_windows, stays_inside
from ...files.user_files import NotUtf8Error, utf8_text, why_not_read
from .data_sets import DataSet
from .findings import Finding, counted, quoted
from .images import (
    LABEL_MAPS,
    ImageFault,
    Picture,
    by,
    described,
    opened,
    opened_picture,
    turned_label_map,
)
from .kinds import (
    ANNOTATION_FILE,
    DUPLICATE_FILE_NAME,
    FILE_NAME_BACKSLASHES,
    FILE_NAME_LEAVES,
    FOLDER_MISSING,
    IGNORED_FOREGROUND,
    LABEL_MAP_FORMAT,
    LABEL_MAP_MISSING,
    LABEL_MAP_SIZE,
    LABEL_MAP_UNUSED,
    MALFORMED_ENTRY,
    NO_IMAGES,
    UNKNOWN_LABEL,
    UNUSED_CATEGORY,
)
from .outcome import Outcome

_MAX_LABELS = 5


@dataclass
class Pairing:
    """The images of a data set and their label maps.

    Attributes:
        names: of the images, relative to their folder, without suffix; those that can be opened.
        findings: files that are missing or left over.
    """

    names: list[str]
    findings: list[Finding]


def pair_files(data_set: DataSet) -> Pairing:
    """List the images as MMSegmentation does, and look for their label maps; none is opened."""
    findings = [
        data_set.finding(FOLDER_MISSING, f"{noun} folder {folder} not found", file=folder)
        for noun, folder in (("image", data_set.images), ("label map", data_set.label_maps))
        if folder is not None and not os.path.isdir(folder)
    ]
    if findings:
        return Pairing([], findings)
    rules, listed = data_set.labels, data_set.annotation_file
    if listed and not os.path.isdir(listed):
        try:
            names = _listed_names(data_set, findings)
        except (OSError, NotUtf8Error) as error:
            finding = data_set.finding(ANNOTATION_FILE, f"list of images {listed} {error}")
            return Pairing([], [finding])
    else:
        names = _names(data_set.images, rules.image_suffix)
    if not names:
        what = f"no image (*{rules.image_suffix}) in {data_set.images}"
        findings.append(data_set.finding(NO_IMAGES, what, file=data_set.images))
    if data_set.label_maps is not None:
        maps = set(_names(data_set.label_maps, rules.label_suffix))
        findings += _unpaired(data_set, names, maps, is_list=bool(listed))
    return Pairing(names, findings)


def _listed_names(data_set: DataSet, findings: list[Finding]) -> list[str]:
    if reason := why_not_read(data_set.annotation_file):
        raise OSError(reason.removeprefix("was "))
    text = utf8_text(Path(data_set.annotation_file).read_bytes())
    names: dict[str, None] = {}
    for number, line in enumerate(text.splitlines(), start=1):
        name = line.strip()
        if not name:
            what = f"line {number} is blank, which stands for an image without a name: remove it"
            findings.append(data_set.finding(MALFORMED_ENTRY, what, number))
        elif is_of_windows(name + data_set.labels.image_suffix, data_set.images):
            what = (
                f"line {number} ({quoted(name)}) is written with backslashes, which are no / here"
            )
            findings.append(data_set.finding(FILE_NAME_BACKSLASHES, what, number))
        elif not stays_inside(name):
            what = f"line {number} ({quoted(name)}) leaves the image folder"
            findings.append(data_set.finding(FILE_NAME_LEAVES, what, number))
        elif name in names:
            what = f"line {number} repeats {quoted(name)}"
            findings.append(data_set.finding(DUPLICATE_FILE_NAME, what, number))
        else:
            names[name] = None
    return list(names)


def _names(folder: str, suffix: str) -> list[str]:
    """Files as MMSegmentation finds them, without their suffix."""
    files = list_dir_or_file(folder, list_dir=False, suffix=suffix, recursive=True)
    return sorted(name[: len(name) - len(suffix)] for name in files)


def _unpaired(
    data_set: DataSet, names: list[str], maps: set[str], is_list: bool
) -> Iterator[Finding]:
    rules = data_set.labels
    for name in names:
        if name not in maps:
            path = os.path.join(data_set.images, name + rules.image_suffix)
            what = f"has no label map {quoted(name + rules.label_suffix)} in {data_set.label_maps}"
            yield data_set.finding(LABEL_MAP_MISSING, f"image {quoted(name)} {what}", file=path)
    if not is_list:  # A list may be meant to leave some out.
        for name in sorted(maps.difference(names)):
            path = os.path.join(data_set.label_maps, name + rules.label_suffix)
            what = f"has no image {quoted(name + rules.image_suffix)} in {data_set.images}"
            yield data_set.finding(LABEL_MAP_UNUSED, f"label map {quoted(name)} {what}", file=path)


class LabelledImages:
    """The images of a semantic data set with their label maps, each examined by itself.

    Args:
        data_set: where they belong.
        names: as :func:`pair_files` gives them.
    """

    def __init__(self, data_set: DataSet, names: list[str]):
        self.data_set, self.names = data_set, names
        self._trained = data_set.labels.trained()
        self._known = np.isin(
            self._trained, [*range(len(data_set.classes)), *data_set.labels.ignored()]
        )

    def __len__(self) -> int:
        return len(self.names)

    def __getitem__(self, index: int) -> Outcome:
        """Examine an image and its label map."""
        data_set, name = self.data_set, self.names[index]
        path = os.path.join(data_set.images, name + data_set.labels.image_suffix)
        findings, picture = [], None
        try:
            picture = opened_picture(path, data_set)
        except ImageFault as fault:
            findings.append(
                data_set.finding(fault.kind, f"image {quoted(name)} {fault}", file=path)
            )
        if data_set.label_maps is None:
            return Outcome(findings)
        outcome = self._label_map(name, picture)
        return Outcome(findings + outcome.findings, outcome.labels)

    def labels(self) -> Iterator[set[int]]:
        """The labels of one label map after the other, as a training sees them; no image is opened."""
        return (self._label_map(name, None).labels for name in self.names)

    def _label_map(self, name: str, picture: Picture | None) -> Outcome:
        data_set = self.data_set
        path = os.path.join(data_set.label_maps, name + data_set.labels.label_suffix)
        if not os.path.exists(path):  # Reported with the pairs.
            return Outcome([])

        def finding(kind, message: str, id_=None) -> Finding:
            return data_set.finding(kind, f"label map {quoted(name)} {message}", id_, path)

        try:
            image = opened(path, LABEL_MAPS)
        except ImageFault as fault:
            return Outcome([finding(fault.kind, str(fault))])
        labels = np.asarray(image).squeeze()
        if labels.ndim != 2 or labels.dtype.kind not in "bui":
            what = f"holds no labels, but colours or fractions (Pillow's mode {image.mode})"
            return Outcome([finding(LABEL_MAP_FORMAT, what)])
        if what := turned_label_map(image):
            return Outcome([finding(LABEL_MAP_FORMAT, what)])
        findings = []
        if picture is not None and image.size != picture.size:
            what = f"is {by(image.size)}, its image {described(picture)}"
            findings.append(finding(LABEL_MAP_SIZE, what))
        if labels.dtype != np.uint8:
            if labels.size and not 0 <= int(labels.min()) <= int(labels.max()) < 256:
                what = f"holds labels up to {labels.max()}, of which a training sees 8 bits only"
                return Outcome([*findings, finding(LABEL_MAP_FORMAT, what)])
            labels = labels.astype(np.uint8)
        counts = np.bincount(labels.ravel(), minlength=256)
        values = np.flatnonzero(counts)
        unknown = ~self._known[values]
        if unknown.any():
            shown = _shown(values[unknown], counts[values[unknown]])
            what = f"holds unknown labels: {shown}; known are {self._known_labels()}"
            findings.append(finding(UNKNOWN_LABEL, what, " ".join(map(str, values[unknown]))))
        return Outcome(findings, set(self._trained[values].tolist()))

    def _known_labels(self) -> str:
        known = np.flatnonzero(self._known)
        runs = np.split(known, np.flatnonzero(np.diff(known) > 1) + 1)
        return ", ".join(str(run[0]) if len(run) == 1 else f"{run[0]} to {run[-1]}" for run in runs)


def _shown(values: np.ndarray, counts: np.ndarray) -> str:
    pairs = zip(values.tolist(), counts.tolist(), strict=True)
    shown = [f"{value} ({counted(count, 'pixel')})" for value, count in pairs]
    more = f", ... and {len(shown) - _MAX_LABELS} more" if len(shown) > _MAX_LABELS else ""
    return f"{', '.join(shown[:_MAX_LABELS])}{more}"


def why_nothing_counts(data_set: DataSet, labels: Iterable[set[int]]) -> str | None:
    """Say why no label map shows anything; None if one does, at which the others are not looked at.

    Args:
        data_set: where they belong.
        labels: of each map, as a training sees them.
    """
    ignored, seen = data_set.labels.ignored(), set()
    for of_map in labels:
        seen |= of_map
        if seen - ignored:
            return None
    if not seen:  # None could be read, which is said of each.
        return None
    left_out = (
        ", and 0, which reduce_zero_label leaves out" if data_set.labels.reduce_zero_label else ""
    )
    return f"no label map shows anything but the ignored label ({data_set.labels.ignore_index}{left_out})"


def unused_classes(data_set: DataSet, seen: set[int]) -> Iterator[Finding]:
    """Classes that no label map shows.

    Args:
        data_set: with the classes.
        seen: the labels of all maps, as a training sees them.
    """
    ignored = data_set.labels.ignore_index
    shown = seen - data_set.labels.ignored()
    if (
        not data_set.labels.changes_labels
        and ignored in seen
        and len(shown) == 1 < len(data_set.classes)
    ):
        missing = [name for label, name in enumerate(data_set.classes) if label not in shown]
        names = ", ".join(map(quoted, missing[:_MAX_LABELS]))
        more = ", ..." if len(missing) > _MAX_LABELS else ""
        what = f"all label maps hold {shown.pop()} and {ignored} only: {ignored} is the ignored label: "
        what += f"your foreground is ignored, and there is nothing of {names}{more}"
        yield data_set.finding(IGNORED_FOREGROUND, what, ignored, data_set.label_maps)
        return
    for label, name in enumerate(data_set.classes):
        if label not in seen:
            what = f"class {label} ({quoted(name)}) is in no label map"
            yield data_set.finding(UNUSED_CATEGORY, what, label, data_set.label_maps)
