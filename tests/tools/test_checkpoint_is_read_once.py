"""Tools read a checkpoint once: what was checked is what mmengine loads."""

import shutil

import pytest
import torch


@pytest.fixture
def reads(monkeypatch) -> list[str]:
    """The files that PyTorch reads; of those that it maps into memory, only what is looked at is read."""
    paths = []
    load = torch.load

    def recorded(file, *args, **kwargs):
        if not kwargs.get("mmap"):
            paths.append(str(file))
        return load(file, *args, **kwargs)

    monkeypatch.setattr(torch, "load", recorded)
    return paths


def test_to_test(test_tool, trained_segmentor, reads, tmp_path):
    config, checkpoint, _ = trained_segmentor
    assert test_tool.main([str(config), str(checkpoint), "--work-dir", str(tmp_path)]) == 0
    assert reads == [str(checkpoint)]


def test_to_infer(run_infer, trained_segmentor, ade20k_folder, reads):
    config, checkpoint, _ = trained_segmentor
    image = next((ade20k_folder / "images" / "validation").iterdir())
    assert run_infer(config, checkpoint, image) == 0
    assert reads == [str(checkpoint)]


@pytest.mark.parametrize("named", [False, True])
def test_to_resume(train_tool, trained_segmentor, reads, tmp_path, named):
    config, checkpoint, _ = trained_segmentor
    work_dir = shutil.copytree(checkpoint.parent, tmp_path / "copied")
    copied = str(work_dir / checkpoint.name)
    resume = ["--resume", *([copied] if named else []), "--work-dir", str(work_dir)]
    options = ["--amp", "--cfg-options", "train_cfg.max_iters=5"]
    assert train_tool.main([str(config), *resume, *options]) == 0
    assert reads == [copied]
