import pytest
import torch
from mmcv.ops import bbox_overlaps


def reference(a, b, mode, offset):
    width = min(a[2], b[2]) - max(a[0], b[0]) + offset
    height = min(a[3], b[3]) - max(a[1], b[1]) + offset
    inter = max(width, 0) * max(height, 0)
    area_a = (a[2] - a[0] + offset) * (a[3] - a[1] + offset)
    area_b = (b[2] - b[0] + offset) * (b[3] - b[1] + offset)
    return inter / (area_a if mode == "iof" else area_a + area_b - inter)


def random_boxes(n, seed):
    generator = torch.Generator().manual_seed(seed)
    corner = torch.rand(n, 2, generator=generator) * 10
    return torch.cat([corner, corner + torch.rand(n, 2, generator=generator) * 8 + 1], dim=1)


@pytest.mark.parametrize("offset", [0, 1])
@pytest.mark.parametrize("mode", ["iou", "iof"])
def test_overlaps_of_all_pairs_and_of_aligned_pairs(mode, offset):
    first, second = random_boxes(9, 0), random_boxes(9, 1)
    expected = torch.tensor(
        [[reference(a, b, mode, offset) for b in second.tolist()] for a in first.tolist()]
    )

    torch.testing.assert_close(
        bbox_overlaps(first, second[:5], mode, offset=offset), expected[:, :5]
    )
    torch.testing.assert_close(
        bbox_overlaps(first, second, mode, aligned=True, offset=offset), expected.diagonal()
    )


def test_boxes_without_area_overlap_nothing():
    point = torch.tensor([[3.0, 3, 3, 3]])
    assert bbox_overlaps(point, point).tolist() == [[0.0]]
    assert bbox_overlaps(torch.zeros(0, 4), point).shape == (0, 1)
