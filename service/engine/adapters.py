"""Merges an adapter into the tensors of its base while they are read, in float32: W + scale B A."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from functools import partial

import torch
from torch import Tensor

from service.checkpoints.adapter import Adapter, LowRank
from service.checkpoints.checkpoint import Checkpoint
from service.checkpoints.files import ADAPTER_CONFIG
from service.checkpoints.shape import ROBERTA
from service.engine.tensor_files import DECODERS, WORDS, Source, TensorFiles
from service.errors import CheckpointError

_TENSORS = ("encoder.layer.0.attention.self.query.weight", "encoder.layer.0.output.dense.weight", WORDS)
"""Where the numbers of a base are taken from, besides its last layer."""
_NUM_NUMBERS = 16
_HEADS = ("classifier.", "qa_outputs.", "pooler.")
_NEW_LAYER = ": where it was new when the adapter was trained, it must be in modules_to_save"
_TOLERANCE = 0.01
"""Of the largest number of a tensor: the same weights rounded to bfloat16 differ by at most 0.4 %."""


def merge_adapter(checkpoint: Checkpoint, files: TensorFiles, adapted: TensorFiles) -> None:
    """Changes `files`, the tensors of the base, to those of the adapted model; `adapted` is the file of the adapter.

    Raises:
        CheckpointError: the adapter is of another base, or lacks what its base lacks.
    """
    adapter = checkpoint.adapter
    assert adapter, "the checkpoint has one"
    _check_base(checkpoint, adapter, files)
    _check_tied(checkpoint, adapter, files)
    for name, stored in adapter.replaced.items():
        source = adapted.find_stored(stored)
        is_head = name.startswith(_HEADS)  # of which the adapted model may have another one than the base
        if name in files and not is_head and files.shape(name) != source.shape:
            found = f"{stored} has shape {list(source.shape)}, and {list(files.shape(name))} in the base"
            raise _other_base(checkpoint, adapter, found)
        files.replace(name, source)
    for update in adapter.updates:
        first, second = ("lora_embedding_A", "lora_embedding_B") if update.is_embedding else ("lora_A", "lora_B")
        a, b = (adapted.find_stored(update.tensors[part]) for part in (first, second))
        # Of an embedding [number, size], A is [rank, number] and B [size, rank].
        shape = (a.shape[1], b.shape[0]) if update.is_embedding else (b.shape[0], a.shape[1])
        _add(checkpoint, files, f"{update.module}.weight", replace(b, shape=shape), partial(_product, update, a, b))
        if part := update.tensors.get("lora_B.bias"):
            added = adapted.find_stored(part)
            _add(checkpoint, files, f"{update.module}.bias", added, partial(_scaled, update, added))
    _check_heads(checkpoint, adapter, files)


def _add(checkpoint: Checkpoint, files: TensorFiles, name: str, added: Source, read: Callable[[], Tensor]) -> None:
    """Adds what `read` returns to a tensor of the base whenever it is read; `added` has its shape and its file."""
    adapter = checkpoint.adapter
    assert adapter
    if name not in files:
        hint = _NEW_LAYER if name.startswith(_HEADS) else ""
        raise _other_base(checkpoint, adapter, f"it changes {name}, which the base does not have{hint}")
    base = files.find(name)
    if base.shape != added.shape:
        found = f"it changes {name} of shape {list(added.shape)}, and that of the base has {list(base.shape)}"
        raise _other_base(checkpoint, adapter, found)
    merged = replace(added, kind="F32", read=lambda: base.load().add_(read()))
    files.replace(name, merged)


def _product(update: LowRank, a: Source, b: Source) -> Tensor:
    product = b.load() @ a.load()
    return (product.T if update.is_embedding else product).mul(update.scale)


def _scaled(update: LowRank, added: Source) -> Tensor:
    return added.load().mul(update.scale)


def numbers_of_base(files: TensorFiles, num_layers: int) -> dict[str, list[float]]:
    """Some numbers of some tensors, by which the base of an adapter is known again in any format and precision."""
    names = (*_TENSORS, f"encoder.layer.{num_layers - 1}.output.dense.weight")
    return {name: _sample(files, name) for name in dict.fromkeys(names) if name in files}


def _sample(files: TensorFiles, name: str) -> list[float]:
    flat = files.find(name).load().flatten()
    places = torch.linspace(0, len(flat) - 1, min(_NUM_NUMBERS, len(flat))).long()
    return [float(f"{number:.6g}") for number in flat[places].tolist()]


def _check_base(checkpoint: Checkpoint, adapter: Adapter, files: TensorFiles) -> None:
    if not adapter.base_numbers:
        return
    found: Mapping[str, Iterable[float]] = numbers_of_base(files, checkpoint.shape.num_layers)
    for name, wanted in adapter.base_numbers.items():
        there = tuple(found.get(name, ()))
        limit = _TOLERANCE * max(map(abs, wanted), default=0.0)
        if len(there) != len(wanted) or any(abs(a - b) > limit for a, b in zip(there, wanted, strict=True)):
            raise _other_base(checkpoint, adapter, f"{name} of the base has other numbers than in the training")


def _check_tied(checkpoint: Checkpoint, adapter: Adapter, files: TensorFiles) -> None:
    """A masked LM whose words are its decoder, too: peft would change one of the two only, or both, by its version."""
    changed = {f"{update.module}.weight" for update in adapter.updates} | set(adapter.replaced)
    if checkpoint.kind == "masked-lm" and files.is_tied and (shared := changed & {WORDS, *DECODERS}):
        raise CheckpointError(
            f"{adapter.file}: changes {min(shared)}, which the model has as word embedding and as decoder; merge it "
            "with peft (merge_and_unload), save the model, and serve that"
        )


def _check_heads(checkpoint: Checkpoint, adapter: Adapter, files: TensorFiles) -> None:
    layers: tuple[str, ...] = ()
    if checkpoint.kind == "question-answering":
        layers = ("qa_outputs",)
    elif checkpoint.kind == "sequence-classification":
        is_roberta = checkpoint.family in ROBERTA
        layers = ("classifier.dense", "classifier.out_proj") if is_roberta else ("pooler.dense", "classifier")
    for layer in layers:
        if f"{layer}.weight" not in files:
            module = layer.partition(".")[0]
            raise CheckpointError(
                f"{adapter.file}: {layer}.weight is neither here nor in the base {checkpoint.path}: it was new when "
                f"the adapter was trained, and was not saved; train again with {module!r} in modules_to_save"
            )


def _other_base(checkpoint: Checkpoint, adapter: Adapter, what: str) -> CheckpointError:
    return CheckpointError(
        f"{adapter.file}: {what}: {checkpoint.path} is not its base; {ADAPTER_CONFIG} names {adapter.base!r}; "
        f"to name another one: --model {checkpoint.name}={checkpoint.source}+base=SOURCE"
    )
