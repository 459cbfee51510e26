"""Downloads from a loopback server that breaks off, changes its file or sends something else."""

import io
import os
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
import torch

from flatten_det.checkpoints import CheckpointError, read_checkpoint
from flatten_det.checkpoints.download import cached_path, download
from flatten_det.downloads import ATTEMPTS


class Server(ThreadingHTTPServer):
    """Serves ``content`` under any path; ``breaks`` is how many responses end after half their bytes."""

    def __init__(self, content: bytes):
        super().__init__(("127.0.0.1", 0), _Handler)
        self.content, self.version, self.breaks, self.status = content, '"1"', 0, 200
        self.ranges = []

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}/release/flatten_pvt_t.pth"


class _Handler(BaseHTTPRequestHandler):
    def do_GET(self):
        server, wanted = self.server, self.headers.get("Range")
        server.ranges.append(wanted)
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


@pytest.fixture
def server(tmp_path, monkeypatch):
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path / "hub"))
    buffer = io.BytesIO()
    torch.save({"model": {"weight": torch.arange(250_000)}}, buffer)
    server = Server(buffer.getvalue())
    threading.Thread(target=server.serve_forever, daemon=True).start()
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
    "content",
    [b"<html>Sign in to continue</html>", b""],
    ids=["a page", "nothing"],
)
def test_something_else_leaves_nothing_in_the_cache(server, content):
    server.content = content
    with pytest.raises(CheckpointError, match=r"flatten_pvt_t\.pth: "):
        read_checkpoint(server.url)
    assert not files(server)


def test_a_file_without_weights_leaves_nothing_in_the_cache(server):
    buffer = io.BytesIO()
    torch.save({"epoch": 3}, buffer)
    server.content = buffer.getvalue()
    with pytest.raises(CheckpointError, match="no weights in it"):
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
