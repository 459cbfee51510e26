"""mmdet's own configs whose models need ops of mmcv's extension: they build, learn and predict."""

import mmdet.datasets  # noqa: F401  registers CLRNet's data preprocessor
import numpy as np
import pytest
import torch
from mmdet.models.dense_heads import CLRHead
from mmdet.structures import DetDataSample
from mmdet.testing import demo_mm_inputs
from mmengine.hub import get_config
from mmengine.registry import MODELS, init_default_scope
from mmengine.structures import PixelData

SIZE = 64


def built(name, change=lambda model: None):
    """The model of one of mmdet's configs, on a ResNet-18, with 16 channels in its neck."""
    init_default_scope("mmdet")
    model = get_config(f"mmdet::{name}").model
    model.backbone.update(depth=18, init_cfg=None)
    change(model)
    return MODELS.build(model)


def narrow_dyhead(model):
    fpn, dyhead = model.neck
    fpn.update(in_channels=[64, 128, 256, 512], out_channels=16)
    dyhead.update(in_channels=16, out_channels=16, num_blocks=1)
    model.bbox_head.update(in_channels=16, feat_channels=16, stacked_convs=0)


def narrow_rcnn(model):
    model.train_cfg.rpn_proposal.max_per_img = model.test_cfg.rpn.max_per_img = 8
    model.train_cfg.rcnn.sampler.num = 16
    model.neck.update(in_channels=[64, 128, 256, 512], out_channels=16)
    model.rpn_head.update(in_channels=16, feat_channels=16)
    extractor = model.roi_head.bbox_roi_extractor
    extractor.out_channels = 16
    extractor.roi_layer.update(output_channels=16, deform_fc_channels=16)
    model.roi_head.bbox_head.update(in_channels=16, fc_out_channels=16)


def narrow_clrnet(model):
    model.neck.in_channels = [64, 128, 256]
    model.head.update(img_w=2 * SIZE, img_h=SIZE, num_priors=32)


def trained(model, data):
    """The losses of one step; every gradient is finite."""
    data = model.data_preprocessor(data, training=True)
    losses, _ = model.parse_losses(model(**data, mode="loss"))
    losses.backward()
    assert all(p.grad.isfinite().all() for p in model.parameters() if p.grad is not None)
    return losses


@pytest.mark.parametrize(
    ("name", "narrow", "learning"),
    [
        ("dyhead/atss_r50_fpn_dyhead_1x_coco.py", narrow_dyhead, "spatial_conv_offset"),
        ("dcn/faster-rcnn_r50_fpn_dpool_1x_coco.py", narrow_rcnn, "offset_fc.4"),
        ("dcnv2/faster-rcnn_r50_fpn_mdpool_1x_coco.py", narrow_rcnn, "mask_fc.2"),
    ],
)
def test_detectors_learn_and_predict(name, narrow, learning):
    """``learning``: a layer that gets its gradient through the op alone."""
    torch.manual_seed(0)
    model = built(name, narrow)
    data = demo_mm_inputs(2, [[3, SIZE, SIZE]] * 2)
    assert trained(model, data) > 0
    weights = [p for n, p in model.named_parameters() if f"{learning}.weight" in n]
    assert any(p.grad is not None and p.grad.any() for p in weights)

    model.eval()
    with torch.no_grad():
        found = model.test_step(data)
    assert len(found) == 2


def lanes(*starts):
    """A head's predictions of lanes straight up from these places on the lower edge, all sure."""
    predictions = torch.zeros(len(starts), 78)
    predictions[:, 1] = torch.arange(9.0, 9 - len(starts), -1)  # logit of "is a lane"
    predictions[:, 3] = torch.tensor(starts)
    predictions[:, 5] = 1  # length
    predictions[:, 6:] = torch.tensor(starts)[:, None]
    return predictions


def test_clrnet_learns_and_predicts(monkeypatch):
    torch.manual_seed(0)
    model = built("clrnet/clrnet.py", narrow_clrnet)
    image = torch.rand(1, 3, SIZE, 2 * SIZE)
    sample = DetDataSample(gt_sem_seg=PixelData(sem_seg=torch.ones(1, SIZE, 2 * SIZE)))
    sample.org_width, sample.org_height = 2 * SIZE, SIZE
    sample.lines_array = np.zeros((1, 78), np.float32)
    # Is a lane; first row, x, angle and length; x in every row.
    sample.lines_array[0, 1:6], sample.lines_array[0, 6:] = (1, 0, SIZE, 0.5, 71), SIZE
    losses = model.bbox_head.loss(model.extract_feat(image), [sample])
    losses["loss"].backward()
    assert all(loss > 0 for loss in losses.values())
    assert model.backbone.layer3[0].conv1.weight.grad.isfinite().all()

    model.eval()
    with torch.no_grad():
        (found,) = model.predict(image, [sample])
    assert len(found.pred_instances.lines) == len(found.pred_instances.line_conf)

    # On a CPU mmdet's head does without suppression.
    head = model.bbox_head
    predictions = lanes(0.5, 0.501, 0.2, 0.8, 0.202)
    assert len(head.get_lanes([predictions.clone()], [2 * SIZE])[0]) == 5
    monkeypatch.setattr(CLRHead, "get_device", lambda self: "cuda")
    (kept,) = head.get_lanes([predictions.clone()], [2 * SIZE])
    assert [round(lane.points[0, 0], 2) for lane in kept] == [0.5, 0.2, 0.8]
