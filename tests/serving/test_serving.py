"""The server: what it answers, and what it refuses without harm."""

import asyncio
import io
import json
import re
import threading
import time
from collections.abc import Callable
from functools import partial

import cv2
import numpy as np
import pytest
import uvicorn
from bombs import png_bomb
from PIL import Image
from starlette.testclient import TestClient

from flatten_det import Predictor
from flatten_det.lab.analysis.layers import attention_layers, capture
from flatten_det.lab.analysis.matrices import LayerWeights, query_token
from flatten_det.results import Prediction, Segment
from flatten_det.results.rle import decode
from flatten_det.serving.answers import PredictionAnswer
from flatten_det.serving.app import make_app
from flatten_det.serving.served_model import ServedModel
from flatten_det.serving.server import TimedProtocol, address_of, open_socket
from flatten_det.serving.uploads import Limits

MASK_RCNN = "mask-rcnn_flatten-pvt-nano_fpn_shapes"
NOISE = np.random.default_rng(0).integers(0, 255, (50, 70, 3), np.uint8)
PNG = cv2.imencode(".png", NOISE)[1].tobytes()


class FakePredictor:
    """Says of the two pixels to the left what the other ones are, when it may."""

    model = None

    def __init__(self) -> None:
        self.seen: list[int] = []
        self.has_begun, self.may_go_on = threading.Event(), threading.Event()
        self.may_go_on.set()
        self.error: Exception | None = None
        self.result: Callable[[np.ndarray], Prediction] = _boxes

    def __call__(self, images: list[np.ndarray]) -> list[Prediction]:
        (image,) = images
        self.has_begun.set()
        assert self.may_go_on.wait(20)
        if self.error:
            raise self.error
        self.seen.append(int(image[0, 0, 0]))
        return [self.result(image)]


def _boxes(image: np.ndarray) -> Prediction:
    """A box that ends at the value of the first pixel."""
    box = np.array([[0, 0, image[0, 0, 0], 5]], np.float32)
    score, label = np.array([0.5], np.float32), np.array([1])
    return Prediction("", image.shape[:2], ("a", "b"), box, score, label, pixels=image)


def _labels(image: np.ndarray) -> Prediction:
    return Prediction("", image.shape[:2], ("a", "b", "c"), label_map=image[..., 0] % 2)


def _segments(image: np.ndarray) -> Prediction:
    ids = (image[..., 0] % 3).astype(np.int32) * 1001
    found = [Segment(id_, 1, int((ids == id_).sum())) for id_ in (1001, 2002)]
    return Prediction("", image.shape[:2], ("a", "b"), segment_ids=ids, segments=found)


def grey(value: int) -> bytes:
    return cv2.imencode(".png", np.full((8, 8, 3), value, np.uint8))[1].tobytes()


def form(*parts: bytes, end: bytes = b"--\r\n") -> dict:
    head = b'\r\n--x\r\nContent-Disposition: form-data; name="file"; filename="a"\r\n\r\n'
    body = b"".join(head + part for part in parts) + b"\r\n--x" + end
    return {"content": body[2:], "headers": {"Content-Type": "multipart/form-data; boundary=x"}}


@pytest.fixture
def fake():
    return FakePredictor()


def client_of(predictor, limits: Limits | None = None, **options) -> TestClient:
    app = make_app(ServedModel(predictor, "fake"), limits or Limits(), **options)
    return TestClient(app, raise_server_exceptions=False)


@pytest.fixture(scope="module")
def nano():
    with pytest.warns(UserWarning, match="random"):
        return Predictor(MASK_RCNN, device="cpu", bgr=True)


@pytest.fixture(scope="module")
def client(nano):
    with TestClient(make_app(ServedModel(nano, "nano"), Limits())) as client:
        yield client


@pytest.mark.parametrize("request_of", [lambda png: {"content": png}, form])
def test_answers_what_the_predictor_says(client, nano, request_of):
    (expected,) = nano([NOISE])
    assert len(expected) > 0
    answer = client.post("/predict?score=0", **request_of(PNG)).json()
    PredictionAnswer.model_validate(answer)
    assert (answer["height"], answer["width"]) == (50, 70)
    for key, value in expected.to_dict().items():
        if key != "image":
            assert answer[key] == pytest.approx(value) if key == "scores" else answer[key] == value
    times = answer["milliseconds"]
    assert 0 < times["model"] < times["total"]
    assert client.post("/predict?score=1", **request_of(PNG)).json()["bboxes"] == []


def test_draws(client):
    answer = client.post("/predict?format=png&score=0", content=PNG)
    assert answer.headers["content-type"] == "image/png"
    picture = np.asarray(Image.open(io.BytesIO(answer.content)))
    assert min(picture.shape[:2]) >= 384
    assert len(np.unique(picture.reshape(-1, 3), axis=0)) > 1


def test_label_maps_and_segments_become_masks(fake):
    fake.result = _labels
    classes = client_of(fake).post("/predict", content=PNG).json()["classes"]
    assert [each["mask"] is None for each in classes] == [False, False, True]
    np.testing.assert_array_equal(decode(classes[1]["mask"]), NOISE[..., 0] % 2 == 1)
    fake.result = _segments
    client = client_of(fake)
    assert client.get("/model").json()["task"] == "panoptic"
    answer = client.post("/predict", content=PNG).json()
    assert [segment["class_name"] for segment in answer["segments"]] == ["b", "b"]
    for segment in answer["segments"]:
        mask = NOISE[..., 0] % 3 == segment["id"] // 1001
        np.testing.assert_array_equal(decode(segment["mask"]), mask)
        assert segment["area"] == mask.sum()


GIF = io.BytesIO()
Image.new("RGB", (9, 9)).save(GIF, "gif")


@pytest.mark.parametrize(
    ("sent", "status", "reason"),
    [
        ({}, 400, "no image"),
        (form(b""), 400, "no image"),
        (form(PNG, PNG), 400, "several parts"),
        (form(PNG, end=b""), 400, "no end"),
        ({"content": b"nonsense", "headers": form()["headers"]}, 400, "cannot be read"),
        ({"content": PNG, "headers": {"Content-Type": "multipart/form-data"}}, 400, "boundary"),
        ({"content": b"nonsense"}, 415, "BMP, JPEG, PNG, WEBP"),
        ({"content": GIF.getvalue()}, 415, "BMP, JPEG, PNG, WEBP"),
        ({"content": b"http://127.0.0.1/image.png"}, 415, "no image"),
        ({"content": PNG[:20]}, 422, "damaged"),
        ({"content": PNG[:60]}, 422, "damaged"),
        ({"content": cv2.imencode(".png", NOISE[:, :, 0].repeat(3, 0))[1].tobytes()}, 413, "4000"),
        ({"content": PNG + bytes(30_000)}, 413, "30000 bytes"),
        (form(PNG + bytes(30_000)), 413, "30000 bytes"),
        ({"content": PNG, "params": {"score": 2}}, 422, "score"),
        ({"content": PNG, "params": {"format": "tiff"}}, 422, "format"),
    ],
)
def test_refuses(fake, sent, status, reason):
    with client_of(fake, Limits(upload_bytes=30_000, pixels=4000)) as client:
        answer = client.post("/predict", **sent)
        assert answer.status_code == status
        assert reason in answer.json()["detail"]
        assert fake.seen == [0]  # Its first prediction.
        assert client.post("/predict", content=PNG).status_code == 200
        metrics = client.get("/metrics").text
    assert f'flatten_det_requests_total{{path="/predict",status="{status}"}} 1.0' in metrics
    assert "flatten_det_held_bytes 0.0" in metrics


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
def test_bombs_are_not_decoded(fake, tmp_path):
    bomb = png_bomb(tmp_path / "bomb.png", 10_000, 10_000).read_bytes()
    answer = client_of(fake).post("/predict", content=bomb)
    assert answer.status_code == 413
    assert "10000 x 10000 pixels" in answer.json()["detail"]


class Wire:
    """A request that comes in parts, and its answer."""

    def __init__(
        self, app, *parts: bytes, then: str = "wait", where: tuple[str, str] = ("POST", "/predict")
    ) -> None:
        self._app = app
        self._method, self._path = where
        self._parts = list(parts)
        self._then = then
        self.gone = asyncio.Event()
        self.status, self.body, self.headers = 0, b"", {}

    async def __call__(self) -> "Wire":
        scope = {"type": "http", "method": self._method, "path": self._path, "query_string": b""}
        scope |= {"headers": [(b"host", b"localhost")], "http_version": "1.1", "scheme": "http"}
        scope |= {"server": ("localhost", 1), "client": None, "asgi": {"version": "3.0"}}
        await self._app(scope, self._receive, self._send)
        return self

    async def _receive(self) -> dict:
        if self._parts:
            body = self._parts.pop(0)
            more = bool(self._parts) or self._then == "never end"
            return {"type": "http.request", "body": body, "more_body": more}
        await self.gone.wait()
        return {"type": "http.disconnect"}

    async def _send(self, message: dict) -> None:
        if message["type"] == "http.response.start":
            self.status = message["status"]
            self.headers = {key.decode(): value.decode() for key, value in message["headers"]}
        else:
            self.body += message.get("body", b"")


async def until_they_wait(app, count: int) -> None:
    """As many requests wait for the model."""
    while json.loads((await Wire(app, b"", where=("GET", "/health"))()).body)["waiting"] != count:
        await asyncio.sleep(0.01)


def app_of(predictor: FakePredictor, **limits: float):
    return make_app(ServedModel(predictor, "fake"), Limits(**limits))


def test_slow_clients_are_given_up(fake):
    wire = Wire(app_of(fake, seconds=0.2), PNG[:50], then="never end")
    assert asyncio.run(wire()).status == 408
    assert b"0.2 seconds" in wire.body
    assert wire.headers["connection"] == "close"


def test_reads_no_more_than_it_takes(fake):
    wire = Wire(app_of(fake, upload_bytes=1000), *[bytes(300)] * 100)
    assert asyncio.run(wire()).status == 413
    assert len(wire._parts) == 96


def test_all_requests_together_hold_limited_memory(fake):
    """Of several that are being read, one finds no room; then all goes on."""

    async def run() -> None:
        app = app_of(fake, upload_bytes=1000, seconds=5)
        open_ones = [Wire(app, bytes(900), then="never end") for _ in range(8)]
        tasks = [asyncio.ensure_future(wire()) for wire in open_ones]
        await asyncio.sleep(0.05)
        assert (await Wire(app, grey(9), bytes(900))()).status == 503
        for wire in open_ones:
            wire.gone.set()
        assert {wire.status for wire in await asyncio.gather(*tasks)} == {499}
        assert (await Wire(app, grey(9))()).status == 200

    asyncio.run(run())


def test_queue(fake):
    """One is worked on and two wait: a fourth is to come again; one that goes meanwhile costs nothing."""

    async def run() -> None:
        app = app_of(fake, waiting=2)
        fake.may_go_on.clear()
        fake.has_begun.clear()
        wires = [Wire(app, grey(value)) for value in (1, 2, 3)]
        tasks = []
        for number, wire in enumerate(wires):
            tasks.append(asyncio.ensure_future(wire()))
            await asyncio.to_thread(fake.has_begun.wait, 5)
            await until_they_wait(app, number)
        refused = await Wire(app, grey(4))()
        assert refused.status == 503
        assert int(refused.headers["retry-after"]) >= 1
        wires[1].gone.set()
        await asyncio.wait_for(asyncio.shield(tasks[1]), 5)
        last = asyncio.ensure_future(Wire(app, grey(5))())
        await until_they_wait(app, 2)
        fake.may_go_on.set()
        answers = [await tasks[0], await tasks[2], await last]
        assert [json.loads(wire.body)["bboxes"][0][2] for wire in answers] == [1, 3, 5]
        assert wires[1].status == 499

    asyncio.run(run())
    assert fake.seen == [0, 1, 3, 5]


def test_who_has_waited_too_long_is_to_come_again(fake):
    async def run() -> None:
        app = app_of(fake, seconds=0.3)
        fake.may_go_on.clear()
        fake.has_begun.clear()
        first = asyncio.ensure_future(Wire(app, grey(1))())
        await asyncio.to_thread(fake.has_begun.wait, 5)
        assert (await Wire(app, grey(2))()).status == 503
        fake.may_go_on.set()
        assert (await first).status == 200
        assert (await Wire(app, grey(3))()).status == 200

    asyncio.run(run())
    assert fake.seen == [0, 1, 3]


@pytest.mark.parametrize(
    ("error", "status", "reason"),
    [
        (RuntimeError("secret"), 500, "the server failed; its log says why"),
        (MemoryError(), 413, "memory ran out: send a smaller image"),
    ],
)
def test_failures_say_nothing_of_the_inside(fake, error, status, reason):
    client = client_of(fake)
    fake.error = error
    answer = client.post("/predict", content=PNG)
    assert (answer.status_code, answer.json()) == (status, {"detail": reason})
    fake.error = None
    assert client.post("/predict", content=PNG).status_code == 200


def test_other_names_of_this_machine_are_refused(fake):
    client = client_of(fake, hosts=("localhost", "127.0.0.1"))
    for host, status in (("localhost:80", 200), ("127.0.0.1", 200), ("evil.example", 400)):
        answer = client.get("/health", headers={"Host": host})
        assert answer.status_code == status
        assert answer.headers["x-content-type-options"] == "nosniff"
        assert "default-src 'self'" in answer.headers["content-security-policy"]


def test_page_loads_nothing_from_elsewhere(client):
    page = client.get("/").text
    texts = [page]
    files = re.findall(r'(?:href|src)="([^"]+)"', page)
    for file in files:
        if file != "data:,":
            answer = client.get(f"/{file}")
            assert answer.status_code == 200
            texts.append(answer.text)
    assert len(texts) == 3
    assert not re.search(r"https?:|//\w+\.|@import|<script>|style=", "\n".join(texts))
    ids = set(re.findall(r'\$\("([\w-]+)"\)', texts[-1]))
    assert ids <= set(re.findall(r'id="([\w-]+)"', page))
    for path in ("/docs", "/redoc", "/../server.py", "/page.py"):
        assert client.get(path).status_code == 404


def test_document_describes_the_answers(client):
    document = client.get("/openapi.json").json()
    schema = document["components"]["schemas"]["PredictionAnswer"]
    (example,) = schema["examples"]
    PredictionAnswer.model_validate(example)
    np.testing.assert_array_equal(np.argwhere(decode(example["masks"][0])).max(0), (2, 2))
    assert {"200", "413", "503"} <= document["paths"]["/predict"]["post"]["responses"].keys()
    about = client.get("/model").json()
    assert about["task"] == "instance"
    assert [each["name"] for each in about["classes"]][:2] == ["circle", "ring"]
    assert about["layers"][1] == {"name": "2.1", "kind": "FocusedLinearAttention", "heads": 2}


def test_attention_is_that_of_the_model(client, nano):
    """The map of the keys for the pixel's token, of the image as the model's own pipeline prepares it."""
    asked = {"layer": "2.1", "head": 1, "x": 60, "y": 7}
    answer = client.post("/attention", params=asked, content=PNG).json()
    backbone = nano.model.backbone
    seen = []
    with backbone.register_forward_pre_hook(lambda module, args: seen.append(args[0])):
        nano([NOISE])
    layer = next(each for each in attention_layers(backbone) if each.name == "2.1")
    height = round(50 * 128 / 70)
    assert not seen[0][:, :, height:].any()  # Padding.
    (call,) = capture(backbone, [layer], seen[0][:, :, :height])
    expected = LayerWeights(call).maps(1, query_token((60.5 / 70, 7.5 / 50), call.hw_shape))
    own = next(each for each in expected if each.variant.name == "focused linear")
    np.testing.assert_allclose(np.array(answer["weights"]), own.weights, rtol=1e-4)
    assert np.sum(answer["weights"]) == pytest.approx(1, abs=1e-3)

    named = client.post("/attention", params=asked | {"image": _digest(client), "format": "png"})
    picture = Image.open(io.BytesIO(named.content))
    assert (picture.mode, picture.size) == ("RGBA", own.weights.shape[::-1])
    brightest = np.asarray(picture)[..., :3].sum(-1).argmax()
    assert own.weights.ravel()[brightest] == own.weights.max()
    assert float(named.headers["x-weights"].split()[1]) == pytest.approx(
        own.weights.max(), rel=0.01
    )


def _digest(client: TestClient) -> str:
    return client.post("/predict", content=PNG).json()["image"]


@pytest.mark.parametrize(
    ("changes", "status", "reason"),
    [
        ({"layer": "9.9"}, 404, "2 in 2.1"),
        ({"head": 1}, 404, "1 in 1.1"),
        ({"head": -1}, 422, "head"),
        ({"x": 70}, 422, "not in the image of 70 x 50"),
        ({"image": "0" * 64}, 404, "not remembered"),
        ({"image": ""}, 400, "no image"),
    ],
)
def test_attention_that_there_is_not(client, changes, status, reason):
    asked = {"layer": "1.1", "x": 1, "y": 1} | changes
    content = None if "image" in changes else PNG
    answer = client.post("/attention", params=asked, content=content)
    assert answer.status_code == status
    assert reason in answer.json()["detail"]


def test_features_of_few_images_are_kept(nano):
    served = ServedModel(nano, "nano", cache_bytes=1)
    for value in (1, 2):
        served.attention(grey(value), "1.1", 0, (0, 0))
    assert len(served._seen) == 1
    both = ServedModel(nano, "nano")
    for value in (1, 2):
        both.attention(grey(value), "1.1", 0, (0, 0))
    assert len(both._seen) == 2


def test_connections_that_nobody_uses_are_closed(fake):
    """One that says nothing, one in the middle of a header, and one that is kept open."""

    async def run() -> None:
        with open_socket("127.0.0.1", 0) as opened:
            config = uvicorn.Config(
                app_of(fake),
                http=partial(TimedProtocol, 0.4),
                log_level="error",
                timeout_keep_alive=99,  # uvicorn's own, which is not meant.
            )
            server = uvicorn.Server(config)
            serving = asyncio.ensure_future(server.serve(sockets=[opened]))
            while not server.started:
                await asyncio.sleep(0.02)
            host, port = opened.getsockname()
            assert address_of(opened) == f"http://{host}:{port}/"
            begins = time.monotonic()
            sent = (b"", b"GET / HTTP/1.1\r\nX: ", b"GET /health HTTP/1.1\r\nHost: a\r\n\r\n")
            streams = [await asyncio.open_connection(host, port) for _ in sent]
            for (_, writer), text in zip(streams, sent, strict=True):
                writer.write(text)
            answers = [await _rest(reader) for reader, _ in streams]
            assert time.monotonic() - begins > 0.3
            assert answers[0] == b""
            assert b"200 OK" in answers[2]
            server.should_exit = True
            await serving

    asyncio.run(run())


async def _rest(reader: asyncio.StreamReader) -> bytes:
    try:
        return await asyncio.wait_for(reader.read(), 10)
    except ConnectionResetError:
        return b""
