"""Small files that claim to be huge images."""

import io
import struct
import zlib
from pathlib import Path

from PIL import Image


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


def huge_files(width: int, height: int) -> dict[str, bytes]:
    """Headers of images of that size, in what OpenCV decodes, by the name of the format."""
    sides = struct.pack(">II", width, height)
    run = b"\x80\xff" * 100
    return {
        "hdr": b"#?RADIANCE\nFORMAT=32-bit_rle_rgbe\n\n-Y %d +X %d\n" % (height, width) + run,
        "pfm": b"PF\n%d %d\n-1.0\n" % (width, height) + run,
        "grey pfm": b"Pf\n%d %d\n-1.0\n" % (width, height) + run,
        "pam": b"P7\nWIDTH %d\nHEIGHT %d\nDEPTH 3\nMAXVAL 255\nTUPLTYPE RGB\nENDHDR\n"
        % (width, height)
        + run,
        "ppm": b"P6\n%d %d\n255\n" % (width, height) + run,
        "ppm of two readings": b"P6\n%d#%d\n1\n255\n" % (width, height) + run,
        "sun": b"\x59\xa6\x6a\x95" + sides + struct.pack(">IIIII", 24, 0, 2, 0, 0) + run,
        "bmp": _restated("BMP", 18, struct.pack("<ii", width, height)),
        "tiff": _tiff(width, height, samples=3),
        "tiff of many channels": _tiff(width, height, samples=7),
        "tiff of two widths": _tiff(width, height, 3, (256, 8)),
        "big tiff": _big_tiff(width, height),
        "jpeg 2000": _restated("JPEG2000", 48, struct.pack(">II", height, width)),
        "gif": _restated("GIF", 6, struct.pack("<HH", min(width, 65_535), min(height, 65_535))),
    }


def _restated(kind: str, start: int, size: bytes) -> bytes:
    """A file of Pillow's with another size in its header."""
    file = io.BytesIO()
    Image.new("RGB", (8, 8)).save(file, kind)
    content = file.getvalue()
    return content[:start] + size + content[start + len(size) :]


def _tiff(width: int, height: int, samples: int, *more: tuple[int, int]) -> bytes:
    """Uncompressed, 8 bits a channel, without its pixels."""
    tags = [
        (256, width),
        *more,
        (257, height),
        (258, 8),
        (259, 1),
        (262, 1),
        (273, 8),
        (277, samples),
    ]
    tags += [(278, height), (279, 1), (284, 1)]
    entries = b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in tags)
    return b"II*\0" + struct.pack("<IH", 8, len(tags)) + entries + struct.pack("<I", 0)


def _big_tiff(width: int, height: int) -> bytes:
    """Of seven channels, big-endian, with 64-bit offsets."""
    tags = [(256, width), (257, height), (258, 8), (259, 1), (262, 1), (273, 8), (277, 7)]
    entries = b"".join(struct.pack(">HHQQ", tag, 16, 1, value) for tag, value in tags)
    return b"MM\0+" + struct.pack(">HHQQ", 8, 0, 16, len(tags)) + entries + struct.pack(">Q", 0)
