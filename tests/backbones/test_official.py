"""Files with the names and shapes of the official release, of every arch, load through ``init_cfg``.

The golden files record those of four networks; the others differ in depth, width, heads and the
pretraining size, and follow from the record by these numbers alone. None of it comes from our modules.
"""

import re
from dataclasses import dataclass
from fractions import Fraction
from math import prod

import pytest
import torch
from golden_values import load_golden

from flatten_det.backbones import BACKBONES, build_backbone
from flatten_det.backbones.weights import OFFICIAL_CHECKPOINTS, identify_backbone, load_backbone

# Where a family's names have the numbers of stage and block.
_BLOCK = re.compile(r"(block|stage|layers\.)(\d)(\.blocks)?\.(\d+)\.")


@dataclass(frozen=True)
class Official:
    """A classification network relative to the recorded one of its family.

    Attributes:
        golden: the record.
        depths: blocks per stage.
        params: millions of parameters without the head, as counted from the original networks (for
            CSwin at 384 as reported in the paper).
        width: channels relative to the record.
        heads: heads relative to the record.
        head_dim: channels per head; None: as recorded.
        hidden: hidden channels of the MLP per stage, relative to the record's ratio.
        grid: pretraining size relative to 224.
        window: Swin's window.
    """

    golden: str
    depths: tuple[int, ...]
    params: str
    width: Fraction = Fraction(1)
    heads: Fraction = Fraction(1)
    head_dim: int | None = None
    hidden: tuple[Fraction, ...] = (Fraction(1),) * 4
    grid: Fraction = Fraction(1)
    window: int = 7

    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Name -> shape of every entry: parameters, head and buffers."""
        record = load_golden(self.golden).record
        found = {}
        for name, shape in (record["params"] | record["buffers"]).items():
            block = _BLOCK.match(name)
            if block is None:
                found[name] = self._scaled(name, shape)
                continue
            index = int(block[4])
            stage = int(block[2]) - (block[1] != "layers.")
            for number in self._blocks_like(index, stage, record):
                begin, end = block.span(4)
                full = name[:begin] + str(number) + name[end:]
                found[full] = self._scaled(full, shape, stage)
        return found

    def _blocks_like(self, index: int, stage: int, record: dict) -> range:
        """Blocks of this network that a recorded block stands for."""
        numbers = [
            int(block[4])
            for block in map(_BLOCK.match, record["params"])
            if block and int(block[2]) - (block[1] != "layers.") == stage
        ]
        # Blocks alternate at most (Swin's shift), so the first two stand for all, or the only one.
        period = min(len(set(numbers)), 2)
        return range(index, self.depths[stage], period) if index < period else range(0)

    def _scaled(self, name: str, shape: list[int], stage: int = 0) -> tuple[int, ...]:
        last = name.split(".")[-1]
        if last in ("relative_position_index", "attn_mask"):
            tokens = self.window**2
            return (*shape[:-2], tokens, tokens)
        if last == "relative_position_bias_table":
            return ((2 * self.window - 1) ** 2, int(shape[1] * self.heads))
        if ".dwc." in name:
            return (self.head_dim or shape[0], *shape[1:])
        if len(shape) == 3:
            tokens = shape[1] if last == "scale" else int(shape[1] * self.grid**2)
            return (shape[0], tokens, int(shape[2] * self.width))
        scaled = [int(n * self.width) for n in shape[:2]]
        if name.startswith("head."):
            scaled[0] = 1000
        elif len(shape) == 4 and shape[1] in (1, 3):
            scaled[1] = shape[1]
        if ".mlp." in name:
            hidden = 1 if name.endswith("fc2.weight") else 0
            if not name.endswith("fc2.bias"):
                scaled[hidden] = int(scaled[hidden] * self.hidden[stage])
        return (*scaled, *shape[2:])


PVT, PVT_V2, SWIN, CSWIN = "pvt_tiny_224", "pvtv2_b0_224", "swin_tiny_224", "cswin_tiny_224"
_B = dict(width=Fraction(2), head_dim=64)
_SWIN_B = dict(width=Fraction(4, 3), heads=Fraction(4, 3))
_CSWIN_B = dict(width=Fraction(3, 2), heads=Fraction(2), head_dim=24)
_384 = Fraction(384, 224)
_HALF = (Fraction(1, 2), Fraction(1, 2), Fraction(1), Fraction(1))

OFFICIAL = {
    "flatten-pvt-t": Official(PVT, (2, 2, 2, 2), "11.64"),
    "flatten-pvt-s": Official(PVT, (3, 4, 6, 3), "21.16"),
    "flatten-pvt-m": Official(PVT, (3, 4, 18, 3), "36.73"),
    "flatten-pvt-l": Official(PVT, (3, 8, 27, 3), "50.14"),
    "flatten-pvtv2-b0": Official(PVT_V2, (2, 2, 2, 2), "3.34"),
    "flatten-pvtv2-b1": Official(PVT_V2, (2, 2, 2, 2), "12.42", **_B),
    "flatten-pvtv2-b2": Official(PVT_V2, (3, 4, 6, 3), "22.04", **_B),
    "flatten-pvtv2-b3": Official(PVT_V2, (3, 4, 18, 3), "37.76", **_B),
    "flatten-pvtv2-b4": Official(PVT_V2, (3, 8, 27, 3), "51.32", **_B),
    "flatten-pvtv2-b5": Official(PVT_V2, (3, 6, 40, 3), "66.55", **_B, hidden=_HALF),
    "flatten-swin-t": Official(SWIN, (2, 2, 6, 2), "28.42"),
    "flatten-swin-s": Official(SWIN, (2, 2, 18, 2), "49.74"),
    "flatten-swin-b": Official(SWIN, (2, 2, 18, 2), "87.95", **_SWIN_B),
    "flatten-swin-b-384": Official(SWIN, (2, 2, 18, 2), "90.41", **_SWIN_B, grid=_384, window=12),
    "flatten-cswin-t": Official(CSWIN, (2, 4, 18, 1), "20.69"),
    "flatten-cswin-s": Official(CSWIN, (2, 4, 32, 2), "34.94"),
    "flatten-cswin-b": Official(CSWIN, (3, 6, 29, 2), "74.10", **_CSWIN_B),
    "flatten-cswin-b-384": Official(CSWIN, (3, 6, 29, 2), "78", **_CSWIN_B, grid=_384),
}

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
