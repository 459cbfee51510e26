"""Tiny data sets in the layouts of COCO and ADE20K, made by hand-sized code."""

import importlib
import json
from pathlib import Path
from typing import Any

import cv2
import mmseg
import numpy as np
from mmdet.datasets import CityscapesDataset, CocoDataset, CocoPanopticDataset
from mmengine.config import Config
from mmengine.registry import Registry
from pycocotools import mask as coco_mask

# The official ids of the 80 classes have gaps.
COCO_CATEGORY_IDS = sorted(set(range(1, 91)) - {12, 26, 29, 30, 45, 66, 68, 69, 71, 83})
# (height, width); none is a multiple of the strides, aspect ratios on both sides of 1.
IMAGE_SIZES = [(61, 97), (97, 61), (50, 75), (75, 75), (83, 45), (49, 111)]


def make_coco_folder(root: Path, num_train: int = 6, num_val: int = 3) -> Path:
    """Write ``annotations/instances_{train,val}2017.json`` and ``{train,val}2017/*.jpg``.

    Each image has up to three polygon-annotated ellipses; the second of each split has a crowd
    region (RLE) too, and the last training image has no object, which mmdet filters out.
    """
    for split, count in (("train2017", num_train), ("val2017", num_val)):
        rng = np.random.default_rng(0)
        (root / split).mkdir(parents=True)
        images, annotations = [], []
        for index in range(count):
            size = IMAGE_SIZES[index % len(IMAGE_SIZES)]
            empty = split == "train2017" and index == count - 1
            image = rng.integers(0, 90, (*size, 3), np.uint8)
            for number in range(0 if empty else 1 + index % 3):
                annotations.append(_draw_ellipse(image, rng, index + 1, number))
            if index == 1:
                annotations.append(_crowd(size, index + 1))
            name = f"{index + 1:012d}.jpg"
            cv2.imwrite(str(root / split / name), image)
            height, width = size
            images.append({"id": index + 1, "file_name": name, "height": height, "width": width})
        for number, annotation in enumerate(annotations):
            annotation["id"] = number + 1
        categories = [
            {"id": id_, "name": name}
            for id_, name in zip(COCO_CATEGORY_IDS, CocoDataset.METAINFO["classes"], strict=True)
        ]
        path = root / "annotations" / f"instances_{split}.json"
        path.parent.mkdir(exist_ok=True)
        path.write_text(
            json.dumps({"images": images, "annotations": annotations, "categories": categories})
        )
    return root


def _draw_ellipse(image: np.ndarray, rng: np.random.Generator, image_id: int, number: int) -> dict:
    height, width = image.shape[:2]
    center = (int(width * rng.uniform(0.3, 0.7)), int(height * rng.uniform(0.3, 0.7)))
    axes = (int(width * rng.uniform(0.12, 0.25)), int(height * rng.uniform(0.12, 0.25)))
    outline = cv2.ellipse2Poly(center, axes, int(rng.integers(0, 180)), 0, 360, 20)
    cv2.fillPoly(image, [outline], rng.integers(150, 255, 3).tolist())
    x, y, w, h = cv2.boundingRect(outline)
    return {
        "image_id": image_id,
        "category_id": COCO_CATEGORY_IDS[(image_id * 7 + number * 23) % 80],
        "bbox": [x, y, w, h],
        "area": float(cv2.contourArea(outline)),
        "segmentation": [outline.ravel().tolist()],
        "iscrowd": 0,
    }


def _crowd(size: tuple[int, int], image_id: int) -> dict:
    mask = np.zeros(size, np.uint8, order="F")
    mask[:10, :20] = 1
    # COCO's own files have uncompressed run lengths for crowds: column by column, zeros first.
    changes = np.flatnonzero(np.diff(mask.ravel(order="F"), prepend=0, append=2))
    counts = np.diff(changes, prepend=0).tolist()
    return {
        "image_id": image_id,
        "category_id": 1,
        "bbox": coco_mask.toBbox(coco_mask.encode(mask)).tolist(),
        "area": int(mask.sum()),
        "segmentation": {"size": list(size), "counts": counts},
        "iscrowd": 1,
    }


STUFF_CLASSES = CocoPanopticDataset.METAINFO["stuff_classes"]


def add_panoptic_annotations(root: Path) -> Path:
    """Write ``annotations/panoptic_{train,val}2017.json`` and the PNG files of their folders.

    Beside the objects and crowds, every image has one stuff segment, and rows that are void.
    """
    for split in ("train2017", "val2017"):
        content = json.loads((root / "annotations" / f"instances_{split}.json").read_text())
        folder = root / "annotations" / f"panoptic_{split}"
        folder.mkdir()
        things = [{**category, "isthing": 1} for category in content["categories"]]
        stuff = [{"id": 92 + i, "name": name, "isthing": 0} for i, name in enumerate(STUFF_CLASSES)]
        panoptic = []
        for image in content["images"]:
            objects = [a for a in content["annotations"] if a["image_id"] == image["id"]]
            ids, segments = _segments(image, objects, stuff[image["id"] % len(stuff)]["id"])
            name = image["file_name"].replace(".jpg", ".png")
            # OpenCV writes BGR; the red byte of an id is the lowest.
            cv2.imwrite(str(folder / name), np.stack([ids * 0, ids // 256, ids % 256], axis=-1))
            panoptic.append({"image_id": image["id"], "file_name": name, "segments_info": segments})
        content |= {"annotations": panoptic, "categories": [*things, *stuff]}
        (root / "annotations" / f"panoptic_{split}.json").write_text(json.dumps(content))
    return root


def _segments(
    image: dict, objects: list[dict], stuff_category: int
) -> tuple[np.ndarray, list[dict]]:
    """Segment ids (H, W), and the segments of one image; ids use two bytes, as most of COCO's do."""
    shape = (image["height"], image["width"])
    stuff = {"id": 300, "category_id": stuff_category, "iscrowd": 0}
    ids = np.full(shape, stuff["id"], np.int32)
    ids[-3:] = 0
    records = [stuff]
    for number, annotation in enumerate(objects):
        record = {key: annotation[key] for key in ("category_id", "iscrowd")}
        record["id"] = 301 + number
        if annotation["iscrowd"]:
            rle = coco_mask.frPyObjects(annotation["segmentation"], *shape)
            ids[coco_mask.decode(rle).astype(bool)] = record["id"]
        else:
            outline = np.reshape(annotation["segmentation"][0], (-1, 1, 2)).astype(np.int32)
            cv2.fillPoly(ids, [outline], record["id"])
        records.append(record)
    for record in records:
        mask = np.asfortranarray(ids == record["id"], np.uint8)
        record["area"] = int(mask.sum())
        record["bbox"] = coco_mask.toBbox(coco_mask.encode(mask)).tolist()
    return ids, [record for record in records if record["area"]]


def make_ade20k_folder(root: Path, num_train: int = 6, num_val: int = 3) -> Path:
    """Write ``images/{training,validation}/*.jpg`` and ``annotations/…/*.png`` like ADE20K's.

    Label maps hold 0 for "not labelled" and 1 to 150 for the classes (``reduce_zero_label``).
    """
    for split, short, count in (("training", "train", num_train), ("validation", "val", num_val)):
        rng = np.random.default_rng(0)
        for kind in ("images", "annotations"):
            (root / kind / split).mkdir(parents=True)
        for index in range(count):
            height, width = IMAGE_SIZES[index % len(IMAGE_SIZES)]
            image = rng.integers(0, 90, (height, width, 3), np.uint8)
            labels = np.full((height, width), 3, np.uint8)
            labels[: height // 2] = 1 + index
            labels[:, : width // 3] = 150
            labels[:5] = 0
            image[: height // 2] += 60
            image[:, : width // 3] += 100
            name = f"ADE_{short}_{index + 1:08d}"
            cv2.imwrite(str(root / "images" / split / f"{name}.jpg"), image)
            cv2.imwrite(str(root / "annotations" / split / f"{name}.png"), labels)
    return root


CITYSCAPES_CLASSES = CityscapesDataset.METAINFO["classes"]


def make_cityscapes_folder(root: Path, num_train: int = 4, num_val: int = 2) -> Path:
    """Write ``leftImg8bit/…``, ``gtFine/…_labelTrainIds.png`` and mmdet's COCO files of the instances.

    Train ids run from 0 to 18; 255 is "not labelled". Images have the aspect ratio of Cityscapes.
    """
    (root / "annotations").mkdir(parents=True)
    for split, count in (("train", num_train), ("val", num_val)):
        rng = np.random.default_rng(0)
        images, annotations = [], []
        for kind in ("leftImg8bit", "gtFine"):
            (root / kind / split / "aachen").mkdir(parents=True)
        for index in range(count):
            image = rng.integers(0, 90, (64, 128, 3), np.uint8)
            labels = np.full((64, 128), index % 19, np.uint8)
            labels[:32] = 18
            labels[:4] = 255
            image[:32] += 60
            annotation = _draw_ellipse(image, rng, index + 1, 0)
            annotation.update(id=index + 1, category_id=1 + index % 8)
            annotations.append(annotation)
            stem = f"aachen/aachen_{index:06d}_000019"
            cv2.imwrite(str(root / "leftImg8bit" / split / f"{stem}_leftImg8bit.png"), image)
            cv2.imwrite(str(root / "gtFine" / split / f"{stem}_gtFine_labelTrainIds.png"), labels)
            name = f"{stem}_leftImg8bit.png"
            images.append({"id": index + 1, "file_name": name, "height": 64, "width": 128})
        categories = [{"id": i + 1, "name": name} for i, name in enumerate(CITYSCAPES_CLASSES)]
        path = root / "annotations" / f"instancesonly_filtered_gtFine_{split}.json"
        path.write_text(
            json.dumps({"images": images, "annotations": annotations, "categories": categories})
        )
    return root


DETECTOR_CONFIG = """
_base_ = [
    "mmdet::_base_/models/mask-rcnn_r50_fpn.py",
    "mmdet::_base_/datasets/coco_instance.py",
    "mmdet::_base_/schedules/schedule_1x.py",
    "mmdet::_base_/default_runtime.py",
]
data_root = "{data_root}/"
model = dict(
    backbone=dict(
        _delete_=True, type="ResNet", depth=18, base_channels=8, num_stages=4,
        out_indices=(0, 1, 2, 3), norm_cfg=dict(type="BN"), style="pytorch",
    ),
    neck=dict(in_channels=[8, 16, 32, 64], out_channels=16),
    rpn_head=dict(in_channels=16, feat_channels=16),
    roi_head=dict(
        bbox_roi_extractor=dict(out_channels=16),
        mask_roi_extractor=dict(out_channels=16),
        bbox_head=dict(in_channels=16, fc_out_channels=32),
        mask_head=dict(in_channels=16, conv_out_channels=16, num_convs=1),
    ),
    train_cfg=dict(rpn_proposal=dict(max_per_img=20)),
    # An untrained detector is sure of nothing: keep its guesses.
    test_cfg=dict(rpn=dict(max_per_img=20), rcnn=dict(score_thr=0.0, max_per_img=10)),
)
train_pipeline = [
    dict(type="LoadImageFromFile"),
    dict(type="LoadAnnotations", with_bbox=True, with_mask=True),
    dict(type="Resize", scale=(64, 64), keep_ratio=True),
    dict(type="PackDetInputs"),
]
test_pipeline = [
    dict(type="LoadImageFromFile"),
    dict(type="Resize", scale=(64, 64), keep_ratio=True),
    dict(type="LoadAnnotations", with_bbox=True, with_mask=True),
    dict(
        type="PackDetInputs",
        meta_keys=("img_id", "img_path", "ori_shape", "img_shape", "scale_factor"),
    ),
]
workers = dict(num_workers=0, persistent_workers=False)
train_dataloader = dict(
    **workers, batch_size=2, dataset=dict(data_root=data_root, pipeline=train_pipeline)
)
val_dataloader = dict(**workers, dataset=dict(data_root=data_root, pipeline=test_pipeline))
test_dataloader = val_dataloader
val_evaluator = dict(ann_file=data_root + "annotations/instances_val2017.json")
test_evaluator = val_evaluator
train_cfg = dict(max_epochs=1)
default_hooks = dict(visualization=dict(draw=True, interval=1), logger=dict(interval=1))
"""

# mmengine looks for the base files of "mmseg::" in a distribution of another name.
SEGMENTOR_CONFIG = """
_base_ = [
    "{bases}/models/fpn_r50.py",
    "{bases}/datasets/ade20k.py",
    "{bases}/default_runtime.py",
    "{bases}/schedules/schedule_20k.py",
]
data_root = "{data_root}"
model = dict(
    pretrained=None,
    data_preprocessor=dict(size=(64, 64)),
    backbone=dict(
        _delete_=True, type="ResNet", depth=18, base_channels=8, num_stages=4,
        out_indices=(0, 1, 2, 3), norm_cfg=dict(type="BN"), style="pytorch",
    ),
    neck=dict(in_channels=[8, 16, 32, 64], out_channels=16),
    decode_head=dict(in_channels=[16] * 4, channels=16, num_classes=150),
)
train_pipeline = [
    dict(type="LoadImageFromFile"),
    dict(type="LoadAnnotations", reduce_zero_label=True),
    dict(type="Resize", scale=(96, 64), keep_ratio=True),
    dict(type="RandomCrop", crop_size=(64, 64)),
    dict(type="PackSegInputs"),
]
test_pipeline = [
    dict(type="LoadImageFromFile"),
    dict(type="Resize", scale=(96, 64), keep_ratio=True),
    dict(type="LoadAnnotations", reduce_zero_label=True),
    dict(type="PackSegInputs"),
]
workers = dict(num_workers=0, persistent_workers=False)
train_dataloader = dict(
    **workers, batch_size=2, dataset=dict(data_root=data_root, pipeline=train_pipeline)
)
val_dataloader = dict(**workers, dataset=dict(data_root=data_root, pipeline=test_pipeline))
test_dataloader = val_dataloader
optim_wrapper = dict(optimizer=dict(lr=0.05))
train_cfg = dict(max_iters=4, val_interval=4)
default_hooks = dict(
    visualization=dict(draw=True, interval=1),
    logger=dict(interval=1),
    checkpoint=dict(interval=4),
)
"""


def write_detector_config(path: Path, data_root: Path) -> Path:
    """Write a config of a tiny Mask R-CNN (mmdet's own parts only) on a COCO-layout folder."""
    path.write_text(DETECTOR_CONFIG.format(data_root=data_root))
    return path


def write_segmentor_config(path: Path, data_root: Path) -> Path:
    """Write a config of a tiny Semantic FPN (mmseg's own parts only) on an ADE20K-layout folder."""
    bases = Path(mmseg.__file__).parent / ".mim" / "configs" / "_base_"
    path.write_text(SEGMENTOR_CONFIG.format(data_root=data_root, bases=bases))
    return path


class _Name(str):
    __repr__ = str.__str__


def write_pure_python_config(path: Path, config: Path) -> Path:
    """Write a config again as mmengine's new style has it: with classes in place of their names."""
    cfg = Config.fromfile(config)
    scope = cfg.pop("default_scope")
    importlib.import_module(f"{scope}.utils").register_all_modules()
    module = vars(importlib.import_module(f"{scope}.registry"))
    registries = [each for each in module.values() if isinstance(each, Registry)]
    imports = set()

    def convert(node: Any, key: str = "") -> Any:
        if isinstance(node, dict):
            return {name: convert(value, name) for name, value in node.items()}
        if isinstance(node, list | tuple):
            return type(node)([convert(each) for each in node])
        if key != "type" or not isinstance(node, str):
            return node
        kinds = [kind for each in registries if isinstance(kind := each.get(node), type)]
        if not kinds:
            return node  # a function, such as "nms"
        # The framework's own of this name, if it has one.
        kind = max(kinds, key=lambda kind: kind.__module__.startswith(scope))
        imports.add(f"from {kind.__module__} import {kind.__name__}")
        return _Name(kind.__name__)

    fields = [f"{name} = {value!r}" for name, value in convert(cfg.to_dict()).items()]
    path.write_text("\n".join([*sorted(imports), *fields]))
    return path
