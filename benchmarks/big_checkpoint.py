"""Writes checkpoints with the sizes of Erlangshen-MegatronBert-1.3B, or others, and random weights, in the upstream
layout."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Literal

import torch
from safetensors.torch import save_file
from torch import Tensor
from transformers import MegatronBertConfig, MegatronBertForMaskedLM

FileFormat = Literal["bin", "safetensors"]
FILES: dict[FileFormat, str] = {"bin": "pytorch_model.bin", "safetensors": "model.safetensors"}

NUM_LAYERS = 24
_VOCAB_SIZE = 21_248
_SPECIAL = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
_CHARACTERS = tuple(chr(code) for code in range(0x4E00, 0x9FA6))
"""All of them: texts that were one unknown token after the other would be computed once, as they are the same row."""


def write_checkpoint(
    folder: Path,
    num_layers: int = NUM_LAYERS,
    file_format: FileFormat = "bin",
    *,
    hidden_size: int = 2048,
    num_attention_heads: int = 8,
    intermediate_size: int = 8192,
) -> Path:
    """A float32 masked-LM checkpoint with its vocabulary; returns the weights file, which is in memory meanwhile."""
    config = MegatronBertConfig(
        vocab_size=_VOCAB_SIZE,
        hidden_size=hidden_size,
        num_hidden_layers=num_layers,
        num_attention_heads=num_attention_heads,
        intermediate_size=intermediate_size,
        hidden_act="gelu_new",
        architectures=["MegatronBertForMaskedLM"],
    )
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config.to_dict(), default=str), encoding="utf-8")
    known = (*_SPECIAL, *_CHARACTERS)
    words = (*known, *(f"[unused{number}]" for number in range(_VOCAB_SIZE - len(known))))
    (folder / "vocab.txt").write_text("\n".join(words) + "\n", encoding="utf-8")
    tensors, file = _tensors(config), folder / FILES[file_format]
    if file_format == "bin":
        tied = {"cls.predictions.decoder.weight": tensors["bert.embeddings.word_embeddings.weight"]}
        torch.save(tensors | tied, file)
    else:
        save_file(tensors, file)
    return file


def _tensors(config: MegatronBertConfig) -> dict[str, Tensor]:
    """Every tensor with a storage of its own."""
    with torch.device("meta"):
        shapes = {name: tensor.shape for name, tensor in MegatronBertForMaskedLM(config).state_dict().items()}
    return {name: torch.empty(shape).uniform_(-0.02, 0.02) for name, shape in shapes.items() if ".decoder." not in name}
