"""ViTDet's pyramid: sizes, gradients and what it refuses."""

import pytest
import torch
from mmengine.registry import MODELS

from flatten_det.necks import SimpleFeaturePyramid


def test_makes_four_scales_and_coarser_ones_of_one_map():
    neck = MODELS.build(
        dict(type="SimpleFeaturePyramid", in_channels=8, out_channels=12, num_outs=5)
    )
    x = torch.randn(2, 8, 5, 7, requires_grad=True)
    outs = neck((x,))
    assert [tuple(out.shape) for out in outs] == [
        (2, 12, 20, 28),
        (2, 12, 10, 14),
        (2, 12, 5, 7),
        (2, 12, 3, 4),
        (2, 12, 2, 2),
    ]
    sum(out.square().sum() for out in outs).backward()
    for parameter in (x, *neck.parameters()):
        assert parameter.grad.isfinite().all()


def test_each_pixel_has_the_statistics_of_its_layer_norm():
    outs = SimpleFeaturePyramid(8, out_channels=16)((torch.randn(1, 8, 4, 4),))
    for out in outs:
        torch.testing.assert_close(out.mean(1), torch.zeros_like(out[:, 0]), atol=1e-5, rtol=0)


@pytest.mark.parametrize("options", [{"in_channels": 6}, {"in_channels": 8, "num_outs": 3}])
def test_names_a_wrong_option(options):
    with pytest.raises(ValueError, match="|".join(options)):
        SimpleFeaturePyramid(**options)


def test_refuses_a_pyramid_as_input():
    with pytest.raises(ValueError, match="takes one map"):
        SimpleFeaturePyramid(8)((torch.zeros(1, 8, 2, 2), torch.zeros(1, 8, 1, 1)))
