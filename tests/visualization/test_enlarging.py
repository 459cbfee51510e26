"""Small images are drawn large; large ones as mmdet draws them."""

import numpy as np
import torch
from mmdet.structures import DetDataSample
from mmdet.structures.bbox import HorizontalBoxes
from mmdet.structures.mask import BitmapMasks
from mmdet.visualization import DetLocalVisualizer
from mmengine.registry import VISUALIZERS
from mmengine.structures import InstanceData

META = dict(classes=("circle", "square"), palette=[(255, 0, 0), (0, 255, 0)])


def sample(height: int, width: int) -> DetDataSample:
    mask = torch.zeros(1, height, width, dtype=torch.bool)
    mask[:, 5:15, 10:30] = True
    box = torch.tensor([[10.0, 5.0, 30.0, 15.0]])
    label = torch.tensor([1])
    gt = InstanceData(
        bboxes=HorizontalBoxes(box), labels=label, masks=BitmapMasks(mask.numpy(), height, width)
    )
    found = InstanceData(bboxes=box, labels=label, scores=torch.tensor([0.9]), masks=mask)
    return DetDataSample(gt_instances=gt, pred_instances=found)


def drawn(visualizer, image, data_sample):
    visualizer.dataset_meta = META
    visualizer.add_datasample("name", image, data_sample)
    return visualizer.get_image()


def test_small_image_is_enlarged_with_its_boxes_and_masks():
    visualizer = VISUALIZERS.build(dict(type="EnlargingDetVisualizer", min_size=100))
    original = sample(40, 60)
    picture = drawn(visualizer, np.zeros((40, 60, 3), np.uint8), original)
    assert picture.shape == (120, 2 * 180, 3)  # annotation left, prediction right
    for half in (picture[:, :180], picture[:, 180:]):
        inside, outside = half[20:40, 60:80], half[60:, 100:]
        assert inside.any()
        assert not outside.any()
    # The sample goes on to the metrics: it must not change.
    assert original.pred_instances.bboxes.tolist() == [[10, 5, 30, 15]]
    assert original.pred_instances.masks.shape == (1, 40, 60)


def test_large_image_is_drawn_as_mmdet_does():
    image = np.full((120, 150, 3), 90, np.uint8)
    ours = VISUALIZERS.build(dict(type="EnlargingDetVisualizer", min_size=100))
    theirs = DetLocalVisualizer()
    np.testing.assert_array_equal(
        drawn(ours, image, sample(120, 150)), drawn(theirs, image, sample(120, 150))
    )


def test_image_without_detections():
    visualizer = VISUALIZERS.build(dict(type="EnlargingDetVisualizer", min_size=100))
    empty = InstanceData(
        bboxes=torch.zeros(0, 4),
        labels=torch.zeros(0, dtype=torch.long),
        scores=torch.zeros(0),
        masks=torch.zeros(0, 40, 60, dtype=torch.bool),
    )
    picture = drawn(
        visualizer, np.zeros((40, 60, 3), np.uint8), DetDataSample(pred_instances=empty)
    )
    assert picture.shape == (120, 180, 3)
