"""Parity with the original implementation, through ``init_cfg`` and a file in the official format."""

import numpy as np
import pytest
import torch
from golden_values import GOLDEN
from mmengine.registry import MODELS

import flatten_det  # noqa: F401  registers the backbones

TYPES = {
    "pvt": "FLattenPVT",
    "pvtv2": "FLattenPVTv2",
    "swin": "FLattenSwin",
    "cswin": "FLattenCSwin",
}


@pytest.mark.parametrize("name", [path.stem for path in sorted(GOLDEN.glob("*.json"))])
def test_outputs_equal_the_original(name, golden, tmp_path):
    reference = golden(name)
    checkpoint = reference.save(tmp_path / "official.pth")
    model = MODELS.build(
        dict(
            type=TYPES[reference.record["family"]],
            arch=name.split("_")[1],
            pretrain_img_size=reference.record["pretrain_size"],
            init_cfg=dict(type="Pretrained", checkpoint=str(checkpoint)),
        )
    )
    model.init_weights()
    model.eval()
    with torch.no_grad():
        outs = model(reference.image())
    assert len(outs) == len(reference.record["stages"])
    for out, stage in zip(outs, reference.record["stages"], strict=True):
        assert list(out.shape) == stage["shape"]
        sampled = out.flatten()[stage["index"]].double().numpy()
        error = np.abs(sampled - np.array(stage["value"])).max() / stage["absmax"]
        assert error < 1e-4
        assert abs(out.std().item() - stage["std"]) < 1e-4 * stage["std"]
