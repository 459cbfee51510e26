"""Image files of every kind that people have, and ones that are damaged, to fuzz readers with."""

import io
import struct
import zlib
from functools import cache

import numpy as np
from fuzzing import damaged
from hypothesis import strategies as st
from PIL import Image

# Pillow's modes by format: 16 bit, CMYK, palettes with and without transparency, floats, alpha.
_KINDS = {
    "JPEG": ("RGB", "L", "CMYK"),
    "PNG": ("RGB", "L", "1", "P", "LA", "RGBA", "I;16"),
    "TIFF": ("RGB", "L", "I;16", "F", "CMYK", "RGBA"),
    "BMP": ("RGB", "P", "1"),
    "GIF": ("P", "L"),
    "WEBP": ("RGB", "RGBA"),
    "PPM": ("RGB", "L", "1"),
    "TGA": ("RGB",),  # OpenCV does not read it.
}
# (width, height); extreme ones are resized to less than a pixel.
_SIZES = [(64, 64), (64, 64), (1, 1), (3, 5), (1, 300), (300, 1)]
_ORIENTATION = 0x0112
# Sides that no file of a few bytes has: more than 2^30 pixels, and more than 2^32.
_HUGE = [(65_500, 65_500), (2**31 - 1, 2**31 - 1), (40_000, 30_000), (0, 64)]


def image_files() -> st.SearchStrategy[bytes]:
    """Whole files of every kind, damaged ones, and ones that state a wrong size."""
    whole = st.sampled_from(_whole())
    return st.one_of(
        whole,
        whole.flatmap(damaged),
        whole.flatmap(damaged),
        st.sampled_from(_of_wrong_size()),
        st.binary(max_size=40),
    )


@cache
def _whole() -> list[bytes]:
    files = [
        _encoded(kind, mode, size)
        for kind, modes in _KINDS.items()
        for mode in modes
        for size in _SIZES
    ]
    for orientation in range(10):
        exif = Image.Exif()
        exif[_ORIENTATION] = orientation
        files += [_encoded("JPEG", "RGB", size, exif=exif) for size in ((64, 64), (60, 40))]
    frames = [_picture("RGB", (64, 64)) for _ in range(3)]
    for kind in ("GIF", "WEBP", "PNG", "TIFF"):  # Animated, or of several pages.
        files.append(_encoded(kind, "RGB", (64, 64), save_all=True, append_images=frames))
    files.append(_encoded("PNG", "P", (64, 64), transparency=bytes(range(256))))
    return files


def _encoded(kind: str, mode: str, size: tuple[int, int], **options) -> bytes:
    file = io.BytesIO()
    _picture(mode, size).save(file, kind, **options)
    return file.getvalue()


def _picture(mode: str, size: tuple[int, int]) -> Image.Image:
    width, height = size
    pixels = np.random.default_rng(width).integers(0, 256, (height, width, 3), np.uint8)
    if mode == "I;16":
        return Image.fromarray(pixels[..., 0].astype(np.uint16) * 257)
    return Image.fromarray(pixels).convert("RGB").convert(mode)


@cache
def _of_wrong_size() -> list[bytes]:
    png, bmp = _encoded("PNG", "RGB", (64, 64)), _encoded("BMP", "RGB", (64, 64))
    jpeg = _encoded("JPEG", "RGB", (64, 64))
    start = jpeg.index(b"\xff\xc0") + 5  # Frame header: marker, length, bits.
    files = []
    for width, height in _HUGE:
        header = b"IHDR" + struct.pack(">II", width, height) + png[24:29]
        files.append(png[:12] + header + struct.pack(">I", zlib.crc32(header)) + png[33:])
        files.append(bmp[:18] + struct.pack("<ii", width, height) + bmp[26:])
        sides = struct.pack(">HH", height % 2**16, width % 2**16)
        files.append(jpeg[:start] + sides + jpeg[start + 4 :])
        files.append(b"P6\n%d %d\n255\n" % (width, height) + b"\1" * 64)
    return files
