"""Maps of every image size are as large as the strides say; windows lose no token."""

import torch
from fuzzing import fuzz
from hypothesis import strategies as st

from flatten_det.attention.maps import pad_to_multiple, window_merge, window_partition
from flatten_det.backbones import build_backbone

_FIELDS = {
    "flatten-pvt-t": dict(embed_dims=(4, 4, 4, 4), num_heads=(1, 1, 1, 1)),
    "flatten-pvtv2-b0": dict(embed_dims=(4, 4, 4, 4), num_heads=(1, 1, 1, 1)),
    "flatten-swin-t": dict(embed_dims=4, num_heads=(1, 1, 1, 1)),
    "flatten-cswin-t": dict(embed_dims=4, num_heads=(2, 2, 2, 2)),
    "flatten-deit-t": dict(embed_dims=(4,), num_heads=(1,)),
}


def test_every_image_size_has_maps_of_its_size_rounded_up():
    models = [
        build_backbone(
            name, arch=dict(fields, depths=(1,) * len(fields["num_heads"])), pretrain_img_size=32
        ).eval()
        for name, fields in _FIELDS.items()
    ]

    def check(height: int, width: int) -> None:
        image = torch.zeros(1, 3, height, width)
        for model in models:
            strides = (4, 8, 16, 32) if len(model.feature_dims) == 4 else (16,)
            with torch.no_grad():
                maps = model(image)
            for stride, one in zip(strides, maps, strict=True):
                assert one.shape[2:] == (-(-height // stride), -(-width // stride))
                assert one.isfinite().all()

    fuzz(check, 30, st.integers(1, 240), st.integers(1, 240))


def test_windows_of_a_padded_map_are_put_back_where_they_were():
    def check(height: int, width: int, window: tuple[int, int]) -> None:
        tokens = torch.arange(float(height * width)).reshape(1, height, width, 1)
        padded = pad_to_multiple(tokens, window)
        hw_shape = padded.shape[1:3]
        assert all(
            0 <= size - own < step
            for size, own, step in zip(hw_shape, (height, width), window, strict=True)
        )
        merged = window_merge(window_partition(padded, window), window, hw_shape)
        assert torch.equal(merged[:, :height, :width], tokens)
        assert padded.sum() == tokens.sum()

    sides = st.integers(1, 20)
    fuzz(check, 100, sides, sides, st.tuples(st.integers(1, 8), st.integers(1, 8)))
