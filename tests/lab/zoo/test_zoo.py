"""The zoo of this checkout: complete, up to date, loadable, and true to the paper."""

from pathlib import Path

import modelindex
import pytest
import yaml

from flatten_det.backbones import BACKBONES
from flatten_det.lab.zoo import inspect_zoo
from flatten_det.lab.zoo.metafiles import (
    METAFILES,
    MODEL_INDEX,
    changes,
    find_configs,
    make_entry,
    metafile_of,
    read_config,
    title_of,
)

ROOT = Path(__file__).parents[3]
ENTRIES = {
    entry["Name"]: entry
    for path in METAFILES
    for entry in yaml.safe_load((ROOT / path).read_text())["Models"]
}


@pytest.mark.slow
def test_up_to_date():
    """Page and metafiles, with the counts that they have."""
    zoo = inspect_zoo(ROOT, count=False)
    assert (zoo.stale, zoo.wrong) == ([], [])


@pytest.mark.slow
def test_counts():
    """Of the smallest model of each method and family; an operator without FLOP formula is an error."""
    smallest = {}
    for entry in sorted(ENTRIES.values(), key=lambda x: -x["Metadata"]["Parameters"]):
        method = Path(entry["Config"]).parent.name
        smallest[method, entry["In Collection"]] = entry
    assert len(smallest) > 20
    for entry in smallest.values():
        counted = make_entry(read_config(ROOT, entry["Config"]), entry, count=True)
        assert list(changes(entry, counted)) == []


@pytest.mark.nightly
@pytest.mark.timeout(900)
def test_counts_of_all():
    assert not inspect_zoo(ROOT).stale


def test_page_lists_exactly_the_configs():
    page = (ROOT / "configs" / "README.md").read_text()
    configs = [f"configs/{line.split('](')[-1].split(')')[0]}" for line in page.splitlines()]
    configs = [path for path in configs if path.endswith(".py")]
    assert sorted(configs) == find_configs(ROOT)


def test_model_index_loads():
    index = modelindex.load(str(ROOT / MODEL_INDEX))
    index.build_models_with_collections()
    assert not index.check(silent=True)
    assert len(index.models) == len(find_configs(ROOT))
    assert len(index.collections) == 10
    by_name = {model.name: model for model in index.models}
    model = by_name["mask-rcnn_flatten-swin-t_fpn_1x_coco"]
    assert model.config == "configs/mask_rcnn/mask-rcnn_flatten-swin-t_fpn_1x_coco.py"
    assert model.weights is None
    assert model.metadata.data["Results Source"] == "reported in the paper, Table 2"
    for model in index.models:
        assert (ROOT / model.config).is_file()
        assert model.metadata.flops > 1e9
        assert model.metadata.parameters > 1e6


AP = ("AP", "AP50", "AP75")
DETECTION = {  # Table 2
    "mask-rcnn_pvt-t_fpn_1x_coco": (36.7, 59.2, 39.3, 35.1, 56.7, 37.3),
    "mask-rcnn_flatten-pvt-t_fpn_1x_coco": (38.2, 61.6, 41.9, 37.0, 57.6, 39.0),
    "mask-rcnn_swin-t_fpn_1x_coco": (43.7, 66.6, 47.7, 39.8, 63.3, 42.7),
    "mask-rcnn_flatten-swin-t_fpn_1x_coco": (44.2, 67.3, 48.5, 40.2, 63.8, 43.0),
    "mask-rcnn_swin-t_fpn_3x_coco": (46.0, 68.1, 50.3, 41.6, 65.1, 44.9),
    "mask-rcnn_flatten-swin-t_fpn_3x_coco": (46.5, 68.5, 50.8, 42.1, 65.4, 45.1),
    "cascade-mask-rcnn_flatten-swin-t_fpn_3x_coco": (50.8, 69.6, 55.1, 44.1, 67.0, 48.1),
    "cascade-mask-rcnn_flatten-swin-s_fpn_3x_coco": (52.2, 71.2, 56.8, 45.4, 68.3, 49.4),
}
SEGMENTATION = {  # Table 1
    "pvt-t_semantic-fpn_4xb4-80k_ade20k-512x512": (36.57, 46.72),
    "flatten-pvt-t_semantic-fpn_4xb4-80k_ade20k-512x512": (37.21, 48.95),
    "swin-t_upernet_8xb2-160k_ade20k-512x512": (44.51, 55.61),
    "flatten-swin-t_upernet_8xb2-160k_ade20k-512x512": (44.82, 57.01),
    "swin-s_upernet_8xb2-160k_ade20k-512x512": (47.64, 58.78),
    "flatten-swin-s_upernet_8xb2-160k_ade20k-512x512": (48.14, 59.31),
}


def test_results_are_the_papers_and_no_others():
    expected = {
        name: {
            ("Object Detection", "COCO", 2): {f"box {key}": row[i] for i, key in enumerate(AP)},
            ("Instance Segmentation", "COCO", 2): {
                f"mask {key}": row[3 + i] for i, key in enumerate(AP)
            },
        }
        for name, row in DETECTION.items()
    }
    for name, (miou, macc) in SEGMENTATION.items():
        expected[name] = {("Semantic Segmentation", "ADE20K", 1): {"mIoU": miou, "mAcc": macc}}
    found = {}
    for name, entry in ENTRIES.items():
        for result in entry.get("Results", ()):
            source, table = result["Source"].rsplit(" ", 1)
            assert source == "reported in the paper, Table"
            key = result["Task"], result["Dataset"], int(table)
            found.setdefault(name, {})[key] = result["Metrics"]
    assert found == expected
    assert not any("Weights" in entry for entry in ENTRIES.values())


METADATA = yaml.safe_load("""
mask-rcnn_flatten-swin-t_fpn_lsj-100e_coco:
  {Training Data: COCO, Epochs: 100, Batch Size: 64, Input Size: 1024x1024}
mask-rcnn_flatten-swin-t_fpn_1x_cityscapes:
  {Training Data: Cityscapes, Epochs: 64, Input Size: 1024x2048}
mask-rcnn_pvtv2-b0_fpn_1x_coco:
  Architecture: [PVTv2-B0, Mask R-CNN]
  Input Size: 800x1280
  Batch Size: 16
  Pretraining Top 1 Accuracy: null
  Pretraining Source: https://github.com/whai362/PVT/releases/download/v2/pvt_v2_b0.pth
flatten-swin-b-384_upernet_8xb2-160k_ade20k-640x640:
  Architecture: [FLatten-Swin-B-384, UperNet]
  Iterations: 160000
  Batch Size: 16
  Input Size: 640x640
  Pretraining Weights: checkpoints/flatten_swin_b_384.pth
  Pretraining Source: https://github.com/LeapLabTHU/FLatten-Transformer
  Pretraining Resolution: 384
  Pretraining Top 1 Accuracy: 85.0
flatten-pvt-m_semantic-fpn_4xb4-80k_ade20k-512x512:
  {Pretraining Source: not released, Pretraining Top 1 Accuracy: null}
flatten-pvtv2-b2_segformer_8xb1-160k_cityscapes-1024x2048:
  {Batch Size: 8, Input Size: 1024x2048, Pretraining Top 1 Accuracy: 82.5}
mask2former_flatten-swin-t_8xb2-lsj-50e_coco-panoptic:
  {Training Data: COCO panoptic, Iterations: 368750, Input Size: 1024x1024}
swin-t_upernet_8xb2-160k_ade20k-512x512: {Pretraining Top 1 Accuracy: 81.3}
""")


@pytest.mark.parametrize("name", METADATA)
def test_metadata(name):
    metadata = ENTRIES[name]["Metadata"]
    assert {key: metadata.get(key) for key in METADATA[name]} == METADATA[name]


def test_titles_are_unique_and_metafiles_known():
    assert title_of("flatten-swin-b-384") == "FLatten-Swin-B-384"
    assert title_of("pvtv2-b2") == "PVTv2-B2"
    assert len({title_of(name) for name in BACKBONES}) == len(BACKBONES)
    assert {metafile_of(name) for name in BACKBONES} == set(METAFILES)
