"""Zip files that are good, damaged or malicious."""

import errno
import io
import os
import shutil
import stat
import zipfile

import pytest

from flatten_det.data.preparation import fetch as archives
from flatten_det.data.preparation.fetch import ArchiveError, unpack, unpacked_size, verify


def zipped(members: dict[str, bytes]) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    return buffer.getvalue()


@pytest.fixture
def archive(tmp_path):
    """Writes an archive with these members."""

    def write(members: dict[str, bytes]):
        path = tmp_path / "data.zip"
        path.write_bytes(zipped(members))
        return path

    return write


def files(root) -> dict[str, bytes]:
    """All files of a folder, hidden ones too."""
    return {p.relative_to(root).as_posix(): p.read_bytes() for p in root.rglob("*") if p.is_file()}


def test_files_come_to_their_places(archive, tmp_path):
    path = archive({"images/a.jpg": b"a", "images/sub/b.jpg": b"b", "readme.txt": b"r"})
    unpack(path, tmp_path / "out")
    assert files(tmp_path / "out") == {
        "images/a.jpg": b"a",
        "images/sub/b.jpg": b"b",
        "readme.txt": b"r",
    }


def test_top_folder_stands_for_the_root(archive, tmp_path):
    path = archive({"Top/a.txt": b"a", "other/b.txt": b"b", "__MACOSX/Top/._a.txt": b"x"})
    unpack(path, tmp_path / "out", top="Top")
    assert files(tmp_path / "out") == {"a.txt": b"a"}


def test_archives_in_an_archive_are_unpacked_where_they_lie(archive, tmp_path):
    inner = zipped({"panoptic/1.png": b"1", "__MACOSX/panoptic/._1.png": b"x"})
    path = archive({"annotations/panoptic.zip": inner, "annotations/panoptic.json": b"{}"})
    unpack(path, tmp_path / "out")
    assert files(tmp_path / "out") == {
        "annotations/panoptic/1.png": b"1",
        "annotations/panoptic.json": b"{}",
    }


def test_complete_files_are_left_alone_and_others_replaced(archive, tmp_path):
    root = tmp_path / "out"
    root.mkdir()
    (root / "same.txt").write_bytes(b"old")
    (root / "cut.txt").write_bytes(b"o")
    unpack(archive({"same.txt": b"new", "cut.txt": b"new"}), root)
    assert files(root) == {"same.txt": b"old", "cut.txt": b"new"}


@pytest.mark.parametrize(
    "name", ["../out.txt", "a/../../out.txt", "/out.txt", "C:/out.txt", "..\\out.txt", "a\\..\\b"]
)
def test_members_outside_are_refused_before_anything_is_written(archive, tmp_path, name):
    root = tmp_path / "deep" / "out"
    with pytest.raises(ArchiveError, match="would leave the folder"):
        unpack(archive({"good.txt": b"g", name: b"bad"}), root)
    assert {p.name for p in tmp_path.rglob("*") if p.is_file()} == {"data.zip"}


def test_links_are_refused(tmp_path):
    path = tmp_path / "data.zip"
    link = zipfile.ZipInfo("images")
    link.external_attr = (stat.S_IFLNK | 0o777) << 16
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr(link, "/etc")
        archive.writestr("images/passwd", "bad")
    with pytest.raises(ArchiveError, match="'images' is a link"):
        unpack(path, tmp_path / "out")
    assert not files(tmp_path / "out")


def test_damage_is_named_and_nothing_is_moved(archive, tmp_path):
    path = archive({"first.txt": b"first", "second.txt": b"second"})
    path.write_bytes(
        path.read_bytes().replace(b"second", b"sec0nd", 2).replace(b"sec0nd.", b"second.")
    )
    with pytest.raises(ArchiveError, match=r"second\.txt' is damaged"):
        unpack(path, tmp_path / "out")
    assert not files(tmp_path / "out")


def test_what_is_no_zip_file(tmp_path):
    path = tmp_path / "data.zip"
    path.write_bytes(b"<html>Sign in</html>")
    with pytest.raises(ArchiveError, match="not a complete zip file"):
        unpack(path, tmp_path / "out")


def test_unpacked_size(archive):
    assert unpacked_size(archive({"a": b"12345", "b/c": b"678"})) == 8


def test_size_and_digest_are_compared(tmp_path):
    path = tmp_path / "data.zip"
    path.write_bytes(b"abc")
    verify(path, None, None)
    verify(path, 3, ("md5", "900150983cd24fb0d6963f7d28e17f72"))
    with pytest.raises(ArchiveError, match="3 bytes instead of 4"):
        verify(path, 4, None)
    with pytest.raises(ArchiveError, match=r"its md5 is 9001\w+ instead of 00"):
        verify(path, 3, ("md5", "00"))


def test_bombs_are_not_unpacked(archive, tmp_path):
    path = archive({"a.txt": b"a", "zeros.bin": bytes(10_000)})
    with pytest.raises(ArchiveError, match="may be meant to fill the disk"):
        unpack(path, tmp_path / "out", max_size=10_000)
    assert not files(tmp_path / "out")
    unpack(path, tmp_path / "out", max_size=10_001)


def test_bombs_within_an_archive_count(tmp_path, archive):
    inner = io.BytesIO()
    with zipfile.ZipFile(inner, "w", zipfile.ZIP_DEFLATED) as nested:
        nested.writestr("zeros.bin", bytes(1_000_000))
    path = archive({"good.txt": b"g", "nested.zip": inner.getvalue()})
    assert path.stat().st_size < 3_000
    with pytest.raises(
        ArchiveError, match=r"nested\.zip states 0\.00 GB of files, but there is room"
    ):
        unpack(path, tmp_path / "out", max_size=500_000)
    assert not files(tmp_path / "out")


def test_more_than_the_disk_holds_is_not_begun(archive, tmp_path, monkeypatch):
    free = shutil._ntuple_diskusage(100, 95, 5)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: free)
    with pytest.raises(ArchiveError, match="may be meant to fill the disk"):
        unpack(archive({"a.txt": b"123456"}), tmp_path / "out")


def test_a_size_that_is_a_lie_is_damage(archive, tmp_path):
    """A member gives no more than it states: the rest is not read, and the checksum is wrong."""
    path = archive({"zeros.bin": bytes(1000)})
    content = bytearray(path.read_bytes())
    place = content.rindex(b"PK\x01\x02") + 24  # In the directory: the size when unpacked.
    content[place : place + 4] = (10).to_bytes(4, "little")
    path.write_bytes(content)
    with pytest.raises(ArchiveError, match="is damaged"):
        unpack(path, tmp_path / "out", max_size=100)
    assert not files(tmp_path / "out")


def test_too_many_members(archive, tmp_path, monkeypatch):
    monkeypatch.setattr(archives, "_MAX_MEMBERS", 2)
    with pytest.raises(ArchiveError, match="more than 2 members"):
        unpack(archive({"a": b"", "b": b"", "c": b""}), tmp_path / "out")


def test_archives_within_an_archive_stay_inside(archive, tmp_path):
    path = archive({"sub/nested.zip": zipped({"../../out.txt": b"bad"})})
    with pytest.raises(ArchiveError, match="would leave the folder"):
        unpack(path, tmp_path / "deep" / "out")
    assert {p.name for p in tmp_path.rglob("*") if p.is_file()} == {"data.zip"}


@pytest.mark.parametrize("kind", [stat.S_IFCHR, stat.S_IFBLK, stat.S_IFIFO, stat.S_IFSOCK])
def test_devices_are_refused(tmp_path, kind):
    path = tmp_path / "data.zip"
    device = zipfile.ZipInfo("null")
    device.external_attr = (kind | 0o666) << 16
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr(device, "")
    with pytest.raises(ArchiveError, match="'null' is a link or a device"):
        unpack(path, tmp_path / "out")


@pytest.mark.parametrize(
    "names", [("a", "a/b"), ("a/b", "a"), ("x" * 300,)], ids=["file first", "folder first", "long"]
)
def test_names_that_cannot_be(archive, tmp_path, names):
    with pytest.raises(ArchiveError, match="cannot be written"):
        unpack(archive(dict.fromkeys(names, b"x")), tmp_path / "out")
    assert not files(tmp_path / "out")


def test_encrypted_members_are_named(archive, tmp_path):
    path = archive({"secret.txt": b"x"})
    content = bytearray(path.read_bytes())
    for start, flags in ((b"PK\x03\x04", 6), (b"PK\x01\x02", 8)):
        content[content.index(start) + flags] |= 1
    path.write_bytes(content)
    with pytest.raises(ArchiveError, match=r"secret\.txt' is damaged .*password"):
        unpack(path, tmp_path / "out")


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EROFS, errno.EACCES])
def test_a_disk_that_takes_nothing_is_not_the_archives_fault(archive, tmp_path, monkeypatch, code):
    """An archive at fault is removed, which has been downloaded for hours."""

    def fail(*args):
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(os, "replace", fail)
    with pytest.raises(OSError, match=os.strerror(code)):
        unpack(archive({"a": b"x"}), tmp_path / "out")
