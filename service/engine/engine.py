"""The engine: one checkpoint, in one precision, on one device. Pack, encode, read.

Knows encodings and outputs; knows no text, no tasks, no queue and no processes.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from threading import Lock

import numpy as np
import torch
from torch import Tensor

from service.checkpoints.checkpoint import Checkpoint, Shape
from service.checkpoints.converted import form_of
from service.domain import (
    Cls,
    Encoding,
    Labels,
    Mean,
    Memory,
    Output,
    Quantization,
    Readout,
    Step,
    TokenScores,
    TopTokens,
)
from service.engine import attention, calibration, device, linear, packing, readouts
from service.engine.cuda_graphs import BUCKETS, CudaRecorder, Graphs, dense_forward
from service.engine.device import DTYPES, device_guard, resolve_device, resolve_precision, wait_event
from service.engine.encoder import encode
from service.engine.tensor_files import Progress
from service.engine.weight_cache import load_weights
from service.engine.weights import WeightFormat, Weights
from service.errors import CheckpointError

logger = logging.getLogger(__name__)

# A short row, two rows of one length and a longer one: every path of the attention is taken once, at little cost. A row
# of 128 tokens would be a second of the start, with the 1.3B shape on two cores; larger ones follow in the profile.
_WARM_UP_LENGTHS = (1, 4, 4, 8)
_WARM_UP_BLOCKS = ((1, 2), (2, 3))

# Of choices. Kernels that are compiled tell apart up to 128 tokens and more, multiples of 128 and the rest.
_GPU_WARM_UP_LENGTHS = ((32,), (128,), (128, 128), (128, 128, 64))

_CANARY_TOKENS = 4
"""Enough to tell: every weight of the encoder has its part in each."""


class Engine:
    """Made by `load`. One thread may prepare batches while another finishes those prepared before."""

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
        shape = checkpoint.shape
        place = attention.Place(device, weights.words.dtype, shape.num_heads, shape.head_size)
        with device_guard(device):
            self.backend, self._prepare_attention = attention.choose(backend, place, shape.num_layers)
        self._graphs = Graphs(
            dense_forward(weights, shape), CudaRecorder(), device, BUCKETS if device.type == "cuda" else ()
        )
        self._launching = Lock()

    @classmethod
    def load(
        cls,
        checkpoint: Checkpoint,
        *,
        device: str = "cpu",
        precision: str = "auto",
        quantization: Quantization = "none",
        backend: str = "auto",
        progress: Progress | None = None,
        weight_cache: Path | None = None,
    ) -> Engine:
        """Reads the weights; `progress` hears the bytes done and the bytes in all after every tensor.

        `weight_cache` is the folder that keeps them as the device wants them, None for none.

        Raises SettingError for a device, precision, quantization or backend that is not to be had, CheckpointError
        for bad weights.
        """
        place = resolve_device(device)
        resolved = resolve_precision(precision, place)
        dtype = DTYPES[resolved]
        weight_format = WeightFormat(place, dtype, linear.choose(place, dtype, quantization))
        form = form_of(place.type, resolved, quantization)
        weights = load_weights(checkpoint, weight_format, progress or (lambda done, total: None), weight_cache, form)
        resolved = resolved if quantization == "none" else quantization
        engine = cls(checkpoint, weights, device=place, precision=resolved, backend=backend)
        fields = {"model": checkpoint.name, "device": str(place), "precision": resolved, "attention": engine.backend}
        logger.info("model loaded", extra=fields)
        return engine

    @property
    def shape(self) -> Shape:
        return self.checkpoint.shape

    def warm_up(self) -> None:
        """Takes every path once, so that no request pays for it; CheckpointError when the weights make no numbers."""
        rows = self._warm_up_rows()
        outputs = self.run(rows)
        if self._graphs.is_wanted:
            outputs += self._warm_up_gpu(rows)
        if not all(np.isfinite(output.scores).all() for output in outputs):
            raise CheckpointError(f"{self.checkpoint.path}: the weights yield numbers that are not finite")

    def profile(self) -> Iterator[Step]:
        """Forwards of many sizes, each measured when it is asked for; `warm_up` first."""
        name = self.checkpoint.name
        return calibration.measure(self.run, lambda length: _blank_row(name, length, Cls()), self.shape.max_positions)

    def canary(self) -> list[Encoding]:
        """A row for each of the heads, with ids from all over the vocabulary."""
        length = min(_CANARY_TOKENS, self.shape.max_positions)
        ids = np.linspace(0, self.shape.vocab_size - 1, length).astype(np.int32)
        blank = _blank_row(self.checkpoint.name, length, Cls())
        return [replace(blank, ids=ids, readout=readout) for readout in self._readouts()]

    def device_memory(self) -> Memory | None:
        """None for a CPU, whose memory is the process's."""
        return device.device_memory(self.device)

    def run(self, encodings: Sequence[Encoding]) -> list[Output]:
        """The output of every row, in order. InferenceFailed when a row cannot be computed, OutOfMemory when there is
        no room for all of them together; none is computed, then."""
        return self.prepare(encodings)()

    def prepare(self, encodings: Sequence[Encoding]) -> readouts.Finish:
        """`run`, but for what the caller has to wait for, which is the call that comes back.

        A GPU is given the whole batch at once: it goes on with it when it is done with what it has. A CPU can do one
        thing at a time, so the batch is only packed. InferenceFailed and OutOfMemory as in `run`.
        """
        for encoding in encodings:
            packing.check(encoding, self.shape)
            readouts.check(encoding, self.shape, self.weights)
        if not encodings:
            return list
        finish = device.or_out_of_memory(partial(self._begin, encodings), self.device)
        return lambda: device.or_out_of_memory(finish, self.device)

    def _begin(self, encodings: Sequence[Encoding]) -> readouts.Finish:
        with device_guard(self.device):
            packed = packing.pack(encodings, self.device)
            if self.device.type == "cuda":
                return self._launch(packed)
        return lambda: self._launch(packed)()

    @torch.inference_mode()
    def _launch(self, packed: packing.Packed) -> readouts.Finish:
        with self._launching:  # graphs have one set of buffers, and halves of a failed batch come from another thread
            outputs = readouts.read(self.weights, self.shape, self.hidden_states(packed), packed)
            wait = wait_event(self.device)

        def finish() -> list[Output]:
            wait()
            return outputs()

        return finish

    @torch.inference_mode()
    def hidden_states(self, packed: packing.Packed) -> Tensor:
        """The final hidden states of all tokens of the pack, [tokens or more, hidden]."""
        if (hidden := self._graphs.run(packed.tokens, packed.layout)) is not None:
            return hidden
        attend = self._prepare_attention(packed.layout, self.device, self.weights.words.dtype)
        return encode(self.weights, self.shape, packed.tokens, attend)

    @torch.inference_mode()
    def _warm_up_gpu(self, rows: list[Encoding]) -> list[Output]:
        """Compiles what large batches need and records graphs for small ones, which are none of these from then on."""
        outputs = []
        for lengths in _GPU_WARM_UP_LENGTHS:
            blank = [_blank_row(self.checkpoint.name, min(each, self.shape.max_positions), Cls()) for each in lengths]
            outputs += self.run([replace(row, blocks=_WARM_UP_BLOCKS) for row in blank])
        with device_guard(self.device):
            self._graphs.record()
        return outputs + self.run(rows)

    def _warm_up_rows(self) -> list[Encoding]:
        first, *others = self._readouts()
        rows = [(min(length, self.shape.max_positions), first) for length in _WARM_UP_LENGTHS]
        rows += [(1, readout) for readout in others]
        blank = [_blank_row(self.checkpoint.name, length, readout) for length, readout in rows]
        return [*blank, replace(blank[1], blocks=_WARM_UP_BLOCKS)]

    def _readouts(self) -> tuple[Readout, ...]:
        """Every kind of readout that the checkpoint has a head for."""
        masked_lm = (TokenScores((0,), (0,)), TopTokens((0,), 1)) if self.weights.mlm else ()
        return (Mean(), Cls(), *masked_lm, *((Labels(),) if self.weights.labels else ()))


def _blank_row(model: str, length: int, readout: Readout) -> Encoding:
    zeros = np.zeros(length, dtype=np.int32)
    return Encoding(model, zeros, zeros, np.arange(length, dtype=np.int32), readout)
