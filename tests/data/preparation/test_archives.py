"""Zip files that are good, damaged or malicious."""

import errno
import io
import os
import shutil
import stat
import zipfile
from types import SimpleNamespace

import pytest

from flatten_det.data.preparation import fetch
from flatten_det.data.preparation.fetch import ArchiveError, unpack, unpacked_size, verify


def zipped(members: dict[str | zipfile.ZipInfo, bytes], **options) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", **options) as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    return buffer.getvalue()


@pytest.fixture
def archive(tmp_path):
    """Writes an archive with these members."""

    def write(members: dict):
        path = tmp_path / "data.zip"
        path.write_bytes(zipped(members))
        return path

    return write


def files(root) -> dict[str, bytes]:
    """All files of a folder, hidden ones too."""
    return {p.relative_to(root).as_posix(): p.read_bytes() for p in root.rglob("*") if p.is_file()}


@pytest.fixture
def refused(tmp_path):
    """Unpacks an archive that is refused, before anything is written."""

    def refused(path, message: str, **options) -> None:
        with pytest.raises(ArchiveError, match=message):
            unpack(path, tmp_path / "deep" / "out", **options)
        assert set(files(tmp_path)) == {"data.zip"}

    return refused


def test_files_come_to_their_places(archive, tmp_path):
    content = {"images/a.jpg": b"a", "images/sub/b.jpg": b"b", "readme.txt": b"r"}
    path = archive(content)
    assert unpacked_size(path) == 3
    unpack(path, tmp_path / "out")
    assert files(tmp_path / "out") == content


def test_top_folder_stands_for_the_root(archive, tmp_path):
    path = archive({"Top/a.txt": b"a", "other/b.txt": b"b", "__MACOSX/Top/._a.txt": b"x"})
    unpack(path, tmp_path / "out", top="Top")
    assert files(tmp_path / "out") == {"a.txt": b"a"}


def test_archives_in_an_archive_are_unpacked_where_they_lie(archive, tmp_path):
    inner = zipped({"panoptic/1.png": b"1", "__MACOSX/panoptic/._1.png": b"x"})
    unpack(archive({"annotations/p.zip": inner, "annotations/p.json": b"{}"}), tmp_path)
    found = {"annotations/panoptic/1.png": b"1", "annotations/p.json": b"{}"}
    assert files(tmp_path).items() > found.items()
    assert len(files(tmp_path)) == 3


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
def test_members_outside(archive, refused, name):
    refused(archive({"good.txt": b"g", name: b"bad"}), "would leave the folder")
    refused(archive({"sub/nested.zip": zipped({f"../{name}": b"bad"})}), "would leave the folder")


@pytest.mark.parametrize(
    "kind", [stat.S_IFLNK, stat.S_IFCHR, stat.S_IFBLK, stat.S_IFIFO, stat.S_IFSOCK]
)
def test_links_and_devices(archive, refused, kind):
    info = zipfile.ZipInfo("images")
    info.external_attr = (kind | 0o777) << 16
    refused(archive({info: "/etc", "images/passwd": "bad"}), "'images' is a link or a device")


def test_damage_is_named(archive, refused):
    path = archive({"first.txt": b"first", "second.txt": b"second"})
    path.write_bytes(
        path.read_bytes().replace(b"second", b"sec0nd", 2).replace(b"sec0nd.", b"second.")
    )
    refused(path, r"second\.txt' is damaged")
    path.write_bytes(b"<html>Sign in</html>")
    refused(path, "not a complete zip file")


def test_size_and_digest_are_compared(tmp_path):
    path = tmp_path / "data.zip"
    path.write_bytes(b"abc")
    verify(path, None, None)
    verify(path, 3, ("md5", "900150983cd24fb0d6963f7d28e17f72"))
    with pytest.raises(ArchiveError, match="3 bytes instead of 4"):
        verify(path, 4, None)
    with pytest.raises(ArchiveError, match=r"its md5 is 9001\w+ instead of 00"):
        verify(path, 3, ("md5", "00"))


def test_bombs(archive, refused, tmp_path):
    path = archive({"a.txt": b"a", "zeros.bin": bytes(10_000)})
    refused(path, "may be meant to fill the disk", max_size=10_000)
    unpack(path, tmp_path / "out", max_size=10_001)


def test_bombs_within_an_archive_count(archive, refused):
    nested = zipped({"zeros.bin": bytes(1_000_000)}, compression=zipfile.ZIP_DEFLATED)
    path = archive({"good.txt": b"g", "nested.zip": nested})
    assert path.stat().st_size < 3_000
    said = r"nested\.zip states 0\.00 GB of files, but there is room"
    refused(path, said, max_size=500_000)


def test_more_than_the_disk_holds_is_not_begun(archive, refused, monkeypatch):
    monkeypatch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(free=5))
    refused(archive({"a.txt": b"123456"}), "may be meant to fill the disk")


def test_a_size_that_is_a_lie_is_damage(archive, refused):
    """A member gives no more than it states: the rest is not read, and the checksum is wrong."""
    path = archive({"zeros.bin": bytes(1000)})
    content = bytearray(path.read_bytes())
    place = content.rindex(b"PK\x01\x02") + 24  # In the directory: the size when unpacked.
    content[place : place + 4] = (10).to_bytes(4, "little")
    path.write_bytes(content)
    refused(path, "is damaged", max_size=100)


def test_too_many_members(archive, refused, monkeypatch):
    monkeypatch.setattr(fetch, "_MAX_MEMBERS", 2)
    refused(archive({"a": b"", "b": b"", "c": b""}), "more than 2 members")


@pytest.mark.parametrize(
    "names", [("a", "a/b"), ("a/b", "a"), ("x" * 300,)], ids=["file first", "folder first", "long"]
)
def test_names_that_cannot_be(archive, refused, names):
    refused(archive(dict.fromkeys(names, b"x")), "cannot be written")


def test_encrypted_members_are_named(archive, refused):
    path = archive({"secret.txt": b"x"})
    content = bytearray(path.read_bytes())
    for start, flags in ((b"PK\x03\x04", 6), (b"PK\x01\x02", 8)):
        content[content.index(start) + flags] |= 1
    path.write_bytes(content)
    refused(path, r"secret\.txt' is damaged .*password")


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EROFS, errno.EACCES])
def test_a_disk_that_takes_nothing_is_not_the_archives_fault(archive, tmp_path, monkeypatch, code):
    """An archive at fault is removed, which has been downloaded for hours."""

    def fail(*args):
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(os, "replace", fail)
    with pytest.raises(OSError, match=os.strerror(code)):
        unpack(archive({"a": b"x"}), tmp_path / "out")
