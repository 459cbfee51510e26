"""What needs a CUDA card: the kernels' numbers, graphs, the compiler, and a training step of each method.

``uv run pytest -m gpu`` runs it, in processes of its own, as most of the time goes into compiling kernels.
Where mmengine and the frameworks are missing, ``python -m pytest --noconftest -o addopts= tests/test_gpu.py``
runs what needs torch and Triton only. ``FLATTEN_DET_TEST_DEVICE=cpu`` tries the tests without a card.
"""

import os
import sys
import threading
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from copy import deepcopy
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
import torch
from attention_cases import TOLERANCES, exact, make_inputs, relative_error, with_gradients
from torch import multiprocessing

from flatten_det.attention import FocusedLinearAttention, dispatch, focused_linear_attention

CONFIGS = Path(__file__).parents[1] / "configs"
DEVICE = os.environ.get("FLATTEN_DET_TEST_DEVICE", "cuda")
FAST = "triton" if DEVICE == "cuda" else "tiled"
WORKERS = max(1, min((os.cpu_count() or 1) - 2, 12))
pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(
        DEVICE == "cuda" and not torch.cuda.is_available(), reason="torch finds no CUDA card"
    ),
]
needs_card = pytest.mark.skipif(DEVICE != "cuda", reason=f"nothing to try on the {DEVICE}")

FLOAT32, FLOAT16, BFLOAT16 = TOLERANCES


class Case(NamedTuple):
    """Arguments of ``make_inputs``."""

    hw_shape: tuple[int, int]
    num_heads: int
    head_dim: int
    batch: int = 2
    factor: float = 1.0
    kernel_size: int = 5
    dtype: torch.dtype = torch.float32
    rows: str = "random"


CASES = [
    *(Case((17, 241), h, d, dtype=t) for h, d in ((1, 64), (3, 32)) for t in TOLERANCES),
    *(Case((56, 56), h, d, dtype=BFLOAT16) for h, d in ((2, 64), (5, 64), (8, 64), (16, 64))),
    *(Case((25, 40), h, d, dtype=FLOAT16) for h, d in ((6, 32), (4, 24), (2, 48), (1, 16))),
    *(Case((9, 7), h, d, dtype=FLOAT32) for h, d in ((5, 64), (24, 32))),
    *(Case((200, 320), 1, 64, batch=1, dtype=t) for t in (FLOAT32, BFLOAT16)),
    *(Case(hw, 2, 64, dtype=t) for hw in ((1, 1), (1, 7)) for t in TOLERANCES),
    *(Case((7, 7), 1, 64, rows=r, dtype=FLOAT16) for r in ("negative", "zero", "constant")),
    *(Case((7, 7), 3, 32, rows=r, dtype=BFLOAT16) for r in ("negative", "zero", "constant")),
    *(Case((17, 241), 3, 32, factor=f, dtype=FLOAT16) for f in (1e-4, 1e3)),
    *(Case((25, 40), 1, 64, kernel_size=k, dtype=BFLOAT16) for k in (0, 3, 7)),
]
CONFIG_OF_METHOD = {
    "mask_rcnn/mask-rcnn_flatten-pvt-t_fpn_1x_coco": FLOAT16,
    "mask_rcnn/mask-rcnn_flatten-cswin-t_fpn_1x_coco": BFLOAT16,
    "mask_rcnn/mask-rcnn_flatten-deit-t_sfp_1x_coco": BFLOAT16,
    "retinanet/retinanet_flatten-pvtv2-b0_fpn_1x_coco": FLOAT32,
    "cascade_mask_rcnn/cascade-mask-rcnn_flatten-swin-t_fpn_3x_coco": FLOAT16,
    "dino/dino-4scale_flatten-swin-t_8xb2-12e_coco": FLOAT16,
    "deformable_detr/deformable-detr_flatten-pvtv2-b2_16xb2-50e_coco": FLOAT32,
    "mask2former/mask2former_flatten-swin-t_8xb2-lsj-50e_coco": BFLOAT16,
    "semantic_fpn/flatten-pvt-t_semantic-fpn_4xb4-80k_ade20k-512x512": FLOAT16,
    "upernet/flatten-swin-t_upernet_8xb2-160k_ade20k-512x512": BFLOAT16,
    "segformer/flatten-pvtv2-b2_segformer_8xb1-160k_cityscapes-1024x2048": FLOAT32,
}


@pytest.fixture(scope="module")
def pool():
    """Processes that run functions of this file."""
    # A fork would share the card's context, which does not survive it.
    context = multiprocessing.get_context("spawn")
    executor = ProcessPoolExecutor(WORKERS, context, _import_from, (sys.path,))
    yield executor
    executor.shutdown(cancel_futures=True)


def _import_from(path: list[str]) -> None:
    sys.path[:] = path
    torch.set_num_threads(1)
    # Beside the other processes no time is worth comparing.
    os.environ["FLATTEN_DET_AUTOTUNE"] = "0"


@pytest.fixture(scope="module")
def submitted(pool, request):
    """All work of the tests that were selected, at once: by parameter, what will come of it."""
    work = {
        "case": lambda case: pool.submit(compute, case),
        "config": lambda config: pool.submit(train_a_step, config, CONFIG_OF_METHOD[config]),
    }
    parameters = [
        (name, value)
        for item in request.session.items
        if item.module is request.module and hasattr(item, "callspec")
        for name, value in item.callspec.params.items()
        if name in work
    ]
    # The longest first.
    return {
        value: work[name](value) for name, value in sorted(parameters, key=lambda x: x[0] == "case")
    }


def compute(case: Case) -> dict[str, tuple[float, float, float]]:
    """By name of output and gradients: relative error, the reference's, and whether two runs are equal."""
    made = make_inputs(*case)
    inputs = {name: None if x is None else x.to(DEVICE) for name, x in made.items()}
    # Views of one tensor, as a projection returns them.
    fused = torch.cat([inputs[name] for name in "qkv"], dim=-1).chunk(3, dim=-1)
    inputs |= dict(zip("qkv", fused, strict=True))
    grad = torch.randn(inputs["q"].shape, generator=torch.Generator().manual_seed(0)).to(DEVICE)
    options = dict(num_heads=case.num_heads, hw_shape=case.hw_shape)

    def run(**more):
        out, gradients = with_gradients(
            focused_linear_attention, inputs, grad.to(case.dtype), **options, **more
        )
        return {"out": out, **gradients}

    out, gradients = exact(inputs, grad.to(case.dtype), **options)
    expected, first, again = {"out": out, **gradients}, run(), run()
    plain = run(implementation="reference")
    return {
        name: (
            relative_error(first[name], expected[name]),
            relative_error(plain[name], expected[name]),
            torch.equal(first[name], again[name]),
        )
        for name in expected
    }


@pytest.mark.parametrize("case", CASES, ids=str)
def test_values_and_gradients(case, submitted):
    """Within the tolerance, or as close as the reference comes in float32; the same in every run."""
    results = submitted[case].result()
    allowed = TOLERANCES[case.dtype]
    wrong = {name: r for name, r in results.items() if not r[0] <= max(allowed, 10 * r[1])}
    assert not wrong
    assert all(is_equal for _, _, is_equal in results.values())


@pytest.fixture
def chosen(monkeypatch):
    """Implementations that were run."""
    names, run = [], dispatch.run

    def spy(choice, *args, **kwargs):
        names.append(choice)
        return run(choice, *args, **kwargs)

    for module in (dispatch, sys.modules[FocusedLinearAttention.__module__]):
        monkeypatch.setattr(module, "run", spy)
    return names


def make_layer(size: tuple[int, int], **options):
    torch.manual_seed(0)
    layer = FocusedLinearAttention(64, 2, (7, 7), **options).to(DEVICE)
    for parameter in layer.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    return layer, torch.randn(2, size[0] * size[1], 64, device=DEVICE)


@pytest.mark.parametrize("dtype", [BFLOAT16, FLOAT32])
def test_the_kernels_are_the_default(dtype, chosen):
    layer, x = make_layer((20, 30))
    with torch.autocast(DEVICE, dtype, enabled=dtype != FLOAT32):
        layer(x, (20, 30)).float().square().mean().backward()
    assert chosen == [FAST]


@pytest.mark.parametrize("options", [dict(focusing_factor=4), dict(fused_qkv=False, sr_ratio=2)])
def test_what_the_kernels_cannot_compute(options, chosen):
    layer, x = make_layer((20, 30), **options)
    layer(x, (20, 30)).square().mean().backward()
    assert chosen[0] in ("plain", "reference", "tiled")
    assert all(p.grad.isfinite().all() for p in layer.parameters())


@needs_card
def test_a_graph_replays_a_forward():
    layer, x = make_layer((20, 30))
    with torch.no_grad(), torch.autocast("cuda", BFLOAT16):
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            for _ in range(3):
                layer(x, (20, 30))
        torch.cuda.current_stream().wait_stream(stream)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            out = layer(x, (20, 30))
        x.copy_(torch.randn_like(x))
        graph.replay()
        assert torch.equal(out, layer(x, (20, 30)))


SMALL = dict(embed_dims=(32, 64, 128, 128), num_heads=(1, 2, 4, 4), depths=(1, 1, 1, 1))
SMALL_SWIN = dict(embed_dims=32, num_heads=(1, 2, 4, 4), depths=(2, 1, 2, 1))


@pytest.fixture
def graphed(monkeypatch):
    """Makes a backbone that replays graphs, and the same without; on the CPU operations stand in for them."""
    pytest.importorskip("mmengine")
    from graph_recorder import CpuRecorder

    from flatten_det.backbones import build_backbone, cuda, use_cuda_graphs

    if DEVICE == "cpu":
        monkeypatch.setattr(cuda, "Recorder", CpuRecorder)

    def make(name: str, **options):
        torch.manual_seed(0)
        backbone = build_backbone(name, **options).to(DEVICE).eval()
        with torch.no_grad():
            for parameter in backbone.parameters():
                parameter.add_(torch.randn_like(parameter), alpha=0.02)
        plain = deepcopy(backbone)  # not compiled either
        use_cuda_graphs(backbone)
        return backbone, plain

    return make


@contextmanager
def inference(dtype: torch.dtype):
    with torch.inference_mode(), torch.autocast(DEVICE, dtype, enabled=dtype != FLOAT32):
        yield


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("flatten-pvt-t", dict(arch=SMALL)),
        ("pvt-t", dict(arch=SMALL)),
        ("pvtv2-b0", dict(arch=SMALL)),
        ("flatten-swin-t", dict(arch=SMALL_SWIN)),
        ("flatten-cswin-t", dict(arch=SMALL_SWIN | dict(num_heads=(2, 2, 4, 4)))),
        ("flatten-pvt-t", dict(arch=SMALL, compile=True)),
    ],
    ids=str,
)
def test_backbones_replay_graphs(name, options, graphed):
    """Two sizes and two precisions in turns, while weights are written so that nothing tells."""
    if options.get("compile") and DEVICE == "cpu":
        pytest.skip("a graph holds no compiled code on the CPU")
    backbone, plain = graphed(name, **options)
    sizes = [(96, 128), (75, 101)]
    with torch.backends.cudnn.flags(enabled=True, allow_tf32=False):
        for _ in range(4):
            for size in sizes:
                x = torch.randn(2, 3, *size, device=DEVICE)
                for dtype in (BFLOAT16, FLOAT32):
                    with inference(dtype):
                        found, expected = backbone(x), plain(x)
                    for a, b in zip(found, expected, strict=True):
                        assert relative_error(a, b) < (5e-2 if dtype == BFLOAT16 else 1e-3)
            for parameter in backbone.parameters():
                parameter.data.mul_(0.9)
            plain.load_state_dict(backbone.state_dict())
    assert len(backbone.forward.__self__._graphs) == 4


@needs_card
def test_graphs_beside_other_threads_and_streams(graphed):
    """Data loaders pin memory meanwhile; and who replays on another stream gets the same."""
    backbone, plain = graphed("flatten-pvt-t", arch=SMALL)
    stop, errors = threading.Event(), []

    def pin():
        try:
            while not stop.is_set():
                torch.empty(1 << 20).pin_memory()
        except Exception as error:
            errors.append(error)

    thread = threading.Thread(target=pin)
    thread.start()
    try:
        with inference(BFLOAT16):
            for count in range(12):
                x = torch.randn(1, 3, 64 + 32 * (count % 3), 96, device="cuda")
                expected = plain(x)[0]
                stream = torch.cuda.Stream()
                stream.wait_stream(torch.cuda.current_stream())
                with torch.cuda.stream(stream if count > 8 else torch.cuda.current_stream()):
                    found = backbone(x)[0]
                torch.cuda.synchronize()
                assert relative_error(found, expected) < 2e-2
    finally:
        stop.set()
        thread.join()
    assert not errors
    assert len(backbone.forward.__self__._graphs) == 3


def test_a_pass_that_no_graph_can_hold(graphed, monkeypatch):
    """It goes on without one; and other backbones go on with theirs."""
    backbone, plain = graphed("flatten-pvt-t", arch=SMALL)
    other, _ = graphed("flatten-pvt-t", arch=SMALL)
    inner = backbone.forward_images
    monkeypatch.setattr(backbone, "forward_images", lambda x: inner(x * (x.sum().item() > -1e9)))
    x = torch.randn(1, 3, 64, 96, device=DEVICE)
    with inference(FLOAT32):
        expected = plain(x)[0]
        other(x), other(x), backbone(x)
        with pytest.warns(UserWarning, match="a pass cannot be captured"):
            found = [backbone(x)[0]]
        found += [backbone(x)[0], other(x)[0]]
    assert all(relative_error(y, expected) < 1e-3 for y in found)


@needs_card
def test_a_graph_takes_the_host_no_time(graphed):
    from flatten_det.lab.benchmark.timing import host_seconds

    backbone, plain = graphed("flatten-pvt-t")
    x = torch.randn(1, 3, 224, 224, device="cuda")
    with inference(BFLOAT16):
        for model in (plain, backbone, backbone, backbone):
            model(x)
        ours, eager = (host_seconds(lambda m=m: m(x), x.device, 20) for m in (backbone, plain))
    assert ours < eager / 2


@needs_card
def test_other_sizes_compile_nothing():
    from triton.runtime.jit import JITFunction

    def compiled() -> int:
        modules = [m for n, m in sys.modules.items() if n.startswith("flatten_det.attention.gpu.")]
        kernels = {v for m in modules for v in vars(m).values() if isinstance(v, JITFunction)}
        return sum(len(cache[0]) for k in kernels for cache in k.device_caches.values())

    layer, _ = make_layer((1, 1))
    counts = []
    for height, width in ((40, 60), (33, 57), (47, 41), (44, 64)):
        x = torch.randn(2, height * width, 64, device="cuda")
        layer(x, (height, width)).sum().backward()
        counts.append(compiled())
    assert 0 < counts[0] == counts[-1]


@pytest.mark.parametrize("grad", [False, True])
def test_compiled_block(grad):
    pytest.importorskip("mmengine")
    from flatten_det.backbones import build_backbone

    torch.manual_seed(0)
    block = build_backbone("flatten-pvt-t", arch=SMALL).to(DEVICE).block1[0]
    results = []
    for function in (block, torch.compile(block, fullgraph=True, dynamic=True)):
        for size in ((24, 32), (20, 28)):
            generator = torch.Generator().manual_seed(0)
            x = torch.randn(2, size[0] * size[1], 32, generator=generator).to(DEVICE)
            x.requires_grad_(grad)
            with torch.set_grad_enabled(grad):
                out = function(x, size)
                results.append([out.detach()])
                if grad:
                    wanted = [x, *block.parameters()]
                    results[-1] += torch.autograd.grad(out.square().sum(), wanted)
    for plain, compiled in zip(results[:2], results[2:], strict=True):
        for expected, found in zip(plain, compiled, strict=True):
            assert relative_error(found, expected) < 1e-4


def test_images_of_several_sizes():
    """Maps and gradients are those of each image alone; on CUDA in one pass."""
    pytest.importorskip("mmengine")
    from flatten_det.backbones import build_backbone

    torch.manual_seed(0)
    for name in ("flatten-pvt-t", "pvtv2-b0"):
        backbone = build_backbone(name, arch=SMALL).to(DEVICE).train()
        images, sizes = torch.randn(2, 3, 128, 160, device=DEVICE), [(128, 96), (77, 160)]
        assert backbone.computes_padded(images) == (DEVICE == "cuda")
        parameters = list(backbone.parameters())
        with torch.backends.cudnn.flags(enabled=True, allow_tf32=False):
            together = backbone.forward(images, sizes)
            alone = [backbone(images[i : i + 1, :, :h, :w]) for i, (h, w) in enumerate(sizes)]
            found, expected = (
                torch.autograd.grad(sum(x.square().mean() for x in maps), parameters)
                for maps in (own_parts(together, alone), [x for maps in alone for x in maps])
            )
        for a, b in zip(own_parts(together, alone), [x for y in alone for x in y], strict=True):
            assert relative_error(a, b) < 1e-4
        for a, b in zip(found, expected, strict=True):
            assert (a - b).norm() <= 1e-3 * b.norm() + 1e-6


def own_parts(together, alone):
    """Of the padded maps, those that are each image's own."""
    return [
        padded[i : i + 1, :, : own.shape[2], : own.shape[3]]
        for i, maps in enumerate(alone)
        for padded, own in zip(together, maps, strict=True)
    ]


@pytest.mark.parametrize("config", CONFIG_OF_METHOD)
def test_training_step(config, submitted):
    """Losses, gradients and predictions are finite, of two images of different sizes."""
    pytest.importorskip("mmdet")
    pytest.importorskip("mmseg")
    loss, not_finite = submitted[config].result()
    assert np.isfinite(loss)
    assert not not_finite


def train_a_step(name: str, dtype: torch.dtype) -> tuple[float, list[str]]:
    """Build, take the losses' gradients and predict.

    Returns:
        The loss, and the names of the parameters whose gradients are not finite.
    """
    from mmengine.config import Config
    from mmengine.registry import MODELS, init_default_scope

    import flatten_det  # noqa: F401, registers the backbones

    cfg = Config.fromfile(CONFIGS / f"{name}.py")
    init_default_scope(cfg.default_scope)
    torch.manual_seed(0)
    model = MODELS.build(_without_weights(cfg.model))
    model.init_weights()
    model.to(DEVICE).train()
    batch = _batch(cfg.default_scope)
    with torch.autocast(DEVICE, dtype, enabled=dtype != FLOAT32):
        losses = model(**model.data_preprocessor(batch, True), mode="loss")
        loss, _ = model.parse_losses(losses)
    loss.backward()
    grads = {n: p.grad for n, p in model.named_parameters() if p.grad is not None}
    model.eval()
    with torch.no_grad(), torch.autocast(DEVICE, dtype, enabled=dtype != FLOAT32):
        predictions = model.test_step(_batch(cfg.default_scope))
    assert len(predictions) == 2
    assert len(grads) > 100
    return loss.item(), [name for name, grad in grads.items() if not grad.isfinite().all()]


def _without_weights(part):
    """A model's config without checkpoints to load."""
    if isinstance(part, dict):
        pretrained = isinstance(part.get("init_cfg"), dict) and (
            part["init_cfg"].get("type") == "Pretrained"
        )
        for key in part:
            part[key] = None if key == "init_cfg" and pretrained else _without_weights(part[key])
    elif isinstance(part, list):
        return [_without_weights(x) for x in part]
    return part


def _batch(scope: str) -> dict:
    """Two images, of different sizes where the framework takes such."""
    if scope == "mmdet":
        from mmdet.testing import demo_mm_inputs

        # DINO takes 900 queries of the places that there are.
        shapes = [(3, 256, 320), (3, 280, 304)]
        return demo_mm_inputs(2, shapes, num_items=[2, 2], with_mask=True)
    from mmengine.structures import PixelData
    from mmseg.structures import SegDataSample

    size = (256, 320)
    samples = [
        SegDataSample(
            gt_sem_seg=PixelData(data=torch.randint(0, 10, (1, *size))),
            metainfo=dict.fromkeys(("img_shape", "ori_shape", "pad_shape"), size),
        )
        for _ in range(2)
    ]
    images = [torch.randint(0, 255, (3, *size), dtype=torch.uint8) for _ in samples]
    return dict(inputs=images, data_samples=samples)


def test_predictions_in_half_precision():
    """Scores and boxes, as far as rounding lets them be the same."""
    pytest.importorskip("mmdet")
    from flatten_det import Predictor

    name = "retinanet_flatten-pvt-nano_fpn_shapes"
    full, half = (Predictor(name, device=DEVICE, precision=kind) for kind in ("fp32", "fp16"))
    half.model.load_state_dict(full.model.state_dict())
    image = np.random.default_rng(0).integers(0, 256, (128, 128, 3), np.uint8)
    (one,), (other,) = full(image), half(image)
    np.testing.assert_allclose(one.scores, other.scores, atol=2e-3)
    np.testing.assert_allclose(np.sort(one.boxes, 0), np.sort(other.boxes, 0), atol=8)
    assert min(one.milliseconds, other.milliseconds) > 0
