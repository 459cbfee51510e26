"""Which exceptions are told in one line, and how."""

import json
import os
import re

import pytest
from mmengine.config import Config
from mmengine.dataset import BaseDataset
from mmengine.registry import MODELS
from torch.utils.data import DataLoader, Dataset

from flatten_det.data.loading import blame_annotation_files
from flatten_det.data.shapes import ShapesOptions, prepare_shapes
from flatten_det.errors import UserError, explain


class Failing(Dataset):
    def __len__(self) -> int:
        return 1

    def __getitem__(self, index: int):
        try:
            raise ValueError("cause")
        except ValueError as error:
            raise UserError("image a: b.jpg cannot be decoded: get it again") from error


def test_message_survives_a_worker():
    with pytest.raises(UserError) as caught:
        next(iter(DataLoader(Failing(), num_workers=1)))
    assert explain(caught.value) == "image a: b.jpg cannot be decoded: get it again"


def test_missing_file_is_named(tmp_path):
    with pytest.raises(FileNotFoundError) as caught:
        (tmp_path / "x.json").read_text()
    assert explain(caught.value).startswith(f"{tmp_path / 'x.json'} not found")


def test_missing_file_without_its_name_is_told_as_it_is():
    error = FileNotFoundError("weights.pth can not be found.")  # as mmengine raises it
    assert explain(error).startswith("weights.pth can not be found: check the paths")


def test_file_in_place_of_a_folder_is_named(tmp_path):
    file = tmp_path / "file"
    file.touch()
    with pytest.raises(NotADirectoryError) as caught:
        (file / "x.json").read_text()
    assert explain(caught.value).startswith(f"{file / 'x.json'}: Not a directory")


def test_unknown_component_is_named():
    with pytest.raises(KeyError) as caught:
        MODELS.build({"type": "NoSuchModel"})
    # The scope that it names is that of the last Runner in this process.
    message = explain(caught.value)
    assert re.search(r"unknown: NoSuchModel is not in the mm\w+::model registry", message)


def test_names_with_line_ends_stay_in_one_line(tmp_path):
    with pytest.raises(KeyError) as caught:
        MODELS.build({"type": "a\nb"})
    assert r"unknown: a\nb is not in the" in explain(caught.value)
    with pytest.raises(FileNotFoundError) as caught:
        (tmp_path / "a\nb").read_text()
    assert rf"{tmp_path}/a\nb not found" in explain(caught.value)


def test_shapes_that_would_be_lost_are_told_in_one_line(tmp_path):
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(FileExistsError) as caught:
        prepare_shapes(tmp_path, ShapesOptions())
    assert "holds files that flatten_det did not render" in explain(caught.value)


class OneImage(BaseDataset):
    def load_data_list(self):
        return [{"img_path": "a.jpg"}]


@pytest.mark.parametrize("workers", [0, 1])
def test_pipeline_that_filters_everything_out(workers):
    dataset = OneImage(pipeline=[lambda data: None], max_refetch=2)
    with pytest.raises(Exception, match="valid image") as caught:
        next(iter(DataLoader(dataset, num_workers=workers)))
    assert "filtered out one image after the other" in explain(caught.value)


@pytest.mark.parametrize("error", [KeyError("x"), RuntimeError("x"), ValueError("x")])
def test_others_are_unexpected(error):
    assert explain(error) is None


def test_broken_annotation_file_is_found_among_good_ones(tmp_path):
    (tmp_path / "good.json").write_text("{}")
    (tmp_path / "broken.json").write_text('{"images": [')
    dataset = {"data_root": str(tmp_path), "ann_file": "good.json"}
    wrapped = {"datasets": [dataset, {**dataset, "ann_file": "broken.json"}]}
    cfg = Config({"train_dataloader": {"dataset": wrapped}})
    with (
        pytest.raises(UserError, match=r"broken\.json is not valid JSON \(Expecting value"),
        blame_annotation_files(cfg),
    ):
        json.loads((tmp_path / "broken.json").read_text())


def test_byte_order_mark_is_named(tmp_path):
    (tmp_path / "a.json").write_bytes(b"\xef\xbb\xbf{}")
    cfg = Config(
        {"test_dataloader": {"dataset": {"data_root": f"{tmp_path}", "ann_file": "a.json"}}}
    )
    with (
        pytest.raises(
            UserError, match=r"a\.json begins with a byte order mark \(UTF-8 with BOM\): save"
        ),
        blame_annotation_files(cfg),
    ):
        json.loads((tmp_path / "a.json").read_text(encoding="utf-8"))


def test_pipe_in_the_place_of_annotations(tmp_path):
    """It is refused before it is waited for."""
    os.mkfifo(tmp_path / "a.json")
    cfg = Config({"test_evaluator": [{"ann_file": str(tmp_path / "a.json")}]})
    with (
        pytest.raises(UserError, match=r"a\.json is a named pipe, not a file: correct ann_file"),
        blame_annotation_files(cfg),
    ):
        pytest.fail("opened")


def test_other_value_errors_pass(tmp_path):
    cfg = Config({"val_evaluator": {"ann_file": str(tmp_path / "missing.json")}})
    with pytest.raises(ValueError, match=r"^other$"), blame_annotation_files(cfg):
        raise ValueError("other")
