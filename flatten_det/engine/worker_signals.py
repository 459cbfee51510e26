"""Data workers that outlive a signal to the whole job, so that their training can save."""

import os
import signal
import threading
from collections.abc import Callable


class SurviveSigterm:
    """A ``worker_init_fn``: in the worker, only its parent's SIGTERM counts, and no SIGHUP.

    A batch system or ``timeout`` sends SIGTERM to every process of a job, a terminal that is closed
    SIGHUP. A worker that dies of it
    takes the iteration down that the training wants to finish and save. When the training ends,
    it ends its workers itself, or they notice that it is gone.

    Args:
        init: The data loader's own ``worker_init_fn``, called as well.
    """

    def __init__(self, init: Callable[[int], None] | None = None) -> None:
        self._init = init

    def __call__(self, worker_id: int) -> None:
        """Set up the signals of the worker that this is called in."""
        if hasattr(signal, "SIGHUP"):
            signal.signal(signal.SIGHUP, signal.SIG_IGN)
        # macOS and Windows do not tell who sent a signal: there, all is as PyTorch has it.
        if hasattr(signal, "sigwaitinfo"):
            signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
            threading.Thread(target=_exit_on_parents_sigterm, daemon=True).start()
        if self._init is not None:
            self._init(worker_id)


def _exit_on_parents_sigterm() -> None:
    while signal.sigwaitinfo({signal.SIGTERM}).si_pid != os.getppid():
        pass
    # As PyTorch does on its parent's SIGTERM: anything else would be reported as a crash.
    os._exit(0)
