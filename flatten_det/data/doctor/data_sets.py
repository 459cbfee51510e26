"""Which data sets a config names, and where their files are."""

import dataclasses
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mmdet.datasets import CocoDataset, CocoPanopticDataset, LVISV05Dataset, LVISV1Dataset
from mmengine.config import Config, ConfigDict
from mmengine.dataset import BaseDataset
from mmengine.registry import DATASETS, init_default_scope
from mmseg.datasets import BaseSegDataset

from ..shapes.rendered import RenderedDataset
from ...config import has_mask_head
from ...errors import UserError
from .findings import Finding
from .kinds import Kind
from .labels import LabelRules

INSTANCES, PANOPTIC, SEMANTIC, UNKNOWN = "instances", "panoptic", "semantic", "unknown"
LOADERS = ("train", "val", "test")
_NOT_COCO = (LVISV05Dataset, LVISV1Dataset)  # They inherit from it, but their files have no names.


@dataclass(frozen=True)
class DataSet:
    """A data set of a config, without wrappers.

    Attributes:
        name: where the config uses it: ``'train'``, or ``'val, test'`` if it does so twice.
        type: its class.
        task: one of :data:`INSTANCES`, :data:`PANOPTIC`, :data:`SEMANTIC` and :data:`UNKNOWN`.
        classes: their names, in the order of the labels; empty if the config does not say.
        things: how many classes are things, for panoptic data.
        annotation_file: path of the JSON file; for semantic data, of the list of images, or ``''``.
        images: image folder.
        label_maps: folder of the semantic or panoptic label maps; None if there is none.
        loaders: those that use it, of ``'train'``, ``'val'`` and ``'test'``.
        min_size: the shorter side of the smallest images that are not left out, in pixels.
        needs_objects: whether images without any are left out.
        learns_masks: whether the model learns instance masks.
        open_vocabulary: the classes are told to the model as text, not counted by its heads.
        labels: how label maps are read; None unless they are semantic.
        color_type: the ``flag`` with which mmcv reads images.
        backend: that of mmcv, likewise.
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
    color_type: str = "color"
    backend: str = "cv2"

    @property
    def image_reading(self) -> dict[str, str]:
        """The options of ``mmcv.imfrombytes`` with which the data set's images are read."""
        if self.backend in (
            "turbojpeg",
            "tifffile",
        ):  # They need not be there, and never turn images.
            return dict(flag="color_ignore_orientation", backend="cv2")
        return dict(flag=self.color_type, backend=self.backend)

    @property
    def evaluated(self) -> bool:
        """Whether a validation or a test uses it."""
        return bool({"val", "test"}.intersection(self.loaders))

    @property
    def place(self) -> str:
        """The file or folder that stands for it in messages."""
        return self.annotation_file or self.images

    def finding(
        self, kind: Kind, message: str, id: int | str | None = None, file: str | None = None
    ) -> Finding:
        """A fault of this data set; without ``file``, in its annotations."""
        return Finding(kind, self.name, self.place if file is None else file, id, message)


def find_data_sets(cfg: Config, render: bool = False) -> list[DataSet]:
    """The data sets of the train, val and test data loaders, each once, out of their wrappers.

    Nothing of the data is read, but data sets that are rendered on first use (Shapes) are rendered if
    there is no folder of theirs yet.

    Args:
        cfg: a complete config.
        render: render them as a training does, which replaces a folder that is damaged.

    Raises:
        UserError: The config names no data set, or one that cannot be built.
    """
    init_default_scope(cfg.get("default_scope", "mmdet"))
    found: dict[DataSet, list[tuple[str, str]]] = {}
    for loader in LOADERS:
        leaves = list(_unwrap(cfg.get(f"{loader}_dataloader") or {}))
        for number, leaf in enumerate(leaves):
            name = loader if len(leaves) == 1 else f"{loader}[{number}]"
            dataset = _build(leaf, name, render)
            data_set = _unknown(leaf) if dataset is None else _described(dataset, leaf, cfg)
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


def _unwrap(node: ConfigDict) -> Iterator[ConfigDict]:
    """The data sets' own configs inside RepeatDataset, ConcatDataset and the like."""
    inner = node.get("datasets") or ([node["dataset"]] if node.get("dataset") else [])
    for child in inner:
        yield from _unwrap(child)
    if not inner and "type" in node:
        yield node


def _build(leaf: ConfigDict, name: str, render: bool) -> Any:
    """The data set itself, which knows its defaults and paths, without loading anything.

    None for a class that cannot be built without being loaded.
    """
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


def _described(dataset: Any, leaf: ConfigDict, cfg: Config) -> DataSet:
    task = _task(dataset)
    if task is UNKNOWN:
        return _unknown(dict(type=type(dataset)))
    metainfo, prefix = dataset.metainfo, dataset.data_prefix
    classes = metainfo.get("classes") or ()
    common = dict(
        name="",
        type=type(dataset).__name__,
        task=task,
        # "classes" that lack a comma are text; NumClassCheckHook and this count one class then.
        classes=(classes,) if isinstance(classes, str) else tuple(classes),
        annotation_file=dataset.ann_file or "",
        **_image_reading(leaf),
    )
    if task is SEMANTIC:
        return DataSet(
            **common,
            images=prefix.get("img_path") or "",
            label_maps=prefix.get("seg_map_path") or None,
            labels=LabelRules.of(dataset),
        )
    filters = {} if dataset.test_mode else dataset.filter_cfg or {}
    return DataSet(
        **common,
        min_size=filters.get("min_size", 0),
        needs_objects=filters.get("filter_empty_gt", False),
        things=len(metainfo.get("thing_classes") or classes),
        images=prefix.get("img") or "",
        label_maps=(prefix.get("seg") or None) if task is PANOPTIC else None,
        learns_masks=bool(cfg.get("model")) and has_mask_head(cfg),
        open_vocabulary=bool(dataset.return_classes),
    )


def _image_reading(leaf: ConfigDict) -> dict[str, str]:
    """How the first step of a pipeline reads images, as far as it does not do so by default."""
    steps = [step for step in leaf.get("pipeline") or () if isinstance(step, dict)]
    kind = steps[0].get("type") if steps else None
    name = kind if isinstance(kind, str) else getattr(kind, "__name__", "")
    if name.rpartition(".")[2] != "LoadImageFromFile":
        return {}
    options = dict(color_type="color_type", backend="imdecode_backend")
    return {ours: steps[0][theirs] for ours, theirs in options.items() if theirs in steps[0]}


def _unknown(leaf: dict[str, Any]) -> DataSet:
    kind = leaf["type"]
    return DataSet("", kind if isinstance(kind, str) else kind.__name__, UNKNOWN)


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
