"""Ctrl-C, SIGTERM and SIGHUP in a process that has others to stop before it ends."""

import signal
import time
from typing import Any

from ...train.stop import SIGNAL_NAMES, InterruptHook, take_over_signals, tell


class StopSignals:
    """Within a ``with`` block, signals are noted here instead of ending the process.

    Attributes:
        number: of the first one, SIGTERM for SIGHUP; 0 as long as there is none.
        at_once: whether Ctrl-C came again, or came while all was stopping already.
    """

    def __init__(self) -> None:
        self.number = 0
        self.at_once = False
        self._since = 0.0
        self._previous_handlers: dict[int, Any] = {}

    def __enter__(self) -> "StopSignals":
        self._previous_handlers = take_over_signals(self._on_signal)
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
        self.stop(signal.SIGINT if number == signal.SIGINT else signal.SIGTERM)
        hint = "; Ctrl-C again quits at once, without them" if number == signal.SIGINT else ""
        tell(f"\n{SIGNAL_NAMES[number]}: saving checkpoints after these iterations{hint}\n")
