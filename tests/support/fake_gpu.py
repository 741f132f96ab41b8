"""A GPU of torch's fake tensors: shapes, devices and types of every operation without a GPU and without numbers.

`FakeTensorMode` runs factory calls and operators on the device `cuda` in a build without CUDA, and raises where tensors
are on different devices or of types that do not fit. Indexing by Python, copies between host and device and reads of
numbers do not work under it. `Copies` answers them: a copy is a new tensor on the other device, and every number that
is read is 0.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from service.engine import tensor_files
from service.engine.tensor_files import Source

CPU, GPU = torch.device("cpu"), torch.device("cuda", 0)

NO_ARITHMETIC = {
    *(
        "detach",
        "detach_",
        "view",
        "slice",
        "select",
        "t",
        "transpose",
        "permute",
        "unbind",
        "split",
        "expand",
        "unsqueeze",
    ),
    *(
        "empty",
        "zeros",
        "ones",
        "new_empty",
        "new_zeros",
        "arange",
        "scalar_tensor",
        "lift_fresh",
        "alias",
        "as_strided",
    ),
    *("_to_copy", "copy_", "clone", "split_with_sizes", "_unsafe_view", "squeeze", "empty_strided", "full", "zero_"),
}
"""Operators that compute nothing: they make tensors, look at them, and copy them."""

READS = {"_local_scalar_dense", "nonzero", "item", "equal", "is_nonzero"}
"""Operators with which the host waits for the device."""


PRODUCTS = {"linear", "matmul", "bmm", "mm", "addmm", "_addmm_activation", "scaled_dot_product_attention"}
"""Operators whose floating point arguments have one type; the shapes of fake tensors are known without it."""


class Copies(TorchFunctionMode):
    """Copies between host and device, indexing of the device's tensors, and reads of numbers."""

    def __torch_function__(
        self, func: Any, types: Any, args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        answer = ANSWERS.get(func, func)
        return answer(*args, **(kwargs or {}))


def move(tensor: Tensor, *args: Any, **options: Any) -> Tensor:
    """`Tensor.to`: a new tensor where the device changes."""
    given = (*args, *options.values())
    device = next((torch.device(each) for each in given if isinstance(each, torch.device | str)), tensor.device)
    if device.type == tensor.device.type:
        return Tensor.to(tensor, *args, **options)
    dtype = next((each for each in given if isinstance(each, torch.dtype)), tensor.dtype)
    return torch.empty(tensor.shape, device=device, dtype=dtype)


def copy(into: Tensor, tensor: Tensor, **options: Any) -> Tensor:
    if into.device == tensor.device:
        return torch.ops.aten.copy_(into, tensor)  # type: ignore[no-any-return]
    assert into.shape == tensor.shape
    return into


def get(tensor: Tensor, key: Any) -> Tensor:
    return take(tensor, key) if tensor.is_cuda else Tensor.__getitem__(tensor, key)


def put(tensor: Tensor, key: Any, value: Any) -> None:
    if not tensor.is_cuda:
        Tensor.__setitem__(tensor, key, value)
    elif isinstance(value, Tensor):
        torch.ops.aten.copy_(take(tensor, key), value)
    else:
        take(tensor, key).fill_(value)


def read_array(tensor: Tensor) -> np.ndarray:
    assert not tensor.is_cuda, "a copy to the host comes first"
    return np.zeros(tuple(tensor.shape), dtype=str(tensor.dtype).removeprefix("torch."))


ANSWERS: dict[Any, Any] = {
    Tensor.pin_memory: lambda tensor: tensor,
    Tensor.to: move,
    Tensor.cpu: lambda tensor: move(tensor, CPU),
    Tensor.copy_: copy,
    Tensor.__getitem__: get,
    Tensor.__setitem__: put,
    Tensor.__invert__: torch.ops.aten.bitwise_not,
    Tensor.numpy: read_array,
    Tensor.__float__: lambda tensor: 0.0,
    **dict.fromkeys((Tensor.__bool__, torch.equal, Tensor.is_set_to), lambda *_: True),  # what is finite, or equal
}


def take(tensor: Tensor, key: Any) -> Tensor:
    """`tensor[key]` by the operators that it consists of: the indexing of Python asks the CPU build for a GPU."""
    dim = 0
    indices: list[Tensor | None] = []
    for each in key if isinstance(key, tuple) else (key,):
        if each is None:
            tensor = tensor.unsqueeze(dim)
        elif each is Ellipsis:
            assert key[-1] is not Ellipsis
            dim = tensor.dim() - (len(key) - 1 - key.index(Ellipsis)) - 1
        elif isinstance(each, int):
            tensor = tensor.select(dim, each)
            dim -= 1
        elif isinstance(each, slice):
            tensor = torch.ops.aten.slice.Tensor(tensor, dim, each.start, each.stop, each.step or 1)
        else:
            assert isinstance(each, Tensor)
            indices += [None] * (dim - len(indices)) + [each]
        dim += 1
    return torch.ops.aten.index.Tensor(tensor, indices) if indices else tensor


class Operations(TorchDispatchMode):
    """Records the operators that compute, with the device and the type of their results."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[tuple[str, torch.device, torch.dtype]] = []
        self.reads: list[str] = []

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        name = func.overloadpacket.__name__
        if name in PRODUCTS:
            dtypes = {each.dtype for each in tree_leaves(args) if isinstance(each, Tensor) and each.is_floating_point()}
            assert len(dtypes) <= 1, f"{name} of the types {dtypes}"
        out = func(*args, **(kwargs or {}))
        if name in READS:
            self.reads.append(name)
        if name not in NO_ARITHMETIC:
            self.seen += [(name, each.device, each.dtype) for each in tree_leaves(out) if isinstance(each, Tensor)]
        return out

    def on_cpu(self) -> set[str]:
        return {name for name, device, _ in self.seen if device.type == "cpu"}

    def types_of(self, *names: str) -> set[torch.dtype]:
        return {dtype for name, _, dtype in self.seen if name in names}


class Event:
    def record(self, stream: object) -> None:
        """No-op: fake work is done at once."""

    def synchronize(self) -> None:
        """No-op."""


@contextmanager
def nothing(*_: object, **__: object) -> Iterator[None]:
    yield


def pretend_cuda(monkeypatch: pytest.MonkeyPatch, capability: tuple[int, int]) -> None:
    """Answers the calls of torch.cuda that the engine makes, for one GPU of this compute capability.

    Files have their names and shapes; their tensors are made instead of read.
    """
    answers: dict[str, Any] = {
        "device_count": lambda: 1,
        "get_device_capability": lambda device=None: capability,
        "is_bf16_supported": lambda including_emulation=True: capability >= (8, 0),
        "mem_get_info": lambda device=None: (60, 80),
        "device": nothing,
        "Event": Event,
        "current_stream": lambda device=None: None,
        "synchronize": lambda device=None: None,
        "empty_cache": lambda: None,
    }
    for name, answer in answers.items():
        monkeypatch.setattr(torch.cuda, name, answer)
    monkeypatch.setattr("service.engine.device.why_no_cuda", lambda *_: None)
    open_file = tensor_files._open_safetensors

    def open_without_reading(file: Path, stack: ExitStack) -> list[Source]:
        return [replace(source, read=partial(torch.empty, source.shape)) for source in open_file(file, stack)]

    monkeypatch.setattr(tensor_files, "_open_safetensors", open_without_reading)


@contextmanager
def fake_gpu() -> Iterator[Operations]:
    """Everything inside runs on fake tensors; the operators that compute are recorded."""
    operations = Operations()
    with ExitStack() as stack:
        stack.enter_context(FakeTensorMode(allow_non_fake_inputs=True))
        stack.enter_context(operations)
        stack.enter_context(Copies())
        yield operations
