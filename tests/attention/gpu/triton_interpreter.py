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
    for name in ("tiles", "kernels_forward", "kernels_backward", "norm")
)
MODULES = (*KERNELS, tl, tl.core, tl.math, tl.standard)
CLASSES = (tl.tensor, tl.dtype, tl.condition, tl.core.tensor_descriptor_base)


@contextmanager
def interpreted() -> Iterator[None]:
    """Run the kernels of ``flatten_det.attention.gpu`` in the interpreter."""
    with pytest.MonkeyPatch.context() as patch, _restored(*MODULES, *CLASSES):
        patch.setenv("TRITON_INTERPRET", "1")
        patch.setattr(interpreter.InterpreterBuilder, "create_dot", _dot_of_bfloat16)
        patch.setattr(interpreter.InterpreterBuilder, "cast_impl", _cast_as_gpus_do)
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
_cast = interpreter.InterpreterBuilder.cast_impl


def _dot_of_bfloat16(builder: Any, a: Any, b: Any, *rest: Any) -> Any:
    """The interpreter keeps bfloat16 as integers, and would multiply those."""
    a, b = (
        builder.cast_impl(x, tl.float32) if x.dtype.scalar == tl.bfloat16 else x for x in (a, b)
    )
    return _dot(builder, a, b, *rest)


def _cast_as_gpus_do(builder: Any, x: Any, dtype: Any) -> Any:
    """float32 to bfloat16 is rounded to nearest even; the interpreter cuts."""
    if x.dtype.scalar != tl.float32 or dtype.scalar != tl.bfloat16:
        return _cast(builder, x, dtype)
    bits = np.ascontiguousarray(x.data).view(np.uint32)
    rounded = (bits + np.uint32(0x7FFF) + (bits >> 16 & 1)) >> 16
    # The carry would turn some NaN into numbers.
    rounded = np.where(np.isnan(x.data), np.uint32(0x7FC0), rounded)
    return interpreter.TensorHandle(rounded.astype(np.uint16), dtype.scalar)
