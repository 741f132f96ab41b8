"""Makes low-rank adapters of small checkpoints in the layout of peft's `save_pretrained`."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

PREFIX = "base_model.model."
TARGETS = ("query", "key", "value", "dense")


def make_adapter(
    path: Path,
    base: Path,
    *,
    targets: Sequence[str] = TARGETS,
    rank: int = 2,
    ranks: Mapping[str, int] | None = None,
    whole: Mapping[str, torch.Tensor] | None = None,
    with_bias: bool = False,
    seed: int = 7,
    **config: Any,
) -> Path:
    """Adapts the encoder's linear maps whose names end with one of `targets`; `whole` are tensors saved as they are.

    `ranks` are other ranks by the end of a name. `config` overrides keys of adapter_config.json; None removes one.
    """
    generator = torch.Generator().manual_seed(seed)
    tensors: dict[str, torch.Tensor] = {PREFIX + name: tensor for name, tensor in (whole or {}).items()}
    for name, tensor in load_file(base / "model.safetensors").items():
        module, _, last = name.rpartition(".")
        if last != "weight" or ".encoder." not in f".{name}" or module.rpartition(".")[2] not in targets:
            continue
        size = next((size for end, size in (ranks or {}).items() if module.endswith(end)), rank)
        num_out, num_in = tensor.shape
        tensors[f"{PREFIX}{module}.lora_A.weight"] = torch.randn(size, num_in, generator=generator)
        tensors[f"{PREFIX}{module}.lora_B.weight"] = torch.randn(num_out, size, generator=generator) / 10
        if with_bias:
            tensors[f"{PREFIX}{module}.lora_B.bias"] = torch.randn(num_out, generator=generator)
    path.mkdir(parents=True, exist_ok=True)
    save_file(tensors, path / "adapter_model.safetensors")
    default = {
        "peft_type": "LORA",
        "task_type": None,
        "base_model_name_or_path": str(base),
        "revision": None,
        "r": rank,
        "lora_alpha": 3 * rank,
        "use_rslora": False,
        "use_dora": False,
        "fan_in_fan_out": False,
        "bias": "none",
        "lora_bias": with_bias,
        "init_lora_weights": True,
        "target_modules": list(targets),
        "modules_to_save": None,
        "rank_pattern": dict(ranks or {}),
        "alpha_pattern": {},
    }
    content = {key: value for key, value in (default | config).items() if value is not None}
    (path / "adapter_config.json").write_text(json.dumps(content), encoding="utf-8")
    return path


def edit_tensors(path: Path, **changes: torch.Tensor | None) -> Path:
    """Sets tensors of the adapter, by their names without the prefix and with __ for dots; None removes one."""
    file = path / "adapter_model.safetensors"
    tensors = load_file(file)
    for name, tensor in changes.items():
        key = PREFIX + name.replace("__", ".")
        if tensor is None:
            del tensors[key]
        else:
            tensors[key] = tensor
    save_file(tensors, file)
    return path
