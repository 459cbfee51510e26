"""Checkpoint files that are damaged, forged, or hold something else than they should."""

import io
import json
import struct
import zipfile
from typing import Any

import torch
from fuzzing import changed, damaged
from hypothesis import strategies as st
from safetensors.torch import save


def pytorch_files(content: dict[str, Any]) -> st.SearchStrategy[bytes]:
    """Files like that of ``torch.save(content)``: other content, damaged, or with damage within."""
    good, legacy = _saved(content), _saved(content, _use_new_zipfile_serialization=False)
    return st.one_of(
        changed(content).map(_saved),
        changed(content).map(_saved),
        damaged(good),
        damaged(legacy),
        damaged(_member(good, "data.pkl")).map(lambda pickled: _with_member(good, pickled)),
        st.sampled_from([good, legacy, b"", b"PK\x05\x06" + bytes(18), b"\x80\x02."]),
    )


def safetensors_files(weights: dict[str, torch.Tensor]) -> st.SearchStrategy[bytes]:
    """Files like that of ``save(weights)``: damaged, or with a header that tells lies."""
    good = save(weights)
    end = 8 + struct.unpack("<Q", good[:8])[0]
    header, data = json.loads(good[8:end]), good[end:]

    def forged(header: Any) -> bytes:
        text = json.dumps(header).encode()
        return struct.pack("<Q", len(text)) + text + data

    lengths = st.sampled_from([0, 1, end - 9, end - 7, 2**31, 2**63, 2**64 - 1])
    return st.one_of(
        changed(header).map(forged),
        changed(header).map(forged),
        damaged(good),
        lengths.map(lambda length: struct.pack("<Q", length) + good[8:]),
        st.just(good),
    )


def _saved(content: Any, **options: Any) -> bytes:
    file = io.BytesIO()
    torch.save(content, file, **options)
    return file.getvalue()


def _member(archive: bytes, name: str) -> bytes:
    with zipfile.ZipFile(io.BytesIO(archive)) as opened:
        return opened.read(f"archive/{name}")


def _with_member(archive: bytes, content: bytes) -> bytes:
    """The archive with another pickle in it, and the right checksum."""
    file = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(archive)) as old, zipfile.ZipFile(file, "w") as new:
        for info in old.infolist():
            is_pickle = info.filename.endswith("/data.pkl")
            new.writestr(info, content if is_pickle else old.read(info))
    return file.getvalue()
