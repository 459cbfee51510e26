"""Downloads from a loopback server that breaks off, changes its file or sends something else."""

import hashlib
import http.client
import io
import os
import threading
import zipfile
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
import torch
from malicious_files import deflated
from mmengine.runner import CheckpointLoader

from flatten_det.errors import CheckpointError
from flatten_det.files.checkpoints import read_checkpoint
from flatten_det.files.downloads import ATTEMPTS, cached_path, download


class Server(ThreadingHTTPServer):
    """Serves ``content`` under any path; ``breaks`` is how many responses end after half their bytes."""

    def __init__(self, content: bytes):
        super().__init__(("127.0.0.1", 0), _Handler)
        self.content, self.version, self.breaks, self.status = content, '"1"', 0, 200
        self.ranges, self.elsewhere = [], None

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}/release/flatten_pvt_t.pth"


class _Handler(BaseHTTPRequestHandler):
    def do_GET(self):
        server, wanted = self.server, self.headers.get("Range")
        server.ranges.append(wanted)
        if server.elsewhere:
            self.send_response(302)
            self.send_header("Location", server.elsewhere)
            self.end_headers()
            return
        if server.status != 200:
            self.send_error(server.status)
            return
        start = 0
        if wanted and self.headers["If-Range"] == server.version:
            start = int(wanted.removeprefix("bytes=").removesuffix("-"))
        body = server.content[start:]
        self.send_response(206 if start else 200)
        self.send_header("ETag", server.version)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if server.breaks:
            server.breaks -= 1
            body = body[: len(body) // 2]
        self.wfile.write(body)
        self.close_connection = True

    def log_message(self, *args):
        pass


def saved(content: dict) -> bytes:
    buffer = io.BytesIO()
    torch.save(content, buffer)
    return buffer.getvalue()


@pytest.fixture
def server(tmp_path, monkeypatch):
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path / "hub"))
    server = Server(saved({"model": {"weight": torch.arange(250_000)}}))
    threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
    yield server
    server.shutdown()
    server.server_close()


def files(server) -> set[str]:
    """What the cache holds besides the lock."""
    folder = cached_path(server.url).parent
    return {p.name for p in folder.iterdir() if p.suffix != ".lock"} if folder.exists() else set()


def test_second_call_takes_the_cached_file(server):
    first = download(server.url)
    assert download(server.url) == first
    assert first.read_bytes() == server.content
    assert server.ranges == [None]
    assert files(server) == {first.name}


def test_broken_download_is_continued_at_once(server):
    server.breaks = 2
    assert download(server.url).read_bytes() == server.content
    half = len(server.content) // 2
    rest = (len(server.content) - half) // 2
    assert server.ranges == [None, f"bytes={half}-", f"bytes={half + rest}-"]


def test_broken_download_is_continued_by_the_next_call(server):
    server.breaks = ATTEMPTS
    with pytest.raises(CheckpointError, match=r"broke off .*the same command continues it"):
        download(server.url)
    assert not cached_path(server.url).exists()
    assert download(server.url).read_bytes() == server.content
    assert server.ranges[-1] is not None
    assert files(server) == {cached_path(server.url).name}


def test_a_file_that_changed_in_between_starts_anew(server):
    server.breaks = ATTEMPTS
    with pytest.raises(CheckpointError, match="broke off"):
        download(server.url)
    server.content, server.version = server.content[::-1], '"2"'
    assert download(server.url).read_bytes() == server.content


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"<html>Sign in to continue</html>", r"flatten_pvt_t\.pth: "),
        (b"", r"flatten_pvt_t\.pth: "),
        (saved({"epoch": 3}), "no weights in it"),
    ],
    ids=["a page", "nothing", "no weights"],
)
def test_something_else_leaves_nothing_in_the_cache(server, content, said):
    server.content = content
    with pytest.raises(CheckpointError, match=said):
        read_checkpoint(server.url)
    assert not files(server)


def test_refusal_is_one_error_and_not_repeated(server):
    server.status = 404
    with pytest.raises(CheckpointError, match="the server answers 404"):
        download(server.url)
    assert len(server.ranges) == 1
    assert not files(server)


def test_weights_come_through(server):
    assert torch.equal(read_checkpoint(server.url)["weight"], torch.arange(250_000))


def test_equal_names_at_two_addresses_are_two_files(server):
    other = server.url.replace("release", "other")
    assert cached_path(other) != cached_path(server.url)
    assert cached_path(other).name.endswith("-flatten_pvt_t.pth")


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="no device that is always full")
def test_a_full_disk_is_no_broken_download(server):
    target = cached_path(server.url)
    target.parent.mkdir(parents=True)
    target.with_name(f"{target.name}.part").symlink_to("/dev/full")
    with pytest.raises(
        CheckpointError, match=r"pth cannot be written: No space left on device; the"
    ):
        download(server.url)
    assert len(server.ranges) == 1
    assert not target.exists()


def load(url: str):
    """As mmengine, and all that goes through it, loads an address."""
    return CheckpointLoader.load_checkpoint(url, "cpu", logger="silent")


@pytest.mark.parametrize("read", [load, read_checkpoint])
@pytest.mark.parametrize("name", ["resnet50-0676ba61.pth", "../../x.pth", "/tmp/flatten_det_x.pth"])
def test_nothing_is_unpacked_among_the_downloads(server, name, read):
    """torch.hub unpacks a zip of one file beside it, over what is there."""
    victim = cached_path(server.url).parent / "resnet50-0676ba61.pth"
    victim.parent.mkdir(parents=True)
    victim.write_bytes(b"weights")
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr(name, server.content)
    server.content = buffer.getvalue()
    with pytest.raises(CheckpointError, match=r"flatten_pvt_t\.pth"):
        read(server.url)
    assert victim.read_bytes() == b"weights"
    assert files(server) == {victim.name}
    assert not Path("/tmp/flatten_det_x.pth").exists()


@pytest.mark.parametrize("read", [load, read_checkpoint])
def test_compressed_downloads_are_refused(server, read):
    server.content = deflated(server.content, padding=3_000_000)
    with pytest.raises(CheckpointError, match=r"pvt_t\.pth cannot be read: it would unpack"):
        read(server.url)
    assert not files(server)


def test_what_torch_has_downloaded_is_taken_if_its_digest_is_right(server):
    folder = cached_path(server.url).parent
    folder.mkdir(parents=True)
    digest = hashlib.sha256(server.content).hexdigest()[:8]
    for name in (f"resnet-{digest}.pth", "resnet-0123abcd.pth", "flatten_pvt_t.pth"):
        (folder / name).write_bytes(server.content)
    of_torch = download(server.url.replace("flatten_pvt_t", f"resnet-{digest}"))
    assert of_torch == folder / f"resnet-{digest}.pth"
    assert not server.ranges
    for name in ("resnet-0123abcd", "flatten_pvt_t"):
        assert download(server.url.replace("flatten_pvt_t", name)).name.endswith(f"-{name}.pth")
    assert len(server.ranges) == 2


@pytest.mark.parametrize(
    "ending", ["/..", "/a/%2e%2e/..%2f..%2fx", f"/{'x' * 300}.pth", "?file=../../x.pth", "/", "#x"]
)
def test_any_address_has_a_place_in_the_cache(server, ending, tmp_path):
    address = f"http://127.0.0.1:{server.server_port}{ending}"
    assert torch.equal(load(address)["model"]["weight"], torch.arange(250_000))
    assert download(address).parent == tmp_path / "hub" / "checkpoints"


@pytest.mark.parametrize(
    "address", ["http://", "http://127.0.0.1:x/a.pth", "http://127.0.0.1:1/ü.pth", "https://a b/c"]
)
def test_what_is_no_address_is_one_error(server, address):
    with pytest.raises(CheckpointError, match="cannot be read"):
        load(address)


@pytest.mark.parametrize("elsewhere", ["ftp://127.0.0.1/x.pth", "file:///etc/passwd"])
def test_a_server_cannot_refer_to_other_protocols(server, elsewhere):
    server.elsewhere = elsewhere
    with pytest.raises(CheckpointError, match=r"refers to|not allowed"):
        load(server.url)
    assert not files(server)


def test_a_server_cannot_refer_to_where_no_certificate_counts(server, monkeypatch):
    class Connection(http.client.HTTPConnection):
        """Has all but the encryption."""

        def __init__(self, host, timeout, **of_encryption):
            super().__init__(host, timeout=timeout)

    monkeypatch.setattr(http.client, "HTTPSConnection", Connection)
    address = server.url.replace("http://", "https://")
    assert download(address).read_bytes() == server.content
    server.elsewhere = server.url
    with pytest.raises(CheckpointError, match="which is not https"):
        download(f"{address}?again")


def test_models_that_frameworks_know_by_name(server, monkeypatch):
    """Their tables say where they are."""
    import mmengine.runner.checkpoint as module

    known = {"flatten": server.url}
    for table in ("get_torchvision_models", "get_external_models", "get_mmcls_models"):
        monkeypatch.setattr(module, table, lambda: known)
    for scheme in ("torchvision", "modelzoo", "open-mmlab", "openmmlab"):
        assert read_checkpoint(f"{scheme}://flatten")["weight"].numel() == 250_000
    assert len(server.ranges) == 1
    with pytest.raises(CheckpointError, match=r"torchvision://other: there is no model 'other'"):
        read_checkpoint("torchvision://other")
    with pytest.raises(CheckpointError, match=r"mmcls://flatten: no weights in it"):
        read_checkpoint("mmcls://flatten")  # Those files are of classifiers, with a backbone.
    with pytest.raises(CheckpointError, match=r"s3://a/b\.pth: .*petrel"):
        read_checkpoint("s3://a/b.pth")
