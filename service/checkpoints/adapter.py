"""Low-rank adapters (LoRA) as peft saves them: what they change of their base, from their config and a file's header.

Source: `LoraConfig`, `get_peft_model_state_dict` and `get_delta_weight` of peft 0.21.
"""

from __future__ import annotations

import math
import re
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from service.checkpoints.files import (
    ADAPTER_CONFIG,
    ADAPTER_WEIGHTS,
    BIN_FILES,
    SAFETENSORS_FILES,
    canonical_name,
    read_json,
    succeeds,
    tensor_shapes,
)
from service.checkpoints.folders import LOCAL_MARKS, is_folder, is_shipped
from service.checkpoints.heads import CLASSIFIERS
from service.errors import CheckpointError

AdaptedKind = Literal["sequence-classification", "question-answering", "encoder"]

BASE_KEY = "erlangshen_base"
"""The key in config.json beside an adapter for some numbers of its base: another base is refused (see `engine`)."""

_PREFIX = "base_model.model."
_KINDS: dict[str, AdaptedKind] = {
    "SEQ_CLS": "sequence-classification",
    "QUESTION_ANS": "question-answering",
    "FEATURE_EXTRACTION": "encoder",
}
_OTHER_METHODS = (
    "use_dora",
    "use_qalora",
    "use_bdlora",
    "layer_replication",
    "target_parameters",
    "trainable_token_indices",
    "alora_invocation_tokens",
    "arrow_config",
    "kasa_config",
    "monteclora_config",
)
"""Keys of LoraConfig whose adapters are not added to the weights as B A."""
_CHANGES_BASE = ("pissa", "olora", "corda", "loftq", "lora_ga")
"""Values of `init_lora_weights` with which peft changes the weights of the base before it trains."""
_PARTS = ("lora_A.weight", "lora_B.weight", "lora_B.bias", "lora_embedding_A", "lora_embedding_B")
_LINEAR = (
    "attention.self.query",
    "attention.self.key",
    "attention.self.value",
    "attention.output.dense",
    "intermediate.dense",
    "output.dense",
)
"""The linear maps of an encoder layer."""


@dataclass(frozen=True, slots=True)
class LowRank:
    """`scale` times B [out, rank] A [rank, in] is added to the weight of a module; of an embedding, its transpose.

    `module` is the module's name in canonical form; `tensors` are the names in the file by part, such as `lora_A`.
    """

    module: str
    rank: int
    scale: float
    tensors: Mapping[str, str]

    @property
    def is_embedding(self) -> bool:
        return "lora_embedding_A" in self.tensors


@dataclass(frozen=True, slots=True)
class Adapter:
    """An adapter in a local folder. `replaced` are tensors that it has whole, canonical name -> name in its file.

    `base` is what the folder says that its base is; `kind` the head that it was trained for, None for the base's.
    `base_numbers` are some numbers of some tensors of the base, by canonical name.
    """

    folder: Path
    base: str | None
    revision: str | None
    kind: AdaptedKind | None
    updates: tuple[LowRank, ...]
    replaced: Mapping[str, str]
    num_classes: int | None = None
    base_numbers: Mapping[str, tuple[float, ...]] = field(default_factory=dict)

    @property
    def config_file(self) -> Path:
        return self.folder / ADAPTER_CONFIG

    @property
    def file(self) -> Path:
        return self.folder / ADAPTER_WEIGHTS


def is_adapter(folder: Path) -> bool:
    """Whether the folder holds an adapter instead of a checkpoint.

    Raises:
        CheckpointError: it holds both.
    """
    if not succeeds((folder / ADAPTER_CONFIG).is_file):
        return False
    whole = [name for name in (*SAFETENSORS_FILES, *BIN_FILES) if succeeds((folder / name).is_file)]
    if whole:
        raise CheckpointError(
            f"{folder}: holds {ADAPTER_CONFIG} and {whole[0]}: an adapter and a whole model; remove one of them, or "
            "move it to a folder of its own"
        )
    return True


def read_adapter(folder: Path) -> Adapter:
    """Describes the adapter in a folder; no tensor is read.

    Raises:
        CheckpointError: it is no LoRA adapter that can be added to the weights, or it lacks a part.
    """
    file, config = folder / ADAPTER_CONFIG, read_json(folder / ADAPTER_CONFIG)
    _refuse_others(file, config)
    weights = folder / ADAPTER_WEIGHTS
    if not weights.is_file():
        pickled = (folder / "adapter_model.bin").is_file()
        hint = (
            ": adapter_model.bin is there, which is not read; save it with safe_serialization=True" if pickled else ""
        )
        raise CheckpointError(f"{weights}: no such file{hint}")
    shapes = tensor_shapes(weights)
    modules, replaced = _sort(weights, shapes)
    if not modules and not replaced:
        raise CheckpointError(f"{weights}: holds no tensors; wanted those of an adapter")
    updates = tuple(_update(file, weights, config, shapes, key, parts) for key, parts in modules.items())
    rows = [shapes[replaced[name]][0] for name in CLASSIFIERS if name in replaced and shapes[replaced[name]]]
    base = config.get("base_model_name_or_path")
    revision = config.get("revision")
    return Adapter(
        folder=folder,
        base=base if isinstance(base, str) and base else None,
        revision=revision if isinstance(revision, str) and revision else None,
        kind=_kind(file, config, replaced),
        updates=updates,
        replaced=replaced,
        num_classes=rows[0] if rows else None,
        base_numbers=_base_numbers(folder),
    )


def base_source(adapter: Adapter, name: str, source: str) -> str:
    """The folder, hub id or included model that an adapter names as its base.

    Raises:
        CheckpointError: it names none, or a folder that is not here.
    """
    base = adapter.base
    if base is None:
        raise _wrong(adapter.config_file, "base_model_name_or_path", None, how_to_name_base(name, source))
    is_path = base.startswith(LOCAL_MARKS) or "\\" in base or base.count("/") > 1 or re.match(r"[A-Za-z]:", base)
    if is_path and not is_folder(base):
        raise _wrong(
            adapter.config_file,
            "base_model_name_or_path",
            base,
            f"a folder of this machine: it is where the base was when the adapter was trained; "
            f"{how_to_name_base(name, source)}",
        )
    needs_revision = adapter.revision and not is_folder(base) and not is_shipped(base)
    return f"{base}@{adapter.revision}" if needs_revision else base


def how_to_name_base(name: str, source: str) -> str:
    return f"name the base with --model {shlex.quote(f'{name}={source}')}+base=SOURCE"


def check_targets(adapter: Adapter, num_layers: int) -> None:
    """
    Raises:
        CheckpointError: `target_modules` names modules of the base without tensors in the file.
    """
    config = read_json(adapter.config_file)
    targets = config.get("target_modules")
    if config.get("exclude_modules") or config.get("layers_to_transform") is not None or not targets:
        return
    adapted = {update.module for update in adapter.updates}
    changed = adapted | {name.rpartition(".")[0] for name in adapter.replaced}  # a saved head may be a target, too
    linear = [f"encoder.layer.{index}.{part}" for index in range(num_layers) for part in _LINEAR]
    for target in [targets] if isinstance(targets, str) else targets:
        if target == "all-linear":
            continue
        is_pattern = isinstance(targets, str)
        wanted = [module for module in linear if _is_named(adapter, module, target, is_pattern)]
        if missing := [module for module in wanted if module not in adapted]:
            raise CheckpointError(
                f"{adapter.file}: has no tensors of {missing[0]} ({len(missing)} such modules), which target_modules "
                f"of {ADAPTER_CONFIG} names ({target!r}); the adapter is of another base, with fewer layers than "
                f"{num_layers}, or the file is not whole"
            )
        if not wanted and not any(_is_named(adapter, module, target, is_pattern) for module in changed):
            raise _wrong(
                adapter.config_file,
                "target_modules",
                target,
                f"modules of the base, such as {', '.join(_LINEAR[:2])}; the base is of another family",
            )


def _is_named(adapter: Adapter, module: str, target: str, is_pattern: bool) -> bool:
    if not is_pattern:
        target = canonical_name(target)
        return module == target or module.endswith(f".{target}")
    try:
        return any(re.fullmatch(target, f"{prefix}{module}") for prefix in ("", "bert.", "roberta."))
    except re.error as error:
        raise _wrong(adapter.config_file, "target_modules", target, f"a regular expression ({error})") from error


def _refuse_others(file: Path, config: Mapping[str, Any]) -> None:
    merge = "merge it with peft (merge_and_unload), save the model, and serve that"
    kind = config.get("peft_type")
    if kind != "LORA":
        raise _wrong(file, "peft_type", kind, f"LORA; {merge}")
    for key in _OTHER_METHODS:
        if config.get(key):
            raise _wrong(file, key, config[key], f"plain LoRA; {merge}")
    start = str(config.get("init_lora_weights", True)).lower()
    if start.startswith(_CHANGES_BASE):
        raise _wrong(
            file,
            "init_lora_weights",
            config["init_lora_weights"],
            "a start that leaves the base as it is; save the adapter with path_initial_model_for_weight_conversion, "
            f"or {merge}",
        )


def _kind(file: Path, config: Mapping[str, Any], replaced: Mapping[str, str]) -> AdaptedKind | None:
    task = config.get("task_type")
    if task is not None:
        if task not in _KINDS:
            raise _wrong(file, "task_type", task, f"{', '.join(_KINDS)} or null")
        return _KINDS[task]
    if any(name in replaced for name in CLASSIFIERS):
        return "sequence-classification"
    return "question-answering" if "qa_outputs.weight" in replaced else None


def _sort(weights: Path, shapes: Mapping[str, tuple[int, ...]]) -> tuple[dict[str, dict[str, str]], dict[str, str]]:
    """The names of the low-rank tensors by module and part, and of the tensors that are there whole."""
    modules: dict[str, dict[str, str]] = {}
    replaced: dict[str, str] = {}
    for name in sorted(shapes):
        plain = name.removeprefix(_PREFIX)
        if part := next((part for part in _PARTS if plain.endswith(f".{part}")), None):
            modules.setdefault(plain.removesuffix(f".{part}"), {})[part.removesuffix(".weight")] = name
        elif "lora_" in plain:
            raise CheckpointError(f"{weights}: tensor {name} is not one of plain LoRA; wanted {', '.join(_PARTS)}")
        elif ".original_module." not in plain:
            # With bias="all", peft writes the bias of a saved module twice.
            short = plain.replace(".base_layer.", ".").replace(".modules_to_save.", ".")
            replaced[canonical_name(short)] = name
    return modules, replaced


def _update(
    file: Path,
    weights: Path,
    config: Mapping[str, Any],
    shapes: Mapping[str, tuple[int, ...]],
    key: str,
    parts: Mapping[str, str],
) -> LowRank:
    """The update of the module `key`, named as peft names it: patterns are matched with that."""
    module = canonical_name(key)
    first, second = ("lora_embedding_A", "lora_embedding_B") if "lora_embedding_A" in parts else ("lora_A", "lora_B")
    for part in (first, second):
        if part not in parts:
            raise CheckpointError(f"{weights}: has no {part} of {key}; the file is not whole")
        if len(shapes[parts[part]]) != 2:
            found = list(shapes[parts[part]])
            raise CheckpointError(f"{weights}: tensor {parts[part]} has shape {found}; wanted two dimensions")
    rank = _of_pattern(file, config, "rank_pattern", key, config.get("r"))
    alpha = _of_pattern(file, config, "alpha_pattern", key, config.get("lora_alpha"))
    if isinstance(rank, bool) or not isinstance(rank, int) or rank < 1:
        raise _wrong(file, "r", rank, "a whole number above 0")
    if isinstance(alpha, bool) or not isinstance(alpha, int | float) or not math.isfinite(alpha):
        raise _wrong(file, "lora_alpha", alpha, "a number")
    down, up = shapes[parts[first]][0], shapes[parts[second]][1]
    if not down == up == rank:
        raise CheckpointError(f"{weights}: {key} has rank {down} and {up}; wanted {rank}, by {ADAPTER_CONFIG}")
    return LowRank(module, rank, alpha / (math.sqrt(rank) if config.get("use_rslora") else rank), dict(parts))


def _of_pattern(file: Path, config: Mapping[str, Any], pattern: str, key: str, default: Any) -> Any:
    """The value for a module: of the first pattern that matches the end of its name, as peft looks it up."""
    table = config.get(pattern) or {}
    if not isinstance(table, dict):
        raise _wrong(file, pattern, table, "an object of name -> number")
    for part, value in table.items():
        try:
            if re.match(rf"(.*\.)?({part})$", key):
                return value
        except re.error as error:
            raise _wrong(file, pattern, part, f"regular expressions ({error})") from error
    return default


def _base_numbers(folder: Path) -> dict[str, tuple[float, ...]]:
    """What `finetune` writes about the base into config.json beside the adapter; empty where there is nothing."""
    file = folder / "config.json"
    found = read_json(file).get(BASE_KEY) if file.is_file() else None
    if found is None:
        return {}
    if isinstance(found, dict) and all(_are_numbers(values) for values in found.values()):
        return {name: tuple(map(float, values)) for name, values in found.items()}
    raise _wrong(file, BASE_KEY, found, "an object of tensor name -> numbers")


def _are_numbers(values: object) -> bool:
    return isinstance(values, Sequence) and all(
        isinstance(each, int | float) and not isinstance(each, bool) for each in values
    )


def _wrong(file: Path, key: str, value: object, wanted: str) -> CheckpointError:
    found = "is missing" if value is None else f"is {str(value)[:200]!r}"
    return CheckpointError(f"{file}: {key} {found}; wanted {wanted}")
