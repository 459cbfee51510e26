"""The addresses: predictions, attention maps, the model, health, metrics, and the page."""

import asyncio
import logging
import time
from collections.abc import AsyncIterator, Callable, Coroutine, Sequence
from contextlib import asynccontextmanager
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

from fastapi import FastAPI, HTTPException, Query, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from PIL import Image
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest
from starlette.middleware.trustedhost import TrustedHostMiddleware
from starlette.requests import ClientDisconnect
from starlette.types import ASGIApp

from ..errors import is_out_of_memory
from ..results.picture import encoded
from ..results.prediction import SCORE_THRESHOLD
from .answers import (
    AttentionAnswer,
    ErrorAnswer,
    HealthAnswer,
    Milliseconds,
    ModelAnswer,
    PredictionAnswer,
    attention_answer,
    model_answer,
    prediction_answer,
)
from .guard import Guard, Metrics
from .model_thread import BusyError, ModelThread
from .served_model import ImageRefused, ServedModel, UnknownImage, digest
from .uploads import KINDS, Limits, Uploads

T = TypeVar("T")

_PAGE = {"/": ("page.html", "text/html"), "/page.css": ("page.css", "text/css")}
_PAGE |= {"/page.js": ("page.js", "text/javascript")}
# By which the client's going is noted down; no client sees it.
_CLIENT_GONE = 499
_BINARY = {"schema": {"type": "string", "format": "binary"}}
_IMAGE_BODY = {
    "content": {
        "multipart/form-data": {
            "schema": {
                "type": "object",
                "required": ["file"],
                "properties": {"file": {"type": "string", "format": "binary"}},
            }
        },
        **{f"image/{kind.lower()}": _BINARY for kind in KINDS},
    }
}
_REFUSALS: dict[int | str, dict[str, Any]] = {
    status: {"model": ErrorAnswer, "description": reason}
    for status, reason in (
        (400, "No image, or a form that cannot be read"),
        (408, "The request took too long to come"),
        (413, "Too many bytes or pixels"),
        (415, "No image of a kind that is taken"),
        (422, "An image, or a parameter, of which nothing can be made"),
        (503, "Too many requests: repeat it after the seconds of Retry-After"),
    )
}

Format = Annotated[Literal["json", "png"], Query(description="data, or a picture")]


def make_app(served: ServedModel, limits: Limits, hosts: Sequence[str] = ("*",)) -> ASGIApp:
    """The application.

    Args:
        served: the model, which is used from a thread of the application's own.
        limits: of requests.
        hosts: names by which it may be addressed; ``*``: any.
    """
    uploads = Uploads(limits)
    thread = ModelThread(limits.waiting, limits.seconds)
    metrics = Metrics(lambda: thread.waiting, lambda: uploads.held)

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        yield
        thread.close()

    app = FastAPI(
        title=f"flatten_det: {served.name}",
        version=version("flatten-det"),
        # Their pages load scripts of others.
        docs_url=None,
        redoc_url=None,
        lifespan=lifespan,
    )
    app.add_exception_handler(BusyError, _busy)
    app.add_exception_handler(RequestValidationError, _invalid)
    app.add_exception_handler(ClientDisconnect, _gone)
    app.add_exception_handler(Exception, _failed)

    async def of_model(request: Request, work: Callable[[float], Response]) -> Response:
        """What a work of the model answers, unless the client goes before."""

        def measured(waited: float) -> Response:
            metrics.waiting_seconds.observe(waited)
            with metrics.model_seconds.time():
                return work(waited)

        try:
            return await _unless_gone(request, thread.do(measured))
        except ImageRefused as reason:
            raise HTTPException(422, str(reason)) from reason
        except Exception as error:
            if not is_out_of_memory(error):
                raise
            logging.getLogger(__name__).error("memory ran out: %s", error)
            raise HTTPException(413, "memory ran out: send a smaller image") from error

    @app.post(
        "/predict",
        response_model=None,
        responses={200: {"model": PredictionAnswer, "content": {"image/png": {}}}, **_REFUSALS},
        openapi_extra={"requestBody": _IMAGE_BODY | {"required": True}},
    )
    async def predict(
        request: Request,
        score: Annotated[
            float, Query(ge=0, le=1, description="detections below it are left out")
        ] = SCORE_THRESHOLD,
        format: Format = "json",
    ) -> Response:
        """Predict for an image: the request's body, or the one part of a form."""
        async with uploads.image_of(request) as content:
            if not content:
                raise HTTPException(400, "there is no image: send one as the request's body")
            return await of_model(request, partial(_predicted, served, content, score, format))

    @app.post(
        "/attention",
        response_model=None,
        responses={
            200: {"model": AttentionAnswer, "content": {"image/png": {}}},
            404: {"model": ErrorAnswer, "description": "No such layer, head or remembered image"},
            **_REFUSALS,
        },
        openapi_extra={"requestBody": _IMAGE_BODY | {"required": False}},
    )
    async def attention(
        request: Request,
        layer: Annotated[str, Query(description="STAGE.BLOCK, as of /model", examples=["1.1"])],
        x: Annotated[int, Query(ge=0, description="column of the query's pixel")],
        y: Annotated[int, Query(ge=0, description="its row")],
        head: Annotated[int, Query(ge=0)] = 0,
        image: Annotated[
            str | None,
            Query(description="digest that /predict has given: if the image is still remembered"),
        ] = None,
        format: Format = "json",
    ) -> Response:
        """What a layer's head gives to all keys for the query at a pixel of an image.

        As a picture, a pixel for each key, to be laid over the image; ``X-Weights`` are then the smallest and
        the largest weight.
        """
        if head >= served.heads.get(layer, 0):
            there = ", ".join(f"{heads} in {name}" for name, heads in served.heads.items())
            reason = f"no layer {layer} with a head {head}: heads count from 0; there are "
            raise HTTPException(404, reason + (there or "none"))
        async with uploads.image_of(request) as content:
            given = content or image
            if not given:
                raise HTTPException(400, "there is no image: send one as the request's body")
            work = partial(_attended, served, given, layer, head, (x, y), format)
            try:
                return await of_model(request, work)
            except UnknownImage:
                raise HTTPException(404, "that image is not remembered: send it") from None

    about = model_answer(served, limits)

    @app.get("/model")
    async def model() -> ModelAnswer:
        """The model that is served."""
        return about

    @app.get("/health")
    async def health() -> HealthAnswer:
        """Whether requests are taken."""
        return HealthAnswer(waiting=thread.waiting)

    @app.get("/metrics", response_class=Response)
    async def numbers() -> Response:
        """Numbers for Prometheus."""
        return Response(generate_latest(metrics.registry), media_type=CONTENT_TYPE_LATEST)

    for path, (file, kind) in _PAGE.items():
        text = Path(__file__).with_name(file).read_text(encoding="utf-8")
        app.get(path, include_in_schema=False)(partial(_file, text, kind))
    paths = {route.path for route in app.routes}
    return Guard(TrustedHostMiddleware(app, list(hosts), www_redirect=False), metrics, paths)


def _predicted(
    served: ServedModel, content: bytes, score: float, format: str, waited: float
) -> Response:
    begins = time.perf_counter()
    prediction = served.predict(content)
    if format == "png":
        return _png(prediction.draw(score))
    milliseconds = Milliseconds(
        waiting=1000 * waited,
        model=prediction.milliseconds,
        total=0,
    )
    answer = prediction_answer(prediction.above(score), digest(content), milliseconds)
    milliseconds.total = 1000 * (waited + time.perf_counter() - begins)
    return Response(answer.model_dump_json(), media_type="application/json")


def _attended(
    served: ServedModel,
    image: bytes | str,
    layer: str,
    head: int,
    query: tuple[int, int],
    format: str,
    waited: float,
) -> Response:
    found = served.attention(image, layer, head, query)
    if format == "png":
        return _png(found.overlay(), {"X-Weights": "{:.3g} {:.3g}".format(*found.range())})
    answer = attention_answer(layer, head, found)
    return Response(answer.model_dump_json(), media_type="application/json")


def _png(picture: Image.Image, headers: dict[str, str] | None = None) -> Response:
    return Response(encoded(picture), media_type="image/png", headers=headers)


async def _file(text: str, kind: str) -> Response:
    return Response(text, media_type=kind)


async def _unless_gone(request: Request, work: Coroutine[Any, Any, T]) -> T:
    """The result of a work, which is cancelled if the client goes; ClientDisconnect then."""
    gone = asyncio.ensure_future(_until_gone(request))
    result = asyncio.ensure_future(work)
    try:
        await asyncio.wait({gone, result}, return_when=asyncio.FIRST_COMPLETED)
        if not result.done():
            raise ClientDisconnect
        return result.result()
    finally:
        gone.cancel()
        result.cancel()


async def _until_gone(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass


async def _busy(request: Request, error: BusyError) -> Response:
    headers = {"Retry-After": str(error.retry_after)}
    return JSONResponse({"detail": f"{error}: try again later"}, 503, headers)


async def _invalid(request: Request, error: RequestValidationError) -> Response:
    reasons = [f"{reason['loc'][-1]}: {reason['msg']}" for reason in error.errors()]
    return JSONResponse({"detail": "; ".join(reasons)}, 422)


async def _gone(request: Request, error: ClientDisconnect) -> Response:
    return Response(status_code=_CLIENT_GONE)


async def _failed(request: Request, error: Exception) -> Response:
    # The error itself goes to the server's log.
    return JSONResponse({"detail": "the server failed; its log says why"}, 500)
