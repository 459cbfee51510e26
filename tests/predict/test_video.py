"""Videos and cameras through infer: frames in, an annotated video and lines of JSON out."""

import json

import cv2
import numpy as np
import pytest
from colour_finder import COLOURS, ColourFinder, config

from flatten_det.errors import UserError
from flatten_det.predict import video as video_module
from flatten_det.predict.infer import InferOptions, infer, result_names

SIZE, RATE = (160, 120), 24.0
ON_CPU = dict(device="cpu", batch_size=4, full_size=True)
pytestmark = pytest.mark.filterwarnings("ignore:no weights given")


def square(number: int) -> tuple[int, int, int, int]:
    """Where the square of a frame is: left, top, right, bottom."""
    return 10 + number, 30, 40 + number, 60


def write_clip(path, count=30, size=SIZE, codec="mp4v", rate=RATE):
    file = cv2.VideoWriter(str(path), cv2.VideoWriter_fourcc(*codec), rate, size)
    assert file.isOpened()
    for number in range(count):
        frame = np.full((*size[::-1], 3), 90, np.uint8)
        left, top, right, bottom = square(number)
        frame[top:bottom, left:right] = COLOURS[0]
        file.write(frame)
    file.release()
    return path


def read_clip(path) -> tuple[list[np.ndarray], float]:
    capture = cv2.VideoCapture(str(path))
    frames = []
    while True:
        is_read, frame = capture.read()
        if not is_read:
            return frames, capture.get(cv2.CAP_PROP_FPS)
        frames.append(frame)


@pytest.fixture
def run(tmp_path, capsys):
    """``run(input, ...)`` predicts; returns the first video's lines, its annotated frames, and messages."""

    def run(*inputs, **options):
        options = {"out_dir": str(tmp_path / "out"), "video_codec": "mp4v"} | options
        infer(config(), None, list(map(str, inputs)), InferOptions(**options), **ON_CPU)
        name = f"camera{inputs[0]}" if str(inputs[0]).isdecimal() else inputs[0].stem
        lines = (tmp_path / "out" / "preds" / f"{name}.jsonl").read_text().splitlines()
        written = tmp_path / "out" / "vis" / f"{name}.mp4"
        assert not list(tmp_path.rglob("*.partial"))
        return (
            list(map(json.loads, lines)),
            read_clip(written) if written.exists() else None,
            capsys.readouterr(),
        )

    return run


def test_as_many_frames_of_the_same_size_and_rate(run, tmp_path):
    clip = write_clip(tmp_path / "clip.mp4")
    lines, (frames, rate), printed = run(clip)
    assert len(lines) == len(frames) == 30
    assert rate == RATE
    assert {frame.shape for frame in frames} == {(*SIZE[::-1], 3)}
    given, _ = read_clip(clip)
    for number, (line, frame, before) in enumerate(zip(lines, frames, given, strict=True)):
        assert (line["frame"], line["height"], line["width"]) == (number, 120, 160)
        assert line["seconds"] == pytest.approx(number / RATE, abs=1e-3)
        assert set(line["class_names"]) == {"blue"}
        # Codecs may leave a few blue pixels beside it, too.
        boxes = np.array(line["bboxes"])
        largest = (boxes[:, 2] - boxes[:, 0]).argmax()
        np.testing.assert_allclose(boxes[largest], square(number), atol=3)
        # The object is drawn over, and what is far from it is as before.
        left, top, right, bottom = square(number)
        changes = np.abs(frame.astype(int) - before).mean(2)
        assert changes[top:bottom, left:right].mean() > 10
        assert changes[80:].mean() < 5
    assert f"video {clip}: 30 frames, " in printed.out
    assert "frames/s" in printed.out
    assert "broke off" not in printed.err


def test_the_first_codec_that_works_is_taken(run, tmp_path):
    lines, (frames, _), printed = run(write_clip(tmp_path / "clip.mp4", 3), video_codec=None)
    assert len(lines) == len(frames) == 3
    assert "codec" not in printed.err.lower()  # What FFmpeg says of those that it lacks.


def test_a_truncated_video_ends_with_what_could_be_read(run, tmp_path):
    clip = write_clip(tmp_path / "clip.avi", codec="XVID")
    content = clip.read_bytes()
    clip.write_bytes(content[: len(content) * 8 // 10])
    given, _ = read_clip(clip)
    assert 1 < len(given) < 29
    lines, (frames, rate), printed = run(clip)
    assert len(lines) == len(frames) == len(given)
    assert rate == RATE
    warning = f"warning: video {clip} broke off: {len(given)} of 30 frames could be read"
    assert warning in printed.err


def test_odd_sides_are_filled_up(run, tmp_path, monkeypatch):
    """OpenCV writes no such video itself: its frames are made to be so."""
    clip = write_clip(tmp_path / "clip.mp4", 4)
    read = video_module.FrameSource.__iter__
    monkeypatch.setattr(
        video_module.FrameSource, "__iter__", lambda self: (f[:-1, :-1] for f in read(self))
    )
    _, (frames, _), printed = run(clip)
    assert [frame.shape for frame in frames] == [(*SIZE[::-1], 3)] * 4
    assert "has frames of 159 x 119, and codecs take even sides only" in printed.err


def test_turned_by_metadata(run, tmp_path):
    clip = write_clip(tmp_path / "clip.mp4", 3)
    content = bytearray(clip.read_bytes())
    # The matrix in the header of the track: a quarter turn, clockwise.
    start = content.index(b"tkhd") + 44
    turn = [0, 1 << 16, 0, -1 << 16, 0, 0, SIZE[1] << 16, 0, 1 << 30]
    content[start : start + 36] = b"".join(each.to_bytes(4, "big", signed=True) for each in turn)
    clip.write_bytes(content)
    lines, (frames, _), _ = run(clip)
    assert frames[0].shape == (*SIZE, 3)
    assert (lines[0]["height"], lines[0]["width"]) == SIZE
    left, top, right, bottom = square(0)
    turned = (SIZE[1] - bottom, left, SIZE[1] - top, right)
    np.testing.assert_allclose(lines[0]["bboxes"][0], turned, atol=3)


def test_predictions_alone(run, tmp_path):
    lines, written, _ = run(write_clip(tmp_path / "clip.mp4", 3), pictures=False)
    assert len(lines) == 3
    assert written is None


class FakeCamera:
    """Camera 0: frames without end, until somebody presses Ctrl-C at the 20th."""

    def __init__(self, number):
        assert number == 0
        self._count = 0

    def isOpened(self):
        return True

    def get(self, key):
        sides = {cv2.CAP_PROP_FRAME_WIDTH: SIZE[0], cv2.CAP_PROP_FRAME_HEIGHT: SIZE[1]}
        return sides.get(key, -1)

    def read(self):
        if self._count == 20:
            raise KeyboardInterrupt
        self._count += 1
        return True, np.full((*SIZE[::-1], 3), self._count, np.uint8)

    def release(self):
        pass


@pytest.mark.parametrize(("most", "count"), [(5, 5), (None, 20)])
def test_a_camera_ends_after_its_frames_or_with_an_interruption(
    run, monkeypatch, tmp_path, most, count
):
    """Of the frames of a batch that is interrupted, nothing is known."""
    capture = cv2.VideoCapture
    fake = lambda source: FakeCamera(source) if source == 0 else capture(source)  # noqa: E731
    monkeypatch.setattr(cv2, "VideoCapture", fake)
    lines, (frames, rate), printed = run("0", camera_frames=most)
    assert len(lines) == len(frames) >= count
    assert rate == 25
    assert "camera 0: " in printed.out


def test_videos_that_cannot_be_read_and_others_that_can(tmp_path, capsys):
    good = write_clip(tmp_path / "good.mp4", 2)
    moov = tmp_path / "cut.mp4"
    moov.write_bytes(good.read_bytes()[:-200])
    playlist = tmp_path / "list.mp4"
    playlist.write_text("#EXTM3U\n#EXTINF:1,\n/etc/passwd\n")
    (tmp_path / "empty.avi").touch()
    inputs = [str(moov), str(playlist), str(tmp_path / "empty.avi"), str(good), "17"]
    options = InferOptions(str(tmp_path / "out"), video_codec="mp4v")
    with pytest.raises(UserError) as error:
        infer(config(), None, inputs, options, **ON_CPU)
    message = str(error.value)
    assert f"video {moov} cannot be opened" in message
    assert f"video {playlist} is a text or an image" in message
    assert "empty.avi is empty" in message
    assert "camera 17 cannot be opened: check its number" in message
    written = {path.name for path in (tmp_path / "out").rglob("*.*")}
    assert written == {"good.mp4", "good.jsonl"}
    assert "moov" not in capsys.readouterr().err


def test_an_interrupted_video_leaves_nothing(tmp_path, monkeypatch):
    clip = write_clip(tmp_path / "clip.mp4")
    calls = []
    forward = ColourFinder.forward

    def interrupted(self, *args, **kwargs):
        calls.append(1)
        if len(calls) == 4:
            raise KeyboardInterrupt
        return forward(self, *args, **kwargs)

    monkeypatch.setattr(ColourFinder, "forward", interrupted)
    with pytest.raises(KeyboardInterrupt):
        infer(config(), None, [str(clip)], InferOptions(str(tmp_path / "out")), **ON_CPU)
    assert not [path for path in (tmp_path / "out").rglob("*") if path.is_file()]


def test_frames_that_are_too_large(tmp_path):
    cfg = config()
    cfg.max_image_pixels = 1000
    clip = write_clip(tmp_path / "clip.mp4", 2)
    with pytest.raises(UserError, match="frames of 160 x 120 pixels, and at most 1000"):
        infer(cfg, None, [str(clip)], InferOptions(str(tmp_path / "out")), **ON_CPU)


def test_results_do_not_replace_the_video(tmp_path):
    clip = write_clip(tmp_path / "clip.mp4", 2)
    (tmp_path / "vis").mkdir()
    clip = clip.rename(tmp_path / "vis" / "clip.mp4")
    with pytest.raises(UserError, match="would overwrite the input"):
        infer(config(), None, [str(clip)], InferOptions(str(tmp_path)), **ON_CPU)


@pytest.mark.parametrize(
    ("images", "videos", "names"),
    [
        (["d/clip.jpg"], ["d/clip.mp4"], ["clip.jpg", "clip.mp4"]),
        (["d/clip/000000.jpg"], ["d/clip.mp4"], ["clip/000000", "clip_"]),
        ([], ["d/camera0.mp4", 0], ["camera0_", "camera0"]),
    ],
)
def test_results_of_several_inputs_stay_apart(images, videos, names):
    """A video's maps lie in a folder of its name, where the image's map may lie, too."""
    assert list(result_names(images, videos).values()) == names
