"""Large images are drawn smaller and small ones larger, and what was found in them with them."""

import cv2
import numpy as np
import pytest
import torch
from mmdet.structures import DetDataSample
from mmdet.structures.mask import BitmapMasks
from mmdet.visualization import DetLocalVisualizer
from mmengine.registry import VISUALIZERS
from mmengine.structures import InstanceData, PixelData
from mmseg.structures import SegDataSample
from pycocotools import mask as coco_mask

from flatten_det.predict.drawing import fitted

BOX = (100, 40, 180, 120)


def whole_mask() -> np.ndarray:
    mask = np.zeros((200, 400), np.uint8, order="F")
    mask[BOX[1] : BOX[3], BOX[0] : BOX[2]] = 1
    return mask


MASKS = {
    "tensor": lambda mask: torch.from_numpy(mask[None]).bool(),
    "rle": lambda mask: [coco_mask.encode(mask)],
    "mmdet": lambda mask: BitmapMasks([mask], 200, 400),
}


@pytest.mark.parametrize("kind", MASKS)
def test_detections(kind):
    found = InstanceData(bboxes=torch.tensor([BOX]).float(), labels=torch.tensor([3]))
    found.masks = MASKS[kind](whole_mask())
    sample = DetDataSample(pred_instances=found)
    image, small = fitted(np.zeros((200, 400, 3), np.uint8), sample, max_pixels=100 * 200)
    assert image.shape == (100, 200, 3)
    assert small.pred_instances.bboxes.tolist() == [[50, 20, 90, 60]]
    expected = torch.zeros(1, 100, 200, dtype=torch.bool)
    expected[:, 20:60, 50:90] = True
    assert torch.equal(small.pred_instances.masks, expected)
    assert sample.pred_instances.bboxes.tolist() == [list(BOX)]


def test_label_map():
    labels = torch.arange(200 * 400).view(1, 200, 400).short()
    sample = SegDataSample(
        pred_sem_seg=PixelData(data=labels), seg_logits=PixelData(data=torch.zeros(5, 200, 400))
    )
    image, small = fitted(np.zeros((200, 400, 3), np.uint8), sample, max_pixels=5000)
    assert image.shape == (50, 100, 3)
    assert torch.equal(small.pred_sem_seg.data, labels[:, 2::4, 2::4])
    assert "seg_logits" not in small
    assert "seg_logits" in sample


def test_long_image_keeps_a_row():
    image, _ = fitted(np.zeros((2, 100000, 3), np.uint8), DetDataSample(), max_pixels=1000)
    assert image.shape[0] == 1
    image, _ = fitted(
        np.zeros((70000, 8, 3), np.uint8), DetDataSample()
    )  # JPEG has no more than 65,535.
    assert image.shape[:2] == (16384, 1)


@pytest.mark.parametrize("kind", MASKS)
def test_small_images_stay_as_they_are(kind):
    found = InstanceData(bboxes=torch.tensor([BOX]).float(), masks=MASKS[kind](whole_mask()))
    given = np.zeros((200, 400, 3), np.uint8)
    image, same = fitted(given, DetDataSample(pred_instances=found))
    assert image is given
    assert same.pred_instances.bboxes.tolist() == [list(BOX)]
    masks = same.pred_instances.masks
    masks = masks.to_ndarray() if kind == "mmdet" else masks.numpy()
    np.testing.assert_array_equal(masks[0], whole_mask())


META = dict(classes=("circle", "square"), palette=[(255, 0, 0), (0, 255, 0)])


def sample(height: int, width: int) -> DetDataSample:
    mask = torch.zeros(1, height, width, dtype=torch.bool)
    mask[:, 5:15, 10:30] = True
    box = torch.tensor([[10.0, 5.0, 30.0, 15.0]])
    label = torch.tensor([1])
    gt = InstanceData(bboxes=box, labels=label, masks=BitmapMasks(mask.numpy(), height, width))
    found = InstanceData(bboxes=box, labels=label, scores=torch.tensor([0.9]), masks=mask)
    return DetDataSample(gt_instances=gt, pred_instances=found)


def enlarging(request):
    """Visualizers live on under their name, so each test takes one of its own."""
    config = dict(type="EnlargingDetVisualizer", name=request.node.name, min_size=100)
    return VISUALIZERS.build(config)


def drawn(visualizer, image, data_sample, folder):
    visualizer.dataset_meta = META
    visualizer.add_datasample("name", image, data_sample, out_file=str(folder / "drawn.png"))
    return cv2.imread(str(folder / "drawn.png"))


def test_small_image_is_enlarged_with_its_boxes_and_masks(request, tmp_path):
    visualizer = enlarging(request)
    original = sample(40, 60)
    picture = drawn(visualizer, np.zeros((40, 60, 3), np.uint8), original, tmp_path)
    assert picture.shape == (120, 2 * 180, 3)  # annotation left, prediction right
    for half in (picture[:, :180], picture[:, 180:]):
        inside, outside = half[20:40, 60:80], half[60:, 100:]
        assert inside.any()
        assert not outside.any()
    # The sample goes on to the metrics: it must not change.
    assert original.pred_instances.bboxes.tolist() == [[10, 5, 30, 15]]
    assert original.pred_instances.masks.shape == (1, 40, 60)


def test_large_image_is_drawn_as_mmdet_does(request, tmp_path):
    image = np.full((120, 150, 3), 90, np.uint8)
    ours = enlarging(request)
    theirs = DetLocalVisualizer()
    expected = drawn(theirs, image, sample(120, 150), tmp_path)
    picture = drawn(ours, image, sample(120, 150), tmp_path)
    # Matplotlib's edges vary a little from figure to figure.
    difference = np.abs(picture.astype(int) - expected.astype(int))
    assert difference.max() < 30
    assert (difference > 10).mean() < 1e-3


def test_image_without_detections(request, tmp_path):
    visualizer = enlarging(request)
    empty = InstanceData(
        bboxes=torch.zeros(0, 4),
        labels=torch.zeros(0, dtype=torch.long),
        scores=torch.zeros(0),
        masks=torch.zeros(0, 40, 60, dtype=torch.bool),
    )
    picture = drawn(
        visualizer, np.zeros((40, 60, 3), np.uint8), DetDataSample(pred_instances=empty), tmp_path
    )
    assert picture.shape == (120, 2 * 180, 3)


@pytest.mark.parametrize(("shape", "size"), [((3, 700), (15, 3500)), ((2000, 10), (4000, 20))])
def test_narrow_images_are_enlarged_to_what_can_be_drawn(request, tmp_path, shape, size):
    found = sample(*shape)
    del found.gt_instances
    picture = drawn(enlarging(request), np.zeros((*shape, 3), np.uint8), found, tmp_path)
    assert picture.shape[:2] == (size[0], 2 * size[1])
