"""The private APIs of torch that the engine and the roofline use, in one file.

None of them is documented. Each was checked with torch 2.13.0; `tests/unit/engine/test_torch_private.py` fails where
one of them has disappeared or has another signature.

A packed weight is an mkldnn tensor: a matrix in oneDNN's own memory layout, which depends on the CPU. torch cannot save
such a tensor. `packed_values` and `packed_layout` return its content and the description of its layout as plain
tensors, and `map_packed` makes a packed weight of the two without a copy.
"""

from __future__ import annotations

import ctypes
import errno
import struct
from collections.abc import Callable, Sequence
from functools import cache
from inspect import signature
from pathlib import Path
from typing import Any, Literal, cast

import torch
from torch import Tensor

_LINEAR = torch.ops.mkldnn._linear_pointwise
_INT8_LINEAR = torch.ops.onednn.qlinear_pointwise
"""Called by overload: where torch has to find the overload, it prints all arguments into an error message first."""


@cache
def has_onednn(dtype: torch.dtype) -> bool:
    """Whether oneDNN packs and multiplies float matrices of this type on this CPU."""
    if not torch.backends.mkldnn.is_available():
        return False
    # Without AVX-512 or AVX-NE-CONVERT, packing raises an error, where torch's public linear still computes.
    return dtype != torch.bfloat16 or bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())


HAS_AVX2_ONLY = torch.backends.cpu.get_cpu_capability() == "AVX2"
"""Whether this is an x86 CPU without AVX-512."""


def pack(weight: Tensor) -> Tensor:
    """The weight [out, in], float32 or bfloat16, in oneDNN's layout."""
    packed: Tensor = torch.ops.mkldnn._reorder_linear_weight(weight, None)
    return _narrow(packed) if HAS_AVX2_ONLY else packed


_BLOCKS = struct.Struct("<3q")
"""In the description of a layout: the number of blocked dimensions, and the sizes of their blocks, innermost last."""
_WIDE, _NARROW = _BLOCKS.pack(2, 16, 64), _BLOCKS.pack(2, 16, 32)
_STRIDES = struct.Struct("<2q")
"""Of the blocks, in numbers: from one block of outputs to the next, and from one block of inputs to the next."""
_STRIDES_BEFORE = 12 * 8
"""Bytes between the two: a tensor of oneDNN has up to 12 dimensions."""


def _narrow(packed: Tensor) -> Tensor:
    """A packed weight with blocks of 32 outputs where it has those of 64.

    These are meant for the registers of AVX-512: with AVX2, blocks of 32 are multiplied 1.15 to 1.25 times as fast.
    oneDNN takes them, but never chooses them; blocks of another size than 16, 32, 48 or 64 it computes with its
    reference code. A layout that is described in another way is left as it is, and so is every one by a torch that
    cannot map it.
    """
    layout = packed_layout(packed).numpy().tobytes()
    start = layout.find(_WIDE)
    if start < _STRIDES_BEFORE or layout.count(_WIDE) != 1:
        return packed
    description = bytearray(layout)
    description[start : start + _BLOCKS.size] = _NARROW
    strides = _STRIDES.unpack_from(layout, start - _STRIDES_BEFORE)
    _STRIDES.pack_into(description, start - _STRIDES_BEFORE, *(stride // 2 for stride in strides))
    values = packed_values(packed)
    try:
        narrow = map_packed(values, torch.frombuffer(description, dtype=torch.uint8), packed.shape)
    except OSError:  # another torch
        return packed
    for block in values.view(-1, strides[0] // strides[1], 16, 2, 32):  # in place: new memory takes longer
        block.copy_(block.permute(2, 0, 1, 3).reshape(block.shape))
    return narrow


def linear(hidden: Tensor, packed: Tensor, bias: Tensor | None) -> Tensor:
    """The product [tokens, out] plus the bias."""
    out: Tensor = _LINEAR.default(hidden, packed, bias, "none", [], "")
    return out


def linear_gelu(hidden: Tensor, packed: Tensor, bias: Tensor, approximate: Literal["none", "tanh"]) -> Tensor:
    """The GELU of `linear`, computed before the sums are rounded to the type of `hidden`."""
    out: Tensor = _LINEAR.default(hidden, packed, bias, "gelu", [], approximate)
    return out


def linear_add(hidden: Tensor, residual: Tensor, packed: Tensor, bias: Tensor) -> Tensor:
    """`linear` plus `residual`, added before the sums are rounded to the type of `hidden`."""
    out: Tensor = _LINEAR.binary(hidden, residual, packed, bias, "add")
    return out


def pack_int8(codes: Tensor) -> Tensor:
    """The int8 weight [out, in] in oneDNN's layout."""
    packed: Tensor = torch.ops.onednn.qlinear_prepack(codes, None)
    return packed


def linear_int8(
    codes: Tensor,
    zero_point: int,
    packed: Tensor,
    scales: Tensor,
    zeros: Tensor,
    bias: Tensor | None,
    dtype: torch.dtype,
    gelu: Literal["none", "tanh"] | None = None,
) -> Tensor:
    """The product of uint8 codes [tokens, in], less their zero point, and int8 weights, by the scales [out] of these.

    `zeros` are the zero points of the weights, int32 [out]. The float32 bias is added, and then the GELU computed
    where one is named. The result is [tokens, out] in `int8_result(dtype)`.
    """
    post_op, out_dtype = "gelu" if gelu else "none", int8_result(dtype)
    out: Tensor = _INT8_LINEAR.default(
        codes, 1.0, zero_point, packed, scales, zeros, bias, 1.0, 0, out_dtype, post_op, [], gelu or ""
    )
    return out


def linear_int8_add(
    codes: Tensor, zero_point: int, residual: Tensor, packed: Tensor, scales: Tensor, zeros: Tensor, bias: Tensor
) -> Tensor:
    """`linear_int8` plus `residual`, added before the sums are rounded; in `int8_result` of the residual's type."""
    dtype = int8_result(residual.dtype)
    out: Tensor = _INT8_LINEAR.binary(
        codes, 1.0, zero_point, packed, scales, zeros, residual.to(dtype), bias,
        1.0, 0, dtype, 1.0, 0, "add", 1.0, "none", [], "",
    )  # fmt: skip
    return out


def int8_result(dtype: torch.dtype) -> torch.dtype:
    """The type of an int8 product that is wanted in `dtype`: float32 where the CPU has no such arithmetic.

    oneDNN has only its reference code there, which is thousands of times slower.
    """
    return dtype if has_onednn(dtype) else torch.float32


def packed_values(packed: Tensor) -> Tensor:
    """The content of a packed weight, 1-D in its number format, as it lies in memory."""
    buffer = (ctypes.c_byte * torch.ops.mkldnn._nbytes(packed)).from_address(torch.ops.mkldnn.data_ptr(packed))
    buffer.packed = packed  # keeps it in memory
    return torch.frombuffer(buffer, dtype=packed.dtype)


def packed_layout(packed: Tensor) -> Tensor:
    """The description of its layout, as bytes."""
    return cast("Tensor", torch.ops.mkldnn._get_mkldnn_serialized_md(packed))


def map_packed(values: Tensor, layout: Tensor, shape: Sequence[int]) -> Tensor:
    """The packed weight of this shape [out, in] that reads `values` in place and keeps them in memory.

    Raises OSError where torch has no such function, or refuses the values.
    """
    num_out, num_in = shape
    handle = ctypes.c_void_p()
    description = layout.numpy().tobytes()
    failed = _c_function("create_tensor_from_blob_v2")(
        ctypes.c_void_p(values.data_ptr()),
        ctypes.c_int64(2),  # dimensions, then sizes and strides
        (ctypes.c_int64 * 2)(num_out, num_in),
        (ctypes.c_int64 * 2)(num_in, 1),
        ctypes.c_int64(0),  # storage offset
        ctypes.c_int32(_c_code(str(values.dtype).replace("torch.", "dtype_"))),
        ctypes.c_int32(_c_code("device_type_cpu")),
        ctypes.c_int32(0),  # device index
        ctypes.byref(handle),
        ctypes.c_int32(_c_code("layout__mkldnn")),
        description,
        ctypes.c_int64(len(description)),
    )
    if failed:
        raise OSError(errno.EINVAL, "torch refuses to map packed weights")
    packed = torch._C._aoti.alloc_tensor_by_stealing_from_void_ptr(_capsule(handle.value, None, None))
    _c_function("delete_tensor_object")(handle)  # the name promises it, but what it returns is another reference
    packed.mapped_values = values  # type: ignore[attr-defined]  # keeps them in memory
    return packed


_LIBRARY = Path(torch.__file__).parent / "lib" / "libtorch_cpu.so"


def _c_code(name: str) -> int:
    """The number of a dtype, a device type or a layout in torch's C interface."""
    return cast("int", _c_function(name)())


@cache
def _c_function(name: str) -> Any:
    try:
        return getattr(ctypes.CDLL(str(_LIBRARY)), f"aoti_torch_{name}")
    except AttributeError:
        raise OSError(errno.ENOSYS, f"torch {torch.__version__} has no {name}") from None


_capsule = cast("Callable[[int | None, None, None], ctypes.c_void_p]", ctypes.pythonapi.PyCapsule_New)
"""Wraps a pointer; `torch._C._aoti` takes a capsule, although its stubs declare a c_void_p."""
ctypes.pythonapi.PyCapsule_New.restype = ctypes.py_object
ctypes.pythonapi.PyCapsule_New.argtypes = [ctypes.c_void_p, ctypes.c_char_p, ctypes.c_void_p]


def addmm_gelu_tanh(hidden: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """The GELU, approximated by tanh, of the linear map by `weight` [out, in]: one kernel of cuBLAS."""
    return torch._addmm_activation(bias, hidden, weight.t(), use_gelu=True)


def int_mm(codes: Tensor, weight: Tensor) -> Tensor:
    """The int32 sums [tokens, out] of int8 codes [tokens, in] and weights [out, in]."""
    return torch._int_mm(codes, weight.t())


def scaled_mm(codes: Tensor, weight: Tensor, scales: Tensor, weight_scales: Tensor, bias: Tensor | None) -> Tensor:
    """The product of float8 codes [tokens, in] and weights [out, in] times both scales, in bfloat16 [tokens, out]."""
    return torch._scaled_mm(
        codes, weight.t(), scales, weight_scales, bias, out_dtype=torch.bfloat16, use_fast_accum=True
    )


def compile_variants(function: Callable[..., Any], limit: int, **options: Any) -> Any:
    """torch.compile with room for `limit` variants of the function; beyond them torch stops to compile it.

    The limit is an argument where torch has it (2.13 has, 2.11 has not): its setting applies only to the thread that
    sets it there, and batches are launched by another thread than the warm-up. Before, it is one of all threads.
    """
    make: Any = torch.compile
    if "recompile_limit" in signature(make).parameters:
        return make(function, recompile_limit=limit, **options)
    torch._dynamo.config.recompile_limit = limit
    return make(function, **options)


def mark_static(tensor: Tensor, dimension: int) -> None:
    """Compiled functions get a variant of their own for every size of this dimension."""
    torch._dynamo.mark_static(tensor, dimension)
