"""The one thread in which the model runs, and those who wait for it."""

import asyncio
import math
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

import anyio

T = TypeVar("T")


class BusyError(Exception):
    """There is no room, or no time, for another request.

    Attributes:
        retry_after: seconds after which it is worth asking again.
    """

    def __init__(self, message: str, retry_after: int = 1) -> None:
        super().__init__(message)
        self.retry_after = retry_after


class ModelThread:
    """Does one work after the other, in the order in which they came; all methods are of one event loop.

    A work that is cancelled while it waits is not done, and what it holds is free at once.

    Args:
        most_waiting: works that may wait.
        seconds: that a work may wait.

    Attributes:
        waiting: works that wait now.
    """

    def __init__(self, most_waiting: int, seconds: float) -> None:
        self._most_waiting = most_waiting
        self._seconds = seconds
        self._thread = ThreadPoolExecutor(1, "model")
        self._is_free = asyncio.Lock()
        # Of the last works, weighted by how recent they are.
        self._mean_seconds = 0.0
        self.waiting = 0

    async def do(self, work: Callable[[float], T]) -> T:
        """The result of a work, which is given the seconds that it waited. What it raises is passed on.

        Raises:
            BusyError: too many wait already, or it would have waited too long.
        """
        if self._is_free.locked() and self.waiting >= self._most_waiting:
            raise BusyError(f"{self.waiting} requests wait already", self._retry_after())
        began = time.perf_counter()
        self.waiting += 1
        try:
            with anyio.fail_after(self._seconds):
                await self._is_free.acquire()
        except TimeoutError:
            reason = f"the model had no time for it within {self._seconds:g} seconds"
            raise BusyError(reason, self._retry_after()) from None
        finally:
            self.waiting -= 1
        begins = time.perf_counter()
        done = asyncio.get_running_loop().run_in_executor(self._thread, work, begins - began)
        # Not when whoever waits is cancelled: the thread goes on.
        done.add_done_callback(lambda _: self._end(begins))
        return await asyncio.shield(done)

    def close(self) -> None:
        """End the thread after the work that it is at."""
        self._thread.shutdown(wait=True, cancel_futures=True)

    def _end(self, begins: float) -> None:
        seconds = time.perf_counter() - begins
        self._mean_seconds += 0.2 * (seconds - self._mean_seconds)
        self._is_free.release()

    def _retry_after(self) -> int:
        return max(math.ceil(self._mean_seconds * (self.waiting + 1) / 2), 1)
