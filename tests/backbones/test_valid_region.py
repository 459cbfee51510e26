"""What a backbone computes for an image does not depend on its batch mates."""

from functools import partial
from types import SimpleNamespace

import pytest
import torch
from mmengine.model import BaseModel
from mmengine.structures import BaseDataElement
from nano_backbones import ARCHS, build_nano
from operators import Operators
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils.checkpoint import checkpoint

from flatten_det.attention import module
from flatten_det.attention.dispatch import TRITON

PADDED = (128, 192)
# The second is half as large, the third has the size of the first, the fourth ends within a token.
VALID = [(128, 160), (64, 96), (128, 160), (77, 50)]


class Model(BaseModel):
    """A model of a backbone alone."""

    def __init__(self, backbone: nn.Module) -> None:
        super().__init__()
        self.backbone = backbone

    def forward(self, inputs, data_samples=None, mode="tensor"):
        return self.backbone(inputs)


def build(family: str, attn_types: str | None = None, **options) -> Model:
    return Model(build_nano(family, attn_types, **options))


# Families that can compute all images in one pass, as they do on CUDA.
IN_ONE_PASS = ("FLattenPVT", "FLattenPVTv2", "FLattenDeiT")
WAYS = [(family, False) for family in ARCHS] + [(family, True) for family in IN_ONE_PASS]


def compute_in_one_pass(model: Model) -> Model:
    """Do as on CUDA, by plain operations."""
    model.backbone.computes_padded = lambda x: True
    return model


def samples(sizes) -> list[BaseDataElement]:
    return [BaseDataElement(metainfo=dict(img_shape=size)) for size in sizes]


def batch(sizes=VALID, padding: float = 0.0) -> torch.Tensor:
    torch.manual_seed(1)
    images = torch.full((len(sizes), 3, *PADDED), padding)
    for image, (height, width) in zip(images, sizes, strict=True):
        image[:, :height, :width] = torch.randn(3, height, width)
    return images


def own(maps, index: int, stride: int):
    height, width = (-(-size // stride) for size in VALID[index])
    return maps[index, :, :height, :width]


@pytest.mark.parametrize("attn_types", ["LLSS", "SSLL"])
@pytest.mark.parametrize(("family", "in_one_pass"), WAYS)
@pytest.mark.parametrize("train", [False, True])
def test_alone_and_in_a_batch(family, in_one_pass, attn_types, train):
    model = build(family, attn_types).train(train)
    images = batch(padding=7.0)
    with torch.set_grad_enabled(train):
        if in_one_pass:
            compute_in_one_pass(model)
            images[images == 7.0] = torch.nan
        together = model(images, samples(VALID))
        for index, (height, width) in enumerate(VALID):
            alone = model(images[index : index + 1, :, :height, :width])
            for level, stride in enumerate(model.backbone.strides):
                found = own(together[level], index, stride)
                torch.testing.assert_close(found, alone[level][0], rtol=1e-4, atol=1e-4)
                assert together[level][index].count_nonzero() == found.count_nonzero()
    strides = model.backbone.strides
    assert [x.shape[2:] for x in together] == [(128 // s, 192 // s) for s in strides]


@pytest.mark.parametrize(("family", "in_one_pass"), WAYS)
def test_gradients_are_those_of_the_images_alone(family, in_one_pass):
    indices = {} if family == "FLattenDeiT" else dict(out_indices=(1, 3))
    model = build(family, "SLLS" if in_one_pass else None, **indices).train()
    images = batch()
    if in_one_pass:  # Plain operations do not round as those on the CPU do.
        compute_in_one_pass(model).double()
        images = images.double()

    def gradients(outputs):
        model.zero_grad()
        sum(x.square().sum() for x in outputs).backward()
        return [p.grad.clone() for p in model.parameters() if p.grad is not None]

    together = gradients(model(images, samples(VALID)))
    alone = [model(images[i : i + 1, :, :h, :w]) for i, (h, w) in enumerate(VALID)]
    expected = gradients(x for outputs in alone for x in outputs)
    for a, b in zip(together, expected, strict=True):
        assert (a - b).norm() <= 1e-4 * b.norm() + 1e-5


@pytest.mark.parametrize("family", ARCHS)
@pytest.mark.parametrize("train", [False, True])
def test_without_the_mask_padding_is_image(family, train):
    model, images = build(family, mask_padding=False).train(train), batch()
    with torch.set_grad_enabled(train):
        off = model(images, samples(VALID))
        plain = model.backbone.forward_images(images)
        model.backbone.mask_padding = True
        on = model(images, samples(VALID))
    assert all(torch.equal(a, b) for a, b in zip(off, plain, strict=True))
    difference = [
        ((own(a, 1, s) - own(b, 1, s)).norm() / own(b, 1, s).norm()).item()
        for a, b, s in zip(off, on, model.backbone.strides, strict=True)
    ]
    print(f"{family}: the other image's padding moves features by {difference}")
    assert min(difference) > 1e-3  # With random weights; 1e-4 is what the mask leaves.


@pytest.mark.parametrize(
    ("images", "data_samples"),
    [
        (batch([PADDED] * 2), samples([PADDED] * 2)),  # Nothing is padded.
        (batch()[:2], None),
        (batch()[:2], []),
        (batch()[:2], samples(VALID)),
        (batch()[:2], [BaseDataElement(), BaseDataElement()]),
        (batch()[:2], samples([(64, 64), (129, 64)])),
        (batch()[:2], {"img_shape": (64, 64)}),
    ],
)
def test_nothing_to_do_or_nothing_known(images, data_samples):
    model = build("FLattenPVT").eval()
    with torch.no_grad():
        found, expected = model(images, data_samples), model.backbone(images)
    assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))


@pytest.mark.parametrize("reentrant", [False, True])
def test_a_checkpointed_backbone_computes_the_same_again(reentrant):
    """As mmengine's ``activation_checkpointing`` does: in the backward pass, after the model's call."""
    model = build("FLattenPVT").train()
    images = batch().requires_grad_()  # Else nothing of a reentrant checkpoint has gradients.

    def gradients():
        model.zero_grad()
        sum(x.square().sum() for x in model(images, samples(VALID))).backward()
        return [p.grad.clone() for p in model.parameters()]

    expected = gradients()
    model.backbone.forward = partial(checkpoint, model.backbone.forward, use_reentrant=reentrant)
    for a, b in zip(gradients(), expected, strict=True):
        assert (a - b).norm() <= 1e-4 * b.norm() + 1e-5


@pytest.mark.parametrize("policy", ["block", "mlp", "elementwise"])
def test_checkpointed_blocks_know_the_padding(policy):
    images, gradients = batch(), {}
    for with_cp in (False, dict(policy=policy)):
        model = compute_in_one_pass(build("FLattenPVTv2", with_cp=with_cp)).train()
        sum(x.square().sum() for x in model(images, samples(VALID))).backward()
        gradients[bool(with_cp)] = [p.grad for p in model.parameters()]
    assert all(torch.equal(a, b) for a, b in zip(*gradients.values(), strict=True))


def test_what_computes_all_images_in_one_pass():
    """Where it is possible: on CUDA, and not with reduced keys, whose values are stretched over the map."""
    images = dict(cpu=torch.empty(0), cuda=SimpleNamespace(is_cuda=True))
    found = {
        (family, device)
        for family in ARCHS
        for device, x in images.items()
        if build(family).backbone.computes_padded(x)
    }
    assert found == {(family, "cuda") for family in IN_ONE_PASS}
    reduced = build("FLattenPVT", la_sr_ratios=(2, 1, 1, 1)).backbone
    assert not reduced.computes_padded(images["cuda"])


def test_one_pass_saves_operators(monkeypatch):
    """In training, the kernels being one operator, as on CUDA; two sizes one after the other take twice."""
    monkeypatch.setattr(module, "choose", lambda *_, **__: TRITON)
    backbone, (height, width) = build("FLattenPVT").train().backbone, PADDED
    with FakeTensorMode(allow_non_fake_inputs=True):
        calls = {}
        for sizes in (None, [PADDED, (height // 2, width)]):
            with Operators() as operators:
                outs = backbone.forward_images(torch.empty(2, 3, *PADDED), sizes)
                torch.autograd.backward(outs, [torch.empty_like(x) for x in outs])
            calls[sizes is not None] = len(operators.names)
    assert calls[True] < 0.65 * 2 * calls[False]


@pytest.mark.slow
def test_a_compiled_model_follows_the_sizes():
    model, images = build("FLattenPVT").eval(), batch()
    calls = [samples(VALID), samples([(64, 96)] * 4), None]
    with torch.no_grad():
        expected = [model(images, call) for call in calls]
        model.forward = torch.compile(model.forward, backend="eager", dynamic=True)
        for call, maps in zip(calls, expected, strict=True):
            torch.testing.assert_close(model(images, call), maps, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("convert", [lambda x: x, lambda x: x.contiguous().clone()])
def test_branches_of_semi_supervised_detectors(convert):
    """They call the detector within them past its ``__call__``, branch by branch."""
    model = build("FLattenPVT").eval()
    images = {"sup": batch(), "unsup": batch(VALID[1:])}
    described = {"sup": samples(VALID), "unsup": samples(VALID[1:])}
    with torch.no_grad():
        expected = {key: model(images[key], described[key]) for key in images}
        model.forward = lambda inputs, data_samples: {
            key: model.backbone(convert(branch)) for key, branch in inputs.items()
        }
        found = model(images, described)
    for key in images:
        assert all(torch.equal(a, b) for a, b in zip(found[key], expected[key], strict=True))


def test_which_of_two_equal_branches_is_told_by_the_tensor():
    model = build("FLattenPVT").eval()
    others = [(64, 96)] * 4
    images = {"sup": batch(), "unsup": batch(others)}
    with torch.no_grad():
        expected = model(images["unsup"], samples(others)), model.backbone(images["unsup"])
        model.forward = lambda inputs, data_samples: (
            model.backbone(inputs["unsup"]),
            model.backbone(inputs["unsup"].clone()),  # Could be either: nothing is known.
        )
        found = model(images, {"sup": samples(VALID), "unsup": samples(others)})
    for outputs, maps in zip(found, expected, strict=True):
        assert all(torch.equal(a, b) for a, b in zip(outputs, maps, strict=True))


@pytest.mark.parametrize(("family", "in_one_pass"), WAYS)
def test_under_autocast(family, in_one_pass):
    model, images = build(family).eval(), batch()
    if in_one_pass:
        compute_in_one_pass(model)
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        together = model(images, samples(VALID))
        for index, (height, width) in enumerate(VALID):
            alone = model(images[index : index + 1, :, :height, :width])
            for level, stride in enumerate(model.backbone.strides):
                found, expected = own(together[level], index, stride), alone[level][0]
                assert found.dtype == expected.dtype
                # As far apart as two orders of summation are.
                assert (found - expected).norm() <= 2e-2 * expected.norm()


def test_crops_of_sliding_windows_are_not_taken_for_the_images():
    model, images = build("FLattenPVT").eval(), batch()
    model.forward = lambda inputs, data_samples: model.backbone(inputs[:, :, :64, :64])
    with torch.no_grad():
        found, expected = model(images, samples(VALID)), model.backbone(images[:, :, :64, :64])
    assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))


def test_a_model_within_a_model_has_its_own_images():
    teacher, student = build("FLattenPVT").eval(), build("FLattenPVT").eval()
    images, others = batch(), batch([(64, 96)] * 4)

    def forward(inputs, data_samples):
        inner = teacher(others, samples([(64, 96)] * 4))
        return inner, student.backbone(inputs)

    student.forward = forward
    with torch.no_grad():
        inner, outer = student(images, samples(VALID))
        for found, model, args in (
            (inner, teacher, (others, samples([(64, 96)] * 4))),
            (outer, build("FLattenPVT").eval(), (images, samples(VALID))),
        ):
            assert all(torch.equal(a, b) for a, b in zip(found, model(*args), strict=True))
        plain = student.backbone(images)
    assert not torch.equal(outer[0], plain[0])
