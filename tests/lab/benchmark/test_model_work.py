"""What one call of a model is."""

from pathlib import Path

import pytest
import torch
from graph_recorder import CpuRecorder

from flatten_det.attention import FocusedLinearAttention
from flatten_det.backbones import build_backbone, cuda
from flatten_det.lab.benchmark.models import Candidate, build_work, make_candidates
from flatten_det.lab.benchmark.run import Setting
from flatten_det.lab.benchmark.sources import Size, short_name

CONFIGS = Path(__file__).parents[3] / "configs"
SIZE = Size(64, 96)
NAME = "flatten-pvtv2-b0"
WHOLE = [
    "quickstart/mask-rcnn_flatten-pvt-nano_fpn_shapes.py",
    "quickstart/retinanet_flatten-pvt-nano_fpn_shapes.py",
    "quickstart/flatten-pvt-nano_semantic-fpn_shapes.py",
]
LARGER = [
    "cascade_mask_rcnn/cascade-mask-rcnn_flatten-swin-t_fpn_1x_coco.py",
    "deformable_detr/deformable-detr_flatten-pvtv2-b2_16xb2-50e_coco.py",
    "mask2former/flatten-swin-t_mask2former_8xb2-160k_ade20k-512x512.py",
    "mask2former/mask2former_flatten-swin-t_8xb2-lsj-50e_coco-panoptic.py",
    "mask2former/mask2former_flatten-swin-t_8xb2-lsj-50e_coco.py",
    "segformer/flatten-pvtv2-b2_segformer_8xb1-160k_cityscapes-1024x2048.py",
]


@pytest.fixture
def plain():
    """The same model and images as those of a setting, by hand."""
    torch.manual_seed(0)
    model = build_backbone(NAME)
    return model, torch.randn(2, 3, *SIZE.hw)


@pytest.mark.parametrize("fused", [True, False])
def test_inference_is_the_outputs(plain, fused):
    model, images = plain
    work = build_work(Setting(SIZE, batch=2), Candidate(NAME, fused=fused))
    outputs = work()
    for output, expected in zip(outputs, model.eval()(images), strict=True):
        assert not output.requires_grad
        torch.testing.assert_close(output, expected, rtol=1e-3, atol=1e-4)


def test_backbones_are_fused_for_inference_only(monkeypatch):
    fused = []
    monkeypatch.setattr(
        FocusedLinearAttention, "fuse_for_inference", lambda self: fused.append(self)
    )
    build_work(Setting(SIZE), Candidate(NAME, fused=False))
    build_work(Setting(SIZE, "training"), Candidate(NAME))
    assert not fused
    build_work(Setting(SIZE), Candidate(NAME))
    assert len(fused) == 8
    fused.clear()
    build_work(Setting(SIZE), Candidate(str(CONFIGS / WHOLE[2])))
    assert fused


def test_training_is_the_gradients_of_all_parameters(plain):
    model, images = plain
    work = build_work(Setting(SIZE, "training", batch=2), Candidate(NAME))
    first, second = work(), work()
    outputs = model(images)
    factors = work.factors
    assert [f.shape for f in factors] == [o.shape for o in outputs]
    sum((o * f).sum() for o, f in zip(outputs, factors, strict=True)).backward()
    for parameter, one, other in zip(model.parameters(), first, second, strict=True):
        torch.testing.assert_close(one, parameter.grad, rtol=1e-3, atol=1e-3)
        assert torch.equal(one, other)


@pytest.mark.parametrize("amp", [False, True])
def test_low_precision(amp):
    setting = Setting(SIZE, "training", "bf16", amp)
    gradients = build_work(setting, Candidate(NAME))()
    assert {g.dtype for g in gradients} == {torch.float32 if amp else torch.bfloat16}
    outputs = build_work(Setting(SIZE, "inference", "bf16", amp), Candidate("timm:pvt_v2_b0"))()
    assert {o.dtype for o in outputs} == {torch.bfloat16}


@pytest.mark.parametrize(
    "name", [*WHOLE, *(pytest.param(name, marks=pytest.mark.slow) for name in LARGER)]
)
def test_whole_models(name):
    """Inference and a training step whose gradients are finite, and reach the backbone's first layer."""
    size, candidate = Size(96, 128), Candidate(str(CONFIGS / name))
    outputs = build_work(Setting(size), candidate)()
    assert outputs
    assert all(x.isfinite().all() for x in outputs)
    gradients = build_work(Setting(size, "training"), candidate)()
    assert all(g.isfinite().all() for g in gradients)
    assert sum(bool(g.any()) for g in gradients) > 0.8 * len(gradients)


def test_two_stages_run_on_proposals():
    outputs = build_work(Setting(Size(128, 128)), Candidate(str(CONFIGS / WHOLE[0])))()
    # The config asks the RPN for so many: boxes, deltas and masks.
    assert [len(output) for output in outputs] == [100] * 3


@pytest.mark.slow
def test_compiled_models_compute_the_same():
    plain = build_work(Setting(SIZE), Candidate(NAME))()
    compiled = build_work(Setting(SIZE), Candidate(NAME, compiled=True))()
    for one, other in zip(plain, compiled, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("name", ["timm:resnet18", str(CONFIGS / WHOLE[2])])
def test_models_from_graphs_compute_the_same(name, monkeypatch):
    """The backbone of a whole model, and any other as it is."""
    plain = build_work(Setting(SIZE), Candidate(name))()
    without = build_work(Setting(SIZE), Candidate(name, graphs=True))
    with pytest.raises(RuntimeError, match="without CUDA graphs: the images are on cpu"):
        without()
    monkeypatch.setattr(cuda, "Recorder", CpuRecorder)
    work, before = build_work(Setting(SIZE), Candidate(name, graphs=True)), CpuRecorder.replayed
    for _ in range(3):
        for one, other in zip(plain, work(), strict=True):
            torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-3)
    assert CpuRecorder.replayed == before + 2


def test_candidates():
    names = [str(c) for c in make_candidates(["a", "configs/x/b.py", "a"], True, True, True)]
    assert names == [f"{model}{v}" for model in "ab" for v in ("", " compiled", " graphs")]
    assert [str(c) for c in make_candidates(["a"], False, True)] == ["a"]
    assert short_name("mmdet:swin-t") == "mmdet:swin-t"
