"""Which checkpoint a run is resumed from when some are broken, gone, or not what they seem."""

import os
import shutil
import zipfile
from pathlib import Path

import pytest
import torch
from malicious_files import save_command
from mmengine.config import Config

from flatten_det.errors import UserError
from flatten_det.train.checkpoints import newest_valid_checkpoint
from flatten_det.train.resume import resume_from


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


@pytest.mark.parametrize(
    ("damage", "reason"),
    [
        (truncate, "it is incomplete, or no checkpoint at all ("),
        (flip_a_byte, "the checksum of iter_3/data/0 is wrong"),
        (lambda path: path.write_bytes(b""), "no checkpoint at all (0 bytes)"),
        (lambda path: save_command(path, Path("harmed")), "could run code"),
        (lambda path: save(path, 3, optimizer=None), "it holds no optimizer state"),
        (lambda path: save(path, 3, meta={"time": "20260101_120300"}), "after which iteration"),
        (lambda path: torch.save([1], path), "it holds a list"),
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


RECORDS = [
    # A kill between the writing of a checkpoint and that of its record, a folder that was moved, and so on.
    *("{}/iter_2.pth", "{}/iter_9.pth", "", "/gone/iter_3.pth"),
    *("/läuft/iter_3.pth".encode("latin-1"), "{}/iter_3.pth".encode("utf-16"), b"\xff\xfe\x00"),
    *(b"\0" * 60, b"\r\n", b"x" * 10_000, b"/" * 5000, b"iter_3.pth\niter_2.pth"),
    *("missing", "a folder"),
]


@pytest.mark.parametrize("record", RECORDS, ids=lambda record: str(record)[:20])
def test_the_record_may_be_anything(work_dir, record, capsys):
    path = work_dir / "last_checkpoint"
    path.unlink()
    if record == "a folder":
        path.mkdir()
    elif record != "missing":
        text = record.format(work_dir).encode() if isinstance(record, str) else record
        path.write_bytes(text)
    assert newest_valid_checkpoint(work_dir) == str(work_dir / "iter_3.pth")
    assert capsys.readouterr().err == ""


def test_an_earlier_longer_training_in_the_same_folder_is_older(work_dir):
    save(work_dir / "iter_40.pth", 40, minute=0)
    assert newest_valid_checkpoint(work_dir) == str(work_dir / "iter_3.pth")


def test_the_recorded_one_is_the_newest_whatever_the_clock_says(work_dir):
    """Begun in Tokyo, whose clock is 9 hours ahead, and resumed elsewhere; or a clock that was put back."""
    save(work_dir / "iter_1.pth", 1, minute=50)
    save(work_dir / "iter_2.pth", 2, minute=40)
    assert newest_valid_checkpoint(work_dir) == str(work_dir / "iter_3.pth")


def test_of_several_places_the_seconds_decide(work_dir):
    """Without a record, or if the recorded one is damaged."""

    def place(path: Path, iteration: int, clock: str, written: float) -> None:
        meta = {"epoch": 0, "iter": iteration, "time": clock, "position": {"written": written}}
        save(path, iteration, meta=meta)

    place(work_dir / "iter_1.pth", 1, "20260101_210000", 1767268800.0)  # Tokyo
    place(work_dir / "iter_2.pth", 2, "20260101_121000", 1767269400.0)  # Greenwich
    truncate(work_dir / "iter_3.pth")
    assert newest_valid_checkpoint(work_dir) == str(work_dir / "iter_2.pth")
    (work_dir / "last_checkpoint").unlink()
    (work_dir / "iter_3.pth").unlink()
    assert newest_valid_checkpoint(work_dir) == str(work_dir / "iter_2.pth")


def test_within_a_run_iterations_decide(work_dir):
    """It was killed between a checkpoint and its record, after the clock was put back an hour."""
    for iteration, minute in ((2, 59), (3, 1), (4, 2)):
        name = "run_2" if iteration < 4 else "run_1"
        meta = {"epoch": 0, "iter": iteration, "time": f"20260101_11{minute:02d}00"}
        save(work_dir / f"iter_{iteration}.pth", 0, meta=meta | {"experiment_name": name})
    (work_dir / "last_checkpoint").write_text(str(work_dir / "iter_2.pth"))
    assert newest_valid_checkpoint(work_dir) == str(work_dir / "iter_3.pth")


@pytest.mark.parametrize(
    "record", ["{}/b.pth", "\ufeff{}/b.pth", "{}/b.pth\r\n", " {}/b.pth \n\n", "{}/b.pth\0\0"]
)
def test_of_one_second_and_iteration_the_recorded_one_is_newer_if_edited_too(work_dir, record):
    for name in ("a.pth", "b.pth", "c.pth"):
        save(work_dir / name, 3)
    (work_dir / "last_checkpoint").write_text(
        record.format("/elsewhere"), encoding="utf-8", newline=""
    )
    assert newest_valid_checkpoint(work_dir) == str(work_dir / "b.pth")


def test_a_time_that_is_no_text_is_not_printed(work_dir):
    text = ["lol"]
    for _ in range(26):
        text = [text, text]
    for iteration in (3, 4):
        meta = {"epoch": 0, "iter": iteration, "time": text, "experiment_name": text}
        save(work_dir / f"iter_{iteration}.pth", iteration, meta=meta)
    assert newest_valid_checkpoint(work_dir) == str(work_dir / "iter_2.pth")


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
