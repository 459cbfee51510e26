"""Which checkpoint a run is resumed from when some are broken, gone, or not what they seem."""

import os
import shutil
import zipfile
from pathlib import Path

import pytest
import torch
from mmengine.config import Config

from flatten_det.engine.config import resume_from
from flatten_det.engine.errors import UserError
from flatten_det.engine.newest_checkpoint import newest_valid_checkpoint


def save(path: Path, iteration: int, minute: int | None = None, **changes) -> Path:
    """A checkpoint of iteration n, written at minute n unless said otherwise."""
    checkpoint = {
        "state_dict": {"weight": torch.arange(1000.0)},
        "optimizer": {"state": {}},
        "message_hub": {},
        "meta": {
            "epoch": 0,
            "iter": iteration,
            "time": f"20260101_12{iteration if minute is None else minute:02d}00",
        },
        **changes,
    }
    torch.save({key: value for key, value in checkpoint.items() if value is not None}, path)
    return path


@pytest.fixture
def work_dir(tmp_path) -> Path:
    """Checkpoints of iterations 1, 2 and 3; the last one is recorded."""
    folder = tmp_path / "run"
    folder.mkdir()
    for iteration in (1, 2, 3):
        save(folder / f"iter_{iteration}.pth", iteration)
    (folder / "last_checkpoint").write_text(str(folder / "iter_3.pth"))
    return folder


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-100])


def flip_a_byte(path: Path) -> None:
    """As a bad disk does, or a block that a power cut left unwritten: in the middle of a tensor."""
    with zipfile.ZipFile(path) as archive:
        largest = max(archive.infolist(), key=lambda info: info.file_size)
    content = bytearray(path.read_bytes())
    content[largest.header_offset + 2000] ^= 255
    path.write_bytes(content)


def empty(path: Path) -> None:
    path.write_bytes(b"")


class Malicious:
    def __reduce__(self):
        return os.mkdir, ("harmed",)


def malicious(path: Path) -> None:
    torch.save({"state_dict": Malicious()}, path)


def weights_only(path: Path) -> None:
    save(path, 3, optimizer=None)


def no_position(path: Path) -> None:
    save(path, 3, meta={"time": "20260101_120300"})


def a_list(path: Path) -> None:
    torch.save([1], path)


@pytest.mark.parametrize(
    ("damage", "reason"),
    [
        (truncate, "it is incomplete, or no checkpoint at all ("),
        (flip_a_byte, "the checksum of iter_3/data/0 is wrong"),
        (empty, "no checkpoint at all (0 bytes)"),
        (malicious, "could run code"),
        (weights_only, "it holds no optimizer state"),
        (no_position, "does not say after which iteration"),
        (a_list, "it holds a list"),
    ],
)
def test_a_bad_one_is_skipped_with_one_warning(work_dir, capsys, monkeypatch, damage, reason):
    monkeypatch.chdir(work_dir)
    damage(work_dir / "iter_3.pth")
    assert newest_valid_checkpoint(work_dir) == str(work_dir / "iter_2.pth")
    (warning,) = capsys.readouterr().err.splitlines()
    assert warning.startswith(f"warning: skipped checkpoint {work_dir / 'iter_3.pth'}: ")
    assert reason in warning
    assert not Path("harmed").exists()


def test_none_is_valid(work_dir, capsys):
    for path in work_dir.glob("*.pth"):
        truncate(path)
    with pytest.raises(UserError, match=f"none of the 3 checkpoints in work dir {work_dir}"):
        newest_valid_checkpoint(work_dir)
    assert len(capsys.readouterr().err.splitlines()) == 3


def test_ranks_warn_once(work_dir, capsys, monkeypatch):
    monkeypatch.setenv("RANK", "1")
    truncate(work_dir / "iter_3.pth")
    assert newest_valid_checkpoint(work_dir) == str(work_dir / "iter_2.pth")
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize("record", ["{}/iter_2.pth", "{}/iter_9.pth", "", "/gone/iter_3.pth"])
def test_the_record_may_be_old_wrong_empty_or_of_a_moved_folder(work_dir, record, capsys):
    """A kill between the writing of a checkpoint and that of its record, and so on."""
    (work_dir / "last_checkpoint").write_text(record.format(work_dir))
    assert newest_valid_checkpoint(work_dir) == str(work_dir / "iter_3.pth")
    assert capsys.readouterr().err == ""


def test_the_record_may_be_missing(work_dir):
    (work_dir / "last_checkpoint").unlink()
    assert newest_valid_checkpoint(work_dir) == str(work_dir / "iter_3.pth")


def test_of_one_second_and_iteration_the_recorded_one_is_newer(work_dir):
    for name in ("a.pth", "b.pth", "c.pth"):
        save(work_dir / name, 3)
    (work_dir / "last_checkpoint").write_text("/somewhere/b.pth")
    assert newest_valid_checkpoint(work_dir) == str(work_dir / "b.pth")


def test_an_earlier_longer_training_in_the_same_folder_is_older(work_dir):
    save(work_dir / "iter_40.pth", 40, minute=0)
    assert newest_valid_checkpoint(work_dir) == str(work_dir / "iter_3.pth")


def test_a_copy_goes_on_by_itself_and_times_of_copying_do_not_matter(work_dir, tmp_path):
    copy = tmp_path / "copy"
    copy.mkdir()
    for number, path in enumerate(sorted(work_dir.iterdir(), reverse=True)):
        os.utime(shutil.copy(path, copy), (number, number))
    save(work_dir / "iter_4.pth", 4)
    assert newest_valid_checkpoint(copy) == str(copy / "iter_3.pth")


def test_checkpoints_may_be_in_another_folder(tmp_path):
    for name in ("run", "elsewhere"):
        (tmp_path / name).mkdir()
    for iteration in (1, 2):
        path = save(tmp_path / "elsewhere" / f"iter_{iteration}.pth", iteration)
    (tmp_path / "run" / "last_checkpoint").write_text(str(path))
    truncate(path)
    assert newest_valid_checkpoint(tmp_path / "run") == str(tmp_path / "elsewhere" / "iter_1.pth")


def test_a_remote_record_is_left_to_mmengine(work_dir):
    (work_dir / "last_checkpoint").write_text("s3://bucket/run/iter_7.pth")
    assert newest_valid_checkpoint(work_dir) == "s3://bucket/run/iter_7.pth"


def test_leftovers_of_a_killed_writer_are_ignored(work_dir):
    (work_dir / "iter_4.pth.partial").write_bytes(b"half")
    assert newest_valid_checkpoint(work_dir) == str(work_dir / "iter_3.pth")


def test_reaches_the_config(work_dir):
    cfg = Config({"work_dir": str(work_dir)})
    resume_from(cfg, "auto")
    assert cfg.resume is True
    assert cfg.load_from == str(work_dir / "iter_3.pth")
