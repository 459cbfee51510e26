"""Images out of requests: how much is read, for how long, and what is not decoded."""

import io
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass

import anyio
from fastapi import HTTPException, Request
from PIL import Image, UnidentifiedImageError
from python_multipart import MultipartParser
from python_multipart.exceptions import FormParserError
from python_multipart.multipart import parse_options_header

from .model_thread import BusyError

# Of these, Pillow and OpenCV read the same size.
KINDS = ("BMP", "JPEG", "PNG", "WEBP")


@dataclass(frozen=True)
class Limits:
    """What the server takes.

    Attributes:
        upload_bytes: of a request.
        pixels: of an image.
        waiting: requests that may wait for the model.
        seconds: in which a request must have come, and then, the model must have begun with it.
        connections: that are open at a time.
    """

    upload_bytes: int = 20 << 20
    pixels: int = 50_000_000
    waiting: int = 64
    seconds: float = 30.0
    connections: int = 512

    @property
    def all_bytes(self) -> int:
        """Bytes of all requests that are in memory."""
        return 8 * self.upload_bytes


class Uploads:
    """The images that are being read or wait, whose bytes together are limited.

    Attributes:
        held: these bytes.
    """

    def __init__(self, limits: Limits) -> None:
        self._limits = limits
        self.held = 0

    @asynccontextmanager
    async def image_of(self, request: Request) -> AsyncIterator[bytes]:
        """The image of a request, counted until the block ends: its body, or the one part of its form.

        Empty if there is none. Its header is read, and no pixel decoded.

        Raises:
            HTTPException: it is too large, too slow, or no image that is taken.
            BusyError: others hold all the memory.
        """
        counted = 0

        def count(more: int) -> None:
            nonlocal counted
            counted += more
            self.held += more
            if counted > self._limits.upload_bytes:
                raise self._too_long()
            if self.held > self._limits.all_bytes:
                raise BusyError("requests of others take all the memory that they may")

        try:
            content = await self._read(request, count)
            if content:
                await anyio.to_thread.run_sync(check_header, content, self._limits.pixels)
            yield content
        finally:
            self.held -= counted

    async def _read(self, request: Request, count: Callable[[int], None]) -> bytes:
        stated = request.headers.get("content-length", "")
        if stated.isdecimal() and int(stated) > self._limits.upload_bytes:
            raise self._too_long()
        body = _Body(request.headers.get("content-type", ""))
        try:
            with anyio.fail_after(self._limits.seconds):
                async for chunk in request.stream():
                    count(len(chunk))
                    body.add(chunk)
        except TimeoutError:
            reason = f"the request took longer than {self._limits.seconds:g} seconds to come"
            raise HTTPException(408, reason, {"Connection": "close"}) from None
        return body.content()

    def _too_long(self) -> HTTPException:
        return HTTPException(
            413, f"a request may have up to {self._limits.upload_bytes} bytes: send a smaller image"
        )


class _Body:
    """What has come of a request: the image, or a form with it as the one part."""

    def __init__(self, content_type: str) -> None:
        self._content = bytearray()
        self._parts = 0
        self._is_whole = True
        self._form: MultipartParser | None = None
        kind, options = parse_options_header(content_type)
        if kind == b"multipart/form-data":
            if not options.get(b"boundary"):
                raise _bad_form("it states no boundary")
            self._is_whole = False
            calls = {
                "on_part_begin": self._begin_part,
                "on_part_data": self._add_data,
                "on_end": self._end,
            }
            self._form = MultipartParser(options[b"boundary"], calls)

    def add(self, chunk: bytes) -> None:
        """The next bytes of the request; HTTPException if they are no form, or a second part of one."""
        if self._form is None:
            self._content += chunk
            return
        try:
            self._form.write(chunk)
        except FormParserError as error:
            raise _bad_form("it cannot be read") from error

    def content(self) -> bytes:
        """The image, at the end of the request; HTTPException if the form has not come to one."""
        if not self._is_whole:
            raise _bad_form("it has no end")
        return bytes(self._content)

    def _begin_part(self) -> None:
        self._parts += 1
        if self._parts > 1:
            raise _bad_form("it has several parts")

    def _add_data(self, data: bytes, start: int, end: int) -> None:
        self._content += data[start:end]

    def _end(self) -> None:
        self._is_whole = True


def _bad_form(reason: str) -> HTTPException:
    return HTTPException(
        400,
        f"this is no form with one image: {reason}: send the image as its one part, or as the request's "
        "body, and options in the address",
    )


def check_header(content: bytes, max_pixels: int) -> None:
    """HTTPException unless it begins like an image of a kind that is taken, and of so many pixels at most."""
    try:
        with Image.open(io.BytesIO(content), formats=KINDS) as image:
            width, height = image.size
    except Image.DecompressionBombError:
        raise HTTPException(413, _too_many(max_pixels)) from None
    except UnidentifiedImageError:
        kinds = ", ".join(KINDS)
        raise HTTPException(415, f"this is no image of a kind that is taken: {kinds}") from None
    except Exception:  # What readers of damaged headers raise.
        raise HTTPException(422, "the image is damaged") from None
    if width * height > max_pixels:
        raise HTTPException(413, f"{width} x {height} pixels: {_too_many(max_pixels)}")


def _too_many(max_pixels: int) -> str:
    return f"an image may have up to {max_pixels} pixels: send a smaller one"
