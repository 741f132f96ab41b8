"""What flows through the service: encodings and request options down, outputs and timings up.

An encoding is ids, an output is numbers: both cross the process boundary as they are.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from hashlib import blake2b
from typing import Literal

import numpy as np
from numpy.typing import NDArray

IdArray = NDArray[np.int32]
FloatArray = NDArray[np.float32]

Quantization = Literal["none", "int8", "fp8"]
"""Arithmetic of the encoder's linear maps, where it is less precise than the rest."""

WantedQuantization = Literal["none", "int8", "fp8", "auto"]
"""`auto` is the fastest one, measured when a model is loaded."""

Runtime = Literal["torch", "onnxruntime"]
"""The library that computes the layers of the encoder."""

WantedRuntime = Literal["torch", "onnxruntime", "auto"]
"""`auto` is the faster one, measured when a model is loaded."""


@dataclass(frozen=True, slots=True)
class Cls:
    """The final hidden state of the first token: scores has shape [1, hidden]."""

    def selected(self, num_tokens: int) -> Sequence[int]:
        return (0,)


@dataclass(frozen=True, slots=True)
class Mean:
    """The mean of the final hidden states of all tokens: scores has shape [1, hidden]."""

    def selected(self, num_tokens: int) -> Sequence[int]:
        return range(num_tokens)


PoolingMode = Literal["cls", "max", "mean", "mean_sqrt_len_tokens", "weightedmean", "lasttoken"]
"""How the hidden states of a row become one vector, by the names of sentence-transformers: that of the first token, the
largest of each dimension, their mean, their sum over the root of their number, their mean weighted by position from 1
on, that of the last token."""


@dataclass(frozen=True, slots=True)
class Pooled:
    """The final hidden states pooled in each of `modes`, one vector after the other: scores has shape
    [1, len(modes) * hidden], or [1, dimensions] after the dense layers of the checkpoint (`is_projected`).

    The first `num_skipped` tokens are left out.
    """

    modes: tuple[PoolingMode, ...]
    num_skipped: int = 0
    is_projected: bool = False

    def selected(self, num_tokens: int) -> Sequence[int]:
        modes = set(self.modes)
        if modes == {"cls"}:
            return (self.num_skipped,)
        return range(num_tokens - 1 if modes == {"lasttoken"} else self.num_skipped, num_tokens)


@dataclass(frozen=True, slots=True)
class Labels:
    """The logits of the sequence-classification head: scores has shape [1, num_labels]."""

    def selected(self, num_tokens: int) -> Sequence[int]:
        return (0,)


@dataclass(frozen=True, slots=True)
class Spans:
    """The start and end logits of the question-answering head at every token: scores has shape [2, num_tokens]."""

    def selected(self, num_tokens: int) -> Sequence[int]:
        return range(num_tokens)


@dataclass(frozen=True, slots=True)
class TokenScores:
    """The masked-LM logits of `token_ids` at `positions`: scores has shape [len(positions), len(token_ids)]."""

    positions: tuple[int, ...]
    token_ids: tuple[int, ...]

    def selected(self, num_tokens: int) -> Sequence[int]:
        return self.positions


@dataclass(frozen=True, slots=True)
class TopTokens:
    """The `k` most probable tokens at `positions`: scores (probabilities) and ids have shape [len(positions), k]."""

    positions: tuple[int, ...]
    k: int

    def selected(self, num_tokens: int) -> Sequence[int]:
        return self.positions


TOP_TOKENS_COST = 2
"""Tokens that cost as much as the most probable words at one position: 1 to 2 with a small model, less with a large."""

Readout = Cls | Mean | Pooled | Labels | Spans | TokenScores | TopTokens
"""What is read from a row. `selected` are the tokens whose final hidden states it needs, of a row of so many tokens, in
the order in which it reads them."""


@dataclass(frozen=True, slots=True, eq=False)
class Encoding:
    """One row for the encoder.

    `ids`, `segment_ids` and `positions` are int32 arrays of one length. `blocks` are disjoint, ascending half-open
    spans [start, end) of that row: a token inside a block sees its own block and every token outside all blocks; a
    token outside sees the whole row. Without blocks every token sees every token. `continues` says that the row belongs
    to the same input as the row before it. `options` are the numbers of the labels that each option of a choice stands
    for; without them, the options are all labels in their order.
    """

    model: str
    ids: IdArray
    segment_ids: IdArray
    positions: IdArray
    readout: Readout
    blocks: tuple[tuple[int, int], ...] = ()
    truncated: bool = False
    continues: bool = False
    options: tuple[tuple[int, ...], ...] = ()
    kept_as: bytes | None = None
    """The key under which the output is kept for later requests, as the vector of a label is; see `keep`."""
    num_tokens: int = field(init=False)
    cost: int = field(init=False)
    """Tokens that the row counts as in a batch: its own, and what its readout costs beyond the usual."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "num_tokens", len(self.ids))
        readout_cost = TOP_TOKENS_COST * len(self.readout.positions) if isinstance(self.readout, TopTokens) else 0
        object.__setattr__(self, "cost", self.num_tokens + readout_cost)


RowIdentity = tuple[str, Readout, tuple[tuple[int, int], ...], bytes, bytes, bytes]


def row_identity(encoding: Encoding) -> RowIdentity:
    """Everything the engine sees of a row: rows of equal identity have equal outputs."""
    arrays = encoding.ids.tobytes(), encoding.segment_ids.tobytes(), encoding.positions.tobytes()
    return (encoding.model, encoding.readout, encoding.blocks, *arrays)


def digest(encoding: Encoding, salt: str = "") -> bytes:
    """A hash of the row and the salt: the identity itself is as long as the text."""
    *form, ids, segment_ids, positions = row_identity(encoding)
    return blake2b(repr((salt, form)).encode() + ids + segment_ids + positions, digest_size=16).digest()


def keep(encoding: Encoding) -> Encoding:
    """The same row, whose output is kept for later requests."""
    return replace(encoding, kept_as=digest(encoding))


@dataclass(frozen=True, slots=True, eq=False)
class Output:
    """The numbers read from one row; the shapes follow from its `Readout`."""

    scores: FloatArray
    ids: IdArray | None = None


Failure = Literal["failed", "out_of_memory"]
"""In place of an output: the forward failed on this row, or ran out of memory on it even alone."""


Priority = Literal["interactive", "bulk"]
RANKS: dict[Priority, int] = {"interactive": 0, "bulk": -1}
"""From the name in the API to `RequestOptions.priority`."""


@dataclass(frozen=True, slots=True)
class RequestOptions:
    """How a request waits: until when (a time of the batcher's clock), before which others (a higher priority goes
    first), and for which account, whose share of the device is its weight among the accounts that wait."""

    deadline: float | None = None
    priority: int = 0
    account: str = ""
    weight: float = 1.0


DEFAULT_OPTIONS = RequestOptions()
"""Of a request that names none."""


@dataclass(frozen=True, slots=True)
class Timing:
    """Seconds of one request by stage."""

    tokenize: float = 0.0
    queue: float = 0.0
    compute: float = 0.0
    total: float = 0.0


@dataclass(frozen=True, slots=True)
class Memory:
    """Bytes of a device."""

    allocated: int
    total: int


KernelKind = Literal["linear", "attention", "compiled", "graph", "runtime"]
"""What the self-test of an engine checks: linear maps, attention backends, compiled functions, CUDA graphs, and a layer
in another runtime than torch."""


@dataclass(frozen=True, slots=True)
class Check:
    """One kernel, compared with a plain reference when the engine was loaded.

    `distance` is the relative distance from the reference, None where the kernel raised an error. `seconds` are those
    of the attention of a typical batch where it was measured, else those of the check. `reason` says why the kernel is
    left out; it is empty for one that may serve.
    """

    kind: KernelKind
    name: str
    distance: float | None
    seconds: float
    reason: str = ""

    @property
    def is_sound(self) -> bool:
        return not self.reason


@dataclass(frozen=True, slots=True)
class Step:
    """One measured forward."""

    tokens: int
    rows: int
    seconds: float
