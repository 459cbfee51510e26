"""tools/update_zoo.py: exit codes, what it prints, and that --check writes nothing."""

import pytest
from zoo_fixture import BASELINE, FLATTEN, METAFILE, make_small_zoo


@pytest.fixture
def checkout(tmp_path):
    return make_small_zoo(tmp_path / "checkout")


def contents(checkout):
    return {path: path.read_bytes() for path in checkout.rglob("*") if path.is_file()}


def test_check_then_update(update_zoo_tool, checkout, capsys):
    command = ["--root", str(checkout), "--no-count"]
    assert update_zoo_tool.main([*command, "--check"]) == 0
    assert "up to date" in capsys.readouterr().out

    config = checkout / FLATTEN
    config.write_text(config.read_text() + "train_cfg = dict(max_epochs=24)\n")
    before = contents(checkout)
    assert update_zoo_tool.main([*command, "--check"]) == 2
    printed = capsys.readouterr()
    assert printed.out.splitlines() == [
        f"{METAFILE}: {name}: Epochs is 12, should be 24: run tools/update_zoo.py"
        for name in ("mask-rcnn_flatten-swin-t_fpn_1x_coco", "mask-rcnn_swin-t_fpn_1x_coco")
    ] + ["configs/README.md: not what tools/update_zoo.py writes: run tools/update_zoo.py"]
    assert printed.err.splitlines()[-1] == "error: the zoo has 3 faults, listed above"
    assert contents(checkout) == before

    assert update_zoo_tool.main(command) == 0
    assert "3 differences; written: " in capsys.readouterr().out
    assert update_zoo_tool.main([*command, "--check"]) == 0
    assert "| Swin-T | 24 epochs |" in (checkout / "configs/README.md").read_text()


def test_update_writes_nothing_while_something_is_wrong(update_zoo_tool, checkout, capsys):
    (checkout / BASELINE).unlink()
    before = contents(checkout)
    assert update_zoo_tool.main(["--root", str(checkout), "--no-count"]) == 2
    printed = capsys.readouterr()
    assert f"its config {BASELINE} does not exist" in printed.out
    assert "nothing was written" in printed.err
    assert contents(checkout) == before


def test_folder_that_is_no_checkout_is_one_error(update_zoo_tool, tmp_path, capsys):
    assert update_zoo_tool.main(["--root", str(tmp_path)]) == 2
    assert "metafile.yml: missing" in capsys.readouterr().err
