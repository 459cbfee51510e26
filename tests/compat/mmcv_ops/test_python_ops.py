"""The ops that mmcv itself writes in Python: they import and work beside the compile-free ones."""

import pytest
import torch
from mmcv.ops import CornerPool, point_sample, rel_roi_point_to_rel_img_point
from op_checks import check_same_with_gradients


@pytest.mark.parametrize(
    ("mode", "dim", "flipped"),
    [("top", 2, True), ("bottom", 2, False), ("left", 3, True), ("right", 3, False)],
)
def test_corner_pool(mode, dim, flipped):
    input = torch.randn(2, 3, 5, 7, dtype=torch.float64).requires_grad_()
    expected = input.flip(dim) if flipped else input
    expected = expected.cummax(dim).values
    expected = expected.flip(dim) if flipped else expected

    check_same_with_gradients(CornerPool(mode)(input), expected, [input])


def test_point_sample_reads_cell_centres_and_between_them():
    input = torch.arange(12.0).view(1, 1, 3, 4).requires_grad_()
    points = torch.tensor([[[0.5 / 4, 0.5 / 3], [3.5 / 4, 2.5 / 3], [1 / 4, 1 / 3]]])  # x, y

    sampled = point_sample(input, points)
    sampled.sum().backward()

    torch.testing.assert_close(sampled, torch.tensor([[[0.0, 11.0, 2.5]]]))
    expected = torch.tensor([[1.25, 0.25, 0, 0], [0.25, 0.25, 0, 0], [0, 0, 0, 1]])
    torch.testing.assert_close(input.grad[0, 0], expected)


def test_points_in_a_roi_become_points_in_the_image():
    rois = torch.tensor([[0.0, 10, 20, 30, 60]])
    points = torch.tensor([[[0.0, 0.0], [0.5, 0.25], [1.0, 1.0]]])
    in_image = rel_roi_point_to_rel_img_point(rois, points, (100, 200))  # H, W
    expected = torch.tensor([[[10 / 200, 20 / 100], [20 / 200, 30 / 100], [30 / 200, 60 / 100]]])
    torch.testing.assert_close(in_image, expected)
