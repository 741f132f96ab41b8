"""Writes multilingual-e5-small with some of its pieces as a folder in the layout of sentence-transformers."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import save

from service.checkpoints.checkpoint import BLOCK_SIZE, BLOCKS
from service.tools.embedder.package import Package, expand
from service.tools.embedder.pieces import MASK, SPECIAL, build_tokenizer

_WORDS = "embeddings.word_embeddings.weight"
_PROMPTS = {"query": "query: ", "passage": "passage: "}
_MODULES = ("Transformer", "Pooling", "Normalize")


def write_folder(package: Package, kept: Sequence[int], folder: Path, *, is_plain: bool) -> None:
    """Writes all files but the model card. With `is_plain`, weights are float32 instead of blocks.

    `kept` are ids, ascending, with all special ones.
    """
    folder.mkdir(parents=True, exist_ok=True)
    tensors = {name: np.ascontiguousarray(tensor) for name, tensor in package.tensors.items()}
    tensors[_WORDS] = tensors[_WORDS][list(kept)]
    if is_plain:
        tensors = {name: expand(each) if each.dtype == np.uint8 else each for name, each in tensors.items()}
    (folder / "model.safetensors").write_bytes(save(tensors, {"format": "pt"}))
    tokenizer = build_tokenizer([(package.pieces[index], float(package.scores[index])) for index in kept])
    (folder / "tokenizer.json").write_text(tokenizer.to_str(), encoding="utf-8")
    sizes = package.sizes
    _write(folder / "tokenizer_config.json", _tokenizer_config(sizes.positions))
    _write(folder / "config.json", _config(package, len(kept), is_plain=is_plain))
    _write(folder / "sentence_bert_config.json", {"max_seq_length": sizes.positions, "do_lower_case": False})
    _write(
        folder / "config_sentence_transformers.json",
        {"prompts": _PROMPTS, "default_prompt_name": "query", "similarity_fn_name": "cosine"},
    )
    _write(folder / "modules.json", [_module(index, name) for index, name in enumerate(_MODULES)])
    pooling = folder / "1_Pooling"
    pooling.mkdir(exist_ok=True)
    _write(
        pooling / "config.json",
        {
            "word_embedding_dimension": sizes.hidden,
            "pooling_mode_cls_token": False,
            "pooling_mode_mean_tokens": True,
            "pooling_mode_max_tokens": False,
            "pooling_mode_mean_sqrt_len_tokens": False,
        },
    )


def _module(index: int, name: str) -> dict[str, Any]:
    path = f"{index}_{name}" if index else ""
    return {"idx": index, "name": str(index), "path": path, "type": f"sentence_transformers.models.{name}"}


def _config(package: Package, num_pieces: int, *, is_plain: bool) -> dict[str, Any]:
    sizes = package.sizes
    config: dict[str, Any] = {
        "architectures": ["BertModel"],
        "attention_probs_dropout_prob": 0.1,
        "bos_token_id": SPECIAL.index("<s>"),
        "dtype": "float32",
        "eos_token_id": SPECIAL.index("</s>"),
        "hidden_act": "gelu",
        "hidden_dropout_prob": 0.1,
        "hidden_size": sizes.hidden,
        "initializer_range": 0.02,
        "intermediate_size": sizes.ffn,
        "layer_norm_eps": float(np.format_float_scientific(np.float32(package.norm_eps), precision=6)),
        "max_position_embeddings": sizes.positions,
        "model_type": "bert",
        "num_attention_heads": sizes.heads,
        "num_hidden_layers": sizes.layers,
        "pad_token_id": SPECIAL.index("<pad>"),
        "type_vocab_size": sizes.segments,
        "vocab_size": num_pieces,
    }
    if not is_plain:
        config["quantization_config"] = {"quant_method": BLOCKS, "block_size": BLOCK_SIZE}
    return config


def _tokenizer_config(max_length: int) -> dict[str, Any]:
    names = {"bos": "<s>", "cls": "<s>", "eos": "</s>", "sep": "</s>", "pad": "<pad>", "unk": "<unk>", "mask": MASK}
    return {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "model_max_length": max_length,
        "model_input_names": ["input_ids", "attention_mask"],
    } | {f"{role}_token": token for role, token in names.items()}


def _write(file: Path, content: Any) -> None:
    file.write_text(json.dumps(content, ensure_ascii=False, indent=2) + "\n", encoding="utf-8")
