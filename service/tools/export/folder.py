"""Writes a model as a folder of the hub: an adapter merged into its base, blocks expanded, one format and precision."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Literal

import torch
from safetensors.torch import save_file
from torch import Tensor

from service.checkpoints.adapter import BASE_KEY
from service.checkpoints.checkpoint import Checkpoint
from service.checkpoints.files import CONFIG_FILES, SAFETENSORS_FILES, config_file, has_config, read_json
from service.checkpoints.sentence_modules import MODULES_FILE, SETTINGS_FILE, TRANSFORMER_FILES, list_modules
from service.checkpoints.shape import ROBERTA, Family, Kind
from service.engine.tensor_files import DECODERS, TensorFiles
from service.engine.weights import count_numbers, open_tensors
from service.errors import SettingError

Precision = Literal["float16", "float32"]

TOKENIZER_FILES = (
    "vocab.txt",
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
)
MODEL_CARD, CALIBRATION = "README.md", "calibration.json"
MODULE_FILES = (MODULES_FILE, SETTINGS_FILE, *TRANSFORMER_FILES)
"""What an embedding model has besides its encoder."""

_DRAFT = ".exporting"
_CLASS_PREFIXES: dict[Family, str] = {
    "megatron-bert": "MegatronBert",
    "bert": "Bert",
    "xlm-roberta": "XLMRoberta",
    "roberta": "Roberta",
}
_CLASS_SUFFIXES: dict[Kind, str] = {
    "masked-lm": "ForMaskedLM",
    "sequence-classification": "ForSequenceClassification",
    "question-answering": "ForQuestionAnswering",
    "encoder": "Model",
}
_HEADS: dict[Kind, tuple[str, ...]] = {
    "masked-lm": ("cls.predictions.", "lm_head."),
    "sequence-classification": ("classifier.",),
    "question-answering": ("qa_outputs.",),
    "encoder": (),
}
_ENCODER = ("embeddings.", "encoder.", "pooler.")
_BUFFERS = ("embeddings.position_ids", "embeddings.token_type_ids")


def export_folder(checkpoint: Checkpoint, output: Path, *, precision: Precision, overwrite: bool) -> None:
    """
    Raises:
        SettingError: the folder is not free.
        CheckpointError: the weights are damaged, or the adapter is of another base.
    """
    dtype = {"float16": torch.float16, "float32": torch.float32}[precision]
    with Draft(output, overwrite=overwrite) as draft:
        encoder = copy_companions(checkpoint, draft)
        write_config(checkpoint, encoder / CONFIG_FILES[0], precision)
        with open_tensors(checkpoint) as files:
            count_numbers(checkpoint, files)  # refuses what the engine would refuse
            save_file(_collect(checkpoint, files, dtype), encoder / SAFETENSORS_FILES[0], metadata={"format": "pt"})


class Draft:
    """A folder that takes the place of the files in `output` at the end, if nothing was raised."""

    def __init__(self, output: Path, *, overwrite: bool) -> None:
        if output.exists() and not output.is_dir():
            raise SettingError(f"--output {output}: is a file; wanted a folder")
        if output.is_dir() and any(output.iterdir()) and not overwrite:
            raise SettingError(f"--output {output}: is not empty; choose another folder, or replace with --overwrite")
        self._output, self._draft = output, output / _DRAFT

    def __enter__(self) -> Path:
        shutil.rmtree(self._draft, ignore_errors=True)
        self._draft.mkdir(parents=True)
        return self._draft

    def __exit__(self, kind: object, *_: object) -> None:
        if kind is None:
            files = sorted(path for path in self._draft.rglob("*") if path.is_file())
            for file in sorted(files, key=lambda file: file.name == CONFIG_FILES[0]):
                target = self._output / file.relative_to(self._draft)
                target.parent.mkdir(parents=True, exist_ok=True)
                file.chmod(0o644)
                file.replace(target)
        shutil.rmtree(self._draft, ignore_errors=True)


def copy_companions(checkpoint: Checkpoint, folder: Path) -> Path:
    """Copies tokenizer, model card, calibration and the modules of an embedding model; returns where the encoder
    belongs. The files of an adapter count before those of its base."""
    root = next((path for path in (checkpoint.path, checkpoint.path.parent) if (path / MODULES_FILE).is_file()), None)
    root = root if checkpoint.embedding and root else checkpoint.path
    encoder = folder / checkpoint.path.relative_to(root)
    encoder.mkdir(parents=True, exist_ok=True)
    if checkpoint.embedding:
        for _, path in list_modules(root):
            if path and root / path != checkpoint.path and (root / path).is_dir():
                shutil.copytree(root / path, folder / path)
        _copy(root, folder, MODULE_FILES)
        _copy(checkpoint.path, encoder, TRANSFORMER_FILES)
    _copy(checkpoint.path, encoder, TOKENIZER_FILES)
    if checkpoint.adapter:  # it was trained with the vocabulary of its base
        _copy(checkpoint.own_folder, encoder, ("tokenizer_config.json",))
    _copy(checkpoint.folder, folder, (MODEL_CARD,))
    _copy(checkpoint.own_folder, encoder, (CALIBRATION,))
    return encoder


def _copy(source: Path, target: Path, names: Iterable[str]) -> None:
    for name in names:
        if (source / name).is_file():
            shutil.copyfile(source / name, target / name)


def write_config(checkpoint: Checkpoint, file: Path, precision: Precision) -> None:
    """config.json of the whole model."""
    owner = checkpoint.own_folder if has_config(checkpoint.own_folder) else checkpoint.path
    config = read_json(config_file(owner))
    for key in (BASE_KEY, "quantization_config", "torch_dtype"):
        config.pop(key, None)
    config |= {
        "model_type": checkpoint.family,
        "architectures": [_CLASS_PREFIXES[checkpoint.family] + _CLASS_SUFFIXES[checkpoint.kind]],
        "dtype": precision,
    }
    if checkpoint.head:
        config |= _labels(checkpoint)
    file.write_text(json.dumps(config, ensure_ascii=False, indent=2) + "\n", encoding="utf-8")


def _labels(checkpoint: Checkpoint) -> dict[str, Any]:
    head = checkpoint.head
    assert head
    labels = checkpoint.labels or tuple(f"LABEL_{index}" for index in range(head.num_classes))
    return {
        "id2label": {str(index): label for index, label in enumerate(labels)},
        "label2id": {label: index for index, label in enumerate(labels)},
    } | ({"problem_type": head.problem_type} if head.problem_type else {})


def _collect(checkpoint: Checkpoint, files: TensorFiles, dtype: torch.dtype) -> dict[str, Tensor]:
    """The tensors of the model's kind, by the names of transformers' class."""
    wanted = (*_ENCODER, *_HEADS[checkpoint.kind])
    prefix = "" if checkpoint.kind == "encoder" else "roberta." if checkpoint.family in ROBERTA else "bert."
    left_out = (*_BUFFERS, *(DECODERS if files.is_tied else ()))
    return {
        (prefix if name.startswith(_ENCODER) else "") + name: files.find(name).load().to(dtype)
        for name in files.names()
        if name.startswith(wanted) and not name.startswith(left_out)
    }
