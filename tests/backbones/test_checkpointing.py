"""Which stages keep what for the backward pass, and how much memory that takes."""

import pytest
import torch
from nano_backbones import build_nano

from flatten_det.backbones.options import checkpoint_policies


def test_policies_by_stage():
    assert checkpoint_policies(False) == (None,) * 4
    assert checkpoint_policies(True) == ("block",) * 4
    assert checkpoint_policies({"policy": "mlp"}) == ("mlp",) * 4
    assert checkpoint_policies({"stages": [0, 2]}) == ("block", None, "block", None)


@pytest.mark.parametrize(
    ("with_cp", "message"),
    [
        ("block", "True, False or a dict"),
        ({"stage": [1]}, "True, False or a dict"),
        ({"policy": "all"}, "policy must be one of block, mlp, elementwise; got 'all'"),
        ({"stages": [4]}, "stages must be a list of 0 to 3"),
        ({"stages": 1}, "stages must be a list of 0 to 3"),
    ],
)
def test_mistakes_are_named(with_cp, message):
    with pytest.raises(ValueError, match=message):
        checkpoint_policies(with_cp)


def kept_bytes(with_cp) -> int:
    """Of different tensors that autograd keeps for the backward pass, parameters left out."""
    model = build_nano("FLattenPVT", with_cp=with_cp)
    parameters = {p.untyped_storage().data_ptr() for p in model.parameters()}
    kept: dict[int, int] = {}

    def pack(x: torch.Tensor) -> torch.Tensor:
        storage = x.untyped_storage()
        if storage.data_ptr() not in parameters:
            kept[storage.data_ptr()] = storage.nbytes()
        return x

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda x: x):
        outs = model(torch.randn(1, 3, 64, 96))
    assert len(outs) == 4
    return sum(kept.values())


def test_every_policy_keeps_less():
    whole, block, mlp, first = (
        kept_bytes(with_cp) for with_cp in (False, True, {"policy": "mlp"}, {"stages": [0]})
    )
    assert block < first < whole
    assert block < mlp < whole
    assert block < 0.25 * whole
