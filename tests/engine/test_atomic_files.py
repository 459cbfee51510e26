"""Files are whole or not there, whatever stops their writing."""

import errno
import os
from collections import namedtuple

import pytest
from mmengine.fileio import LocalBackend, get_file_backend

from flatten_det.engine import atomic_files
from flatten_det.engine.atomic_files import (
    AtomicLocalBackend,
    DiskFullError,
    atomic_local_files,
    remove_partial_files,
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


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="no device that is always full")
def test_a_full_disk_is_told_with_what_it_takes(tmp_path, monkeypatch):
    """The kernel's own ENOSPC: the temporary file is a link to the device without room."""
    path = tmp_path / "a.pth"
    path.write_bytes(b"old")
    (tmp_path / "a.pth.partial").symlink_to("/dev/full")
    usage = namedtuple("usage", "free")(123_400_000)
    monkeypatch.setattr(atomic_files.shutil, "disk_usage", lambda _: usage)
    with pytest.raises(
        DiskFullError, match=r"a\.pth: the disk is full: it takes 2.5 MB, and 123.4"
    ):
        write_atomically(path, bytes(2_500_000))
    assert path.read_bytes() == b"old"
    assert os.listdir(tmp_path) == ["a.pth"]


def test_folders_that_cannot_be_flushed_do_not_matter(tmp_path, monkeypatch):
    fsync = os.fsync

    def picky_fsync(descriptor):
        if os.path.isdir(f"/proc/self/fd/{descriptor}"):
            raise OSError(errno.EINVAL, "Invalid argument")
        fsync(descriptor)

    monkeypatch.setattr(os, "fsync", picky_fsync)
    write_atomically(tmp_path / "a.pth", b"content")
    assert (tmp_path / "a.pth").read_bytes() == b"content"


def test_leftovers_are_removed_and_nothing_else(tmp_path):
    for name in ("a.pth", "a.pth.partial", "b.pth.partial"):
        (tmp_path / name).write_bytes(b"")
    remove_partial_files(tmp_path)
    assert os.listdir(tmp_path) == ["a.pth"]


def test_mmengine_writes_local_files_so_and_only_for_the_time_of_a_training(tmp_path):
    with atomic_local_files():
        for arguments in ({"uri": str(tmp_path)}, {"backend_args": {"backend": "local"}}):
            assert type(get_file_backend(**arguments)) is AtomicLocalBackend
        assert not isinstance(get_file_backend("https://host/a.pth"), LocalBackend)
        get_file_backend(str(tmp_path)).put_text("text", tmp_path / "new" / "a.txt")
    assert (tmp_path / "new" / "a.txt").read_text() == "text"
    assert type(get_file_backend(str(tmp_path))) is LocalBackend
