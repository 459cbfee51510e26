"""Small files that claim to be huge images."""

import struct
import zlib
from pathlib import Path


def png_bomb(path: Path, width: int = 100_000, height: int = 100_000, kilobytes: int = 50) -> Path:
    """Write a PNG of that many pixels whose file is small: zeros compress a thousand times."""

    def chunk(kind: bytes, content: bytes) -> bytes:
        checksum = zlib.crc32(kind + content)
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", checksum)

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    packer = zlib.compressobj(9)
    zeros, data = bytes(1 << 20), bytearray()
    while len(data) < kilobytes * 1024:
        data += packer.compress(zeros)
    data += packer.flush()
    end = chunk(b"IEND", b"")
    path.write_bytes(
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", bytes(data)) + end
    )
    return path
