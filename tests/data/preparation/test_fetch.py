"""A small COCO from a loopback server: downloaded, unpacked, kept, resumed, refused."""

import hashlib
import shutil
import threading
import zipfile
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import SimpleNamespace

import pytest

from flatten_det.data.preparation import fetch
from flatten_det.data.preparation.layout import Archive, Files, Listing, PublicDataSet
from flatten_det.data.preparation.public import check, prepare
from flatten_det.errors import UserError

VAL = Files("val2017", ".jpg", 3)
INSTANCES = "annotations/instances_val2017.json"


class Handler(SimpleHTTPRequestHandler):
    """Serves a folder and counts what is asked for."""

    def do_GET(self):
        self.server.asked.append(self.path)
        super().do_GET()

    def log_message(self, *args):
        pass


@pytest.fixture
def served(coco_folder, tmp_path):
    """A folder behind an address, with the two archives of the small data set."""
    folder = tmp_path / "served"
    (folder / "zips").mkdir(parents=True)
    for name, member in (("images.zip", "val2017"), ("labels.zip", "annotations")):
        with zipfile.ZipFile(folder / "zips" / name, "w") as archive:
            for path in sorted((coco_folder / member).iterdir()):
                archive.write(path, path.relative_to(coco_folder))
    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(Handler, directory=folder))
    server.asked, server.folder = [], folder / "zips"
    server.url = f"http://127.0.0.1:{server.server_port}"
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield server
    server.shutdown()
    server.server_close()


@pytest.fixture
def dataset(served):
    def archive(name, *provides):
        content = (served.folder / name).read_bytes()
        digest = ("sha256", hashlib.sha256(content).hexdigest())
        size = len(content)
        return Archive("http://unreachable.invalid", f"zips/{name}", provides, size, size, digest)

    archives = (archive("images.zip", VAL), archive("labels.zip", INSTANCES))
    return PublicDataSet("Small", (VAL, Listing(INSTANCES, VAL)), archives)


@pytest.fixture
def root(tmp_path):
    return tmp_path / "data" / "small"


def archives_in(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir() if ".zip" in path.name}


def test_from_nothing_to_complete_and_then_nothing_more(dataset, served, root, coco_folder, capsys):
    assert prepare(dataset, root, mirror=f"{served.url}/") == []
    assert served.asked == ["/zips/images.zip", "/zips/labels.zip"]
    for path in (coco_folder / "val2017").iterdir():
        assert (root / "val2017" / path.name).read_bytes() == path.read_bytes()
    assert archives_in(root) == set()
    assert "Small in" in capsys.readouterr().out
    assert prepare(dataset, root, mirror=served.url) == []
    assert len(served.asked) == 2
    assert "nothing to do" in capsys.readouterr().out


def test_only_what_is_missing_is_downloaded_and_kept_on_request(dataset, served, root, coco_folder):
    shutil.copytree(coco_folder / "annotations", root / "annotations")
    assert prepare(dataset, root, mirror=served.url, keep_archives=True) == []
    assert served.asked == ["/zips/images.zip"]
    assert archives_in(root) == {"images.zip"}


def test_archives_of_the_user_are_used_and_kept(dataset, served, root, tmp_path):
    folder = tmp_path / "downloads"
    folder.mkdir()
    shutil.copy(served.folder / "images.zip", folder)
    assert prepare(dataset, root, archives=folder, mirror=served.url) == []
    assert served.asked == ["/zips/labels.zip"]
    assert archives_in(folder) == {"images.zip"}


def test_interrupted_run_is_continued_and_its_archives_removed(dataset, served, root, monkeypatch):
    def interrupted(*args):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(fetch, "unpack", interrupted)
        with pytest.raises(KeyboardInterrupt):
            prepare(dataset, root, mirror=served.url)
    assert "images.zip" in archives_in(root)
    assert prepare(dataset, root, mirror=served.url) == []
    assert served.asked == ["/zips/images.zip", "/zips/labels.zip"]
    assert archives_in(root) == set()


def test_damaged_download_is_dropped_and_named(dataset, served, root):
    good = (served.folder / "images.zip").read_bytes()
    (served.folder / "images.zip").write_bytes(good[:-1] + b"x")
    with pytest.raises(UserError, match=r"images\.zip was damaged and is removed: its sha256 is"):
        prepare(dataset, root, mirror=served.url)
    assert archives_in(root) == set()
    assert not (root / "val2017").exists()
    (served.folder / "images.zip").write_bytes(good)
    assert prepare(dataset, root, mirror=served.url) == []


def test_damaged_archive_of_the_user_is_named_and_kept(dataset, root):
    root.mkdir(parents=True)
    (root / "images.zip").write_bytes(b"half")
    with pytest.raises(UserError, match=r"images\.zip is not usable: .*get this file again"):
        prepare(dataset, root)
    assert archives_in(root) == {"images.zip"}


def test_another_file_at_the_address_is_not_downloaded(dataset, served, root):
    (served.folder / "images.zip").write_bytes(b"<html>moved</html>")
    with pytest.raises(UserError, match="the server has a file of 18 bytes instead of"):
        prepare(dataset, root, mirror=served.url)
    assert archives_in(root) == set()


def test_space_is_asked_for_before_the_download(dataset, served, root, monkeypatch):
    usage = SimpleNamespace(free=10)
    monkeypatch.setattr(fetch.shutil, "disk_usage", lambda path: usage)
    with pytest.raises(UserError, match=r"0\.00 GB are needed .* 0\.00 GB are free"):
        prepare(dataset, root, mirror=served.url)
    assert served.asked == []
    # Twice the archives, and no byte less: they and their files lie on the disk together.
    needed = 2 * sum(archive.size for archive in dataset.archives)
    usage.free = needed - 1
    with pytest.raises(UserError, match="make room"):
        prepare(dataset, root, mirror=served.url)
    usage.free = needed
    assert prepare(dataset, root, mirror=served.url) == []


def test_check_writes_nothing(dataset, root, capsys):
    assert check(dataset, root) == [f"{root}: no such folder"]
    assert not root.exists()
    root.mkdir(parents=True)
    problems = check(dataset, root)
    assert problems == ["val2017/: missing (3 files *.jpg)", f"{INSTANCES}: missing"]
    assert "is not complete:\n  val2017/: missing" in capsys.readouterr().out
    assert not list(root.iterdir())
