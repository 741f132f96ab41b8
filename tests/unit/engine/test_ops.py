"""GELU on a CPU; compiled functions: one variant per width of a model, shared by all threads."""

from __future__ import annotations

from threading import Thread

import pytest
import torch
import torch.nn.functional as F  # noqa: N812 - its usual name
from torch._dynamo.testing import CompileCounter

from service.engine.device import DTYPES
from service.engine.ops import Gelu, compiled, gelu

TORCHS_OWN_LIMIT = 8


@pytest.fixture(autouse=True)
def _reset_dynamo() -> None:
    torch._dynamo.reset()


@pytest.mark.parametrize("dtype", DTYPES.values())
@pytest.mark.parametrize("approximate", ["none", "tanh"])
def test_gelu_is_that_of_torch(approximate: Gelu, dtype: torch.dtype) -> None:
    numbers = torch.cat([torch.linspace(-12, 12, 4801), torch.tensor([-1e30, -1e4, 1e4, 1e30])]).to(dtype)
    wanted = F.gelu(numbers, approximate=approximate)
    torch.testing.assert_close(gelu(numbers.clone(), approximate), wanted, atol=1e-6, rtol=1e-6)


@torch.inference_mode()
def run(add: object, tokens: int, width: int) -> None:
    first, second = torch.ones(tokens, width), torch.ones(tokens, width)
    torch._dynamo.mark_static(first, 1)
    assert torch.equal(add(first, second), first + second)  # type: ignore[operator]


def test_a_function_is_compiled_per_width_and_not_per_number_of_tokens() -> None:
    counter = CompileCounter()
    add = compiled(lambda first, second: first + second, backend=counter)
    widths = range(8, 8 + 8 * 2 * TORCHS_OWN_LIMIT, 8)
    run(add, 24, widths[0])
    for width in widths:
        for tokens in (32, 40, 48):
            run(add, tokens, width)
    assert counter.frame_count == 1 + len(widths), "once for the first number of tokens, then once per width"


def test_a_compiled_function_is_shared_between_threads() -> None:
    counter = CompileCounter()
    add = compiled(lambda first, second: first + second, backend=counter)
    run(add, 24, 8)
    run(add, 32, 8)
    other = Thread(target=run, args=(add, 40, 8))
    other.start()
    other.join()
    assert counter.frame_count == 2
