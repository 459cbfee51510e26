"""Small images are drawn large; large ones as mmdet draws them."""

import cv2
import numpy as np
import pytest
import torch
from mmdet.structures import DetDataSample
from mmdet.structures.mask import BitmapMasks
from mmdet.visualization import DetLocalVisualizer
from mmengine.registry import VISUALIZERS
from mmengine.structures import InstanceData

import flatten_det  # noqa: F401  registers the visualizer

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
