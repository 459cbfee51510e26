"""Videos and cameras: frames in, an annotated video and the predictions of each frame out, with OpenCV."""

import contextlib
import json
import math
import os
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np

from ..errors import UserError, warn_once
from ..files.atomic import partial_folder, replace_file
from ..files.user_files import why_not_read
from ..results import Prediction
from ..results.picture import write_png
from .predictor import Predictor

# The first one that this OpenCV writes is taken: H.264 plays everywhere but is in few builds, VP9 in browsers
# and most players, and MPEG-4 in players alone, but is written ten times as fast as VP9.
CODECS = ("avc1", "vp09", "mp4v")
# For a camera or file that does not say.
_FRAME_RATE = 25.0
# Videos that begin with four letters. Playlists do, too, by which FFmpeg would open what else they name.
_BINARY = (b"RIFF", b"OggS", b"YUV4", b"DKIF", b"FORM", b".RMF")


@dataclass(frozen=True)
class VideoOutput:
    """What to write for a video.

    Attributes:
        predictions: JSON lines, one per frame; maps of segmentors lie in a folder of the same name.
        video: annotated, an MP4 file; None: none.
        codec: one of :data:`CODECS`; None: the first one that works.
        score: detections below it are left out.
    """

    predictions: Path
    video: Path | None
    codec: str | None
    score: float


class FrameSource:
    """The frames of a video file or a camera, BGR (H, W, 3), turned as the file's metadata say.

    Args:
        source: path, or a camera's number.
        max_pixels: frames may not have more.
        most: how many frames to read at most.

    Attributes:
        name: what messages call it.
        is_camera: whether there is an end only when somebody ends it.
        rate: frames per second, as it states it.
        total: how many frames it states to have; None if it does not.
        count: how many were read.

    Raises:
        UserError: it cannot be read.
    """

    def __init__(self, source: str | int, max_pixels: int, most: int | None = None) -> None:
        _be_quiet()
        self.is_camera = isinstance(source, int)
        self.name = f"camera {source}" if self.is_camera else f"video {source}"
        if not self.is_camera and (reason := why_not_read(source) or _why_no_video(source)):
            raise UserError(f"{self.name} {reason}")
        self._capture = cv2.VideoCapture(source)
        if not self._capture.isOpened():
            raise UserError(
                f"{self.name} cannot be opened: "
                + ("check its number and who may use it" if self.is_camera else "get it again")
            )
        get = self._capture.get
        width, height = get(cv2.CAP_PROP_FRAME_WIDTH), get(cv2.CAP_PROP_FRAME_HEIGHT)
        rate, total = get(cv2.CAP_PROP_FPS), get(cv2.CAP_PROP_FRAME_COUNT)
        if width * height > max_pixels:
            raise UserError(
                f"{self.name} has frames of {width:.0f} x {height:.0f} pixels, and at most {max_pixels} "
                "are taken (--cfg-options max_image_pixels=...)"
            )
        self.rate = rate if 0 < rate < 1000 else _FRAME_RATE
        self.total = int(total) if not self.is_camera and 0 < total < 1 << 40 else None
        self._most = math.inf if most is None else most
        self.count = 0

    def __iter__(self) -> Iterator[np.ndarray]:
        """Yield the frames.

        Raises:
            UserError: there is none.
        """
        try:
            while self.count < self._most:
                is_read, frame = self._capture.read()
                if not is_read:
                    break
                self.count += 1
                yield frame
        finally:
            self._capture.release()
        if self.count == 0:
            raise UserError(f"{self.name} has no frames that can be read: get it again")

    def warn_if_broken(self) -> None:
        """Say so if the file ended before what it states; containers that guess are off by one."""
        if self.total is not None and self.count < self.total - 1:
            warn_once(
                f"{self.name} broke off: {self.count} of {self.total} frames could be read, and are done"
            )


def predict_video(
    predictor: Predictor,
    frames: FrameSource,
    output: VideoOutput,
    on_frame: Callable[[int], None] = lambda count: None,
) -> None:
    """Predict for all frames; files are there when they are complete.

    Ctrl-C ends a camera's frames, as there is no other end.

    Args:
        predictor: takes arrays as BGR.
        frames: those of the video.
        output: where results go.
        on_frame: called with the number of frames done.

    Raises:
        UserError: there are no frames, or a file cannot be written.
    """
    with contextlib.ExitStack() as stack:
        place = stack.enter_context(partial_folder(output.predictions.parent))
        lines = stack.enter_context(open(place / "lines", "w"))
        writer = None
        if output.video is not None:
            folder = stack.enter_context(partial_folder(output.video.parent))
            writer = stack.enter_context(_Writer(folder / "video.mp4", frames, output))
        with contextlib.suppress(*[KeyboardInterrupt] if frames.is_camera else []):
            for number, prediction in enumerate(predictor.stream(frames)):
                lines.write(json.dumps(_line(number, prediction, frames.rate, output)) + "\n")
                if writer is not None:
                    writer.add(prediction)
                on_frame(number + 1)
        lines.close()
        if writer is not None:
            replace_file(writer.close(), output.video)
        replace_file(place / "lines", output.predictions)
    frames.warn_if_broken()


def _line(number: int, prediction: Prediction, rate: float, output: VideoOutput) -> dict:
    """What the JSON lines say of a frame; maps are written."""
    content = prediction.above(output.score).to_dict()
    del content["image"]
    for key, pixels in prediction.maps().items():
        file = output.predictions.with_suffix("") / f"{number:06d}.png"
        write_png(file, pixels)
        content[key] = f"{file.parent.name}/{file.name}"
    return {"frame": number, "seconds": round(number / rate, 3)} | content


class _Writer(contextlib.AbstractContextManager):
    """Draws and writes frames in a thread of its own, while the model computes the next ones."""

    def __init__(self, path: Path, frames: FrameSource, output: VideoOutput) -> None:
        self._path, self._frames, self._output = path, frames, output
        self._file: cv2.VideoWriter | None = None
        self._size = (0, 0)
        self._pool = ThreadPoolExecutor(1)
        self._waiting: deque[Future] = deque()

    def __exit__(self, *error) -> None:
        self._pool.shutdown(cancel_futures=True)
        if self._file is not None:
            self._file.release()

    def add(self, prediction: Prediction) -> None:
        """Draw a frame, and write it after those before."""
        self._waiting.append(self._pool.submit(self._draw, prediction))
        while len(self._waiting) > 8:  # Of frames in memory.
            self._waiting.popleft().result()

    def close(self) -> Path:
        """Wait for all frames, and complete the file.

        Raises:
            UserError: there are none.
        """
        while self._waiting:
            self._waiting.popleft().result()
        if self._file is None:
            raise UserError(f"{self._frames.name} was ended before its first frame")
        self._file.release()
        return self._path

    def _draw(self, prediction: Prediction) -> None:
        rgb = np.asarray(prediction.draw(self._output.score, factor=1))
        if self._file is None:
            self._open(*rgb.shape[:2])
        height, width = self._size
        # OpenCV would cut a last row or column that makes a side odd, and leave out frames of another size.
        bottom, right = height - rgb.shape[0], width - rgb.shape[1]
        if min(bottom, right) < 0 or max(bottom, right) > 1:
            rgb = cv2.resize(rgb, (width, height), interpolation=cv2.INTER_AREA)
        elif bottom or right:
            rgb = cv2.copyMakeBorder(rgb, 0, bottom, 0, right, cv2.BORDER_REPLICATE)
        self._file.write(cv2.cvtColor(rgb, cv2.COLOR_RGB2BGR))

    def _open(self, height: int, width: int) -> None:
        self._size = (height + height % 2, width + width % 2)
        if self._size != (height, width):
            warn_once(
                f"{self._frames.name} has frames of {width} x {height}, and codecs take even sides only: "
                f"the annotated video is {self._size[1]} x {self._size[0]}"
            )
        for codec in [self._output.codec] if self._output.codec else CODECS:
            file = cv2.VideoWriter(
                str(self._path),
                cv2.VideoWriter_fourcc(*codec),
                self._frames.rate,
                self._size[::-1],
            )
            if file.isOpened():
                self._file = file
                return
        raise UserError(
            f"this OpenCV writes no video with {self._output.codec or ', '.join(CODECS)}: choose another "
            "--video-codec, or --no-pictures"
        )


def _be_quiet() -> None:
    """Leave out what FFmpeg and OpenCV print of damaged files and missing codecs: we say it in a line."""
    os.environ.setdefault("OPENCV_FFMPEG_LOGLEVEL", "-8")
    cv2.utils.logging.setLogLevel(cv2.utils.logging.LOG_LEVEL_SILENT)


def _why_no_video(path: str) -> str | None:
    with open(path, "rb") as file:
        start = file.read(4)
    if start not in _BINARY and start.isascii() and start.decode().isprintable():
        return "is a text or an image, not a video" if start else "is empty: get it again"
    return None
