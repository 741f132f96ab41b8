"""Models of random weights: engines made in place, checkpoints in the upstream layout, transformers' own forward."""

from __future__ import annotations

import json
import random
import shutil
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from itertools import cycle, islice, pairwise
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from service.checkpoints.checkpoint import Checkpoint
from service.checkpoints.shape import Shape
from service.domain import Encoding, Mean, Quantization
from service.engine import arithmetic
from service.engine.device import DTYPES, resolve_precision
from service.engine.engine import Engine
from service.engine.linear import InputRange, Linear
from service.engine.ops import Norm
from service.engine.weights import Layer, Weights
from service.tools.bench.texts import Lengths

VOCAB_SIZE = 21_248
SHAPES = {
    "tiny": Shape(2, 64, 2, 128, 1000, 512, 2, 1e-12, "gelu_new"),
    "narrow": Shape(4, 512, 2, 2048, 1000, 512, 2, 1e-12, "gelu_new"),  # the head size of 1.3B, quick on a CPU
    "mini": Shape(4, 256, 4, 1024, 7879, 512, 2, 1e-12, "gelu_new"),
    "small": Shape(6, 384, 6, 1536, VOCAB_SIZE, 512, 2, 1e-12, "gelu_new"),
    "110M": Shape(12, 768, 12, 3072, 21_128, 512, 2, 1e-12, "gelu"),
    "330M": Shape(24, 1024, 16, 4096, 21_128, 512, 2, 1e-12, "gelu"),
    "1.3B": Shape(24, 2048, 8, 8192, VOCAB_SIZE, 512, 2, 1e-12, "gelu_new"),
}
TINY, LARGE = SHAPES["tiny"], SHAPES["1.3B"]

LENGTHS = "lognormal:31:152"
"""Median and 95th percentile of the tokens of a row."""
Forward = Callable[[Sequence[Encoding]], np.ndarray[Any, Any]]
"""Of a batch, to one line of numbers for each row."""

FileFormat = Literal["bin", "safetensors"]
FILES: dict[FileFormat, str] = {"bin": "pytorch_model.bin", "safetensors": "model.safetensors"}
SPECIAL = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
CHARACTERS = tuple(chr(code) for code in range(0x4E00, 0x9FA6))
"""All of them: texts of unknown tokens would be equal rows, which are computed once."""


class Draw:
    """Tensors of a model in a fixed order from one seed."""

    def __init__(
        self, source: torch.device, device: torch.device, dtype: torch.dtype, linear_class: type[Linear]
    ) -> None:
        self._source = source
        self._generator = torch.Generator(source).manual_seed(1)
        self._device = device
        self._dtype = dtype
        self._linear_class = linear_class

    def normal(self, *sizes: int, deviation: float = 1.0) -> Tensor:
        drawn = torch.randn(sizes, generator=self._generator, device=self._source) * deviation
        return drawn.to(self._device, self._dtype)

    def map(self, num_out: int, num_in: int) -> Linear:
        weight, bias = self.normal(num_out, num_in, deviation=num_in**-0.5), self.normal(num_out) / 10
        return self._linear_class.of(weight, bias, InputRange(torch.full((num_in,), -4.0), torch.full((num_in,), 4.0)))

    def norm(self, size: int) -> Norm:
        return Norm(1 + self.normal(size) / 10, self.normal(size) / 10, 1e-12)

    def layer(self, shape: Shape) -> Layer:
        hidden, maps = shape.hidden_size, shape.maps
        return Layer(
            attention_norm=self.norm(hidden),
            qkv=self.map(*maps["qkv"]),
            attention_out=self.map(*maps["attention_out"]),
            ffn_norm=self.norm(hidden),
            ffn_in=self.map(*maps["ffn_in"]),
            ffn_out=self.map(*maps["ffn_out"]),
        )

    def weights(self, shape: Shape) -> Weights:
        return Weights(
            words=self.normal(shape.vocab_size, shape.hidden_size),
            positions=self.normal(shape.max_positions, shape.hidden_size),
            segments=self.normal(shape.num_segments, shape.hidden_size),
            layers=tuple(self.layer(shape) for _ in range(shape.num_layers)),
            final_norm=self.norm(shape.hidden_size),
        )


def make_engine(
    shape: Shape,
    device: torch.device,
    precision: str = "auto",
    *,
    quantization: Quantization = "none",
    backend: str = "auto",
    source: torch.device | None = None,
) -> Engine:
    """`source` is the device that draws the numbers: two engines with the same one have the same weights. `auto` is
    bfloat16 where the device has it: every GPU that is supported, not every CPU."""
    precision = resolve_precision(precision, device)
    by_torch = arithmetic.of_torch(device, precision, quantization)
    draw = Draw(source or device, device, DTYPES[precision], by_torch.linear_class)
    return Engine(
        Checkpoint("random", "random", None, Path(), "megatron-bert", "encoder", shape),
        draw.weights(shape),
        device=device,
        arithmetic=by_torch,
        backend=backend,
    )


def rows(shape: Shape, lengths: Sequence[int], options: Sequence[int] = ()) -> list[Encoding]:
    """Rows of these lengths; with `options`, each row is a choice between options of those lengths."""
    rng = np.random.default_rng(len(lengths))
    ends = np.cumsum([1, *options]).tolist()
    blocks = tuple(pairwise(ends))
    return [
        Encoding(
            "random",
            rng.integers(0, shape.vocab_size, length, dtype=np.int32),
            np.zeros(length, dtype=np.int32),
            np.arange(length, dtype=np.int32),
            Mean(),  # every layer computes all tokens, as what the rate is compared with does
            blocks,
        )
        for length in lengths
    ]


def draw_lengths(num: int, seed: int = 1) -> list[int]:
    """One from each of `num` equal parts of the distribution, in random order: no draw has fewer long rows."""
    return Lengths.parse(LENGTHS).draw(num, random.Random(seed))


@contextmanager
def scratch(folder: Path) -> Iterator[Path]:
    """A folder for this run, removed at its end; the run ends where there is something in it."""
    if folder.exists() and any(folder.iterdir()):
        sys.exit(f"--folder {folder}: is not empty")
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def vocabulary(size: int) -> list[str]:
    known = (*SPECIAL, *CHARACTERS)
    return [*known, *(f"[unused{number}]" for number in range(size - len(known)))]


def load_eager(folder: Path, precision: str) -> Forward:
    """transformers' eager forward of a checkpoint: the first state of each row, in a batch padded to its longest."""
    from transformers import MegatronBertModel

    model = MegatronBertModel.from_pretrained(
        folder, dtype=DTYPES[precision], attn_implementation="eager", add_pooling_layer=False
    )
    return padded(model.eval(), torch.device("cpu"))


def make_eager(shape: Shape, device: torch.device, precision: str, *, is_compiled: bool) -> Forward:
    """The same with random weights, on any device. `is_compiled`: each layer by torch.compile, for every size."""
    from transformers import MegatronBertModel

    with device:
        model = MegatronBertModel(config_of(shape), add_pooling_layer=False).to(DTYPES[precision]).eval()
    for layer in model.encoder.layer if is_compiled else ():
        layer.compile(dynamic=True)
    return padded(model, device)


def padded(model: Any, device: torch.device) -> Forward:
    """The forward of a model of transformers, on batches that are padded to their longest row."""

    @torch.inference_mode()
    def forward(batch: Sequence[Encoding]) -> np.ndarray[Any, Any]:
        ids = torch.zeros(len(batch), max(row.num_tokens for row in batch), dtype=torch.int64)
        mask = torch.zeros_like(ids)
        for index, row in enumerate(batch):
            ids[index, : row.num_tokens] = torch.from_numpy(row.ids)
            mask[index, : row.num_tokens] = 1
        states = model(input_ids=ids.to(device), attention_mask=mask.to(device)).last_hidden_state
        return np.asarray(states[:, 0].float().cpu())

    return forward


def write_checkpoint(folder: Path, shape: Shape, file_format: FileFormat = "bin") -> Path:
    """A float32 masked-LM checkpoint with its vocabulary, made in memory; returns the weights file."""
    from safetensors.torch import save_file
    from transformers import MegatronBertForMaskedLM

    config = config_of(shape, architectures=["MegatronBertForMaskedLM"])
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config.to_dict(), default=str), encoding="utf-8")
    (folder / "vocab.txt").write_text("\n".join(vocabulary(VOCAB_SIZE)) + "\n", encoding="utf-8")
    with torch.device("meta"):
        shapes = {name: tensor.shape for name, tensor in MegatronBertForMaskedLM(config).state_dict().items()}
    tensors = {
        name: torch.empty(size).uniform_(-0.05, 0.05) for name, size in shapes.items() if ".decoder." not in name
    }
    for name in tensors:
        if name.endswith(("ln.weight", "LayerNorm.weight")):
            tensors[name] += 1  # a norm with weights near zero would hide what the layers compute
    file = folder / FILES[file_format]
    if file_format == "bin":
        tied = {"cls.predictions.decoder.weight": tensors["bert.embeddings.word_embeddings.weight"]}
        torch.save(tensors | tied, file)
    else:
        save_file(tensors, file)
    return file


def config_of(shape: Shape, vocab_size: int = VOCAB_SIZE, **others: Any) -> Any:
    """transformers' config of a MegatronBert of this shape."""
    from transformers import MegatronBertConfig

    return MegatronBertConfig(
        vocab_size=vocab_size,
        hidden_size=shape.hidden_size,
        num_hidden_layers=shape.num_layers,
        num_attention_heads=shape.num_heads,
        intermediate_size=shape.ffn_size,
        hidden_act="gelu_new",
        **others,
    )


def engine_rows_per_s(engine: Engine, rows: Sequence[Encoding], batch_rows: int, seconds: float) -> float:
    """In batches of `batch_rows`, each prepared before the one ahead of it is finished."""
    endless = cycle(rows)
    batches = iter(lambda: list(islice(endless, batch_rows)), [])
    finish, num_batches = engine.prepare(next(batches)), 0
    started = time.perf_counter()
    while time.perf_counter() - started < seconds:
        following = engine.prepare(next(batches))
        finish()
        finish, num_batches = following, num_batches + 1
    elapsed = time.perf_counter() - started
    finish()
    return num_batches * batch_rows / elapsed
