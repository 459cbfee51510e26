"""A tiny copy of Shapes to plant faults in, and what the data doctor says about it."""

import json
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from mmengine.config import Config
from PIL import Image

from flatten_det.data import ShapesDetDataset, ShapesPanopticDataset, ShapesSegDataset
from flatten_det.data.doctor.check import check_annotations, check_data, findings_of
from flatten_det.data.doctor.faults import FaultKind, Finding
from flatten_det.data.shapes.files import prepare_shapes
from flatten_det.data.shapes.options import ShapesOptions

NUM_IMAGES = {"train": 8, "val": 5}
# All six classes are in each split.
OPTIONS = dict(
    image_size=64, num_images=NUM_IMAGES, object_size=(12, 16), objects_per_image=(5, 7), seed=1
)
_TYPES = {
    "instances": ("CocoDataset", ShapesDetDataset),
    "panoptic": ("CocoPanopticDataset", ShapesPanopticDataset),
    "semantic": ("BaseSegDataset", ShapesSegDataset),
}


def render_shapes(root: Path) -> Path:
    """Render it; to be copied before anything is changed."""
    prepare_shapes(root, ShapesOptions(**OPTIONS), workers=1)
    return root


def only(findings: list[Finding], kind: FaultKind) -> Finding:
    """The only finding, which is of this kind and of the training."""
    assert [(f.kind.name, f.data_set) for f in findings] == [(kind.name, "train")]
    return findings[0]


def save_turned(image: Image.Image, path: Path | str, orientation: int, *kind: str) -> None:
    """Save an image that asks to be turned, in EXIF's words."""
    exif = Image.Exif()
    exif[0x0112] = orientation
    image.save(path, *kind, exif=exif)


class Patient:
    """A folder of Shapes of one's own: a copy of a healthy one."""

    def __init__(self, healthy: Path, root: Path):
        self.root = Path(shutil.copytree(healthy, root))

    def path(self, name: str) -> Path:
        """A file of it, such as ``'train/images/000000.jpg'``."""
        return self.root / name

    @contextmanager
    def annotations(self, kind: str = "instances", split: str = "train") -> Iterator[dict]:
        """The content of an annotation file, written back at the end."""
        path = self.path(f"annotations/{kind}_{split}.json")
        content = json.loads(path.read_text())
        yield content
        path.write_text(json.dumps(content))

    @contextmanager
    def image(self, name: str) -> Iterator[dict[str, Any]]:
        """An image or label map under ``'it'``, written back without loss at the end."""
        path = self.path(name)
        box = {"it": Image.open(path)}
        box["it"].load()
        yield box
        box["it"].save(path)

    def config(self, task: str, **changes: Any) -> Config:
        """A config of it, with the frameworks' own data sets, which render nothing anew.

        Args:
            task: ``'instances'``, ``'panoptic'`` or ``'semantic'``.
            changes: options of the training data set.
        """
        train, val = (self._dataset(task, split) for split in ("train", "val"))
        val_dataloader = dict(dataset=val | dict(test_mode=True))
        return Config(
            dict(
                default_scope="mmseg" if task == "semantic" else "mmdet",
                train_dataloader=dict(dataset=train | changes),
                val_dataloader=val_dataloader,
                test_dataloader=val_dataloader,
                model=dict(roi_head=dict(mask_head=dict())) if task == "instances" else {},
            )
        )

    def _dataset(self, task: str, split: str) -> dict[str, Any]:
        theirs, ours = _TYPES[task]
        options = dict(type=theirs, data_root=str(self.root), metainfo=dict(ours.METAINFO))
        return options | ours.file_options(split)

    def findings(self, task: str, workers: int = 0, **changes: Any) -> list[Finding]:
        """What the whole check finds."""
        return findings_of(check_data(self.config(task, **changes), workers))

    def quick_findings(self, task: str, **changes: Any) -> list[Finding]:
        """What the check before a training finds."""
        return findings_of(check_annotations(self.config(task, **changes)))
