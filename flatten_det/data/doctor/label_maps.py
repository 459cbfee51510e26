"""Semantic label maps: which files belong together, and one pair at a time."""

import os
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from mmengine.fileio import list_dir_or_file

from ...errors import listed
from ...files.user_files import NotUtf8Error, utf8_text, why_not_read
from ..coco import is_of_windows, stays_inside
from . import faults, images
from .data_sets import ConfiguredDataSet
from .faults import Finding, Outcome, counted, quoted
from .images import ImageFault, Picture, by

_MAX_LABELS = 5


class SemanticCheck:
    """The images of a semantic data set with their label maps, each pair of which is examined by itself.

    ``names`` are those of the images, below their folder and without suffix, ``files`` what is missing or
    left over; no file has been opened for that.
    """

    def __init__(self, data_set: ConfiguredDataSet):
        self.data_set, self.names = data_set, []
        self.files = list(data_set.missing_folders())
        self._trained = data_set.labels.trained()
        known = [*range(len(data_set.classes)), *data_set.labels.ignored()]
        self._known = np.isin(self._trained, known)
        if not self.files:
            self._list_files()

    def _list_files(self) -> None:
        """As MMSegmentation does."""
        data_set, name_list = self.data_set, self.data_set.annotation_file
        if name_list and not os.path.isdir(name_list):
            try:
                self.names = _listed_names(data_set, self.files)
            except (OSError, NotUtf8Error) as error:
                what = f"list of images {name_list} {error}"
                self.files.append(data_set.finding(faults.ANNOTATION_FILE, what))
                return
        else:
            self.names = _names(data_set.images, data_set.labels.image_suffix)
        if not self.names:
            what = f"no image (*{data_set.labels.image_suffix}) in {data_set.images}"
            self.files.append(data_set.finding(faults.NO_IMAGES, what, file=data_set.images))
        if data_set.label_maps is not None:
            self.files += _unpaired(data_set, self.names)

    def __len__(self) -> int:
        return len(self.names)

    def __getitem__(self, index: int) -> Outcome:
        """Examine an image and its label map."""
        data_set, name = self.data_set, self.names[index]
        path = os.path.join(data_set.images, name + data_set.labels.image_suffix)
        findings, picture = [], None
        try:
            picture = images.opened_picture(path, data_set)
        except ImageFault as fault:
            what = f"image {quoted(name)} {fault}"
            findings.append(data_set.finding(fault.kind, what, file=path))
        outcome = Outcome([]) if data_set.label_maps is None else self._label_map(name, picture)
        return Outcome(findings + outcome.findings, outcome.labels)

    def _label_map(self, name: str, picture: Picture | None) -> Outcome:
        data_set = self.data_set
        path = os.path.join(data_set.label_maps, name + data_set.labels.label_suffix)
        if not os.path.exists(path):  # Reported with the pairs.
            return Outcome([])

        def finding(kind, message: str, id_=None) -> Finding:
            return data_set.finding(kind, f"label map {quoted(name)} {message}", id_, path)

        try:
            image = images.opened(path, images.LABEL_MAPS)
        except ImageFault as fault:
            return Outcome([finding(fault.kind, str(fault))])
        labels = np.asarray(image).squeeze()
        if labels.ndim != 2 or labels.dtype.kind not in "bui":
            what = f"holds no labels, but colours or fractions (Pillow's mode {image.mode})"
            return Outcome([finding(faults.LABEL_MAP_FORMAT, what)])
        if what := images.turned_label_map(image):
            return Outcome([finding(faults.LABEL_MAP_FORMAT, what)])
        findings = []
        if picture is not None and image.size != picture.size:
            what = f"is {by(image.size)}, its image {images.described(picture)}"
            findings.append(finding(faults.LABEL_MAP_SIZE, what))
        if labels.dtype != np.uint8:
            if labels.size and not 0 <= int(labels.min()) <= int(labels.max()) < 256:
                what = f"holds labels up to {labels.max()}, of which a training sees 8 bits only"
                return Outcome([*findings, finding(faults.LABEL_MAP_FORMAT, what)])
            labels = labels.astype(np.uint8)
        counts = np.bincount(labels.ravel(), minlength=256)
        values = np.flatnonzero(counts)
        unknown = ~self._known[values]
        if unknown.any():
            shown = [f"{value} ({counted(counts[value], 'pixel')})" for value in values[unknown]]
            what = f"holds unknown labels: {listed(shown, _MAX_LABELS)}; known are {self._known_labels()}"
            id_ = " ".join(map(str, values[unknown]))
            findings.append(finding(faults.UNKNOWN_LABEL, what, id_))
        return Outcome(findings, set(self._trained[values].tolist()))

    def _known_labels(self) -> str:
        known = np.flatnonzero(self._known)
        runs = np.split(known, np.flatnonzero(np.diff(known) > 1) + 1)
        return ", ".join(str(run[0]) if len(run) == 1 else f"{run[0]} to {run[-1]}" for run in runs)

    def why_nothing_counts(self, seen: set[int] | None = None) -> str | None:
        """Say why no label map shows anything; None if one does.

        ``seen`` are the labels of all maps, as a training sees them; without it, maps are opened until one
        shows something.
        """
        rules = self.data_set.labels
        ignored, found = rules.ignored(), set()
        maps = (self._label_map(name, None).labels for name in self.names)
        for labels in maps if seen is None else [seen]:
            found |= labels
            if found - ignored:
                return None
        if not found:  # None could be read, which is said of each.
            return None
        also = ", and 0, which reduce_zero_label leaves out" if rules.reduce_zero_label else ""
        return f"no label map shows anything but the ignored label ({rules.ignore_index}{also})"

    def unused_classes(self, seen: set[int]) -> Iterator[Finding]:
        """Classes that no label map shows; ``seen`` are the labels of all maps, as a training sees them."""
        finding, classes = self.data_set.finding, self.data_set.classes
        rules, folder = self.data_set.labels, self.data_set.label_maps
        ignored, shown = rules.ignore_index, seen - rules.ignored()
        if not rules.changes_labels and ignored in seen and len(shown) == 1 < len(classes):
            missing = [quoted(name) for label, name in enumerate(classes) if label not in shown]
            names = ", ".join(missing[:_MAX_LABELS])
            names += ", ..." if len(missing) > _MAX_LABELS else ""
            what = f"all label maps hold {shown.pop()} and {ignored} only: {ignored} is the ignored label: "
            what += f"your foreground is ignored, and there is nothing of {names}"
            yield finding(faults.IGNORED_FOREGROUND, what, ignored, folder)
            return
        for label, name in enumerate(classes):
            if label not in seen:
                what = f"class {label} ({quoted(name)}) is in no label map"
                yield finding(faults.UNUSED_CATEGORY, what, label, folder)


def _listed_names(data_set: ConfiguredDataSet, findings: list[Finding]) -> list[str]:
    if reason := why_not_read(data_set.annotation_file):
        raise OSError(reason.removeprefix("was "))
    text = utf8_text(Path(data_set.annotation_file).read_bytes())
    names: dict[str, None] = {}
    for number, line in enumerate(text.splitlines(), start=1):
        name = line.strip()
        if not name:
            kind = faults.MALFORMED_ENTRY
            what = "is blank, which stands for an image without a name: remove it"
        elif is_of_windows(name + data_set.labels.image_suffix, data_set.images):
            kind = faults.FILE_NAME_BACKSLASHES
            what = f"({quoted(name)}) is written with backslashes, which are no / here"
        elif not stays_inside(name):
            kind, what = faults.FILE_NAME_LEAVES, f"({quoted(name)}) leaves the image folder"
        elif name in names:
            kind, what = faults.DUPLICATE_FILE_NAME, f"repeats {quoted(name)}"
        else:
            names[name] = None
            continue
        findings.append(data_set.finding(kind, f"line {number} {what}", number))
    return list(names)


def _names(folder: str, suffix: str) -> list[str]:
    """Files as MMSegmentation finds them, without their suffix."""
    files = list_dir_or_file(folder, list_dir=False, suffix=suffix, recursive=True)
    return sorted(name[: len(name) - len(suffix)] for name in files)


def _unpaired(data_set: ConfiguredDataSet, names: list[str]) -> Iterator[Finding]:
    rules = data_set.labels
    maps = set(_names(data_set.label_maps, rules.label_suffix))
    for name in names:
        if name not in maps:
            path = os.path.join(data_set.images, name + rules.image_suffix)
            lack = f"has no label map {quoted(name + rules.label_suffix)} in {data_set.label_maps}"
            what = f"image {quoted(name)} {lack}"
            yield data_set.finding(faults.LABEL_MAP_MISSING, what, file=path)
    if not data_set.annotation_file:  # A list may be meant to leave some out.
        for name in sorted(maps.difference(names)):
            path = os.path.join(data_set.label_maps, name + rules.label_suffix)
            lack = f"has no image {quoted(name + rules.image_suffix)} in {data_set.images}"
            what = f"label map {quoted(name)} {lack}"
            yield data_set.finding(faults.LABEL_MAP_UNUSED, what, file=path)
