"""Low-rank adapters (LoRA, Hu et al. 2021) by peft: few weights are trained, and merged when the model is written, or
saved alone."""

from __future__ import annotations

from dataclasses import dataclass
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from safetensors.torch import save_file
from torch import nn
from transformers import PreTrainedModel

from service.checkpoints.adapter import BASE_KEY
from service.checkpoints.checkpoint import Checkpoint
from service.checkpoints.files import ADAPTER_CONFIG, ADAPTER_WEIGHTS
from service.checkpoints.folders import is_local, is_shipped
from service.checkpoints.spec import parse_spec
from service.engine.adapters import numbers_of_base
from service.engine.weights import open_tensors
from service.errors import StartupError
from service.host import install_command

TARGETS = ("query", "key", "value", "dense")
"""The linear layers of an encoder, attention and feed-forward: by the last part of their names."""
NEW = ("pooler", "classifier")
"""The layers of a new head, which are trained whole."""
PATTERN = r".*\bencoder\.layer\.\d+\..*\.(query|key|value|dense)"
"""TARGETS as peft finds them in the whole model, where other layers are called dense, too."""


@dataclass(frozen=True, slots=True)
class Base:
    """What an adapter says about the model that it changes: a hub id, an included model or a folder, and some of its
    numbers (see `numbers_of_base`)."""

    source: str
    revision: str | None
    numbers: dict[str, list[float]]

    @classmethod
    def of(cls, text: str, start: Checkpoint) -> Base:
        """`text` is how --model names it."""
        spec = parse_spec(text)
        is_known = is_shipped(spec.source) or not is_local(spec.source)
        with open_tensors(start) as files:
            numbers = numbers_of_base(files, start.shape.num_layers)
        revision = None if is_shipped(spec.source) else spec.revision or start.commit
        return cls(spec.source if is_known else str(start.folder), revision if is_known else None, numbers)


def require_peft() -> None:
    """
    Raises:
        StartupError: the package is not installed; says how to install it.
    """
    if find_spec("peft") is None:
        raise StartupError(f"--lora needs peft: {install_command('-r requirements/tuning.txt')}")


def add(network: PreTrainedModel, rank: int) -> None:
    """Adds adapters of a rank to the encoder, and freezes all but them and a new head."""
    require_peft()
    peft: Any = import_module("peft")
    encoder: Any = network.base_model.get_submodule("encoder")
    config = peft.LoraConfig(r=rank, lora_alpha=2 * rank, lora_dropout=0.0, target_modules=list(TARGETS))
    for parameter in network.parameters():
        parameter.requires_grad = False
    peft.inject_adapter_in_model(config, encoder)
    for name, parameter in network.named_parameters():
        if "lora_" in name or any(part in NEW for part in name.split(".")):
            parameter.requires_grad = True


def save(network: PreTrainedModel, folder: Path, rank: int, base: Base) -> None:
    """Writes what peft's `save_pretrained` writes, and the config of the model with the numbers of its base."""
    peft: Any = import_module("peft")
    whole = sorted({name.partition(".")[0] for name, _ in network.named_children() if name in NEW})
    if hasattr(network.base_model, "pooler") and whole:
        whole.append("pooler")
    tensors = {
        f"base_model.model.{name.replace('.default.', '.')}": tensor.detach().float().cpu().contiguous()
        for name, tensor in network.state_dict().items()
        if ".lora_" in name or any(part in whole for part in name.split("."))
    }
    save_file(tensors, folder / ADAPTER_WEIGHTS, metadata={"format": "pt"})
    peft.LoraConfig(
        r=rank,
        lora_alpha=2 * rank,
        lora_dropout=0.0,
        target_modules=PATTERN,
        modules_to_save=whole or None,
        task_type="SEQ_CLS" if whole else None,
        base_model_name_or_path=base.source,
        revision=base.revision,
        inference_mode=True,
    ).save_pretrained(folder)
    (folder / ADAPTER_CONFIG).chmod(0o644)
    network.config.architectures = [type(network).__name__]
    setattr(network.config, BASE_KEY, base.numbers)
    network.config.save_pretrained(folder)


def merge(network: nn.Module) -> None:
    """Adds the adapters to the weights that they adapt, and removes them: the tensors have their old names again."""
    if find_spec("peft") is None:
        return
    lora: Any = import_module("peft.tuners.lora")
    adapted = [(name, module) for name, module in network.named_modules() if isinstance(module, lora.LoraLayer)]
    for name, module in adapted:
        layer: Any = module
        layer.merge()
        parent, _, child = name.rpartition(".")
        setattr(network.get_submodule(parent), child, layer.get_base_layer())
