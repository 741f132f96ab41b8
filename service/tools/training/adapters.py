"""Low-rank adapters (LoRA, Hu et al. 2021) by peft: few weights are trained, and merged when the model is written."""

from __future__ import annotations

from importlib import import_module
from importlib.util import find_spec
from typing import Any

from torch import nn
from transformers import PreTrainedModel

from service.errors import StartupError

TARGETS = ("query", "key", "value", "dense")
"""The linear layers of an encoder, attention and feed-forward: by the last part of their names."""
NEW = ("pooler", "classifier")
"""The layers of a new head, which are trained whole."""


def require_peft() -> None:
    """
    Raises:
        StartupError: the package is not installed; says how to install it.
    """
    if find_spec("peft") is None:
        raise StartupError("--lora needs peft: pip install -r requirements/tuning.txt")


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
