"""Triton kernels on the CPU, in a process where Triton was already imported for compiling.

``TRITON_INTERPRET=1`` has its effect when kernels are defined, Triton's own ``tl.sum`` included, and other
parts of the suite have imported Triton by then. So the kernels are defined again, for as long as a test
lasts. All that the interpreter changes in Triton's modules and classes is put back.

Every access is checked: one beyond the tensors that a kernel was given would read or destroy whatever lies
there, on the CPU as on a GPU, mostly unseen.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from importlib import import_module
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import triton.language as tl
from triton.runtime import interpreter
from triton.runtime.jit import JITFunction

KERNELS = tuple(
    import_module(f"flatten_det.attention.gpu.{name}")
    for name in ("tiles", "kernels_forward", "kernels_backward", "kernels_norm")
)
MODULES = (*KERNELS, tl, tl.core, tl.math, tl.standard)
CLASSES = (tl.tensor, tl.dtype, tl.condition, tl.core.tensor_descriptor_base)


@contextmanager
def interpreted() -> Iterator[None]:
    """Run the kernels of ``flatten_det.attention.gpu`` in the interpreter."""
    with pytest.MonkeyPatch.context() as patch, _restored(*MODULES, *CLASSES):
        patch.setenv("TRITON_INTERPRET", "1")
        patch.setattr(interpreter.InterpreterBuilder, "create_dot", _dot_as_on_tensor_cores)
        _check_accesses(patch)
        # Rewritten kernels need names that the interpreter adds to modules, and that are taken away again.
        patch.setattr(interpreter.InterpretedFunction, "rewritten_fn", {})
        replaced: dict[int, interpreter.InterpretedFunction] = {}
        for module in MODULES:
            for name, value in list(vars(module).items()):
                if isinstance(value, JITFunction):
                    known = replaced.setdefault(
                        id(value), interpreter.InterpretedFunction(value.fn)
                    )
                    setattr(module, name, known)
        yield


@contextmanager
def _restored(*holders: ModuleType | type) -> Iterator[None]:
    before = [dict(vars(holder)) for holder in holders]
    try:
        yield
    finally:
        for holder, attributes in zip(holders, before, strict=True):
            for name, value in list(vars(holder).items()):
                if name not in attributes:
                    delattr(holder, name)
                elif value is not attributes[name]:
                    setattr(holder, name, attributes[name])


def _check_accesses(patch: pytest.MonkeyPatch) -> None:
    """Let loads and stores fail that leave the memory of the kernel's arguments."""
    builder, executor = interpreter.InterpreterBuilder, interpreter.GridExecutor
    load, store, hand_over = (
        builder.create_masked_load,
        builder.create_masked_store,
        executor._init_args_hst,
    )
    allowed = np.empty((0, 2), np.uint64)

    def recorded(self: Any, args: Any, kwargs: Any) -> Any:
        nonlocal allowed
        on_host = hand_over(self, args, kwargs)
        tensors = [x for x in (*on_host[0], *on_host[1].values()) if hasattr(x, "untyped_storage")]
        storages = [x.untyped_storage() for x in tensors]
        ranges = [(s.data_ptr(), s.data_ptr() + s.nbytes()) for s in storages]
        allowed = np.array(ranges, np.uint64)
        return on_host

    def check(pointers: Any, mask: Any, size: int) -> None:
        addresses = pointers.data[np.broadcast_to(mask.data.astype(bool), pointers.data.shape)]
        starts, ends = allowed[:, :1], allowed[:, 1:]
        inside = (addresses >= starts) & (addresses + np.uint64(size) <= ends)
        if not inside.any(axis=0).all():
            raise IndexError("a kernel reads or writes beyond its arguments")

    def checked_load(self: Any, pointers: Any, mask: Any, other: Any, *rest: Any) -> Any:
        check(pointers, mask, pointers.get_element_ty().primitive_bitwidth // 8)
        return load(self, pointers, mask, other, *rest)

    def checked_store(self: Any, pointers: Any, value: Any, mask: Any, *rest: Any) -> Any:
        assert pointers.data.shape == value.data.shape == mask.data.shape
        check(pointers, mask, value.data.itemsize)
        return store(self, pointers, value, mask, *rest)

    patch.setattr(executor, "_init_args_hst", recorded)
    patch.setattr(builder, "create_masked_load", checked_load)
    patch.setattr(builder, "create_masked_store", checked_store)


_dot = interpreter.InterpreterBuilder.create_dot


def _dot_as_on_tensor_cores(
    builder: Any, a: Any, b: Any, d: Any, precision: Any, *rest: Any
) -> Any:
    """tf32 operands cut to ten bits of mantissa, the coarsest way; the interpreter takes them whole."""
    if precision == interpreter._ir.INPUT_PRECISION.TF32:
        a, b = (interpreter.TensorHandle(_cut(x.data), x.dtype) for x in (a, b))
    return _dot(builder, a, b, d, precision, *rest)


def _cut(data: np.ndarray) -> np.ndarray:
    bits = np.ascontiguousarray(data, dtype=np.float32).view(np.uint32)
    return (bits & np.uint32(0xFFFFE000)).view(np.float32)
