"""Detectors from image to boxes are what MMDetection's ``predict`` says, in torch and in ONNX Runtime."""

from copy import deepcopy

import numpy as np
import onnxruntime
import pytest
import torch
from exported_models import let_find
from mmdet.models.roi_heads.mask_heads.fcn_mask_head import _do_paste_mask
from mmdet.structures import DetDataSample
from mmengine.config import Config
from mmengine.registry import MODELS, init_default_scope
from nano_backbones import NANO
from shrink import CONFIGS
from torch import nn
from torch.export import Dim

from flatten_det.config import find_config
from flatten_det.errors import UserError
from flatten_det.export.detector_parts import kept_scores, translations
from flatten_det.export.detectors import end_to_end

RETINANET = "retinanet_flatten-pvt-nano_fpn_shapes"
MASK_RCNN = "mask-rcnn_flatten-pvt-nano_fpn_shapes"
DINO = "dino/dino-4scale_flatten-swin-t_8xb2-12e_coco.py"
KINDS = ("retinanet", "mask-rcnn", "cascade", "dino")


def config(kind: str):
    """A small detector's; the cascade's heads have boxes and masks for each class, and convolutions."""
    if kind == "dino":
        return small_dino()
    cfg = Config.fromfile(find_config(RETINANET if kind == "retinanet" else MASK_RCNN))
    init_default_scope("mmdet")
    model = cfg.model
    model.backbone.arch.depths = (1, 1, 1, 1)
    if kind == "cascade":
        roi_head = model.roi_head
        head = roi_head.bbox_head | dict(
            type="Shared4Conv1FCBBoxHead", conv_out_channels=16, fc_out_channels=32,
            norm_cfg=dict(type="BN"), reg_class_agnostic=False, reg_decoded_bbox=True,
            loss_bbox=dict(type="GIoULoss"),
        )  # fmt: skip
        finer = deepcopy(head)
        finer["bbox_coder"] |= dict(target_stds=[0.05, 0.05, 0.1, 0.1])
        model.type = "CascadeRCNN"
        model.train_cfg.rcnn = [model.train_cfg.rcnn] * 2
        roi_head.mask_head.class_agnostic = False
        roi_head |= dict(
            type="CascadeRoIHead", num_stages=2, stage_loss_weights=[1, 1], bbox_head=[head, finer]
        )
    return model


def small_dino():
    cfg = Config.fromfile(CONFIGS / DINO)
    init_default_scope("mmdet")
    model = cfg.model
    arch = NANO["FLattenSwin"]
    model.backbone = dict(type="FLattenSwin", arch=arch, out_indices=(1, 2, 3))
    model.neck |= dict(
        in_channels=[32, 64, 128], out_channels=32, norm_cfg=dict(type="GN", num_groups=8)
    )
    for part in (model.encoder, model.decoder):
        part.num_layers = 2
        for layer in part.layer_cfg.values():
            layer.embed_dims = 32
        part.layer_cfg.ffn_cfg.feedforward_channels = 32
    model.positional_encoding.num_feats = 16
    model.bbox_head |= dict(num_classes=6, embed_dims=32)
    model |= dict(num_queries=20, test_cfg=dict(max_per_img=30))
    return model


def build(model) -> nn.Module:
    """With random weights that find something in noise: scores of all sizes, boxes near their anchors."""
    torch.manual_seed(0)
    detector = MODELS.build(model).eval()
    if model.type == "DINO":
        for parameter in detector.parameters():
            nn.init.normal_(parameter, std=0.2)
        return detector
    return let_find(detector)


def images(count: int, height: int, width: int) -> torch.Tensor:
    """Random rectangles of random colours, uint8."""
    random = np.random.default_rng(height)
    out = np.full((count, 3, height, width), 128, np.uint8)
    for image in out:
        for y, x, h, w, *colour in random.integers(0, 255, (12, 7)):
            place = np.s_[:, y % height :, x % width :][:3]
            image[place][:, : h % 40 + 5, : w % 40 + 5] = np.array(colour)[:, None, None]
    return torch.from_numpy(out)


def normalised(detector: nn.Module, batch: torch.Tensor) -> torch.Tensor:
    preprocessor = detector.data_preprocessor
    return (batch[:, [2, 1, 0]] - preprocessor.mean) / preprocessor.std


def predict(detector: nn.Module, batch: torch.Tensor) -> list:
    samples = []
    for image in batch:
        size = tuple(image.shape[1:])
        samples.append(DetDataSample(metainfo=dict(img_shape=size, ori_shape=size)))
        samples[-1].set_metainfo(dict(scale_factor=(1.0, 1.0)))
    with torch.inference_mode():
        found = detector.test_step(dict(inputs=list(batch), data_samples=samples))
    return [sample.pred_instances for sample in found]


def assert_same(outs, expected, size, most: int) -> None:
    """Each found row has one of MMDetection's, and the other way round; the rest has the score 0."""
    boxes, scores, labels, *masks = (torch.as_tensor(out) for out in outs)
    for i, own in enumerate(expected):
        count = len(own)
        assert boxes.shape[1] == most >= count > 5
        assert ((scores[i] > 0) == (torch.arange(most) < count)).all()
        torch.testing.assert_close(scores[i, :count], own.scores, rtol=0, atol=1e-4)
        # Scores that are equal but for rounding may have changed places.
        distance = (own.bboxes[:, None] - boxes[i, :count]).abs().amax(2)
        other = distance + 1e4 * (own.labels[:, None] != labels[i, :count])
        nearest, match = other.min(1)
        assert nearest.max() < 0.1
        assert sorted(match) == list(range(count))
        if masks:
            pasted, _ = _do_paste_mask(
                masks[0][i, match][:, None], boxes[i, match], *size, skip_empty=False
            )
            differs = (pasted >= 0.5) != own.masks
            assert own.masks.any()
            assert differs.float().mean() < 1e-4


@pytest.mark.parametrize("kind", KINDS)
def test_boxes_are_those_of_predict(kind):
    detector, size = build(config(kind)), (75, 100)
    module, batch = end_to_end(detector), images(2, *size)
    with torch.inference_mode():
        outs = module(normalised(detector, batch))
    assert outs[2].dtype == torch.int64
    assert len(outs) == len(module.output_names) == (4 if "masks" in module.output_names else 3)
    assert_same(outs, predict(detector, batch), size, most=30)


def test_nothing_found_is_scores_of_zero():
    model = config("mask-rcnn")
    model.test_cfg.rcnn.score_thr = 0.9999
    with torch.inference_mode():
        outs = end_to_end(build(model))(torch.zeros(2, 3, 64, 64))
    assert [out.shape[1:] for out in outs] == [(30, 4), (30,), (30,), (30, 14, 14)]
    assert not outs[1].any()
    assert not outs[3].any()


SEESAW = dict(_delete_=True, type="SeesawLoss", num_classes=6)


@pytest.mark.parametrize(
    ("kind", "changes", "message"),
    [
        ("retinanet", {"type": "ATSS"}, "the detector is a ATSS, .* MaskRCNN, RetinaNet"),
        ("dino", {"data_preprocessor.pad_size_divisor": 32}, "pad_size_divisor=32"),
        ("retinanet", {"bbox_head.type": "FreeAnchorRetinaHead"}, "is a FreeAnchorRetinaHead"),
        ("retinanet", {"test_cfg.nms.type": "soft_nms"}, "test_cfg has nms=.*soft_nms"),
        ("retinanet", {"test_cfg.nms_pre": -1}, "test_cfg.nms_pre must be positive"),
        ("mask-rcnn", {"test_cfg.rpn.nms": None}, "test_cfg.rpn has nms=None"),
        ("mask-rcnn", {"rpn_head.bbox_coder.type": "TBLRBBoxCoder"}, "is a TBLRBBoxCoder"),
        ("mask-rcnn", {"roi_head.type": "PISARoIHead"}, "roi_head is a PISARoIHead"),
        ("mask-rcnn", {"roi_head.mask_head.type": "CoarseMaskHead"}, "mask_head is a Coarse"),
        ("mask-rcnn", {"roi_head.bbox_head.loss_cls": SEESAW}, "loss_cls is a SeesawLoss"),
        ("mask-rcnn", {"roi_head.mask_roi_extractor.roi_layer.pool_mode": "max"}, "'max'"),
    ],
)
def test_what_predicts_otherwise_is_refused(kind, changes, message):
    cfg = Config(dict(model=config(kind)))
    cfg.merge_from_dict({f"model.{name}": value for name, value in changes.items()})
    with pytest.raises(UserError, match=message):
        end_to_end(MODELS.build(cfg.model))


def onnx_session(module: nn.Module, inputs: tuple, shapes: tuple) -> onnxruntime.InferenceSession:
    with torch.no_grad():
        program = torch.onnx.export(
            module, inputs, dynamo=True, dynamic_shapes=shapes,
            custom_translation_table=translations(), verbose=False,
        )  # fmt: skip
    assert {node.domain for node in program.model.graph} == {""}, "operators beyond the standard's"
    return onnxruntime.InferenceSession(program.model_proto.SerializeToString())


def run(session: onnxruntime.InferenceSession, *inputs: torch.Tensor) -> list[torch.Tensor]:
    names = [given.name for given in session.get_inputs()]
    outs = session.run(None, {n: x.numpy() for n, x in zip(names, inputs, strict=True)})
    return [torch.from_numpy(out) for out in outs]


class _Suppression(nn.Module):
    def forward(self, boxes, scores):
        return kept_scores(boxes, scores, 0.5, 7)


def test_suppression_is_that_of_torchvision_in_onnx():
    torch.manual_seed(0)
    boxes = torch.rand(2, 50, 4).sort(2).values * 20
    scores = torch.rand(2, 50) - 0.2
    torch.library.opcheck(kept_scores, (boxes, scores.clamp(min=0), 0.5, 7))
    kept = kept_scores(boxes, scores, 0.5, 7)
    assert ((kept > 0).sum(1) == 7).all()
    assert ((kept == 0) | (kept == scores)).all()
    shapes = ({0: Dim.DYNAMIC, 1: Dim.DYNAMIC},) * 2
    session = onnx_session(_Suppression(), (boxes, scores), shapes)
    for batch in (2, 1):
        torch.testing.assert_close(run(session, boxes[:batch], scores[:batch]), [kept[:batch]])
    nothing = -torch.ones(1, 30)
    assert not run(session, boxes[:1, :30], nothing)[0].any()


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["retinanet", "cascade", "dino"])
def test_boxes_of_onnx_are_those_of_predict(kind):
    detector = build(config(kind))
    example = torch.zeros(2, 3, 128, 160)
    shapes = ({0: Dim.DYNAMIC, 2: Dim.DYNAMIC, 3: Dim.DYNAMIC},)
    session = onnx_session(end_to_end(detector), (example,), shapes)
    for count, *size in ((1, 100, 117), (3, 96, 64), (2, 192, 224)):
        batch = images(count, *size)
        outs = run(session, normalised(detector, batch))
        assert_same(outs, predict(detector, batch), size, most=30)
