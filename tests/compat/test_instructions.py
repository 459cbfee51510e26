"""What a checkpoint asks mmengine to do is not done."""

from pathlib import Path

import pytest
import torch
from mmengine.runner import CheckpointLoader, Runner
from toy_training import make_config

from flatten_det.compat.mmengine_files import without_instructions
from flatten_det.train.run import use_our_components


def with_logs(**logs) -> dict:
    keys = dict.fromkeys([*logs, "loss"], True)
    return {"message_hub": {"runtime_info": dict(logs, loss=1.0), "resumed_keys": keys}}


def corrected(folder: str | None, **logs) -> dict:
    hub = without_instructions(with_logs(**logs), folder)["message_hub"]
    assert hub["resumed_keys"].keys() == hub["runtime_info"].keys()
    del hub["runtime_info"]["loss"]
    return hub["runtime_info"]


def test_the_best_checkpoint_lies_beside_the_others():
    for key in ("best_ckpt", "best_ckpt_coco/bbox_mAP"):
        assert corrected("runs/a", **{key: "/moved/from/best_x.pth"}) == {key: "runs/a/best_x.pth"}
        assert corrected("runs/a", **{key: "best_../../x.pth"}) == {}
        assert corrected("runs/a", **{key: "/home/me/thesis.tex"}) == {}
        assert corrected(None, **{key: "/moved/from/best_x.pth"}) == {}
        assert corrected("runs/a", **{key: None}) == {}


def test_only_texts_and_numbers_are_printed():
    """A text of 26 lists, each of twice the one before, would be of 500 MB."""
    text = ["lol"]
    for _ in range(26):
        text = [text, text]
    for key in ("best_ckpt", "best_ckpt_coco/bbox_mAP", "last_ckpt"):
        assert corrected("runs/a", **{key: text}) == {}
    assert corrected("a", keep_ckpt_ids=[text, 3]) == {"keep_ckpt_ids": [3]}
    assert corrected("a", last_ckpt="a/epoch_1.pth") == {"last_ckpt": "a/epoch_1.pth"}
    for seed, kept in ((3, {"seed": 3}), (text, {}), ("3", {})):
        assert without_instructions({"meta": {"seed": seed}}, "a") == {"meta": kept}


def test_kept_checkpoints_are_numbers():
    assert corrected("a", keep_ckpt_ids=[1, "../x", 2, True, None]) == {"keep_ckpt_ids": [1, 2]}
    assert corrected("a", keep_ckpt_ids="../x") == {"keep_ckpt_ids": []}


def test_all_else_is_as_it_was():
    content = {"meta": {"config": "x", "cfg": "y"}, "state_dict": {}, **with_logs(epoch=3)}
    del content["message_hub"]["resumed_keys"]
    expected = {"meta": {"cfg": "y"}, "state_dict": {}, **with_logs(epoch=3)}
    del expected["message_hub"]["resumed_keys"]
    assert without_instructions(content, "a") == expected
    for other in ([1], None, {"meta": 3, "message_hub": []}, {"message_hub": {"runtime_info": 1}}):
        assert without_instructions(other, "a") == other


def best_of(path: Path, name: Path) -> None:
    """Change what a checkpoint says about the best one, with a score that the next one beats."""
    content = torch.load(path, weights_only=False)
    content["message_hub"]["runtime_info"] |= {"best_ckpt": str(name), "best_score": -1e9}
    content["message_hub"]["resumed_keys"] |= {"best_ckpt": True, "best_score": True}
    torch.save(content, path)


@pytest.mark.parametrize("durable", [False, True], ids=["mmengine's hook", "ours"])
def test_resuming_removes_no_file_of_the_user(durable, tmp_path):
    best = {"default_hooks.checkpoint": dict(save_best="toy/mean", rule="greater", interval=1)}

    def train(**changes) -> Path:
        cfg = make_config(tmp_path, by_epoch=True, changes={"seed": 0, **best, **changes})
        cfg.default_hooks.checkpoint["type"] = "CheckpointHook"
        Runner.from_cfg(cfg).train()
        return Path(cfg.work_dir)

    first = train(**{"train_cfg.max_epochs": 1}) / "epoch_1.pth"
    victim = tmp_path / "thesis.tex"
    victim.write_text("years of work")
    best_of(first, victim)
    if durable:
        with use_our_components():
            train(load_from=str(first), resume=True)
    else:
        train(load_from=str(first), resume=True)
    assert victim.read_text() == "years of work"
    logs = CheckpointLoader.load_checkpoint(str(first.parent / "epoch_3.pth"))["message_hub"]
    assert Path(logs["runtime_info"]["best_ckpt"]).parent == first.parent  # There was a better one.
