"""tools/get_flops.py: tables, JSON, and its one-line errors."""

import json
from pathlib import Path

import pytest

CONFIGS = Path(__file__).parents[2] / "configs"
QUICKSTART = str(CONFIGS / "quickstart" / "mask-rcnn_flatten-pvt-nano_fpn_shapes.py")
MASK_RCNN = str(CONFIGS / "mask_rcnn" / "mask-rcnn_flatten-pvt-t_fpn_1x_coco.py")
DETR = str(CONFIGS / "deformable_detr" / "deformable-detr_flatten-pvtv2-b2_16xb2-50e_coco.py")


def rows(printed: str) -> dict[str, list[str]]:
    """Cells by the first one of their row, indentation included."""
    cells = [line.split("│")[1:-1] for line in printed.splitlines() if line.startswith("│")]
    return {row[0][1:].rstrip(): [cell.strip() for cell in row[1:]] for row in cells}


def test_backbone(get_flops_tool, tmp_path, capsys):
    out = tmp_path / "new" / "counts.json"
    assert get_flops_tool.main(["flatten-pvt-t", "--depth", "1", "--json", str(out)]) == 0
    printed = capsys.readouterr().out
    assert "flatten-pvt-t at 224x224: 11.64 M parameters, 2.04 G multiply-adds" in printed
    assert f"written to {out}" in printed
    shown = rows(printed)
    assert shown["total"][0].replace(",", "").isdigit()
    assert list(shown)[1:3] == ["patch_embed1", "block1"]
    assert not any(name.startswith(" ") for name in shown)
    content = json.loads(out.read_text())
    assert content["shape"] == [224, 224]
    modules = content["modules"]
    tops = [value for name, value in modules.items() if "." not in name]
    assert sum(value["multiply_adds"] or 0 for value in tops) == content["multiply_adds"]
    assert sum(content["operators"].values()) == content["multiply_adds"]
    assert modules["block1"]["parameters"] == 2 * modules["block1.0"]["parameters"]
    assert content["uncounted"] == {}


def test_config_at_its_own_size(get_flops_tool, capsys):
    assert get_flops_tool.main([QUICKSTART]) == 0
    printed = capsys.readouterr().out
    assert f"{QUICKSTART} at 128x128: 3.01 M parameters" in printed
    shown = rows(printed)
    assert shown["  block1"][1].endswith(" G")
    assert shown["total"][2] == "100.0%"
    assert "not counted" not in printed


def test_what_is_not_counted_is_named(get_flops_tool, capsys):
    assert get_flops_tool.main([DETR, "--shape", "64", "96", "--depth", "0"]) == 0
    printed = capsys.readouterr().out
    assert "not counted: aten.grid_sampler_2d, 48 calls: sampling" in printed
    assert list(rows(printed)) == ["total"]


def test_paper(get_flops_tool, tmp_path, capsys):
    out = tmp_path / "rows.json"
    assert get_flops_tool.main([MASK_RCNN, "--paper", "--json", str(out)]) == 0
    printed = capsys.readouterr().out
    assert "211.6 G -13.3%" in printed
    assert "244 G published = 211.6 G complete" in printed
    (row,) = json.loads(out.read_text())
    assert row["published"] == {"multiply_adds": 244 * 10**9, "parameters": 32 * 10**6}
    style = row["paper_style"]
    assert style["multiply_adds"] == style["modules"] + style["softmax_products"]


def test_config_that_the_paper_does_not_have(get_flops_tool, capsys):
    assert get_flops_tool.main([QUICKSTART, "--paper"]) == 0
    printed = capsys.readouterr().out
    assert rows(printed)[QUICKSTART.split("/")[-1]][2:4] == ["-", "-"]
    assert "published =" not in printed


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["flatten-pvt-tt"], "neither a config file nor a backbone: did you mean flatten-pvt-t?"),
        (["xyz"], "xyz is neither a config file nor a backbone: Backbones are flatten-pvt-t"),
        (["nowhere.py"], "config file nowhere.py not found"),
        (["pvt-t", "--paper"], "pvt-t is a backbone"),
        (["pvt-t", "--cfg-options", "a=1"], "--cfg-options changes configs"),
    ],
)
def test_mistakes_are_one_line(get_flops_tool, argv, message, capsys):
    assert get_flops_tool.main(argv) == 2
    error = capsys.readouterr().err
    assert message in error
    assert len(error.splitlines()) == 1


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("x = 1", "it has no model"),
        ("model = dict(type='FLattenPVT')", "cannot count a FLattenPVT"),
        ("model = dict(type='Nonsense')", "Nonsense"),
        ("model = 3", "what it says cannot be built"),
        ("model = dict(type='FLattenPVT', foo=1)", "unexpected keyword argument 'foo'"),
    ],
)
@pytest.mark.parametrize("style", [[], ["--paper"]])
def test_configs_of_something_else_are_one_line(
    get_flops_tool, text, message, style, tmp_path, capsys
):
    config = tmp_path / "config.py"
    config.write_text(text)
    assert get_flops_tool.main([str(config), "--shape", "64", "64", *style]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert len(error.splitlines()) == 1


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        ([], "give a config or a backbone, or --paper"),
        (["--paper", "--shape", "64", "64"], "need a config"),
        (["pvt-t", "--shape", "8", "64"], "at least 32 pixels"),
        (["pvt-t", "--depth", "-1"], "at least 0"),
    ],
)
def test_wrong_usage(get_flops_tool, argv, message, capsys):
    with pytest.raises(SystemExit) as caught:
        get_flops_tool.main(argv)
    assert caught.value.code == 2
    assert message in capsys.readouterr().err
