"""Files are whole or not there, whatever stops their writing."""

import errno
import multiprocessing
import os
import shutil
import stat
import time
from pathlib import Path
from types import SimpleNamespace

import cv2
import numpy as np
import pytest
from mmengine.config import Config
from mmengine.fileio import LocalBackend, get_file_backend
from mmengine.registry import VISBACKENDS
from mmengine.visualization import LocalVisBackend

from flatten_det.compat.patches import AtomicLocalBackend, atomic_local_files
from flatten_det.errors import UserError, explain
from flatten_det.files import atomic
from flatten_det.files.atomic import (
    DiskFullError,
    UnwritableError,
    partial_folder,
    refuse_overwriting,
    remove_partial_files,
    replace_folder,
    write_atomically,
)


def test_replaces_the_content_and_leaves_nothing_else(tmp_path):
    path = tmp_path / "a.pth"
    for content in (b"old", b"new"):
        write_atomically(path, content)
        assert path.read_bytes() == content
    assert os.listdir(tmp_path) == ["a.pth"]


def test_the_name_appears_after_the_content_is_on_disk_and_the_folder_follows(
    tmp_path, monkeypatch
):
    events = []
    replace, fsync = os.replace, os.fsync

    def recording_fsync(descriptor):
        fsync(descriptor)
        events.append("folder" if os.path.isdir(f"/proc/self/fd/{descriptor}") else "file")

    monkeypatch.setattr(os, "fsync", recording_fsync)
    monkeypatch.setattr(os, "replace", lambda *a: (events.append("rename"), replace(*a)))
    write_atomically(tmp_path / "a.pth", b"content")
    assert events == ["file", "rename", "folder"]


@pytest.mark.parametrize("failing", ["fsync", "replace"])
@pytest.mark.parametrize("error", [OSError(errno.EIO, "I/O error"), KeyboardInterrupt()], ids=repr)
def test_a_failure_leaves_the_old_content_alone(tmp_path, monkeypatch, failing, error):
    path = tmp_path / "a.pth"
    path.write_bytes(b"old")

    def fail(*args):
        raise error

    monkeypatch.setattr(os, failing, fail)
    with pytest.raises(type(error)):
        write_atomically(path, b"new")
    assert path.read_bytes() == b"old"
    assert os.listdir(tmp_path) == ["a.pth"]


def test_a_full_disk_is_told_with_what_it_takes(tmp_path, monkeypatch, full_disk):
    path = tmp_path / "a.pth"
    path.write_bytes(b"old")
    full_disk(tmp_path)
    usage = SimpleNamespace(free=123_400_000)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage)
    told = r"a\.pth: the disk is full: it takes 2.5 MB, and 123.4"
    with pytest.raises(DiskFullError, match=told):
        write_atomically(path, bytes(2_500_000))
    assert path.read_bytes() == b"old"
    assert os.listdir(tmp_path) == ["a.pth"]


@pytest.mark.parametrize(
    ("code", "told"),
    [
        (errno.EDQUOT, "the disk quota is used up: it takes 0.0 kB"),
        (errno.EFBIG, r"the file exceeds the largest size allowed \(see ulimit -f\)"),
        (errno.EROFS, "Read-only file system: check the path and its permissions"),
        (errno.EACCES, "Permission denied: check the path"),
        (errno.ENAMETOOLONG, "File name too long: check the path"),
    ],
)
def test_other_obstacles_are_told_in_one_line_too(tmp_path, monkeypatch, code, told):
    def fail(*args):
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(os, "replace", fail)
    with pytest.raises(UnwritableError, match=rf"^cannot write .*new/a\.json: {told}.*$") as caught:
        write_atomically(tmp_path / "new" / "a.json", b"new")
    assert explain(caught.value) == str(caught.value)
    assert os.listdir(tmp_path / "new") == []


def test_names_as_long_as_can_be_and_files_in_place_of_folders(tmp_path):
    write_atomically(tmp_path / ("a" * 255), b"new")
    with pytest.raises(UnwritableError, match="File exists"):
        write_atomically(tmp_path / ("a" * 255) / "b", b"new")


def test_what_stands_there_keeps_its_mode_and_a_link_its_target(tmp_path):
    file, link = tmp_path / "a", tmp_path / "b"
    file.write_bytes(b"old")
    file.chmod(0o640)
    link.symlink_to(file)
    write_atomically(link, b"new")
    assert link.is_symlink()
    assert file.read_bytes() == b"new"
    assert stat.S_IMODE(file.stat().st_mode) == 0o640
    write_atomically(tmp_path / "c", b"new")
    umask = os.umask(0)
    os.umask(umask)
    assert stat.S_IMODE((tmp_path / "c").stat().st_mode) == 0o666 & ~umask


def test_a_write_protected_file_is_not_replaced(tmp_path, monkeypatch):
    (tmp_path / "a").write_bytes(b"old")
    monkeypatch.setattr(os, "access", lambda path, mode: False)  # which root never hears
    with pytest.raises(UnwritableError, match="it is write-protected"):
        write_atomically(tmp_path / "a", b"new")
    assert (tmp_path / "a").read_bytes() == b"old"


def test_devices_and_pipes_are_written_to_and_stay(tmp_path):
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    reader = os.open(pipe, os.O_RDONLY | os.O_NONBLOCK)
    write_atomically(pipe, b"new")
    assert os.read(reader, 10) == b"new"
    os.close(reader)
    assert stat.S_ISFIFO(pipe.stat().st_mode)


def test_folders_that_cannot_be_flushed_do_not_matter(tmp_path, monkeypatch):
    fsync = os.fsync

    def picky_fsync(descriptor):
        if os.path.isdir(f"/proc/self/fd/{descriptor}"):
            raise OSError(errno.EINVAL, "Invalid argument")
        fsync(descriptor)

    monkeypatch.setattr(os, "fsync", picky_fsync)
    write_atomically(tmp_path / "a.pth", b"content")
    assert (tmp_path / "a.pth").read_bytes() == b"content"


def _write_often(path: Path, letter: bytes, durable: bool) -> None:
    """As a process of its own, which tidies up as a training does at its beginning."""
    for number in range(1000):
        write_atomically(path, letter * (1 + 9 * number), durable)
        if number % 10 == 0:
            remove_partial_files(path.parent)


def test_two_writers_of_one_file(tmp_path, monkeypatch):
    """No failure, and whoever reads has the whole content of one of them."""
    # Waiting for the disk changes nothing.
    monkeypatch.setattr(os, "fsync", lambda descriptor: None)
    path = tmp_path / "a.pth"
    path.write_bytes(b"a")
    context = multiprocessing.get_context("fork")
    writers = [
        context.Process(target=_write_often, args=(path, letter, durable))
        for letter, durable in ((b"a", True), (b"b", False))
    ]
    for writer in writers:
        writer.start()
    while any(writer.is_alive() for writer in writers):
        time.sleep(0.001)
        content = path.read_bytes()
        assert content == content[:1] * len(content)
        assert len(content) % 9 == 1
    assert [writer.exitcode for writer in writers] == [0, 0]
    assert os.listdir(tmp_path) == ["a.pth"]


@pytest.mark.parametrize("kind", ["file", "folder"])
def test_what_is_new_may_be_taken_for_a_leftover(tmp_path, monkeypatch, kind):
    """By another process, which has its lock first, and is yet to remove it."""
    taken, lock = [], atomic.lock

    def late_lock(file):
        if not taken:
            taken.append(open(file.name, "rb"))  # noqa: SIM115
            assert lock(taken[0])
        return lock(file)

    monkeypatch.setattr(atomic, "lock", late_lock)
    if kind == "file":
        write_atomically(tmp_path / "a.pth", b"content")
        assert not os.path.samestat(os.stat(tmp_path / "a.pth"), os.fstat(taken[0].fileno()))
    else:
        with partial_folder(tmp_path) as partial:
            assert Path(taken[0].name).parent != partial
    taken[0].close()
    remove_partial_files(tmp_path)
    assert os.listdir(tmp_path) == (["a.pth"] if kind == "file" else [])


def test_leftovers_are_removed_and_nothing_else(tmp_path, monkeypatch):
    for name in ("a.pth", "a.pth.partial", ".b.partial"):
        (tmp_path / name).write_bytes(b"")
    with monkeypatch.context() as patch:
        patch.setattr(Path, "unlink", lambda path: None)
        patch.setattr(os, "replace", lambda *paths: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            write_atomically(tmp_path / "a.pth", b"new")
    assert len(os.listdir(tmp_path)) == 4
    remove_partial_files(tmp_path)
    assert sorted(os.listdir(tmp_path)) == [".b.partial", "a.pth", "a.pth.partial"]


def test_folders_are_replaced_whole(tmp_path):
    target = tmp_path / "labels"
    for name in ("old", "new"):
        with partial_folder(tmp_path) as partial:
            (partial / "labels").mkdir()
            (partial / "labels" / name).touch()
            replace_folder(partial / "labels", target)
        assert os.listdir(target) == [name]
        assert os.listdir(tmp_path) == ["labels"]


@pytest.mark.parametrize("error", [OSError(errno.EIO, "I/O error"), KeyboardInterrupt()], ids=repr)
def test_a_folder_that_cannot_be_moved_leaves_the_old_one(tmp_path, monkeypatch, error):
    (tmp_path / "labels").mkdir()
    (tmp_path / "labels" / "old").touch()
    replace = os.replace

    def failing(source, target):
        if Path(source).name == "new" and Path(target).name == "labels":
            raise error
        replace(source, target)

    monkeypatch.setattr(os, "replace", failing)
    expected = UnwritableError if isinstance(error, OSError) else KeyboardInterrupt
    with partial_folder(tmp_path) as partial:
        (partial / "new").mkdir()
        with pytest.raises(expected):
            replace_folder(partial / "new", tmp_path / "labels")
    assert os.listdir(tmp_path) == ["labels"]
    assert os.listdir(tmp_path / "labels") == ["old"]


def test_folders_that_killed_writers_left_are_removed(tmp_path):
    with partial_folder(tmp_path) as at_work:
        left = tmp_path / ".flatten_det-0123456789abcdef.partial"
        shutil.copytree(at_work, left)
        (left / "a.png").touch()
        with partial_folder(tmp_path):
            assert not left.exists()
            assert at_work.exists()


def test_a_place_without_folders_is_told(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(UnwritableError, match="cannot write"), partial_folder(tmp_path / "file"):
        pass


def test_inputs_by_any_name_are_no_results(tmp_path):
    (tmp_path / "a.jpg").write_bytes(b"")
    (tmp_path / "link").symlink_to(tmp_path / "a.jpg")
    new = [tmp_path / "b.jpg", tmp_path / "missing" / "a.jpg"]
    refuse_overwriting([tmp_path / "a.jpg", tmp_path / "b.jpg"], new, "--out")
    (tmp_path / "x").mkdir()
    told = r"^--out: the result .* would overwrite the input .*a\.jpg"
    for output in (tmp_path / "a.jpg", tmp_path / "link", tmp_path / "x" / ".." / "a.jpg"):
        with pytest.raises(UserError, match=told):
            refuse_overwriting([tmp_path / "a.jpg"], [*new, output], "--out")


def test_mmengine_writes_local_files_so_and_only_for_the_time_of_a_run(tmp_path):
    with atomic_local_files(), atomic_local_files():
        for arguments in ({"uri": str(tmp_path)}, {"backend_args": {"backend": "local"}}):
            assert type(get_file_backend(**arguments)) is AtomicLocalBackend
        assert not isinstance(get_file_backend("https://host/a.pth"), LocalBackend)
        get_file_backend(str(tmp_path)).put_text("text", tmp_path / "new" / "a.txt")
    assert (tmp_path / "new" / "a.txt").read_text() == "text"
    assert type(get_file_backend(str(tmp_path))) is LocalBackend
    assert VISBACKENDS.get("LocalVisBackend") is LocalVisBackend


@pytest.mark.parametrize("suffix", [".py", ".json"])
def test_a_config_is_not_replaced_by_its_copy(tmp_path, suffix):
    """mmengine puts a copy with all that is inherited into the work dir, under the same name."""
    path = tmp_path / f"a{suffix}"
    path.write_text({".py": "a = 1  # mine\n", ".json": '{"a":    1}'}[suffix])
    mine = path.read_text()
    cfg = Config.fromfile(path)
    with atomic_local_files():
        cfg.dump(path)
        cfg.dump(tmp_path / "run" / path.name)
    assert path.read_text() == mine
    assert Config.fromfile(tmp_path / f"a_dumped{suffix}").a == 1
    assert Config.fromfile(tmp_path / "run" / path.name).a == 1


def test_a_full_disk_leaves_no_half_config(tmp_path, full_disk):
    full_disk(tmp_path)
    with atomic_local_files(), pytest.raises(DiskFullError):
        Config({"a": 1}).dump(tmp_path / "a.py")
    assert os.listdir(tmp_path) == []


def test_pictures_of_equal_names_and_steps_stay_apart(tmp_path):
    """Such as those of equally named images of two folders, or of two validations."""
    with atomic_local_files():
        backend = VISBACKENDS.build({"type": "LocalVisBackend", "save_dir": str(tmp_path)})
    for value in (10, 20):
        backend.add_image("val_x.png", np.full((4, 4, 3), (value, 0, 0), np.uint8), step=5)
    pictures = [tmp_path / "vis_image" / f"val_x.png_5{n}.png" for n in ("", "-2")]
    assert [cv2.imread(str(path))[0, 0].tolist() for path in pictures] == [[0, 0, 10], [0, 0, 20]]
