"""What flows through the service: encodings down, outputs and timings up.

Knows no torch, no HTTP and no text: an encoding is ids, an output is numbers, and both cross the process border as they
are.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

IdArray = NDArray[np.int32]
FloatArray = NDArray[np.float32]

Quantization = Literal["none", "int8", "fp8"]
"""What the encoder's linear maps compute in, where that is less than the precision of all else."""


@dataclass(frozen=True, slots=True)
class Cls:
    """The final hidden state of the first token: scores has shape [1, hidden]."""


@dataclass(frozen=True, slots=True)
class Mean:
    """The mean of the final hidden states of all tokens: scores has shape [1, hidden]."""


@dataclass(frozen=True, slots=True)
class Labels:
    """The logits of the sequence-classification head: scores has shape [1, num_labels]."""


@dataclass(frozen=True, slots=True)
class TokenScores:
    """The masked-LM logits of `token_ids` at `positions`: scores has shape [len(positions), len(token_ids)]."""

    positions: tuple[int, ...]
    token_ids: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class TopTokens:
    """The `k` most probable tokens at `positions`: scores (probabilities) and ids have shape [len(positions), k]."""

    positions: tuple[int, ...]
    k: int


Readout = Cls | Mean | Labels | TokenScores | TopTokens


@dataclass(frozen=True, slots=True, eq=False)
class Encoding:
    """One row for the encoder.

    `ids`, `segment_ids` and `positions` are int32 arrays of one length. `blocks` are disjoint, ascending half-open
    spans [start, end) of that row: a token inside a block sees its own block and every token outside all blocks; a
    token outside sees the whole row. Without blocks every token sees every token.
    """

    model: str
    ids: IdArray
    segment_ids: IdArray
    positions: IdArray
    readout: Readout
    blocks: tuple[tuple[int, int], ...] = ()
    truncated: bool = False

    @property
    def num_tokens(self) -> int:
        return len(self.ids)


@dataclass(frozen=True, slots=True, eq=False)
class Output:
    """The numbers read from one row; the shapes are told by its `Readout`."""

    scores: FloatArray
    ids: IdArray | None = None


Failure = Literal["failed", "out_of_memory"]
"""What a row has in place of an output: the forward failed on it, or found no memory for it even alone."""


Priority = Literal["interactive", "bulk"]
RANKS: dict[Priority, int] = {"interactive": 0, "bulk": -1}
"""What a caller calls it, and the `priority` of the terms."""


@dataclass(frozen=True, slots=True)
class RequestOptions:
    """How a request waits: until when (a time of the batcher's clock), before which others (a higher priority goes
    first), and on whose account, which has a share of the device by its weight among those that ask at the time."""

    deadline: float | None = None
    priority: int = 0
    account: str = ""
    weight: float = 1.0


DEFAULT_OPTIONS = RequestOptions()
"""Of who names none."""


@dataclass(frozen=True, slots=True)
class Timing:
    """Where the time of one request went, in seconds."""

    tokenize: float = 0.0
    queue: float = 0.0
    compute: float = 0.0
    total: float = 0.0


@dataclass(frozen=True, slots=True)
class Memory:
    """Bytes of a device: what is taken, and what there is."""

    allocated: int
    total: int


@dataclass(frozen=True, slots=True)
class Step:
    """One measured forward: so many tokens in so many rows took so many seconds."""

    tokens: int
    rows: int
    seconds: float
