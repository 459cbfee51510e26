"""What whole detectors predict for an image does not depend on the other images of its batch."""

import pytest
import torch
from mmdet.structures import DetDataSample
from mmengine.config import Config
from mmengine.registry import MODELS, DefaultScope
from shrink import CONFIGS, shrunk

# Necks and heads of all kinds: without norms, with group norms, with two kinds of attention.
METHODS = {
    "retinanet": "quickstart/retinanet_flatten-pvt-nano_fpn_shapes.py",
    "mask_rcnn": "mask_rcnn/mask-rcnn_flatten-pvtv2-b0_fpn_1x_coco.py",
    "simple feature pyramid": "mask_rcnn/mask-rcnn_flatten-deit-t_sfp_1x_coco.py",
    "dino": "dino/dino-4scale_flatten-swin-t_8xb2-12e_coco.py",
    "mask2former": "mask2former/mask2former_flatten-swin-t_8xb2-lsj-50e_coco-panoptic.py",
}
# The second is twice as large; all sizes are padded on their own, too.
SIZES = [(60, 90), (120, 180), (60, 90), (100, 72)]


def build(method: str, tmp_path):
    cfg = Config.fromfile(CONFIGS / METHODS[method])
    if "quickstart" not in METHODS[method]:
        cfg = shrunk(cfg, tmp_path, tmp_path)
    cfg.model.backbone.init_cfg = None
    test_cfg = cfg.model.test_cfg
    # With random weights nothing is sure of anything.
    test_cfg.get("rcnn", test_cfg).update(score_thr=0.0, max_per_img=20)
    test_cfg.update(object_mask_thr=0.0, iou_thr=0.0)
    if "rpn" in test_cfg:
        test_cfg.rpn.update(nms_pre=100, max_per_img=50)
    torch.manual_seed(0)
    model = MODELS.build(cfg.model)
    model.init_weights()
    for name, parameter in model.named_parameters():
        # What a bias adds to the padding is what the heads see of it.
        if name.endswith("bias"):
            torch.nn.init.normal_(parameter, std=0.3)
    return model.eval()


def images(sizes) -> list[torch.Tensor]:
    torch.manual_seed(1)
    return [torch.randint(0, 255, (3, *size), dtype=torch.uint8) for size in sizes]


def predict(model, inputs: list[torch.Tensor]) -> list[dict[str, torch.Tensor]]:
    data = dict(inputs=inputs, data_samples=[])
    for index, image in enumerate(inputs):
        size = tuple(image.shape[1:])
        info = dict(img_shape=size, ori_shape=size, scale_factor=(1.0, 1.0), img_id=index)
        data["data_samples"].append(DetDataSample(metainfo=info))
    with torch.no_grad():
        predictions = model.test_step(data)
    assert [prediction.img_id for prediction in predictions] == list(range(len(inputs)))
    return [_tensors(prediction) for prediction in predictions]


def _tensors(prediction: DetDataSample) -> dict[str, torch.Tensor]:
    if "pred_panoptic_seg" in prediction:
        return {"panoptic": prediction.pred_panoptic_seg.sem_seg}
    found = prediction.pred_instances
    assert len(found)
    return {name: found[name] for name in found.keys()}  # noqa: SIM118  not a dict


def differ(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
    if "panoptic" in a:
        # Of random weights: where two labels are equally likely, rounding decides. Padding changes 2 to 4 %.
        return (a["panoptic"] != b["panoptic"]).float().mean() > 0.015
    return any(
        a[name].shape != b[name].shape
        or not torch.allclose(a[name].float(), b[name].float(), rtol=1e-4, atol=1e-4)
        for name in a
    )


@pytest.mark.parametrize("method", METHODS)
def test_predictions_do_not_depend_on_batch_mates(method, tmp_path):
    inputs = images(SIZES)
    with DefaultScope.overwrite_default_scope("mmdet"):
        model = build(method, tmp_path)
        together = predict(model, inputs)
        alone = [predict(model, [image])[0] for image in inputs]
        model.backbone.mask_padding = False
        unmasked = predict(model, inputs)
        unmasked_alone = [predict(model, [image])[0] for image in inputs]
    assert not any(differ(a, b) for a, b in zip(together, alone, strict=True))
    if method == "mask2former":
        pairs = zip(together, alone, strict=True)
        assert all((a["panoptic"] == b["panoptic"]).float().mean() > 0.999 for a, b in pairs)
    # All but the largest are padded.
    found = [differ(a, b) for a, b in zip(unmasked, unmasked_alone, strict=True)]
    assert found == [True, False, True, True]
