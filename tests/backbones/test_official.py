"""Files with the names and shapes of the official release, of every arch, load through ``init_cfg``."""

from math import prod

import pytest
import torch
from official_names import OFFICIAL

from flatten_det.backbones import BACKBONES, build_backbone
from flatten_det.backbones.weights import OFFICIAL_CHECKPOINTS, identify_backbone, load_backbone

# Tens of millions of parameters, which take seconds.
LARGE = {name for name, official in OFFICIAL.items() if float(official.params) > 36}
BUFFERS = ("relative_position_index", "attn_mask")


def test_every_arch_has_a_list_of_names():
    # The authors have never published code or weights of FLatten-DeiT.
    linear = {name for name in BACKBONES if name.startswith("flatten-")}
    assert set(OFFICIAL) == {name for name in linear if not name.startswith("flatten-deit-")}
    assert {c.backbone for c in OFFICIAL_CHECKPOINTS.values()} <= set(OFFICIAL)


@pytest.mark.parametrize("name", OFFICIAL)
def test_the_list_has_as_many_parameters_as_the_original(name):
    official = OFFICIAL[name]
    parameters = sum(
        prod(shape)
        for key, shape in official.shapes().items()
        if not key.startswith("head.") and not key.endswith(BUFFERS)
    )
    digits = len(official.params.partition(".")[2])
    assert f"{parameters / 1e6:.{digits}f}" == official.params


@pytest.mark.parametrize(
    "name", [pytest.param(n, marks=[pytest.mark.slow] if n in LARGE else []) for n in OFFICIAL]
)
def test_loads_through_init_cfg(name, tmp_path):
    shapes = OFFICIAL[name].shapes()
    # One value per entry tells them apart; an expanded tensor takes no space in the file.
    state = {
        key: torch.tensor(float(number)).expand(shape)
        for number, (key, shape) in enumerate(shapes.items())
    }
    path = tmp_path / "official.pth"
    torch.save({"model": state}, path)
    backbone = build_backbone(name, init_cfg=dict(type="Pretrained", checkpoint=str(path)))
    backbone.init_weights()

    report = load_backbone(build_backbone(name, init_cfg=None), state, path)
    assert not report.resized
    assert len(report.loaded) + len(report.dropped) == len(state)
    dropped = {key for key in report.dropped if not key.endswith(BUFFERS)}
    # FLatten-PVT has no norm on its outputs; the others have one for their last stage.
    norm = {"norm.weight", "norm.bias"} if name.startswith("flatten-pvt-") else set()
    assert dropped == {"head.weight", "head.bias"} | norm
    # The norms of the other outputs, which classification has no use for, stay at identity.
    others = {"swin": ["norm0", "norm1", "norm2"], "cswin": ["norm1", "norm2", "norm3"]}
    expected = others.get(name.split("-")[1], [])
    assert sorted({key.split(".")[0] for key in report.kept}) == expected
    values = backbone.state_dict()
    numbers = [values[key].unique().tolist() for key in report.loaded]
    assert all(len(number) == 1 for number in numbers)
    assert len({number[0] for number in numbers}) == len(numbers)


@pytest.mark.parametrize("name", OFFICIAL)
def test_is_identified(name):
    with torch.device("meta"):
        state = {key: torch.empty(shape) for key, shape in OFFICIAL[name].shapes().items()}
    assert identify_backbone(state, "official.pth") == name
