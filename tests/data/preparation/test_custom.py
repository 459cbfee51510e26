"""Configs for data of one's own: they build, with the folder's classes, for every kind of detector."""

import json
from pathlib import Path

import pytest
import torch
from custom_folder import CATEGORIES, make_custom_folder, make_custom_split, write_json
from mmdet.registry import DATASETS, METRICS
from mmengine.config import Config
from mmengine.registry import MODELS, DefaultScope
from PIL import Image

from flatten_det.data.preparation.coco_file import Division
from flatten_det.data.preparation.custom import CustomDataOptions, write_config
from flatten_det.errors import UserError

CONFIGS = Path(__file__).parents[3] / "configs"
CLASSES = tuple(CATEGORIES.values())
MASK_RCNN = "quickstart/mask-rcnn_flatten-pvt-nano_fpn_shapes"
SEMANTIC_FPN = "quickstart/flatten-pvt-nano_semantic-fpn_shapes"
RETINANET = "quickstart/retinanet_flatten-pvt-nano_fpn_shapes"
# One of each: model, wrapper of the data, evaluator, list of heads.
FAMILIES = [
    MASK_RCNN,
    RETINANET,
    "retinanet/retinanet_flatten-pvt-t_fpn_1x_coco",
    "mask_rcnn/mask-rcnn_flatten-cswin-t_fpn_3x_coco",
    "mask_rcnn/mask-rcnn_flatten-swin-t_fpn_lsj-1536-100e_coco",
    "mask_rcnn/mask-rcnn_flatten-swin-t_fpn_1x_cityscapes",
    "cascade_mask_rcnn/cascade-mask-rcnn_flatten-swin-t_fpn_3x_coco",
    "deformable_detr/deformable-detr_flatten-pvtv2-b2_16xb2-50e_coco",
    "dino/dino-4scale_flatten-swin-t_8xb2-12e_coco",
    "mask2former/mask2former_flatten-swin-t_8xb2-lsj-50e_coco",
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    return make_custom_folder(tmp_path_factory.mktemp("data") / 'fruit "2" {{ fileDirname }}')


@pytest.fixture
def write(tmp_path):
    """Writes a config and returns its path."""

    def write(folder: Path, config: str = MASK_RCNN, **wishes) -> Path:
        out = tmp_path / "made" / "fruit.py"
        write_config(CustomDataOptions(folder, CONFIGS / f"{config}.py", out, **wishes))
        return out

    return write


@pytest.fixture
def change(tmp_path):
    """Makes a folder whose annotation files are changed."""

    def change(function, names: str = "*.json") -> Path:
        root = make_custom_folder(tmp_path / "data")
        for path in root.rglob(names):
            content = json.loads(path.read_text())
            function(content)
            write_json(path, content)
        return root

    return change


def innermost(dataset: Config) -> Config:
    while "dataset" in dataset:
        dataset = dataset.dataset
    return dataset


def class_counts(model: torch.nn.Module) -> set[int]:
    """What the heads that tell classes apart, the RPN aside, were built for."""
    return {
        module.num_classes
        for name, module in model.named_modules()
        if isinstance(getattr(module, "num_classes", None), int) and "rpn" not in name
    }


@pytest.mark.parametrize("config", FAMILIES)
def test_every_family(config, folder, write):
    cfg = Config.fromfile(write(folder, config, from_scratch=True))
    base = Config.fromfile(CONFIGS / f"{config}.py")
    assert cfg.model.backbone.type == base.model.backbone.type
    with DefaultScope.overwrite_default_scope("mmdet"), torch.device("meta"):
        model = MODELS.build(cfg.model)
        assert class_counts(model) == {3}
    for name, split, images in (("train", "train", 6), ("val", "valid", 3), ("test", "valid", 3)):
        name = f"{name}_dataloader"
        built, of_base = innermost(cfg[name].dataset), base[name].dataset
        assert ("times" in cfg[name].dataset) == ("times" in of_base)
        assert cfg[name].dataset.get("times") == of_base.get("times")
        assert len(built.pipeline) >= len(innermost(of_base).pipeline)
        with DefaultScope.overwrite_default_scope("mmdet"):
            dataset = DATASETS.build({**built, "pipeline": [], "serialize_data": False})
        assert type(dataset).__name__ == "CocoDataset"
        assert dataset.metainfo["classes"] == CLASSES
        assert len(dataset.metainfo["palette"]) == 3
        assert len(dataset) == images
        sample = dataset.get_data_info(0)
        assert Path(sample["img_path"]).parent == folder / split
        assert Path(sample["img_path"]).is_file()
        assert [instance["bbox_label"] for instance in sample["instances"]] == [0, 1, 2]
    for evaluator in (cfg.val_evaluator, cfg.test_evaluator):
        with DefaultScope.overwrite_default_scope("mmdet"):
            metric = METRICS.build(evaluator)
        metric.dataset_meta = {"classes": CLASSES}
        assert metric._coco_api.get_cat_ids(cat_names=CLASSES) == list(CATEGORIES)
        assert ("segm" in metric.metrics) == ("mask" in config)


def differences(new, old, place="") -> set[str]:
    if isinstance(new, dict) and isinstance(old, dict):
        assert new.keys() == old.keys(), place
        return {d for key in new for d in differences(new[key], old[key], f"{place} {key}")}
    if isinstance(new, list) and isinstance(old, list) and new and isinstance(new[0], dict):
        return {d for n, o in zip(new, old, strict=True) for d in differences(n, o, f"{place} []")}
    return set() if new == old else {place.strip()}


@pytest.mark.parametrize(
    ("config", "changed"),
    [
        (FAMILIES[2], {"bbox_head num_classes"}),
        (FAMILIES[6], {"roi_head bbox_head [] num_classes", "roi_head mask_head num_classes"}),
        (
            FAMILIES[9],
            {
                "panoptic_head num_things_classes",
                "panoptic_head loss_cls class_weight",
                "panoptic_fusion_head num_things_classes",
            },
        ),
    ],
)
def test_nothing_else_in_the_model_changes(config, changed, folder, write):
    cfg = Config.fromfile(write(folder, config))
    base = Config.fromfile(CONFIGS / f"{config}.py")
    assert differences(cfg.model.to_dict(), base.model.to_dict()) == changed
    if "panoptic_head" in cfg.model:
        assert cfg.model.panoptic_head.loss_cls.class_weight == [1.0, 1.0, 1.0, 0.1]


def test_quickstart_resizes_images_of_all_sizes(folder, write):
    pipeline = Config.fromfile(write(folder)).train_dataloader.dataset.pipeline
    types = [step.type for step in pipeline[:3]]
    assert types == ["LoadImageFromFile", "LoadAnnotations", "Resize"]
    assert pipeline[2].scale == (128, 128)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ("mask2former/mask2former_flatten-swin-t_8xb2-lsj-50e_coco-panoptic", "panoptic"),
        ("_base_/flatten", "is no complete config, it has no model"),
        ("no-such", "not found"),
    ],
)
def test_configs_that_cannot_learn_from_coco_files(config, message, folder, write):
    with pytest.raises(UserError, match=message):
        write(folder, config)


def test_configs_of_classes_cannot_be_inherited(folder, write, tmp_path):
    config = tmp_path / "classes.py"
    config.write_text("from mmdet.models import MaskRCNN\nmodel = dict(type=MaskRCNN)")
    with pytest.raises(UserError, match="names classes, and no config with _base_ can inherit it"):
        write(folder, str(config.with_suffix("")))


def test_nothing_is_overwritten(folder, write):
    out = write(folder)
    out.write_text("mine")
    with pytest.raises(UserError, match=r"fruit\.py exists: .*--force"):
        write(folder)
    assert out.read_text() == "mine"
    write(folder, force=True)
    assert Config.fromfile(out).num_classes == 3


def test_splits_must_have_the_same_categories(change, write):
    root = change(lambda content: content["categories"].reverse(), "valid/*.json")
    with pytest.raises(UserError, match=r"have different categories \(their order differs\)"):
        write(root)
    plum = {"id": 50, "name": "plum"}
    change(lambda content: content["categories"].append(plum), "valid/*.json")
    with pytest.raises(UserError, match="only one has plum"):
        write(root)


def test_unused_categories_are_kept(change, write):
    fruit = {"id": 0, "name": "fruit"}
    root = change(lambda content: content["categories"].insert(0, fruit))
    assert Config.fromfile(write(root)).classes == ("fruit", *CLASSES)


def test_a_single_annotation_file_is_divided(tmp_path, write):
    root = tmp_path / "data"
    write_json(root / "result.json", make_custom_split(root / "images", 8))
    with pytest.raises(UserError, match=r"no validation annotations .*--val-fraction"):
        write(root)
    out = write(root, division=Division(0.25))
    cfg = Config.fromfile(out)
    assert cfg.train_dataloader.dataset.ann_file == str(out.with_name("fruit_train.json"))
    names = []
    for split, count in (("train", 6), ("val", 2)):
        content = json.loads(out.with_name(f"fruit_{split}.json").read_text())
        assert len(content["images"]) == count
        names += [image["file_name"] for image in content["images"]]
        assert cfg[f"{split}_dataloader"].dataset.data_prefix.img == "images"
    assert sorted(names) == sorted(f"photo {index}.png" for index in range(8))
    assert cfg.val_evaluator.ann_file == str(out.with_name("fruit_val.json"))


def test_incomplete_annotations_are_completed_beside_the_config(change, write, capsys):
    root = change(lambda c: [a.pop("iscrowd") for a in c["annotations"]], "valid/*.json")
    out = write(root)
    assert "completed by iscrowd (0)" in capsys.readouterr().out
    assert '"iscrowd"' not in (root / "valid" / "_annotations.coco.json").read_text()
    cfg = Config.fromfile(out)
    assert cfg.val_evaluator.ann_file == str(out.with_name("fruit_val.json"))
    assert cfg.train_dataloader.dataset.ann_file == "train/_annotations.coco.json"
    completed = json.loads(out.with_name("fruit_val.json").read_text())
    assert {annotation["iscrowd"] for annotation in completed["annotations"]} == {0}


def test_exports_of_windows(tmp_path, write):
    """A byte order mark, and backslashes in file names."""
    root = tmp_path / "data"
    for split in ("train", "valid"):
        content = make_custom_split(root / split, 3, prefix="day 1/")
        for image in content["images"]:
            image["file_name"] = image["file_name"].replace("/", "\\")
        text = json.dumps(content)
        (root / split / "_annotations.coco.json").write_text(text, encoding="utf-8-sig")
    cfg = Config.fromfile(write(root))
    with DefaultScope.overwrite_default_scope("mmdet"):
        dataset = DATASETS.build({**cfg.train_dataloader.dataset, "pipeline": []})
    assert all(Path(dataset.get_data_info(i)["img_path"]).is_file() for i in range(3))


def test_what_the_command_line_names_is_taken(folder, write, tmp_path):
    elsewhere = tmp_path / "elsewhere"
    ann = write_json(tmp_path / "mine.json", make_custom_split(elsewhere, 4))
    cfg = Config.fromfile(write(folder, annotations={"train": ann}, images={"train": elsewhere}))
    assert cfg.train_dataloader.dataset.ann_file == str(ann)
    assert cfg.train_dataloader.dataset.data_prefix.img == str(elsewhere)
    assert cfg.val_dataloader.dataset.ann_file == "valid/_annotations.coco.json"
    with pytest.raises(UserError, match=r"none\.json not found"):
        write(folder, annotations={"train": tmp_path / "none.json"})
    with pytest.raises(UserError, match=r"4 of the 4 images .* are not in"):
        write(folder, annotations={"train": ann}, images={"train": folder})


def test_base_is_relative_within_the_current_folder(folder, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("configs").mkdir()
    text = (CONFIGS / f"{MASK_RCNN}.py").read_text()
    bases = str(CONFIGS / "quickstart" / "_base_")
    Path("configs", "base.py").write_text(text.replace("./_base_", bases))
    write_config(CustomDataOptions(folder, Path("configs/base.py"), Path("mine/fruit.py")))
    assert '_base_ = "../configs/base.py"' in Path("mine/fruit.py").read_text()
    tmp_path.joinpath("sub").mkdir()
    monkeypatch.chdir(tmp_path / "sub")
    assert Config.fromfile("../mine/fruit.py").classes == CLASSES


def test_weights_that_are_not_there_are_named(folder, write, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    out = write(folder, FAMILIES[2])
    assert "checkpoints/flatten_pvt_t.pth is not there yet" in capsys.readouterr().out
    checkpoint = Config.fromfile(out).model.backbone.init_cfg.checkpoint
    assert checkpoint == "checkpoints/flatten_pvt_t.pth"
    out = write(folder, FAMILIES[2], from_scratch=True, force=True)
    assert "not there" not in capsys.readouterr().out
    assert Config.fromfile(out).model.backbone.init_cfg is None


@pytest.fixture
def label_maps(tmp_path):
    """Four images with label maps, to be divided."""
    for kind in ("images", "masks"):
        (tmp_path / "maps" / kind).mkdir(parents=True)
        for index in range(4):
            Image.new("L", (64, 64), index % 2).save(tmp_path / "maps" / kind / f"{index}.png")
    return tmp_path / "maps"


SEGMENTOR = {"classes": ("a", "b"), "division": Division(0.25)}


def files(folder: Path) -> set[str]:
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}


def test_label_maps_are_written_whole_or_not_at_all(label_maps, write, tmp_path):
    made = tmp_path / "made"
    broken = label_maps / "masks" / "3.png"
    content = broken.read_bytes()
    broken.write_bytes(content[:-30])
    with pytest.raises(UserError, match=r"label map .*3\.png"):
        write(label_maps, SEMANTIC_FPN, **SEGMENTOR)
    assert not list(made.iterdir())
    broken.write_bytes(content)
    write(label_maps, SEMANTIC_FPN, **SEGMENTOR)
    written = files(made)
    assert sum(name.endswith(".png") for name in written) == 4
    assert {"fruit.py", "fruit_train.txt", "fruit_val.txt"} <= written
    with pytest.raises(UserError, match=r"fruit_train_labels.* exists: .*--force"):
        write(label_maps, SEMANTIC_FPN, **SEGMENTOR)
    for name in ("2", "3"):
        (label_maps / "images" / f"{name}.png").unlink()
        (label_maps / "masks" / f"{name}.png").unlink()
    write(label_maps, SEMANTIC_FPN, **SEGMENTOR, force=True)
    assert len(files(made)) == 5  # nothing is left of the images that are no more
    (made / "fruit_val_labels" / "notes.txt").touch()
    with pytest.raises(UserError, match=r"holds more than label maps .*notes\.txt"):
        write(label_maps, SEMANTIC_FPN, **SEGMENTOR, force=True)


def test_what_a_killed_preparation_left_is_removed(label_maps, write, tmp_path):
    left = tmp_path / "made" / ".flatten_det-0123456789abcdef.partial"
    (left / "train").mkdir(parents=True)
    (left / "lock").touch()
    write(label_maps, SEMANTIC_FPN, **SEGMENTOR)
    assert not left.exists()


@pytest.mark.parametrize("config", [SEMANTIC_FPN, MASK_RCNN])
def test_a_config_in_the_folder_of_the_data_can_be_written_again(config, label_maps, tmp_path):
    root, wishes = label_maps, SEGMENTOR
    if config == MASK_RCNN:
        root, wishes = tmp_path / "data", {"division": Division(0.25)}
        write_json(root / "result.json", make_custom_split(root / "images", 8))
    for _ in range(2):
        options = {**wishes, "force": True}
        write_config(CustomDataOptions(root, CONFIGS / f"{config}.py", root / "a.py", **options))
    assert Config.fromfile(root / "a.py").num_classes in (2, 3)


def test_kinds_of_data_and_config_must_fit(folder, label_maps, write):
    message = r"holds objects \(coco\).*choose a detector such as retinanet_flatten-pvt-nano"
    with pytest.raises(UserError, match=message):
        write(folder, SEMANTIC_FPN)
    message = (
        "holds label maps and no objects.*choose a semantic segmentor such as flatten-pvt-t_sem"
    )
    with pytest.raises(UserError, match=message):
        write(label_maps, MASK_RCNN)
    panoptic = "mask2former/mask2former_flatten-swin-t_8xb2-lsj-50e_coco-panoptic"
    with pytest.raises(UserError, match="if the objects have masks, mask-rcnn_flatten-pvt-t"):
        write(folder, panoptic)


@pytest.mark.parametrize(
    ("config", "other"),
    [
        (MASK_RCNN, RETINANET.partition("/")[2]),
        ("mask_rcnn/mask-rcnn_flatten-pvt-s_fpn_1x_coco", "retinanet_flatten-pvt-s_fpn_1x_coco"),
        (FAMILIES[3], "retinanet_flatten-pvt-t_fpn_1x_coco"),
    ],
)
def test_boxes_without_masks_are_for_the_detector_that_is_named(
    config, other, change, write, tmp_path
):
    boxes_only = change(lambda content: [a.update(segmentation=[]) for a in content["annotations"]])
    said = "learns masks, but 18 of 18 .* no segmentation: choose a detector of boxes such as"
    with pytest.raises(UserError, match=f"{said} {other}$"):
        write(boxes_only, config)
    out = tmp_path / "other.py"
    write_config(CustomDataOptions(boxes_only, Path(other), out))
    cfg = Config.fromfile(out)
    assert cfg.num_classes == 3
    loading = innermost(cfg.train_dataloader.dataset).pipeline[1]
    assert (loading.with_bbox, loading.get("with_mask", False)) == (True, False)
