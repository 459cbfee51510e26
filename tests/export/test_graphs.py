"""Exported graphs compute what torch does, for images and batches of any size."""

import io
import json
import subprocess
import sys

import onnx
import pytest
import torch
import torch.nn.functional as F
from exported_models import SHAPES, OneInput, exported, nano_segmentor, run_onnx
from nano_backbones import build_nano
from torch import nn

from flatten_det.attention import FocusedLinearAttention
from flatten_det.backbones.softmax_attention import CrossShapedAttention, ShiftedWindowAttention
from flatten_det.errors import UserError
from flatten_det.export.check import relative_difference
from flatten_det.export.exporters import METADATA_FILE, example, to_program
from flatten_det.export.graphs import _MeanOverParts, of_backbone, of_segmentor, prepared


def assert_computes(run, wanted, dtype=torch.float32, shapes=SHAPES, tolerance=1e-5):
    for count, *size in shapes:
        image = example(dtype, (count, 3, *size))
        with torch.no_grad():
            expected = wanted(image)
        for own, other in zip(run(image), expected, strict=True):
            assert own.shape == other.shape
            assert own.isfinite().all()
            assert relative_difference(own, other) < tolerance


AXES = {"image": {0: "batch", 2: "height", 3: "width"}}


def export_as_users_do(backbone, *file, **options):
    inputs = (torch.randn(2, 3, 128, 160),)
    return torch.onnx.export(OneInput(backbone), inputs, *file, input_names=["image"], **options)


# Both attentions in one model.
@pytest.mark.parametrize(
    ("family", "types"),
    [
        ("FLattenPVT", "LLSS"),
        ("FLattenSwin", "LLSS"),
        ("FLattenCSwin", "LLSS"),
        pytest.param("FLattenPVTv2", "LLSS", marks=pytest.mark.slow),
        pytest.param("FLattenDeiT", "L", marks=pytest.mark.slow),
    ],
)
def test_users_export_a_backbone_by_the_older_exporter(family, types):
    backbone = build_nano(family, types).eval()
    content = io.BytesIO()
    export_as_users_do(backbone, content, dynamo=False, dynamic_axes=AXES)
    assert_computes(lambda image: run_onnx(content.getvalue(), image), backbone)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("family", "types"),
    [("FLattenPVT", "LLLL"), ("FLattenSwin", "LLSS"), ("FLattenCSwin", "LLSS")],
)
def test_users_export_a_backbone(family, types):
    """In standard operators, without a variable."""
    backbone = build_nano(family, types).eval()
    program = export_as_users_do(backbone, dynamo=True, dynamic_shapes=AXES, verbose=False)
    model = program.model_proto
    assert {node.domain for node in model.graph.node} == {""}
    assert not model.functions
    onnx.checker.check_model(model, full_check=True)
    content = model.SerializeToString()
    assert_computes(lambda image: run_onnx(content, image), backbone)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("family", "options"),
    [("FLattenSwin", {"la_window_size": 7}), ("FLattenPVT", {"la_sr_ratios": (4, 2, 1, 1)})],
)
def test_windows_and_reduced_keys_of_linear_attention(family, options):
    backbone = build_nano(family, **options).eval()
    content = exported(of_backbone(backbone))
    assert_computes(lambda image: run_onnx(content, image), backbone)


@pytest.mark.parametrize(
    ("head", "precision", "legacy"),
    [
        ("FPNHead", "fp32", True),
        ("UPerHead", "fp16", True),
        pytest.param("UPerHead", "fp16", False, marks=pytest.mark.slow),
        pytest.param("UPerHead", "fp32", True, marks=pytest.mark.slow),
        pytest.param("SegformerHead", "fp32", True, marks=pytest.mark.slow),
    ],
)
def test_segmentors(head, precision, legacy):
    """What mmseg's own model returns."""
    model = nano_segmentor(head)
    content = exported(of_segmentor(model, "resized"), legacy, precision)
    assert_computes(
        lambda image: run_onnx(content, image),
        lambda image: [predicted_logits(model, image)],
        torch.uint8,
        tolerance=1e-5 if precision == "fp32" else 2e-2,
    )


def predicted_logits(model, image):
    """What mmseg makes of an image as it is loaded, BGR."""
    data = model.data_preprocessor({"inputs": list(image.flip(1))})
    samples = model.predict(data["inputs"])
    return torch.stack([sample.seg_logits.data for sample in samples])


@pytest.mark.parametrize("num_classes", [1, 5])
def test_labels_of_segmentors(num_classes):
    model = nano_segmentor("FPNHead", num_classes=num_classes)
    image = example(torch.uint8, (2, 3, 101, 133))
    with torch.no_grad():
        logits = predicted_logits(model, image)
    wanted = logits.argmax(1)
    if num_classes == 1:
        model.decode_head.threshold = logits.median().item()
        wanted = (logits[:, 0] > model.decode_head.threshold).long()
    (labels,) = run_onnx(exported(of_segmentor(model, "labels")), image)
    assert labels.dtype == torch.int64
    assert (labels == wanted).float().mean() > 0.999
    assert len(wanted.unique()) > 1


@pytest.mark.parametrize("channels", ["rgb", "bgr"])
def test_channels_are_those_that_the_model_learnt(channels):
    model = nano_segmentor("SegformerHead")
    model.data_preprocessor._channel_conversion = channels == "rgb"
    graph = of_segmentor(model, "resized")
    image = example(torch.uint8, (1, 3, 64, 64))
    with torch.no_grad():
        torch.testing.assert_close(graph(image), predicted_logits(model, image))


@pytest.mark.slow
def test_programs_run_without_flatten_det(tmp_path):
    """In a process that never imports it, for other sizes than the example's."""
    graph = of_backbone(build_nano("FLattenPVT").eval())
    path, images, results = (
        tmp_path / name for name in ("backbone.pt2", "images.pt", "results.pt")
    )
    path.write_bytes(to_program(prepared(graph), torch.float32, {"task": "backbone"}))
    inputs = [example(torch.float32, (count, 3, *size)) for count, *size in SHAPES]
    torch.save(inputs, images)
    code = (
        "import sys, torch\n"
        f"extra = {{{METADATA_FILE!r}: ''}}\n"
        f"program = torch.export.load({str(path)!r}, extra_files=extra).module()\n"
        f"found = [program(image) for image in torch.load({str(images)!r})]\n"
        f"torch.save([list(maps) for maps in found], {str(results)!r})\n"
        "assert not [name for name in sys.modules if name.startswith('flatten_det.')]\n"
        f"print(extra[{METADATA_FILE!r}])\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    assert json.loads(done.stdout) == {"task": "backbone"}
    found = iter(torch.load(results))
    assert_computes(lambda image: next(found), graph)


@pytest.mark.slow
def test_programs_with_windows():
    graph = of_backbone(build_nano("FLattenSwin").eval())
    content = io.BytesIO(to_program(prepared(graph), torch.float32, {}))
    program = torch.export.load(content).module()
    assert_computes(program, graph, shapes=[(1, 256, 352), (3, 301, 267)])


@pytest.mark.slow
def test_openvino_reads_the_files():
    import openvino

    model = nano_segmentor("UPerHead", "FLattenSwin")
    content = exported(of_segmentor(model, "resized"))
    full = {"INFERENCE_PRECISION_HINT": "f32"}
    compiled = openvino.Core().compile_model(openvino.Core().read_model(content), "CPU", full)
    assert_computes(
        lambda image: [torch.from_numpy(compiled(image.numpy())[0])],
        lambda image: [predicted_logits(model, image)],
        torch.uint8,
        tolerance=1e-4,
    )


def test_means_over_parts():
    pool = nn.AdaptiveAvgPool2d((3, 6))
    for size in ((2, 5), (3, 6), (17, 31)):
        x = torch.randn(2, 4, *size)
        torch.testing.assert_close(_MeanOverParts(pool.output_size)(x), pool(x))


def test_half_precision_leaves_norms_alone():
    graph = prepared(of_backbone(build_nano("FLattenPVT").eval()), "fp16")
    kinds = {name: parameter.dtype for name, parameter in graph.named_parameters()}
    norms = {name for name in kinds if "norm" in name}
    assert norms
    assert {kinds[name] for name in norms} == {torch.float32}
    assert {kinds[name] for name in kinds.keys() - norms} == {torch.float16}


def test_exporting_changes_nothing_of_the_model():
    model = nano_segmentor("UPerHead")
    before = {name: value.clone() for name, value in model.state_dict().items()}
    parts = [type(module) for module in model.modules()]
    exported(of_segmentor(model, "labels"), precision="fp16")
    assert [type(module) for module in model.modules()] == parts
    for name, value in model.state_dict().items():
        assert value.dtype == before[name].dtype
        assert torch.equal(value, before[name])


def test_shifted_windows_and_stripes_of_symbols(monkeypatch):
    """What a graph computes, without a graph."""
    cases = [
        (ShiftedWindowAttention(8, 2, 7, shift).eval(), size)
        for size in ((3, 5), (7, 7), (8, 6), (20, 16))
        for shift in (0, 3)
    ]
    cases += [(CrossShapedAttention(8, 2, 7).eval(), size) for size in ((3, 5), (7, 14), (8, 20))]
    name = "flatten_det.backbones.softmax_attention.are_numbers"
    for attention, size in cases:
        x = torch.randn(2, size[0] * size[1], 8)
        wanted = attention(x, size)
        with monkeypatch.context() as patch:
            patch.setattr(name, lambda sizes: False)
            torch.testing.assert_close(attention(x, size), wanted)


def test_torch_export_keeps_the_operator_for_users():
    layer = FocusedLinearAttention(32, 2, grid_size=(4, 4)).eval()
    with torch.no_grad():
        program = torch.export.export(layer, (torch.randn(1, 48, 32),), {"hw_shape": (6, 8)})
    assert "flatten_det.focused_linear_attention" in str(program.graph)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda model: model.test_cfg.update(mode="slide"), "sliding windows"),
        (lambda model: setattr(model.data_preprocessor, "test_cfg", dict(size=(1, 1))), "pads"),
        (lambda model: setattr(model, "decode_head", nn.Identity()), "Identity cannot be exported"),
    ],
)
def test_what_predicts_otherwise_is_refused(change, message):
    model = nano_segmentor("FPNHead")
    change(model)
    with pytest.raises(UserError, match=message):
        of_segmentor(model, "logits")
    with pytest.raises(UserError, match="Conv2d cannot be exported alone"):
        of_backbone(nn.Conv2d(1, 1, 1))


def test_pads_of_symbols_are_those_of_numbers():
    """The padding of patches that is constant in a graph reaches no token."""
    backbone = build_nano("FLattenCSwin", "LLLL").eval()
    embed = backbone.patch_embed1
    for width in range(64, 70):
        x = torch.randn(1, 3, 64, width)
        patch, _, padding = embed.geometry
        more = patch - 1 - 2 * padding
        (own, own_shape), (other, shape) = embed(x), embed(F.pad(x, (0, 0, 0, 0)))
        assert own_shape == shape == (16, -(-width // 4))
        wide = embed.proj(F.pad(x, (0, more, 0, more)))
        assert wide.shape[2:] == shape
        torch.testing.assert_close(embed.norm(wide.flatten(2).transpose(1, 2)), other)
        torch.testing.assert_close(own, other)
