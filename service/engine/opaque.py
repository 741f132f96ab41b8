"""Matrices in oneDNN's own layout, as numbers that a file can hold, and back without a copy.

torch has no way in Python to make such a tensor of bytes that lie somewhere already. Its C interface has one, by which
models that AOTInductor has compiled find their weights in the file that holds them: that is what is called here. The
layout is oneDNN's description of itself, and means something to the version that wrote it only.
"""

from __future__ import annotations

import ctypes
import errno
from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor

_TORCH = Path(torch.__file__).parent / "lib" / "libtorch_cpu.so"


def numbers_of(opaque: Tensor) -> Tensor:
    """What it holds, in one dimension and in its number format. Valid while `opaque` is there."""
    buffer = (ctypes.c_byte * torch.ops.mkldnn._nbytes(opaque)).from_address(torch.ops.mkldnn.data_ptr(opaque))
    return torch.frombuffer(buffer, dtype=opaque.dtype)


def layout_of(opaque: Tensor) -> Tensor:
    """How these numbers are arranged, as bytes."""
    return cast("Tensor", torch.ops.mkldnn._get_mkldnn_serialized_md(opaque))


def opaque_of(numbers: Tensor, layout: Tensor, sizes: Sequence[int]) -> Tensor:
    """The tensor of these `sizes`; it reads `numbers` where they are and keeps them there. OSError where this torch
    makes none of such numbers."""
    rows, columns = sizes
    found = ctypes.c_void_p()
    description = layout.numpy().tobytes()
    failed = _function("create_tensor_from_blob_v2")(
        ctypes.c_void_p(numbers.data_ptr()),
        ctypes.c_int64(2),
        (ctypes.c_int64 * 2)(rows, columns),
        (ctypes.c_int64 * 2)(columns, 1),
        ctypes.c_int64(0),  # storage offset
        ctypes.c_int32(_code(str(numbers.dtype).replace("torch.", "dtype_"))),
        ctypes.c_int32(_code("device_type_cpu")),
        ctypes.c_int32(0),  # device index
        ctypes.byref(found),
        ctypes.c_int32(_code("layout__mkldnn")),
        description,
        ctypes.c_int64(len(description)),
    )
    if failed:
        raise OSError(errno.EINVAL, "torch makes no tensor of such numbers")
    opaque = torch._C._aoti.alloc_tensor_by_stealing_from_void_ptr(_capsule(found.value, None, None))
    opaque.numbers = numbers  # type: ignore[attr-defined]
    return opaque


def _code(name: str) -> int:
    """What torch's C interface calls a number format, a kind of device or a layout."""
    return cast("int", _function(name)())


@cache
def _function(name: str) -> Any:
    try:
        return getattr(ctypes.CDLL(str(_TORCH)), f"aoti_torch_{name}")
    except AttributeError:
        raise OSError(errno.ENOSYS, f"torch {torch.__version__} has no {name}") from None


_capsule = cast("Callable[[int | None, None, None], ctypes.c_void_p]", ctypes.pythonapi.PyCapsule_New)
"""A pointer as torch's Python wants it, whatever its stubs say."""
ctypes.pythonapi.PyCapsule_New.restype = ctypes.py_object
ctypes.pythonapi.PyCapsule_New.argtypes = [ctypes.c_void_p, ctypes.c_char_p, ctypes.c_void_p]
