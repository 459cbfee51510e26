import torch
from mmcv.ops import MaskedConv2d


def test_only_the_masked_places_are_convolved():
    layer = MaskedConv2d(3, 4, (3, 5), padding=(1, 2))
    input = torch.randn(1, 3, 7, 9)
    mask = torch.rand(1, 7, 9) > 0.6
    plain = torch.nn.functional.conv2d(input, layer.weight, layer.bias, padding=(1, 2))

    with torch.no_grad():
        output = layer(input, mask)

    assert mask.any()
    torch.testing.assert_close(output, plain * mask)


def test_an_empty_mask_gives_zeros():
    layer = MaskedConv2d(3, 4, 3, padding=1)
    with torch.no_grad():
        assert not layer(torch.randn(1, 3, 7, 9), torch.zeros(1, 7, 9)).any()
