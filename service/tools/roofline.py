"""The least time that a batch can take: the bare matrix products of its tokens, and nothing else.

Times the linear maps of an encoder (query-key-value, attention output, feed-forward in and out of every layer) on
random numbers, in every way to multiply that torch and ONNX Runtime have here, and keeps the quickest. Every layer has
weights of its own, so that no cache flatters the figure; of a large model some layers stand for the rest. Attention,
norms, embeddings, heads and the rounding to codes are left out, as are queue and wire: who computes these tokens is not
faster. The last layer of the engine computes only the tokens that are read: of a classifier it saves most of a layer.

Run as a program it reads a question as JSON from its standard input and prints the answers: a fresh process is the only
way to a number of threads of one's own.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from statistics import median

import torch
import torch.nn.functional as F  # noqa: N812 - its usual name
from torch import Tensor

from service.engine import torch_private
from service.engine.linear import Int8Codes, Plain
from service.engine.ops import UINT8_ZERO
from service.engine.torch_private import has_onednn

Product = Callable[[Tensor], Tensor]
"""Of [tokens, in] to [tokens, out]."""
Way = Callable[[Tensor], Product]
"""Makes the product with a weight [out, in]."""


def ways_of(device: torch.device, precision: str) -> Mapping[str, Way]:
    """Every way there is on this device, by name."""
    is_cpu = device.type == "cpu"
    match precision:
        case "int8":
            ways = {"int_mm": _int_mm}
            if is_cpu:
                ways["onnxruntime"] = _onnxruntime_int8
            if is_cpu and has_onednn(torch.float32):
                ways["onednn"] = _onednn_int8
            return ways
        case "fp8":
            return {"scaled_mm": _scaled_mm}
        case _:
            ways = {"linear": _linear}
            if is_cpu and has_onednn(DTYPES[precision]):
                ways["onednn"] = _onednn
            if is_cpu and precision == "float32":
                ways["onnxruntime"] = _onnxruntime
            return ways


def _linear(weight: Tensor) -> Product:
    return lambda hidden: F.linear(hidden, weight)


def _onednn(weight: Tensor) -> Product:
    """The weight in oneDNN's own layout."""
    packed = torch_private.pack(weight)
    return lambda hidden: torch_private.linear(hidden, packed, None)


def _onnxruntime(weight: Tensor) -> Product:
    from service.engine.onnx_encoder import multiply

    return multiply(Plain(weight, torch.zeros(len(weight))), torch.get_num_threads())


def _onnxruntime_int8(weight: Tensor) -> Product:
    """Of float32 inputs, which it rounds to codes."""
    from service.engine.onnx_encoder import multiply

    num_out, num_in = weight.shape
    made = Int8Codes(weight, torch.ones(num_out), torch.zeros(num_out), torch.ones(num_in), torch.zeros(num_in))
    product = multiply(made, torch.get_num_threads())
    return lambda hidden: product(hidden.float())


def _int_mm(weight: Tensor) -> Product:
    return lambda hidden: torch_private.int_mm(hidden, weight)


def _onednn_int8(weight: Tensor) -> Product:
    """Of unsigned codes, which oneDNN is quicker with."""
    scales, zeros = torch.ones(len(weight)), torch.zeros(len(weight), dtype=torch.int32)
    packed = torch_private.pack_int8(weight)
    return lambda hidden: torch_private.linear_int8(
        hidden.view(torch.uint8), UINT8_ZERO, packed, scales, zeros, None, torch.bfloat16
    )


def _scaled_mm(weight: Tensor) -> Product:
    one = torch.ones((), device=weight.device)
    return lambda hidden: torch_private.scaled_mm(hidden, weight, one, one, None)


MAX_WEIGHT_BYTES = 2**30
MIN_PASSES = 2
MIN_SECONDS = 1.0
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "int8": torch.int8, "fp8": torch.float8_e4m3fn}
CODE_ROWS = 32
"""Kernels for 8-bit codes on a GPU want at least 17 rows, or a multiple of 16."""


@dataclass(frozen=True, slots=True)
class Sizes:
    """What of a model's shape its linear maps depend on."""

    num_layers: int
    hidden_size: int
    ffn_size: int

    @property
    def maps(self) -> tuple[tuple[int, int], ...]:
        """(out, in) of one layer's linear maps, in the order of the forward."""
        hidden, ffn = self.hidden_size, self.ffn_size
        return ((3 * hidden, hidden), (hidden, hidden), (ffn, hidden), (hidden, ffn))


@dataclass(frozen=True, slots=True)
class Question:
    """Asks how long batches of these numbers of tokens take."""

    sizes: Sizes
    token_counts: tuple[int, ...]
    precision: str
    device: str = "cpu"
    threads: int = 1


@dataclass(frozen=True, slots=True)
class Limit:
    """Seconds of one batch, and the way that was the quickest."""

    seconds: float
    way: str


def limits(question: Question, ways: Mapping[str, Way] | None = None) -> list[Limit]:
    """One for each of the token counts: the median over some passes, after one that warms up."""
    torch.set_num_threads(question.threads)
    dtype, device = DTYPES[question.precision], torch.device(question.device)
    found: dict[int, list[Limit]] = {tokens: [] for tokens in question.token_counts}
    with torch.inference_mode():
        for name, way in (ways or ways_of(device, question.precision)).items():
            layers = make_layers(question.sizes, dtype, device, way)
            for tokens, by_way in found.items():
                seconds = _timed(_Pass(question.sizes, layers, tokens, dtype, device))
                by_way.append(Limit(seconds * (question.sizes.num_layers / len(layers)), name))
    return [min(by_way, key=lambda limit: limit.seconds) for by_way in found.values()]


def make_layers(sizes: Sizes, dtype: torch.dtype, device: torch.device, way: Way) -> list[list[Product]]:
    """As many different layers as MAX_WEIGHT_BYTES hold, two at least where there are two."""
    layer_bytes = dtype.itemsize * sum(out * size for out, size in sizes.maps)
    num_layers = min(sizes.num_layers, max(2, MAX_WEIGHT_BYTES // layer_bytes))
    return [[way(_random(out, size, dtype, device)) for out, size in sizes.maps] for _ in range(num_layers)]


class _Pass:
    """One batch through these layers."""

    def __init__(
        self, sizes: Sizes, layers: Sequence[Sequence[Product]], tokens: int, dtype: torch.dtype, device: torch.device
    ) -> None:
        rows = -(-tokens // CODE_ROWS) * CODE_ROWS if dtype.itemsize == 1 and device.type == "cuda" else tokens
        inputs = {size: _random(rows, size, dtype, device) for _, size in sizes.maps}
        maps = [(product, size) for layer in layers for product, (_, size) in zip(layer, sizes.maps, strict=True)]
        self._products = [(product, inputs[size]) for product, size in maps]
        self._device = device

    def __call__(self) -> None:
        for product, hidden in self._products:
            product(hidden)
        if self._device.type == "cuda":
            torch.cuda.synchronize(self._device)


def _timed(run: Callable[[], None]) -> float:
    run()
    return median(_seconds_of_each(run))


def _seconds_of_each(run: Callable[[], None]) -> Iterator[float]:
    passes, until = 0, time.perf_counter() + MIN_SECONDS
    while passes < MIN_PASSES or time.perf_counter() < until:
        started = time.perf_counter()
        run()
        yield time.perf_counter() - started
        passes += 1


def _random(rows: int, columns: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    if dtype == torch.int8:
        return torch.randint(-127, 128, (rows, columns), dtype=dtype, device=device)
    return torch.empty(rows, columns, device=device).uniform_(-0.1, 0.1).to(dtype)


def main() -> int:
    asked = json.load(sys.stdin)
    sizes = Sizes(**asked.pop("sizes"))
    found = limits(Question(sizes, tuple(asked.pop("token_counts")), **asked))
    print(json.dumps([asdict(limit) for limit in found]))
    return 0


if __name__ == "__main__":
    sys.exit(main())
