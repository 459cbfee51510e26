"""The size that images are resized to: what is chosen, and that every pipeline then does so."""

from pathlib import Path

import numpy as np
import pytest
import torch
from custom_folder import make_custom_folder, make_custom_split, write_json
from mmdet.registry import DATASETS
from mmdet.registry import MODELS as DETECTORS
from mmengine.config import Config
from mmengine.registry import TASK_UTILS, DefaultScope
from PIL import Image

from flatten_det.config import load_config
from flatten_det.data.preparation.custom import CustomDataOptions, write_config
from flatten_det.data.preparation.image_size import (
    Sizes,
    anchor_changes,
    choose_image_size,
    finest_stride,
)

MASK_RCNN = "mask-rcnn_flatten-pvt-nano_fpn_shapes"
RETINANET = "retinanet_flatten-pvt-nano_fpn_shapes"
MIXED = "retinanet_flatten-pvt-nano_fpn_shapes-mixed"
SEMANTIC_FPN = "flatten-pvt-nano_semantic-fpn_shapes"
COCO = "retinanet_flatten-pvt-t_fpn_1x_coco"
# One of each way to resize: once, several scales and crops, large jitter with padding, a list of scales.
DETECTORS_OF_ALL_KINDS = [
    MASK_RCNN,
    MIXED,
    COCO,
    "cascade-mask-rcnn_flatten-swin-t_fpn_3x_coco",
    "mask-rcnn_flatten-swin-t_fpn_lsj-100e_coco",
    "mask-rcnn_flatten-swin-t_fpn_1x_cityscapes",
    "dino-4scale_flatten-swin-t_8xb2-12e_coco",
    "mask2former_flatten-swin-t_8xb2-lsj-50e_coco",
]


def sizes(image: tuple[int, int], *sides: float) -> Sizes:
    return Sizes(np.tile(np.array(image, float), (len(sides), 1)), np.array(sides, float))


@pytest.mark.parametrize(
    ("config", "image", "side", "scale", "reason"),
    [
        # 12 px at stride 4: 600 px of 1000 for objects of 20 px.
        (MASK_RCNN, (1000, 700), 20, (608, 608), "12 px or more then; the model resolves about 12 px"),
        (MASK_RCNN, (1000, 700), 400, (128, 128), "(the config's own): nine of ten objects are 51 px"),
        (MASK_RCNN, (1000, 700), 5, (640, 640), "no more than 5 times the config's own"),
        (MASK_RCNN, (300, 200), 5, (288, 288), "but the photographs are no larger"),
        (MASK_RCNN, (60, 40), 5, (128, 128), "nine of ten objects are 11 px"),
        (RETINANET, (1000, 700), 60, (416, 416), "3 cells of stride 8"),
        (COCO, (640, 480), 20, (1333, 800), "(the config's own): nine of ten objects are 33 px"),
        (COCO, (640, 480), 12, (1333, 800), "(the config's own): nine of ten objects are 20 px"),
        (COCO, (4000, 3000), 50, (2400, 1440), "(the config's own: 1333 x 800 px)"),
        (COCO, (4000, 3000), 10, (2528, 1536), "2048 px are chosen: go beyond by --image-size"),
        (SEMANTIC_FPN, (1000, 700), 30, (416, 416), "an image has 11 times the pixels"),
    ],
)  # fmt: skip
def test_choice(config, image, side, scale, reason):
    size = choose_image_size(load_config(config), sizes(image, *[side] * 20))
    assert size.scale == scale
    assert reason in size.reason
    assert "\n" not in size.reason


def test_one_tiny_object_of_many_does_not_matter():
    cfg = load_config(MASK_RCNN)
    size = choose_image_size(cfg, sizes((500, 500), 2, *[100] * 20))
    assert size.scale == (128, 128)


def test_what_is_asked_for_is_taken():
    cfg = load_config(COCO)
    size = choose_image_size(cfg, sizes((640, 480), *[50] * 9), (512, 384))
    assert size.scale == (512, 384)
    assert "512 x 384 px (as asked for): nine of ten objects are 40 px" in size.reason
    mixed = choose_image_size(load_config(MIXED), sizes((640, 480), 50))
    assert (mixed.scale, mixed.is_new) == (None, False)


@pytest.mark.parametrize(
    ("config", "stride"),
    [
        (MASK_RCNN, 4),
        (RETINANET, 8),
        ("dino-4scale_flatten-swin-t_8xb2-12e_coco", 8),
        ("mask2former_flatten-swin-t_8xb2-lsj-50e_coco", 4),
        (SEMANTIC_FPN, 4),
    ],
)
def test_finest_stride(config, stride):
    assert finest_stride(load_config(config).model) == stride


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    return make_custom_folder(tmp_path_factory.mktemp("data"))


def prepared(folder: Path, config: str, out: Path, **wishes) -> Config:
    write_config(CustomDataOptions(folder, Path(config), out, from_scratch=True, **wishes))
    return Config.fromfile(out)


def built(loader: Config):
    with DefaultScope.overwrite_default_scope("mmdet"):
        return DATASETS.build(loader.dataset)


@pytest.mark.parametrize("config", DETECTORS_OF_ALL_KINDS)
def test_pipelines_of_detectors_resize_as_asked(config, folder, tmp_path):
    """Images of 210 x 150 to a longer side of 320; what training makes of them changes alike."""
    cfg = prepared(folder, config, tmp_path / "a.py", image_size=(320, 320))
    base = load_config(config)
    for item in map(built(cfg.val_dataloader).__getitem__, range(3)):
        assert max(item["data_samples"].img_shape) == 320
    torch.manual_seed(0)
    dataset = built(cfg.train_dataloader)
    longest = [max(dataset[i % 6]["inputs"].shape[1:]) for i in range(12)]
    # Of the base config's images, what is seen of a photograph of 4:3 lies in the same range.
    assert max(longest) <= 320 * (2.1 if "lsj" in config else 1.3)
    assert max(longest) >= 320 * 0.6
    steps = str(cfg.train_dataloader)
    assert "1333" not in steps
    assert "1024" not in steps
    padded = base.model.data_preprocessor.get("batch_augments")
    if padded:
        crop = next(s for s in innermost(cfg).pipeline if s.type == "RandomCrop").crop_size
        assert cfg.model.data_preprocessor.batch_augments[0].size == crop
        assert set(crop) == {320} or set(crop) == {384}
        with DefaultScope.overwrite_default_scope("mmdet"):
            preprocessor = DETECTORS.build(cfg.model.data_preprocessor)
        item = dataset[0]
        batch = {"inputs": [item["inputs"]], "data_samples": [item["data_samples"]]}
        assert preprocessor(batch, training=True)["inputs"].shape[2:] == crop


def innermost(cfg: Config) -> Config:
    dataset = cfg.train_dataloader.dataset
    while "dataset" in dataset:
        dataset = dataset.dataset
    return dataset


@pytest.fixture(scope="module")
def label_maps(tmp_path_factory) -> Path:
    """Photographs of 400 x 300 with 16 squares of 10 px."""
    root = tmp_path_factory.mktemp("maps")
    for split in ("train", "val"):
        indices = np.zeros((300, 400), np.uint8)
        for x, y in np.ndindex(4, 4):
            indices[60 * y + 20 : 60 * y + 30, 90 * x + 20 : 90 * x + 30] = 1
        for folder, image in (("images", Image.new("RGB", (400, 300))), ("masks", indices)):
            path = root / folder / split / "a.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            image = image if folder == "images" else Image.fromarray(image)
            image.save(path)
    return root


def test_size_of_a_segmentor(label_maps, tmp_path, capsys):
    """The squares decide, and not the one region around them."""
    cfg = prepared(label_maps, SEMANTIC_FPN, tmp_path / "a.py", classes=("rest", "square"))
    assert "image size: 384 px (the config's own: 128 px)" in capsys.readouterr().out
    assert cfg.train_dataloader.dataset.pipeline[2].scale == (384, 384)
    assert cfg.val_dataloader.dataset.pipeline[1].scale == (384, 384)


def test_crops_of_a_segmentor(label_maps, tmp_path):
    config = "flatten-swin-t_mask2former_8xb2-160k_ade20k-512x512"
    wishes = {"classes": ("rest", "square"), "image_size": (192, 192)}
    cfg = prepared(label_maps, config, tmp_path / "a.py", **wishes)
    crop = next(s for s in cfg.train_dataloader.dataset.pipeline if s.type == "RandomCrop")
    # 683 x 512 pixels of a photograph of 4:3 have become 192 x 144.
    assert crop.crop_size == cfg.model.data_preprocessor.size == (128, 128)
    choice = cfg.train_dataloader.dataset.pipeline[2]
    assert (choice.scales[0], choice.scales[-1], choice.max_size) == (64, 288, 576)
    assert cfg.val_dataloader.dataset.pipeline[1].scale == (192, 192)


@pytest.mark.parametrize(
    ("config", "sides", "scales"),
    [
        (MASK_RCNN, (16, 100), None),
        (MASK_RCNN, (12, 180), None),
        (MASK_RCNN, (16, 200), [4, 8]),
        (MASK_RCNN, (6, 100), [2, 4]),
        (RETINANET, (24, 180), None),
        (RETINANET, (24, 300), [3, 4.243, 6, 8.485]),
        (RETINANET, (12, 100), [1.5, 2.121, 3, 4.243]),
        (COCO, (33, 500), None),
        ("dino-4scale_flatten-swin-t_8xb2-12e_coco", (4, 1000), None),
    ],
)
def test_anchors(config, sides, scales):
    model = load_config(config).model
    changes, line = anchor_changes(model, np.repeat(sides, 20))
    assert bool(line) == bool(changes) == bool(scales)
    if scales is None:
        return
    ((head, fields),) = changes.items()
    assert fields["anchor_generator"]["scales"] == scales
    with DefaultScope.overwrite_default_scope("mmdet"):
        generator = TASK_UTILS.build({**model[head].anchor_generator, **fields["anchor_generator"]})
    assert generator.num_base_priors[0] == len(scales) * len(generator.ratios)


def test_sizes_that_no_image_has(tmp_path):
    """Numbers beyond all sense neither hang nor crash the choice."""
    root = tmp_path / "data"
    for split in ("train", "val"):
        content = make_custom_split(root / split, 2)
        content["images"][0] |= {"width": 10**400, "height": 10**400}
        for annotation in content["annotations"]:
            annotation["bbox"][2:] = [1e308, 1e308]
        write_json(root / split / "a.json", content)
    prepared(root, MASK_RCNN, tmp_path / "a.py")


MOSAIC = """
_base_ = "flatten_det::retinanet/retinanet_flatten-pvt-t_fpn_1x_coco.py"
loading = [dict(type="LoadImageFromFile"), dict(type="LoadAnnotations", with_bbox=True)]
mixing = [
    dict(type="Mosaic", img_scale=(640, 640), pad_val=114.0),
    dict(type="RandomAffine", scaling_ratio_range=(0.1, 2), border=(-320, -320)),
    dict(type="PackDetInputs"),
]
images = dict(type="CocoDataset", ann_file="a.json", pipeline=loading)
mixed = dict(_delete_=True, type="MultiImageMixDataset", dataset=images, pipeline=mixing)
train_dataloader = dict(dataset=mixed)
"""


def test_images_that_are_mixed(folder, tmp_path):
    """The outer pipeline resizes, and the inner one does not."""
    config = tmp_path / "mosaic.py"
    config.write_text(MOSAIC)
    for wish, side in ((None, 640), ((320, 320), 192)):
        cfg = prepared(folder, str(config), tmp_path / "a.py", image_size=wish, force=True)
        assert [step.type for step in innermost(cfg).pipeline][1:] == ["LoadAnnotations"]
        assert built(cfg.train_dataloader)[0]["inputs"].shape == (3, side, side)


def test_a_config_that_never_resizes_does_so_if_asked(label_maps, tmp_path):
    """In a training with the label map, in a test without it."""
    wishes = {"classes": ("rest", "square"), "force": True}
    for size, types in ((None, 0), ((96, 96), 1)):
        cfg = prepared(label_maps, "p3-k3", tmp_path / "a.py", image_size=size, **wishes)
        for name, at in (("train", 2), ("val", 1)):
            steps = [step.type for step in cfg[f"{name}_dataloader"].dataset.pipeline]
            assert steps.count("Resize") == types
            assert not types or steps.index("Resize") == at
