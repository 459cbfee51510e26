"""Large images are drawn smaller, and what was found in them with them."""

import numpy as np
import pytest
import torch
from mmdet.structures import DetDataSample
from mmdet.structures.mask import BitmapMasks
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
