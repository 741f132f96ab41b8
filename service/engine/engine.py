"""The engine: one checkpoint, in one precision, on one device. It packs encodings, runs the encoder, reads outputs."""

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

from service import host
from service.checkpoints.checked_file import DamagedFile
from service.checkpoints.checkpoint import Checkpoint
from service.checkpoints.converted import form_of
from service.checkpoints.shape import Shape
from service.domain import (
    Check,
    Cls,
    Encoding,
    Labels,
    Mean,
    Memory,
    Output,
    Pooled,
    Readout,
    Spans,
    Step,
    TokenScores,
    TopTokens,
    WantedQuantization,
    WantedRuntime,
)
from service.engine import arithmetic, attention, calibration, device, packing, readouts
from service.engine.arithmetic import Arithmetic, ComputesReadouts
from service.engine.attention_backends import MIN_VARLEN_ROW
from service.engine.cuda_graphs import BUCKETS, Graphs
from service.engine.device import DTYPES, CudaRecorder, device_guard, resolve_device, resolve_precision, wait_event
from service.engine.encoder import encode
from service.engine.fastest import fastest
from service.engine.self_test import compare
from service.engine.tensor_files import Progress
from service.engine.weight_cache import SampleRows, WeightLoader, is_cached
from service.engine.weights import WeightFormat, Weights
from service.errors import CheckpointError

logger = logging.getLogger(__name__)

# A short row, two rows of one length and a longer one take every path of the attention at little cost. A row of 128
# tokens would add a second to the start, with the 1.3B shape on two cores; larger ones follow in the calibration.
_WARM_UP_LENGTHS = (1, 4, 4, 8)
_WARM_UP_BLOCKS = ((1, 2), (2, 3))

# Lengths of choice rows. Compiled kernels distinguish up to 128 tokens from more, and multiples of 128 from the rest.
_GPU_WARM_UP_LENGTHS = ((32,), (128,), (128, 128), (128, 128, 64))

_GRAPH_LIMITS = {"float32": 1e-3, "bfloat16": 0.1, "int8": 0.2, "fp8": 0.2}
"""Largest distances between a graph and the same rows without one, by precision: their attention kernels round
differently, and all layers add to it."""

_READOUT_LIMIT = 1e-3
"""Largest distance between a readout of the runtime and torch's: both compute in float32."""

_CANARY_TOKENS = 4
"""Few are enough: every weight of the encoder contributes to each token."""


class Engine:
    """Created by `load`. One thread may prepare batches while another one finishes those prepared before."""

    def __init__(
        self,
        checkpoint: Checkpoint,
        weights: Weights,
        *,
        device: torch.device,
        arithmetic: Arithmetic,
        backend: str = "auto",
        loader: WeightLoader | None = None,
    ) -> None:
        self.checkpoint = checkpoint
        self.device = device
        self.arithmetic = arithmetic
        self._attention = self._choose_attention(backend, weights.words.dtype)
        self._kernel_checks: Sequence[Check] = ()
        self._loader = loader
        self._use(weights)
        self._launching = Lock()

    def _choose_attention(self, backend: str, dtype: torch.dtype) -> attention.Choice:
        if self.arithmetic.runtime == "onnxruntime":
            plain = attention.BACKENDS[attention.PLAIN]
            return attention.Choice("onnxruntime", plain, ())  # has its own, which is checked with its layers
        config = attention.AttentionConfig(self.device, dtype, self.shape.num_heads, self.shape.head_size)
        with device_guard(self.device):
            return attention.choose(backend, config, self.shape.num_layers)

    def _use(self, weights: Weights) -> None:
        self._compute = self.arithmetic.bind(weights, self.shape, self._attention.backend.prepare)
        self._reader = self._compute if isinstance(self._compute, ComputesReadouts) else None
        # ONNX Runtime has copied the maps of the layers, which are most of the memory.
        self.weights = replace(weights, layers=()) if self.arithmetic.runtime == "onnxruntime" else weights
        self._graphs = Graphs(
            partial(encode, self.weights, self.shape),
            CudaRecorder(),
            self.device,
            weights.words.dtype,
            self._attention.backend.recorded,
            BUCKETS if self.device.type == "cuda" else (),
        )

    @classmethod
    def load(
        cls,
        checkpoint: Checkpoint,
        *,
        device: str = "cpu",
        precision: str = "auto",
        runtime: WantedRuntime = "torch",
        quantization: WantedQuantization = "none",
        backend: str = "auto",
        progress: Progress | None = None,
        weight_cache: Path | None = None,
        sample_rows: SampleRows | None = None,
    ) -> Engine:
        """Loads the weights; `progress` is called with the bytes done and the total bytes after every tensor.

        `weight_cache` is the folder of converted weights; None turns the cache off. `sample_rows` makes rows of texts
        as they are served, from which int8 on a CPU takes its scales; without it, these are rows of random ids.

        What fails the self-test is replaced: `arithmetic` and `checks` of the engine say by what. Raises SettingError
        for a device, precision, runtime, quantization or backend that is not available, CheckpointError for weights
        that are missing, damaged or of another model.
        """
        target, shape = resolve_device(device), checkpoint.shape
        precision = resolve_precision(precision, target)
        candidates = arithmetic.candidates(shape, target, precision, runtime, quantization)
        cached = [each for each in candidates if is_cached(weight_cache, checkpoint, _form(each, target))]
        chosen = arithmetic.check(fastest(candidates, shape, target, cached), shape, target)
        weight_format = WeightFormat(target, DTYPES[chosen.precision], chosen.linear_class)
        on_bytes = progress or (lambda done, total: None)
        form = _form(chosen, target)
        loader = WeightLoader(checkpoint, weight_format, on_bytes, weight_cache, form, sample_rows)
        engine = cls(checkpoint, loader.load(), device=target, arithmetic=chosen, backend=backend, loader=loader)
        if chosen.runtime == "onnxruntime":
            host.return_freed_memory()  # of the maps that it has copied
        fields = {"model": checkpoint.name, "device": str(target), "precision": engine.precision}
        logger.info("model loaded", extra={**fields, "runtime": chosen.runtime, "attention": engine.backend})
        return engine

    @property
    def precision(self) -> str:
        """That of the weights, or their quantization."""
        return self.arithmetic.result

    @property
    def backend(self) -> str:
        """The name of the attention backend."""
        return self._attention.name

    @property
    def shape(self) -> Shape:
        return self.checkpoint.shape

    @property
    def checks(self) -> tuple[Check, ...]:
        """What the self-test found; those of CUDA graphs and readouts are there after `warm_up`."""
        return (*self.arithmetic.checks, *self._attention.checks, *self._kernel_checks)

    @property
    def has_found_damage(self) -> bool:
        """Whether cached weights were found damaged; unless `require_sound_weights` raised, they are replaced."""
        return self._loader is not None and self._loader.has_found_damage

    def require_sound_weights(self, share: float = 1.0) -> None:
        """Raises DamagedFile when the file that the weights are mapped from has changed; it is removed then.

        Any thread may call it. `share` is that of the time in which it works: its own thread should leave the cores to
        requests.
        """
        if self._loader:
            self._loader.require_sound(share)

    def replace_damaged_weights(self) -> bool:
        """Checks cached weights completely, and loads them again where they are damaged. No batch may run."""
        try:
            self.require_sound_weights()
        except DamagedFile:
            assert self._loader, "it has found the damage"
            del self.weights, self._compute, self._reader, self._graphs  # a GPU may not have the memory for both
            self._use(self._loader.load(in_full=True))
            return True
        return False

    def warm_up(self) -> None:
        """Runs every code path once, so that no request pays for it.

        Raises CheckpointError when an output is NaN or infinity, and damaged cached weights are not the reason.
        """
        rows = self._warm_up_rows()
        outputs = self.run(rows)
        if self._graphs.is_wanted:
            outputs += self._warm_up_gpu(rows)
        if not all(np.isfinite(output.scores).all() for output in outputs):
            if self.replace_damaged_weights():
                self.warm_up()
                return
            raise CheckpointError(
                f"{self.checkpoint.path}: the outputs of the model are not finite; its weights are damaged"
            )
        if self._reader:
            self._check_readouts()

    def profile(self) -> Iterator[Step]:
        """Measures forwards of many sizes, one for each step of the iterator. Call `warm_up` first.

        Of rows that take most time: the last layer computes all of their tokens.
        """
        name = self.checkpoint.name
        return calibration.measure(self.run, lambda length: _blank_row(name, length, Mean()), self.shape.max_positions)

    def canary(self) -> list[list[Encoding]]:
        """A row for each readout, with ids spread over the vocabulary. Those that the runtime may compute are batches
        of their own, as they are served."""
        length = min(_CANARY_TOKENS, self.shape.max_positions)
        ids = np.linspace(0, self.shape.vocab_size - 1, length).astype(np.int32)
        blank = _blank_row(self.checkpoint.name, length, Cls())
        rows = [replace(blank, ids=ids, readout=readout) for readout in self._readouts()]
        together = [row for row in rows if not readouts.shared_readout([row])]
        return [together, *([row] for row in rows if readouts.shared_readout([row]))]

    def device_memory(self) -> Memory | None:
        """The memory of the GPU; None for a CPU, which has only the memory of the process."""
        return device.device_memory(self.device)

    def run(self, encodings: Sequence[Encoding]) -> list[Output]:
        """The output of every row, in order.

        Raises InferenceFailed when a row cannot be computed, OutOfMemory when the batch does not fit into memory. In
        both cases there is no output for any row.
        """
        return self.prepare(encodings)()

    def prepare(self, encodings: Sequence[Encoding]) -> readouts.Pending:
        """Starts the batch; the returned function waits for the outputs and returns them, as `run` does.

        On a GPU the whole batch is launched at once and queues behind earlier ones. On a CPU the batch is only packed,
        and the returned function computes it. Raises InferenceFailed and OutOfMemory as `run` does.
        """
        for encoding in encodings:
            packing.check(encoding, self.shape)
            readouts.check(encoding, self.shape, self.weights)
        if not encodings:
            return list
        pending = device.or_out_of_memory(partial(self._start, encodings), self.device)
        return lambda: device.or_out_of_memory(pending, self.device)

    def _start(self, encodings: Sequence[Encoding]) -> readouts.Pending:
        with device_guard(self.device):
            is_padded = packing.needs_padding(self.shape, self.device)
            packed = packing.pack(encodings, self.device, is_padded=is_padded)
            if self.device.type == "cuda":
                return self._launch(packed)
        return lambda: self._launch(packed)()

    @torch.inference_mode()
    def _launch(self, packed: packing.Packed) -> readouts.Pending:
        # CUDA graphs share one set of buffers, and the halves of a failed batch are launched by another thread.
        with self._launching:
            outputs = self._read(packed)
            wait = wait_event(self.device)

        def finish() -> list[Output]:
            wait()
            return outputs()

        return finish

    def _read(self, packed: packing.Packed) -> readouts.Pending:
        if self._reader and (shared := readouts.shared_readout(packed.encodings)):
            scores = self._reader.read(packed.tokens, packed.layout, packed.selected, shared)
            return partial(readouts.cut, scores, packed)
        return self._read_by_torch(packed)

    def _read_by_torch(self, packed: packing.Packed) -> readouts.Pending:
        return readouts.read(self.weights, self.shape, self.hidden_states(packed), packed)

    @torch.inference_mode()
    def hidden_states(self, packed: packing.Packed) -> Tensor:
        """The final hidden states of the selected tokens, [at least selected tokens, hidden]."""
        if (hidden := self._graphs.run(packed.tokens, packed.layout)) is not None:
            return hidden if packed.selected is None else hidden[packed.selected]
        return self._compute(packed.tokens, packed.layout, packed.selected)

    @torch.inference_mode()
    def _warm_up_gpu(self, rows: list[Encoding]) -> list[Output]:
        """Compiles the kernels of large batches, records graphs for small ones, and runs the small rows once more."""
        outputs = []
        for lengths in _GPU_WARM_UP_LENGTHS:
            blank = [_blank_row(self.checkpoint.name, min(each, self.shape.max_positions), Cls()) for each in lengths]
            outputs += self.run([replace(row, blocks=_WARM_UP_BLOCKS) for row in blank])
        with device_guard(self.device):
            self._graphs.limit(self._compute, self._graph_batch)
            self._graphs.record()
            self._kernel_checks = self._graphs.check(self._compute, self._graph_batch, _GRAPH_LIMITS[self.precision])
            outputs += self.run(rows)
            torch.cuda.empty_cache()  # of what loading took: other processes may need it
        return outputs

    def _check_readouts(self) -> None:
        """Compares the readouts of the runtime with those of torch, which take their place where they differ."""
        _, *batches = self.canary()

        def pairs() -> Iterator[tuple[Tensor, Tensor]]:
            for batch in batches:
                packed = packing.pack(batch, self.device)
                [computed], [known] = self._read(packed)(), self._read_by_torch(packed)()
                yield torch.from_numpy(computed.scores), torch.from_numpy(known.scores)

        check = compare("runtime", f"{self.arithmetic.runtime} readouts", pairs, _READOUT_LIMIT)
        self._kernel_checks = (check,)
        if not check.is_sound:
            self._reader = None

    def _graph_batch(self, num_tokens: int, has_blocks: bool) -> tuple[Tensor, packing.Layout]:
        """Rows with known ids, of `num_tokens` in all; the last ones may have blocks."""
        length = min(16 if has_blocks else 2 * MIN_VARLEN_ROW, self.shape.max_positions)
        ids = np.linspace(0, self.shape.vocab_size - 1, length).astype(np.int32)
        blank = replace(_blank_row(self.checkpoint.name, length, Cls()), ids=ids)
        masked = replace(blank, blocks=_WARM_UP_BLOCKS)
        num_rows = num_tokens // length
        packed = packing.pack([masked if has_blocks and row % 2 else blank for row in range(num_rows)], self.device)
        return packed.tokens, packed.layout

    def _warm_up_rows(self) -> list[Encoding]:
        first, *others = self._readouts()
        rows = [(min(length, self.shape.max_positions), first) for length in _WARM_UP_LENGTHS]
        rows += [(1, readout) for readout in others]
        blank = [_blank_row(self.checkpoint.name, length, readout) for length, readout in rows]
        return [*blank, replace(blank[1], blocks=_WARM_UP_BLOCKS)]

    def _readouts(self) -> tuple[Readout, ...]:
        """One readout of every kind that the checkpoint has a head for."""
        masked_lm = (TokenScores((0,), (0,)), TopTokens((0,), 1)) if self.weights.mlm else ()
        spec = self.checkpoint.embedding
        pooled = (Pooled(spec.pooling, is_projected=bool(spec.dense)),) if spec else ()
        labels, spans = (Labels(),) if self.weights.labels else (), (Spans(),) if self.weights.spans else ()
        return (Mean(), Cls(), *pooled, *masked_lm, *labels, *spans)


def _form(each: Arithmetic, device: torch.device) -> str:
    return form_of(device.type, each.precision, each.quantization, each.runtime)


def _blank_row(model: str, length: int, readout: Readout) -> Encoding:
    zeros = np.zeros(length, dtype=np.int32)
    return Encoding(model, zeros, zeros, np.arange(length, dtype=np.int32), readout)
