"""Ctrl-C and SIGTERM in a process that has others to stop before it ends."""

import os
import signal
import threading
import time
from typing import Any

from ..engine.interrupt import SIGNAL_NAMES, InterruptHook


class StopSignals:
    """Within a ``with`` block, signals are noted here instead of ending the process.

    Attributes:
        number: of the first one; 0 as long as there is none.
        at_once: whether Ctrl-C came again, or came while all was stopping already.
    """

    def __init__(self) -> None:
        self.number = 0
        self.at_once = False
        self._since = 0.0
        self._previous_handlers: dict[int, Any] = {}

    def __enter__(self) -> "StopSignals":
        # Only the main thread may set handlers; elsewhere the signals are not ours to handle.
        if threading.current_thread() is threading.main_thread():
            for number in SIGNAL_NAMES:
                self._previous_handlers[number] = signal.signal(number, self._on_signal)
        return self

    def __exit__(self, *error: object) -> None:
        while self._previous_handlers:
            signal.signal(*self._previous_handlers.popitem())

    def stop(self, number: int = signal.SIGTERM) -> None:
        """Note that all is to stop, as if this signal had come; a further one changes nothing."""
        if not self.number:
            self.number = number
            self._since = time.monotonic()

    def _on_signal(self, number: int, frame: Any) -> None:
        if self.number:
            again = time.monotonic() - self._since > InterruptHook.same_keypress_s
            self.at_once = self.at_once or (number == signal.SIGINT and again)
            return
        self.stop(number)
        hint = "; Ctrl-C again quits at once, without them" if number == signal.SIGINT else ""
        # Not by print, which a signal may have interrupted.
        message = f"\n{SIGNAL_NAMES[number]}: saving checkpoints after these iterations{hint}\n"
        os.write(2, message.encode())
