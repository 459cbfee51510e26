"""What all answers have: headers that keep browsers from harm, and their place in the metrics."""

from collections.abc import Callable, Collection

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, ProcessCollector
from starlette.datastructures import MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

_HEADERS = {
    # The page's own files, and nothing from elsewhere; its empty icon is in the page.
    "Content-Security-Policy": "default-src 'self'; img-src 'self' data:; base-uri 'none'; "
    "form-action 'none'; frame-ancestors 'none'; object-src 'none'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cache-Control": "no-store",
}
_SECONDS = (0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 30, 60)


class Metrics:
    """What Prometheus is told.

    Args:
        waiting: how many requests wait now.
        held: how many bytes of requests are in memory.
    """

    def __init__(self, waiting: Callable[[], int], held: Callable[[], int]) -> None:
        self.registry = CollectorRegistry()
        ProcessCollector(registry=self.registry)
        self.requests = Counter(
            "flatten_det_requests",
            "Requests by address and status of the answer; 499: the client has gone.",
            ["path", "status"],
            registry=self.registry,
        )
        self.waiting_seconds = Histogram(
            "flatten_det_waiting_seconds",
            "How long requests have waited for the model.",
            buckets=_SECONDS,
            registry=self.registry,
        )
        self.model_seconds = Histogram(
            "flatten_det_model_seconds",
            "How long the model has taken for a request, with decoding and encoding.",
            buckets=_SECONDS,
            registry=self.registry,
        )
        for name, does, value in (
            ("flatten_det_waiting", "Requests that wait for the model.", waiting),
            ("flatten_det_held_bytes", "Bytes of requests in memory.", held),
        ):
            Gauge(name, does, registry=self.registry).set_function(value)


class Guard:
    """An ASGI application that adds the headers and counts the answers of another.

    Args:
        app: the other one.
        metrics: where answers are counted.
        paths: addresses that are counted by name.
    """

    def __init__(self, app: ASGIApp, metrics: Metrics, paths: Collection[str]) -> None:
        self._app = app
        self._metrics = metrics
        self._paths = frozenset(paths)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        status = 499

        async def send_guarded(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                MutableHeaders(scope=message).update(_HEADERS)
            await send(message)

        try:
            await self._app(scope, receive, send_guarded)
        finally:
            path = scope["path"] if scope["path"] in self._paths else "other"
            self._metrics.requests.labels(path, str(status)).inc()
