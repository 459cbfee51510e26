"""Launches of the kernels on a machine without a GPU: recorded, or compiled for a card."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import pytest
from triton.backends.compiler import GPUTarget
from triton.runtime import driver

from flatten_det.attention.gpu import kernels_backward, kernels_forward, launch, norm


class Launch(NamedTuple):
    """One launch.

    Attributes:
        name: of the kernel.
        constants: its compile-time arguments, and Triton's options.
        compiled: what Triton compiled it to; the same object where it needs no compilation. None if run.
    """

    name: str
    grid: tuple[int, ...]
    constants: dict[str, Any]
    compiled: Any


class Card:
    """What Triton asks the driver of the current device, as far as compiling goes."""

    def __init__(self, capability: int) -> None:
        self.target = GPUTarget("cuda", capability, 32)

    def get_current_target(self) -> GPUTarget:
        return self.target

    def get_current_device(self) -> int:
        return 0

    def get_current_stream(self, device: int) -> int:
        return 0


def record_launches(monkeypatch: pytest.MonkeyPatch) -> list[Launch]:
    """A list that fills with the launches from now on."""
    launches: list[Launch] = []
    original = launch.run

    def recorded(kernel: Any, grid: tuple[int, ...], *arguments: Any, **constants: Any) -> None:
        launches.append(Launch(kernel.fn.__name__, grid, constants, None))
        original(kernel, grid, *arguments, **constants)

    monkeypatch.setattr(launch, "run", recorded)
    return launches


@contextmanager
def compiled_for(capability: int) -> Iterator[list[Launch]]:
    """Compile instead of launching, by Triton's own rules on what arguments need another compilation.

    Args:
        capability: compute capability times ten: 90 for an H200 (sm_90).
    """
    launches: list[Launch] = []

    def compile_only(kernel: Any, grid: tuple[int, ...], *arguments: Any, **constants: Any) -> None:
        compiled = kernel.warmup(*arguments, grid=grid, **constants)
        launches.append(Launch(kernel.fn.__name__, grid, constants, compiled))

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(launch, "run", compile_only)
        driver.set_active(Card(capability))
        try:
            yield launches
        finally:
            # Not reset_active(), which looks for a real driver at once.
            driver.set_active(None)
            for module in (kernels_forward, kernels_backward, norm):
                for value in vars(module).values():
                    if hasattr(value, "device_caches"):
                        value.device_caches.clear()
