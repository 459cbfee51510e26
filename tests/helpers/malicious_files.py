"""Checkpoints that run a command when they are unpickled, or when a text in them is executed."""

import io
import os
import pickle
import tarfile
import threading
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import torch
from torch import nn


class Command:
    """Runs ``touch MARKER`` by os.system when it is unpickled."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self):
        return os.system, (f"touch {self.marker}",)


class OwnClass:
    """What one's own old training may have put into its checkpoints: not data, and harmless."""


def state(extra: object, weights: dict | None = None) -> dict:
    """All that a checkpoint of mmengine has, with something extra where a training would look."""
    weights = nn.Linear(2, 2).state_dict() if weights is None else weights
    return {
        "state_dict": weights,
        "ema_state_dict": {"steps": extra},
        "optimizer": {"state": {}, "param_groups": [extra]},
        "message_hub": {"log_scalars": {}, "runtime_info": {}, "resumed_keys": {}},
        "meta": {"epoch": 1, "iter": 5, "time": "20260101_000000", "dataset_meta": {"classes": ()}},
    }


def save_command(path: Path, marker: Path) -> Path:
    """A checkpoint as ``torch.save`` writes it, that runs ``touch MARKER``."""
    torch.save(state(Command(marker)), path)
    return path


def save_text(path: Path, marker: Path, weights: dict | None = None) -> Path:
    """A checkpoint of data only, whose config texts run ``touch MARKER`` when executed as Python."""
    text = f"import os\nos.system('touch {marker}')\ngpu_ids = [0]\nmodel = dict(type='ResNet')\n"
    content = state({}, weights)
    del content["optimizer"]
    content["meta"] |= {"config": text, "cfg": text}
    content["message_hub"]["runtime_info"]["cfg"] = text
    torch.save(content, path)
    return path


def save_without_zip(path: Path, marker: Path) -> None:
    """The format of PyTorch before 1.6."""
    torch.save(state(Command(marker)), path, _use_new_zipfile_serialization=False)


def save_plain_pickle(path: Path, marker: Path) -> None:
    """No format of PyTorch's at all."""
    path.write_bytes(pickle.dumps(state(Command(marker))))


def save_tar(path: Path, marker: Path) -> None:
    """The format of PyTorch before 0.4."""
    with tarfile.open(path, "w") as archive:
        for name in ("sys_info", "pickle", "storages", "tensors"):
            content = pickle.dumps(Command(marker), protocol=2)
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))


def save_script(path: Path, marker: Path) -> None:
    """TorchScript, with a command among its constants."""
    torch.jit.save(torch.jit.script(nn.Linear(2, 2)), path)
    with zipfile.ZipFile(path) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in members.items():
            is_pickle = name.endswith(".pkl")
            archive.writestr(name, pickle.dumps(Command(marker)) if is_pickle else content)


def save_zipped(path: Path, marker: Path) -> None:
    """A single file in a zip file, which torch.hub unpacks."""
    inner = path.with_name("inner.pth")
    save_without_zip(inner, marker)
    with zipfile.ZipFile(path, "w") as archive:
        archive.write(inner, "inner.pth")
    inner.unlink()


def deflated(archive: bytes, padding: int = 0) -> bytes:
    """A zip file whose members are compressed, with zeros after each of them."""
    buffer = io.BytesIO()
    with (
        zipfile.ZipFile(io.BytesIO(archive)) as source,
        zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as target,
    ):
        for name in source.namelist():
            target.writestr(name, source.read(name) + bytes(padding))
    return buffer.getvalue()


FORMS = {
    "zip": save_command,
    "before 1.6": save_without_zip,
    "pickle": save_plain_pickle,
    "before 0.4": save_tar,
    "TorchScript": save_script,
    "zipped": save_zipped,
}


class _Silent(SimpleHTTPRequestHandler):
    def log_message(self, *args) -> None:
        pass


@contextmanager
def served(folder: Path) -> Iterator[str]:
    """The address of a folder on this machine."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(_Silent, directory=folder))
    threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()
