"""The frameworks' data samples become predictions."""

import numpy as np
import pytest
import torch
from mmdet.structures import DetDataSample
from mmengine.structures import InstanceData, PixelData
from mmseg.structures import SegDataSample
from pycocotools import mask as coco_mask

from flatten_det.predict.engine import Predicted
from flatten_det.predict.inputs import GivenImage
from flatten_det.predict.predictor import as_prediction

SIZE = (6, 8)
FILE = GivenImage("a.jpg", "a.jpg")


def predicted(sample, names=("a", "b"), image=FILE, **fields):
    for name, value in fields.items():
        setattr(sample, name, value)
    sample.set_metainfo({"ori_shape": SIZE})
    return as_prediction(Predicted(image, sample, 1.5), names, None)


@pytest.mark.parametrize("as_rle", [False, True])
def test_detections_come_best_first(as_rle):
    bitmaps = np.zeros((3, *SIZE), bool)
    for number in range(3):
        bitmaps[number, : number + 1] = True
    masks = torch.from_numpy(bitmaps)
    if as_rle:
        masks = [coco_mask.encode(np.asfortranarray(mask, np.uint8)) for mask in bitmaps]
    found = InstanceData(
        bboxes=torch.arange(12.0, dtype=torch.float16).reshape(3, 4),
        scores=torch.tensor([0.25, 0.75, 0.25], dtype=torch.float16),
        labels=torch.tensor([0, 1, 1]),
        masks=masks,
    )
    prediction = predicted(DetDataSample(), pred_instances=found)
    assert prediction.scores.tolist() == [0.75, 0.25, 0.25]
    assert prediction.labels.tolist() == [1, 0, 1]
    assert prediction.boxes[:, 0].tolist() == [4, 0, 8]
    assert prediction.boxes.dtype == prediction.scores.dtype == np.float32
    np.testing.assert_array_equal(prediction.bitmaps(), bitmaps[[1, 0, 2]])
    assert (prediction.source, prediction.size, prediction.milliseconds) == ("a.jpg", SIZE, 1.5)
    assert prediction.label_map is prediction.segments is prediction.pixels is None


@pytest.mark.parametrize("as_rle", [False, True])
def test_nothing_is_found(as_rle):
    none = [] if as_rle else torch.zeros((0, *SIZE), dtype=torch.bool)
    boxes, labels = torch.zeros((0, 4)), torch.zeros(0, dtype=torch.int64)
    found = InstanceData(bboxes=boxes, scores=torch.zeros(0), labels=labels, masks=none)
    prediction = predicted(DetDataSample(), pred_instances=found)
    assert prediction.boxes.shape == (0, 4)
    assert prediction.masks == []


@pytest.mark.parametrize(("count", "kind"), [(2, np.uint8), (256, np.uint8), (257, np.uint16)])
def test_labels_of_pixels(count, kind):
    labels = torch.full((1, *SIZE), float(count - 1))  # Those of a single channel are floats.
    names = tuple(map(str, range(count)))
    prediction = predicted(SegDataSample(), names, pred_sem_seg=PixelData(data=labels))
    assert prediction.label_map.dtype == kind
    np.testing.assert_array_equal(prediction.label_map, np.full(SIZE, count - 1))
    assert prediction.boxes is None


def test_segments_without_void():
    ids = torch.full((1, *SIZE), 2)  # The label after the last one: nothing.
    ids[0, :2], ids[0, 2:, :3] = 1000, 3001
    prediction = predicted(DetDataSample(), pred_panoptic_seg=PixelData(sem_seg=ids))
    assert prediction.segment_ids.dtype == np.int32
    assert np.unique(prediction.segment_ids).tolist() == [0, 1000, 3001]
    assert [tuple(each) for each in prediction.segments] == [(1000, 0, 16), (3001, 1, 12)]


def test_pixels_of_an_image_in_memory_are_rgb():
    bgr = np.arange(48 * 3, dtype=np.uint8).reshape(*SIZE, 3)
    labels = PixelData(data=torch.zeros((1, *SIZE)))
    image = GivenImage("0 (ndarray)", pixels=bgr)
    prediction = predicted(SegDataSample(), image=image, pred_sem_seg=labels)
    np.testing.assert_array_equal(prediction.pixels, bgr[..., ::-1])
    assert prediction.source == ""
