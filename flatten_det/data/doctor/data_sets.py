"""The data sets that a config names: their files, how they are read, and the heads that learn from them."""

import dataclasses
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from mmdet.datasets import CocoDataset, CocoPanopticDataset, LVISV05Dataset, LVISV1Dataset
from mmengine.config import Config, ConfigDict
from mmengine.dataset import BaseDataset
from mmengine.registry import DATASETS, init_default_scope
from mmseg.datasets import BaseSegDataset

from ...config import all_datasets, has_mask_head, type_name, wrapped_datasets
from ...errors import UserError
from ..shapes.datasets import RenderedDataset
from .faults import CLASS_COUNT, FOLDER_MISSING, FaultKind, Finding, quoted

INSTANCES, PANOPTIC, SEMANTIC, UNKNOWN = "instances", "panoptic", "semantic", "unknown"
LOADERS = ("train", "val", "test")
_NOT_COCO = (LVISV05Dataset, LVISV1Dataset)  # They inherit from it, but their files have no names.
_FIELDS = ("num_classes", "num_things_classes", "num_stuff_classes")
# What counts something else: objects or not; classes of stuff; borders or not.
_OTHER_HEADS = ("rpn_head", "semantic_head")
_OTHER_TYPES = ("STDCHead",)
# MMSegmentation reads 8 bits, and writes this for what it leaves out, whatever ignore_index is.
_LEFT_OUT = 255


@dataclass(frozen=True)
class LabelRules:
    """How a data set of MMSegmentation reads its label maps.

    ``ignore_index`` is the label of pixels that do not count. With ``reduce_zero_label``, 0 does not count,
    and all others are lowered by one. ``new_labels`` are pairs of a stored label and the one that a choice
    of classes makes of it.
    """

    image_suffix: str
    label_suffix: str
    ignore_index: int
    reduce_zero_label: bool
    new_labels: tuple[tuple[int, int], ...]

    def trained(self) -> np.ndarray:
        """The label ``(256,)`` that a training sees for each stored one."""
        labels = np.arange(256)
        if self.reduce_zero_label:
            labels = np.where((labels == 0) | (labels == _LEFT_OUT), _LEFT_OUT, labels - 1)
        chosen = labels.copy()
        for old, new in self.new_labels:
            chosen[labels == old] = new
        return chosen

    @property
    def changes_labels(self) -> bool:
        """Whether a training sees other labels than those that are stored."""
        return bool(self.reduce_zero_label or self.new_labels)

    def ignored(self) -> set[int]:
        """Labels of a training that do not count."""
        return {self.ignore_index, _LEFT_OUT} if self.changes_labels else {self.ignore_index}


@dataclass(frozen=True)
class ConfiguredDataSet:
    """A data set of a config, without wrappers.

    Attributes:
        name: where the config uses it: ``'train'``, or ``'val, test'`` if it does so twice.
        task: one of :data:`INSTANCES`, :data:`PANOPTIC`, :data:`SEMANTIC` and :data:`UNKNOWN`.
        classes: their names, in the order of the labels; empty if the config does not say.
        things: how many classes are things, for panoptic data.
        annotation_file: path of the JSON file; for semantic data, of the list of images, or ``''``.
        label_maps: folder of the semantic or panoptic label maps; None if there is none.
        min_size: the shorter side of the smallest images that are not left out, in pixels.
        needs_objects: whether images without any are left out.
        learns_masks: whether the model learns instance masks.
        open_vocabulary: the classes are told to the model as text, not counted by its heads.
        labels: how label maps are read; None unless they are semantic.
        image_reading: ``flag`` and ``backend`` with which mmcv reads images.
    """

    name: str
    type: str
    task: str
    classes: tuple[str, ...] = ()
    things: int = 0
    annotation_file: str = ""
    images: str = ""
    label_maps: str | None = None
    loaders: tuple[str, ...] = ()
    min_size: int = 0
    needs_objects: bool = False
    learns_masks: bool = False
    open_vocabulary: bool = False
    labels: LabelRules | None = None
    image_reading: tuple[str, str] = ("color", "cv2")

    @property
    def evaluated(self) -> bool:
        """Whether a validation or a test uses it."""
        return bool({"val", "test"}.intersection(self.loaders))

    @property
    def place(self) -> str:
        """The file or folder that stands for it in messages."""
        return self.annotation_file or self.images

    def finding(
        self, kind: FaultKind, message: str, id: int | str | None = None, file: str | None = None
    ) -> Finding:
        """A fault of this data set; without ``file``, in its annotations."""
        return Finding(kind, self.name, self.place if file is None else file, id, message)

    def missing_folders(self) -> Iterator[Finding]:
        """The folders of images and label maps that are not there."""
        for noun, folder in (("image", self.images), ("label map", self.label_maps)):
            if folder is not None and not os.path.isdir(folder):
                yield self.finding(FOLDER_MISSING, f"{noun} folder {folder} not found", file=folder)


def find_data_sets(cfg: Config, render: bool = False) -> list[ConfiguredDataSet]:
    """The data sets of the train, val and test data loaders, each once, out of their wrappers.

    Nothing of the data is read, but data sets that are rendered on first use (Shapes) are rendered if
    there is no folder of theirs yet; with ``render`` as a training does, which replaces one that is damaged.
    UserError if the config names no data set, or one that cannot be built.
    """
    init_default_scope(cfg.get("default_scope", "mmdet"))
    found: dict[ConfiguredDataSet, list[tuple[str, str]]] = {}
    for loader in LOADERS:
        nodes = all_datasets(cfg.get(f"{loader}_dataloader") or {})
        leaves = [node for node in nodes if "type" in node and not wrapped_datasets(node)]
        for number, leaf in enumerate(leaves):
            name = loader if len(leaves) == 1 else f"{loader}[{number}]"
            data_set = _described(_build(leaf, name, render), leaf, cfg)
            found.setdefault(data_set, []).append((name, loader))
    if not found:
        raise UserError(f"config file {cfg.filename} has no data loader: there is nothing to check")
    return [
        dataclasses.replace(
            data_set,
            name=", ".join(name for name, _ in uses),
            loaders=tuple(dict.fromkeys(loader for _, loader in uses)),
        )
        for data_set, uses in found.items()
    ]


def _build(leaf: ConfigDict, name: str, render: bool) -> Any:
    """The data set itself, which knows its defaults and paths, not loaded; None if that cannot be."""
    kind = DATASETS.get(leaf["type"]) if isinstance(leaf["type"], str) else leaf["type"]
    if kind is not None and not issubclass(kind, BaseDataset):
        return None
    try:
        # The pipeline is not needed, and transforms may load files of their own.
        dataset = DATASETS.build({**leaf, "pipeline": [], "lazy_init": True})
    except Exception as error:
        if isinstance(error, FileNotFoundError) or "registry. Please check" in str(error):
            raise
        if isinstance(error, TypeError) and "'lazy_init'" in str(error):
            return None
        # Some of MMSegmentation's assert, without a word, that their folder exists.
        reason = " ".join(str(error).split()) or "it refuses, perhaps as its files are not there"
        raise UserError(
            f"the {name} data set of the config cannot be built: {reason}: correct its options"
        ) from error
    if isinstance(dataset, RenderedDataset) and (render or not Path(dataset.data_root).exists()):
        dataset.prepare()
    return dataset


def _described(dataset: Any, leaf: ConfigDict, cfg: Config) -> ConfiguredDataSet:
    task = UNKNOWN if dataset is None else _task(dataset)
    if task is UNKNOWN:
        return ConfiguredDataSet("", type_name(leaf), UNKNOWN)
    metainfo, prefix = dataset.metainfo, dataset.data_prefix
    classes = metainfo.get("classes") or ()
    common = dict(
        name="",
        type=type(dataset).__name__,
        task=task,
        # "classes" that lack a comma are text; NumClassCheckHook and this count one class then.
        classes=(classes,) if isinstance(classes, str) else tuple(classes),
        annotation_file=dataset.ann_file or "",
        image_reading=_image_reading(leaf),
    )
    if task is SEMANTIC:
        return ConfiguredDataSet(
            **common,
            images=prefix.get("img_path") or "",
            label_maps=prefix.get("seg_map_path") or None,
            labels=LabelRules(
                dataset.img_suffix,
                dataset.seg_map_suffix,
                dataset.ignore_index,
                bool(dataset.reduce_zero_label),
                tuple((dataset.label_map or {}).items()),
            ),
        )
    filters = {} if dataset.test_mode else dataset.filter_cfg or {}
    return ConfiguredDataSet(
        **common,
        min_size=filters.get("min_size", 0),
        needs_objects=filters.get("filter_empty_gt", False),
        things=len(metainfo.get("thing_classes") or classes),
        images=prefix.get("img") or "",
        label_maps=(prefix.get("seg") or None) if task is PANOPTIC else None,
        learns_masks=bool(cfg.get("model")) and has_mask_head(cfg),
        open_vocabulary=bool(dataset.return_classes),
    )


def _image_reading(leaf: ConfigDict) -> tuple[str, str]:
    first = next((step for step in leaf.get("pipeline") or () if isinstance(step, dict)), {})
    if not first or type_name(first).rpartition(".")[2] != "LoadImageFromFile":
        return "color", "cv2"
    backend = first.get("imdecode_backend", "cv2")
    if backend in ("turbojpeg", "tifffile"):
        return "color_ignore_orientation", "cv2"  # They need not be there, and never turn images.
    return first.get("color_type", "color"), backend


def _task(dataset: Any) -> str:
    remote = getattr(dataset, "backend_args", None) is not None
    paths = [getattr(dataset, "ann_file", ""), *getattr(dataset, "data_prefix", {}).values()]
    if remote or any("://" in str(path) for path in paths) or isinstance(dataset, _NOT_COCO):
        return UNKNOWN
    if isinstance(dataset, CocoPanopticDataset):
        return PANOPTIC
    if isinstance(dataset, CocoDataset):
        return INSTANCES
    return SEMANTIC if isinstance(dataset, BaseSegDataset) else UNKNOWN


def class_count_findings(cfg: Config, data_set: ConfiguredDataSet) -> Iterator[Finding]:
    """Heads that would be built for another number of classes than the data set's."""
    if not data_set.classes or data_set.open_vocabulary or not cfg.get("model"):
        return
    names = ", ".join(map(quoted, data_set.classes[:3]))
    names += ", ..." if len(data_set.classes) > 3 else ""
    for place, field, count in _counts(cfg.model.to_dict(), "model", in_head=False):
        expected = _expected(data_set, field)
        if isinstance(count, int) and count not in expected:
            place = f"{place}.{field}"
            what = f"{place} is {count}, the data set has {expected[0]} ({names})"
            yield data_set.finding(CLASS_COUNT, what, place, str(cfg.filename))


def _counts(node: Any, place: str, in_head: bool) -> Iterator[tuple[str, str, Any]]:
    if isinstance(node, dict):
        if type_name(node) in _OTHER_TYPES:
            return
        for key, value in node.items():
            if key in _FIELDS and in_head:
                yield place, key, value
            elif key not in _OTHER_HEADS:
                yield from _counts(value, f"{place}.{key}", in_head or str(key).endswith("_head"))
    elif isinstance(node, list | tuple):
        for number, item in enumerate(node):
            yield from _counts(item, f"{place}[{number}]", in_head)


def _expected(data_set: ConfiguredDataSet, field: str) -> tuple[int, ...]:
    """The counts that a field may have, the usual one first."""
    every, things = len(data_set.classes), data_set.things
    if data_set.task is not PANOPTIC:
        return (0,) if field == "num_stuff_classes" else (every,)
    # num_classes is that of a segmentor's head, or of a detector's within it.
    counts = {"num_things_classes": (things,), "num_stuff_classes": (every - things,)}
    return counts.get(field, (every, things))
