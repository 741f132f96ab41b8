"""The engine: one checkpoint, in one precision, on one device. Pack, encode, read.

Knows encodings and outputs; knows no text, no tasks, no queue and no processes.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from service.checkpoint import Checkpoint, Shape
from service.domain import Cls, Encoding, Labels, Mean, Output, Readout, TokenScores, TopTokens
from service.engine import attention, heads, packing
from service.engine.encoder import encode
from service.engine.precision import DTYPES, resolve_device, resolve_precision
from service.engine.weights import Progress, Weights, load_weights
from service.errors import CheckpointError

logger = logging.getLogger(__name__)

# A short row, two rows of one length and a longer one: every path of the attention is taken once, at little cost.
_WARM_UP_LENGTHS = (1, 32, 32, 128)


class Engine:
    """Made by `load`. Not safe for concurrent use: its replica calls it from one thread."""

    def __init__(
        self,
        checkpoint: Checkpoint,
        weights: Weights,
        *,
        device: torch.device,
        precision: str,
        backend: str = "auto",
    ) -> None:
        self.checkpoint = checkpoint
        self.weights = weights
        self.device = device
        self.precision = precision
        self.backend, self._attend = attention.choose(backend, device)

    @classmethod
    def load(
        cls,
        checkpoint: Checkpoint,
        *,
        device: str = "cpu",
        precision: str = "auto",
        backend: str = "auto",
        progress: Progress | None = None,
    ) -> Engine:
        """Reads the weights; `progress` hears the bytes done and the bytes in all after every tensor.

        Raises SettingError for a device, precision or backend that is not to be had, CheckpointError for bad weights.
        """
        place = resolve_device(device)
        resolved = resolve_precision(precision, place)
        weights = load_weights(checkpoint, place, DTYPES[resolved], progress)
        engine = cls(checkpoint, weights, device=place, precision=resolved, backend=backend)
        fields = {"model": checkpoint.name, "device": str(place), "precision": resolved, "attention": engine.backend}
        logger.info("model loaded", extra=fields)
        return engine

    @property
    def shape(self) -> Shape:
        return self.checkpoint.shape

    def warm_up(self) -> None:
        """Takes every path once, so that no request pays for it; CheckpointError when the weights make no numbers."""
        outputs = self.run(self._warm_up_rows())
        if not all(np.isfinite(output.scores).all() for output in outputs):
            raise CheckpointError(f"{self.checkpoint.path}: the weights yield numbers that are not finite")

    @torch.inference_mode()
    def run(self, encodings: Sequence[Encoding]) -> list[Output]:
        """The output of every row, in order. InferenceFailed when a row cannot be computed; none is, then."""
        if not encodings:
            return []
        for encoding in encodings:
            packing.check(encoding, self.shape)
            heads.check(encoding, self.shape, self.weights)
        packed = packing.pack(encodings, self.device)
        return heads.read(self.weights, self.shape, self.hidden_states(packed), packed)

    @torch.inference_mode()
    def hidden_states(self, packed: packing.Packed) -> Tensor:
        """The final hidden states of all tokens of the pack, [tokens, hidden]."""
        plan = attention.make_plan(packed, self.device, DTYPES[self.precision])
        return encode(self.weights, self.shape, packed, plan, self._attend)

    def _warm_up_rows(self) -> list[Encoding]:
        first, *others = self._readouts()
        rows = [(min(length, self.shape.max_positions), first) for length in _WARM_UP_LENGTHS]
        rows += [(1, readout) for readout in others]
        return [_blank_row(self.checkpoint.name, length, readout) for length, readout in rows]

    def _readouts(self) -> tuple[Readout, ...]:
        """Every kind of readout that the checkpoint has a head for."""
        masked_lm = (TokenScores((0,), (0,)), TopTokens((0,), 1)) if self.weights.mlm else ()
        return (Mean(), Cls(), *masked_lm, *((Labels(),) if self.weights.labels else ()))


def _blank_row(model: str, length: int, readout: Readout) -> Encoding:
    zeros = np.zeros(length, dtype=np.int32)
    return Encoding(model, zeros, zeros, np.arange(length, dtype=np.int32), readout)
