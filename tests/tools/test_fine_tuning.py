"""tools/train.py with the options for fine-tuning."""

import math
import re
from types import SimpleNamespace

import pytest
import torch
from mmengine.config import Config
from mmengine.logging import MessageHub
from torch import nn

from flatten_det.errors import UserError
from flatten_det.train.finetune import StopEarlyHook, TakeWhatFitsHook, main_metric

STILL = "optim_wrapper.optimizer.lr=0."


def load(path) -> dict:
    return torch.load(path, weights_only=False)


def test_all_options_at_once(train_tool, trained_segmentor, tmp_path, capsys):
    work_dir = tmp_path / "tuned"
    options = ["--freeze", "1", "--ema", "--save-best", "--work-dir", str(work_dir)]
    options += ["--weights", str(trained_segmentor.checkpoint)]
    fields = ["train_cfg.max_iters=1", "train_cfg.val_interval=1", STILL]
    assert train_tool.main([str(trained_segmentor.config), *options, "--cfg-options", *fields]) == 0
    printed = capsys.readouterr().out
    assert re.search(rf"^weights +{re.escape(str(trained_segmentor.checkpoint))}$", printed, re.M)
    assert "M of them frozen" in printed
    assert "are taken" not in printed  # All of them are.
    source, tuned = load(trained_segmentor.checkpoint), load(work_dir / "iter_1.pth")
    assert "ema_state_dict" in tuned
    for name, value in source["state_dict"].items():
        if "running" not in name and "num_batches" not in name:
            assert torch.equal(tuned["state_dict"][name], value), name
    assert list(work_dir.glob("best_mIoU_iter_1.pth"))


def test_training_ends_early(train_tool, trained_segmentor, tmp_path, capsys):
    fields = ["train_cfg.max_iters=9", "train_cfg.val_interval=1", STILL]
    # Statistics of batches would change the metric.
    fields += ["model.backbone.norm_eval=True", "model.decode_head.norm_cfg.momentum=0."]
    command = [str(trained_segmentor.config), "--early-stopping", "2", "--work-dir", str(tmp_path)]
    assert train_tool.main([*command, "--cfg-options", *fields]) == 0
    assert "the training ends early: " in capsys.readouterr().out
    assert not list(tmp_path.glob("iter_[4-9].pth"))
    assert [path.name for path in tmp_path.glob("best_*.pth")] == ["best_mIoU_iter_1.pth"]


class Tiny(nn.Module):
    def __init__(self, classes: int) -> None:
        super().__init__()
        self.backbone, self.head = nn.Linear(3, 4), nn.Linear(4, classes)


def test_a_head_for_other_classes_is_left_out(caplog):
    warnings = []
    logger = SimpleNamespace(warning=warnings.append)
    checkpoint = {"state_dict": {f"module.{k}": v for k, v in Tiny(5).state_dict().items()}}
    checkpoint["state_dict"]["neck.weight"] = torch.zeros(2)
    hook = TakeWhatFitsHook("theirs.pth")
    hook.after_load_checkpoint(SimpleNamespace(model=Tiny(2), logger=logger), checkpoint)
    assert list(checkpoint["state_dict"]) == ["backbone.weight", "backbone.bias"]
    (told,) = warnings
    assert told == (
        "theirs.pth: 2 of the model's 4 weights are taken; random: head; left out: head, neck"
    )
    backbone_alone = {"state_dict": Tiny(2).backbone.state_dict()}
    with pytest.raises(UserError, match="none of its 2 entries fits the backbone"):
        hook.after_load_checkpoint(SimpleNamespace(model=Tiny(2), logger=logger), backbone_alone)


def test_patience_counts_validations_before_an_interruption():
    hub = MessageHub.get_instance("patience")
    loop = SimpleNamespace(stop_training=False)
    logger = SimpleNamespace(warning=lambda text: None)
    runner = SimpleNamespace(message_hub=hub, train_loop=loop, logger=logger)
    ends = []
    for value in (0.1, 0.3, math.nan, 0.3, 0.4, 0.1, 0.2):
        hub.update_scalar("val/mIoU", value)
        # A new hook each time, as in a training that is interrupted each time.
        StopEarlyHook("mIoU", 2).after_val_epoch(runner, {"mIoU": value})
        ends.append(loop.stop_training)
        loop.stop_training = False
    assert ends == [False, False, False, True, False, False, True]
    with pytest.raises(UserError, match="no metric mAP, only mIoU"):
        StopEarlyHook("mAP", 2).after_val_epoch(runner, {"mIoU": 0})


@pytest.mark.parametrize(
    ("evaluator", "metric"),
    [
        (dict(type="CocoMetric", metric=["bbox", "segm"]), "coco/segm_mAP"),
        (dict(type="mmdet.CocoMetric", metric="bbox"), "coco/bbox_mAP"),
        ([dict(type="CocoPanopticMetric"), dict(type="Other")], "coco_panoptic/PQ"),
        (dict(type="IoUMetric", iou_metrics=["mIoU"]), "mIoU"),
    ],
)
def test_metric_that_says_what_is_best(evaluator, metric):
    assert main_metric(Config(dict(val_evaluator=evaluator))) == metric


def test_unknown_metric_is_asked_for():
    with pytest.raises(UserError, match="name it, as in --save-best"):
        main_metric(Config(dict(val_evaluator=dict(type="Other"))))
