"""Runs the application: the socket, connections that nobody uses, and the end."""

import asyncio
import errno
import math
import signal
import socket
from functools import partial
from ipaddress import ip_address
from typing import Any

import uvicorn
from starlette.types import ASGIApp
from uvicorn.protocols.http.h11_impl import H11Protocol

from ..errors import UserError
from .uploads import Limits

# By which this machine calls itself.
LOOPBACK_NAMES = ("localhost", "127.0.0.1", "[::1]")
_WAITING_CONNECTIONS = 2048


def is_loopback(host: str) -> bool:
    """Whether only this machine reaches a host."""
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def open_socket(host: str, port: int) -> socket.socket:
    """A socket bound to a host and port, 0: to any that is free; it does not listen yet.

    Raises:
        UserError: it cannot be bound.
    """
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        opened = socket.socket(family, kind, protocol)
    except OSError as error:
        raise UserError(
            f"--host {host}: {error.strerror}: give an address of this machine"
        ) from error
    try:
        opened.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        opened.bind(address)
    except OSError as error:
        opened.close()
        hint = "choose another --port; 0 takes any that is free"
        if error.errno == errno.EADDRNOTAVAIL:
            hint = "give an address of this machine with --host"
        raise UserError(f"{host}, port {port}: {error.strerror}: {hint}") from error
    return opened


def address_of(opened: socket.socket) -> str:
    """Where a browser finds a socket."""
    host, port = opened.getsockname()[:2]
    return f"http://[{host}]:{port}/" if ":" in host else f"http://{host}:{port}/"


def run_server(app: ASGIApp, opened: socket.socket, limits: Limits) -> None:
    """Answer requests until SIGTERM or Ctrl-C; those that have come are still answered, for a time."""
    config = uvicorn.Config(
        app,
        http=partial(TimedProtocol, limits.seconds),
        ws="none",
        lifespan="on",
        log_config=None,
        # Warnings are of what clients do.
        log_level="error",
        access_log=False,
        proxy_headers=False,
        server_header=False,
        limit_concurrency=limits.connections,
        backlog=_WAITING_CONNECTIONS,
        # Longer than clients keep one: else some send their next request into its end.
        timeout_keep_alive=math.ceil(limits.seconds),
        timeout_graceful_shutdown=math.ceil(limits.seconds),
    )
    # uvicorn handles them, and raises them again for whoever did before.
    before = {
        number: signal.signal(number, lambda *_: None) for number in (signal.SIGINT, signal.SIGTERM)
    }
    try:
        uvicorn.Server(config).run(sockets=[opened])
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


class TimedProtocol(H11Protocol):
    """A connection that is closed if no request has come for a time, not even a part of an answer taken.

    uvicorn itself waits without end for a first request, for the rest of its header, for a body that nobody
    reads, and for a client to take its answer.

    Args:
        seconds: from when it is opened, or from an answer, to the end of the next request's header.
    """

    def __init__(self, seconds: float, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._seconds = seconds
        self._timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:
        super().connection_made(transport)
        self._start_timer()

    def on_response_complete(self) -> None:
        self._start_timer()
        super().on_response_complete()

    def connection_lost(self, exc: Exception | None) -> None:
        self._stop_timer()
        super().connection_lost(exc)

    def _start_timer(self) -> None:
        self._stop_timer()
        self._timer = self.loop.call_later(self._seconds, self._close_if_idle)

    def _stop_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()

    def _close_if_idle(self) -> None:
        # A request that is being answered has limits of its own.
        if self.cycle is not None and not self.cycle.response_complete:
            return
        if self.transport.get_write_buffer_size():
            self.transport.abort()  # Or else it waits for the client to take it.
        else:
            self.transport.close()
