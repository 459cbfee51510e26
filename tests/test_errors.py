"""Which exceptions are told in one line, and how."""

import json
import os

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


@pytest.mark.parametrize(
    ("work", "told"),
    [
        (lambda folder: (folder / "x.json").read_text(), "{}/x.json not found"),
        (lambda folder: (folder / "a\nb").read_text(), r"{}/a\nb not found"),
        (lambda folder: (folder / "file" / "x").read_text(), "{}/file/x: Not a directory"),
        (
            lambda folder: prepare_shapes(folder, ShapesOptions()),
            "holds files that flatten_det did not render",
        ),
        # Of the scope of the last Runner in this process.
        (lambda _: MODELS.build({"type": "NoSuchModel"}), "unknown: NoSuchModel is not in the mm"),
        (lambda _: MODELS.build({"type": "a\nb"}), r"unknown: a\nb is not in the mm"),
    ],
)
def test_mistakes_are_told_in_one_line(tmp_path, work, told):
    (tmp_path / "file").touch()
    with pytest.raises((OSError, KeyError)) as caught:
        work(tmp_path)
    message = explain(caught.value)
    assert told.format(tmp_path) in message
    assert "\n" not in message


def test_missing_file_without_its_name_is_told_as_it_is():
    error = FileNotFoundError("weights.pth can not be found.")  # as mmengine raises it
    assert explain(error).startswith("weights.pth can not be found: check the paths")


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
