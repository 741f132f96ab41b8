"""Makes small random embedding models in the folder layouts of sentence-transformers."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch

from service.domain import PoolingMode
from tests.checkpoints import FileFormat, make_checkpoint, write_weights

Layout = Literal["2.0", "6.0"]
"""The version of sentence-transformers that writes a folder like this."""

_FLAGS: dict[PoolingMode, str] = {
    "cls": "pooling_mode_cls_token",
    "mean": "pooling_mode_mean_tokens",
    "max": "pooling_mode_max_tokens",
    "mean_sqrt_len_tokens": "pooling_mode_mean_sqrt_len_tokens",
    "weightedmean": "pooling_mode_weightedmean_tokens",
    "lasttoken": "pooling_mode_lasttoken",
}
_CLASSES = {
    "Transformer": "base.modules.transformer",
    "Pooling": "sentence_transformer.modules.pooling",
    "Dense": "base.modules.dense",
    "Normalize": "base.modules.normalize",
}


@dataclass(frozen=True)
class DenseOf:
    """A dense layer to make."""

    num_out: int
    activation: str = "torch.nn.modules.activation.Tanh"
    bias: bool = True
    use_residual: bool = False
    file_format: FileFormat = "safetensors"


def make_embedding_model(path: Path, **more: Any) -> Path:
    """A checkpoint with the modules of `add_modules`; the arguments are those of both functions."""
    own = {"pooling", "dense", "normalize", "layout", "settings", "transformer", "include_prompt", "subfolder"}
    checkpoint = {"kind": "encoder", "num_layers": 1, "hidden_size": 16, "num_heads": 2} | more
    encoder = path / more["subfolder"] if more.get("subfolder") else path
    make_checkpoint(encoder, **{key: value for key, value in checkpoint.items() if key not in own})
    modules = {key: value for key, value in more.items() if key in own}
    return add_modules(path, hidden_size=checkpoint["hidden_size"], **modules)


def add_modules(
    path: Path,
    *,
    hidden_size: int = 16,
    pooling: Sequence[PoolingMode] = ("mean",),
    dense: Sequence[DenseOf] = (),
    normalize: bool = False,
    layout: Layout = "6.0",
    settings: Mapping[str, Any] | None = None,
    transformer: Mapping[str, Any] | None = None,
    include_prompt: bool = True,
    subfolder: str = "",
) -> Path:
    """Writes modules.json and the files of the modules; `settings` are those of config_sentence_transformers.json,
    `transformer` those of sentence_bert_config.json. `subfolder` is where the encoder is."""
    modules = [("Transformer", subfolder), ("Pooling", "1_Pooling")]
    write_json(path / "1_Pooling" / "config.json", _pooling(pooling, hidden_size, layout, include_prompt))
    size = len(pooling) * hidden_size
    for layer in dense:
        folder = f"{len(modules)}_Dense"
        _write_dense(path / folder, size, layer, seed=len(modules))
        modules.append(("Dense", folder))
        size = layer.num_out
    if normalize:
        modules.append(("Normalize", f"{len(modules)}_Normalize"))
    write_json(path / "modules.json", [_module(index, *each, layout) for index, each in enumerate(modules)])
    if settings is not None:
        write_json(path / "config_sentence_transformers.json", settings)
    if transformer is not None:
        write_json(path / subfolder / "sentence_bert_config.json", transformer)
    return path


def write_json(file: Path, content: Any) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps(content, ensure_ascii=False), encoding="utf-8")


def edit_json(file: Path, **changes: Any) -> None:
    """Sets keys of a JSON object; None removes a key."""
    content = json.loads(file.read_text(encoding="utf-8")) | changes
    write_json(file, {key: value for key, value in content.items() if value is not None})


def _module(index: int, kind: str, path: str, layout: Layout) -> dict[str, Any]:
    package = "models" if layout == "2.0" else _CLASSES[kind]
    return {"idx": index, "name": str(index), "path": path, "type": f"sentence_transformers.{package}.{kind}"}


def _pooling(modes: Sequence[PoolingMode], hidden_size: int, layout: Layout, include_prompt: bool) -> dict[str, Any]:
    if layout == "2.0":
        flags = {flag: mode in modes for mode, flag in _FLAGS.items()}
        return {"word_embedding_dimension": hidden_size, **flags, "include_prompt": include_prompt}
    modes = list(modes) if len(modes) > 1 else modes[0]
    return {"embedding_dimension": hidden_size, "pooling_mode": modes, "include_prompt": include_prompt}


def _write_dense(folder: Path, num_in: int, layer: DenseOf, seed: int) -> None:
    config = {
        "in_features": num_in,
        "out_features": layer.num_out,
        "bias": layer.bias,
        "activation_function": layer.activation,
    }
    write_json(folder / "config.json", config | ({"use_residual": True} if layer.use_residual else {}))
    generator = torch.Generator().manual_seed(seed)

    def draw(*shape: int) -> torch.Tensor:
        return torch.empty(shape).normal_(0.0, 0.3, generator=generator)

    tensors = {"linear.weight": draw(layer.num_out, num_in)}
    if layer.bias:
        tensors["linear.bias"] = draw(layer.num_out)
    if layer.use_residual and layer.num_out != num_in:
        tensors["residual.weight"] = draw(layer.num_out, num_in)
    write_weights(folder, tensors, layer.file_format)
