"""A detector that finds coloured rectangles exactly, and images of such."""

import cv2
import numpy as np
import torch
from mmdet.structures import DetDataSample
from mmengine.config import Config
from mmengine.model import BaseModel
from mmengine.registry import MODELS
from mmengine.structures import InstanceData

COLOURS = ((255, 0, 0), (0, 255, 0))  # BGR, by label
TOLERANCE = 60  # Of codecs.
HEIGHT, WIDTH = 500, 700


@MODELS.register_module()
class ColourFinder(BaseModel):
    """Finds connected regions of two colours; the less of one it sees, the surer it is."""

    panoptic_fusion_head = None

    def __init__(self, test_cfg: dict) -> None:
        super().__init__()
        self.test_cfg = test_cfg
        self.weight = torch.nn.Parameter(torch.zeros(1))  # A checkpoint must hold something.
        self.batch_sizes: list[int] = []

    def test_step(self, data: dict) -> list[DetDataSample]:
        self.batch_sizes.append(len(data["inputs"]))
        return self(**data)

    def forward(self, inputs, data_samples, mode="predict"):
        for image, sample in zip(inputs, data_samples, strict=True):
            assert image.shape[1:] == sample.ori_shape == sample.img_shape
            sample.pred_instances = find(image.permute(1, 2, 0).numpy())
        return data_samples


def find(image: np.ndarray) -> InstanceData:
    boxes, labels, masks, scores = [], [], [], []
    for label, colour in enumerate(COLOURS):
        count, regions, stats, _ = cv2.connectedComponentsWithStats(
            (np.abs(image.astype(int) - colour) < TOLERANCE).all(2).astype(np.uint8), connectivity=4
        )
        for number in range(1, count):
            x, y, width, height, area = stats[number].tolist()
            boxes.append([x, y, x + width, y + height])
            labels.append(label)
            masks.append(torch.from_numpy(regions == number))
            scores.append(0.6 + 0.3 / (1 + area / 100))
    return InstanceData(
        bboxes=torch.tensor(boxes, dtype=torch.float32).reshape(-1, 4),
        labels=torch.tensor(labels, dtype=torch.int64),
        scores=torch.tensor(scores),
        masks=torch.stack(masks) if masks else torch.zeros((0, *image.shape[:2]), dtype=torch.bool),
    )


def config(**test_cfg) -> Config:
    pipeline = [
        {"type": "LoadImageFromFile"},
        # Not at the size of the images: --full-size has to turn it off.
        {"type": "Resize", "scale": (50, 50), "keep_ratio": True},
        {"type": "LoadAnnotations", "with_bbox": True},
        {"type": "PackDetInputs"},
    ]
    return Config(
        {
            "default_scope": "mmdet",
            "model": {"type": "mmengine.ColourFinder", "test_cfg": test_cfg},
            "test_dataloader": {
                "dataset": {
                    "type": "CocoDataset",
                    "metainfo": {"classes": ("blue", "green"), "palette": list(COLOURS)},
                    "pipeline": pipeline,
                }
            },
            "visualizer": {"type": "DetLocalVisualizer"},
        }
    )


def paint(path, objects) -> str:
    image = np.full((HEIGHT, WIDTH, 3), 90, np.uint8)
    for label, (left, top, right, bottom) in objects:
        image[top:bottom, left:right] = COLOURS[label]
    cv2.imwrite(str(path), image)
    return str(path)
