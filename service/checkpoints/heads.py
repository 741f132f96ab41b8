"""The classification head of a checkpoint: its classes, their labels, and how its outputs become scores."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, cast, get_args

from service.checkpoints.files import read_json, tensor_rows
from service.errors import CheckpointError

ProblemType = Literal["single_label_classification", "multi_label_classification", "regression"]
Activation = Literal["softmax", "sigmoid", "identity"]
LabelSource = Literal["setting", "config", "name", "placeholder"]

CLASSIFIERS = ("classifier.weight", "classifier.out_proj.weight")
_DEFAULT_CLASSES = 2
"""Of a config.json that says nothing, as in transformers."""
_MAX_LABELS = 10_000
_MAX_SHOWN = 4
"""Labels in the example of an error message."""

_CROSS_ENCODER_FILE = "config_sentence_transformers.json"
_CROSS_ENCODER_ACTIVATIONS: dict[str, Activation] = {
    "torch.nn.modules.linear.Identity": "identity",
    "torch.nn.modules.activation.Sigmoid": "sigmoid",
}


@dataclass(frozen=True, slots=True)
class Head:
    """A sequence-classification head.

    `problem_type` is the one of config.json, else `single_label_classification` for several classes, and None for one.
    `activation` makes scores of the outputs. `label_source` is "setting" (`--labels`), "config" (id2label), "name" (a
    fine-tuned repository of upstream) or "placeholder" (the labels are LABEL_0, LABEL_1, ...).
    """

    num_classes: int
    problem_type: ProblemType | None = "single_label_classification"
    activation: Activation = "softmax"
    label_source: LabelSource = "placeholder"


def describe_head(
    file: Path,
    config: dict[str, Any],
    model: str,
    *,
    setting: Sequence[str],
    by_name: Sequence[str],
    num_classes: int | None = None,
) -> tuple[Head, tuple[str, ...]]:
    """The head that config.json (`file`) and the weights describe, and its labels; no labels if they have no names.

    Labels from the `setting` of the model count first, then those of id2label, then `by_name`, the ones of upstream's
    repository, if they are as many as there are classes. `num_classes` is known of an adapter.

    Raises:
        CheckpointError: names the key or the flag that is wrong, and what to set instead.
    """
    num_classes = num_classes or count_classes(file.parent)
    labels, source = _labels(file, config, model, tuple(setting), num_classes)
    num_classes = num_classes or len(labels) or _declared_classes(config)
    if not labels and len(by_name) == num_classes:
        labels, source = tuple(by_name), "name"
    declared = _problem_type(file, config)
    default: ProblemType | None = "single_label_classification" if num_classes > 1 else None
    return Head(num_classes, declared or default, _activation(file, config, declared, num_classes), source), labels


def count_classes(folder: Path) -> int | None:
    """The classes of the classifier in the weights of a folder; None where there is none, or it cannot be read."""
    return next(filter(None, (tensor_rows(folder, name) for name in CLASSIFIERS)), None)


def _labels(
    file: Path, config: dict[str, Any], model: str, setting: tuple[str, ...], num_classes: int | None
) -> tuple[tuple[str, ...], LabelSource]:
    if setting:
        _check_labels(file, setting, "--labels", model, num_classes)
        return setting, "setting"
    named = _id2label(file, config, model, num_classes)
    if all(label == f"LABEL_{index}" for index, label in enumerate(named)):
        return (), "placeholder"
    _check_labels(file, named, "id2label", model, num_classes)
    return named, "config"


def _check_labels(file: Path, labels: tuple[str, ...], given_by: str, model: str, num_classes: int | None) -> None:
    if num_classes is not None and len(labels) != num_classes:
        raise CheckpointError(class_count_error(file, num_classes, f"{given_by} names {len(labels)}", model))
    [(label, count)] = Counter(labels).most_common(1)
    if count > 1 or not all(labels):
        found = f"{label!r} is there {count} times" if count > 1 else "one is empty"
        hint = _hint(model, len(labels))
        raise CheckpointError(f"{file}: the labels of {given_by} must differ and not be empty, but {found}; {hint}")


def class_count_error(where: Path | str, num_classes: int, instead: str, model: str) -> str:
    """The message for a classifier whose number of classes is not the one that its labels or its config have."""
    return f"{where}: the classifier has {_classes(num_classes)}, {instead}; {_hint(model, num_classes)}"


def _hint(model: str, num_classes: int) -> str:
    letters = [chr(ord("A") + index) for index in range(min(num_classes, _MAX_SHOWN))]
    example = ",".join(letters if num_classes <= _MAX_SHOWN else [*letters, "..."])
    return f"name {'it' if num_classes == 1 else f'all {num_classes}'} with --labels {model}={example}"


def _classes(count: int) -> str:
    return f"{count} class" if count == 1 else f"{count} classes"


def _id2label(file: Path, config: dict[str, Any], model: str, num_classes: int | None) -> tuple[str, ...]:
    value = config.get("id2label") or {}
    hint = _hint(model, num_classes or len(value) or _DEFAULT_CLASSES) if isinstance(value, list | dict) else ""
    try:
        by_index = {int(index): label for index, label in value.items()}
    except (AttributeError, ValueError) as error:
        found = "a list" if isinstance(value, list) else f"{str(value)[:200]!r}"
        raise CheckpointError(f"{file}: id2label is {found}; wanted an object of index -> label: {hint}") from error
    if sorted(by_index) != list(range(len(by_index))) or len(by_index) > _MAX_LABELS:
        found = f"{len(by_index)} indices from {min(by_index)} to {max(by_index)}"
        raise CheckpointError(f"{file}: id2label has {found}; wanted 0, 1, ..., at most {_MAX_LABELS}: {hint}")
    if not all(isinstance(label, str) for label in by_index.values()):
        raise CheckpointError(f"{file}: id2label has labels that are not text: {hint}")
    return tuple(by_index[index] for index in range(len(by_index)))


def _declared_classes(config: dict[str, Any]) -> int:
    """What config.json says without names: the placeholders of id2label, else `num_labels`."""
    count = len(config.get("id2label") or {}) or config.get("num_labels")
    return count if isinstance(count, int) and 1 <= count <= _MAX_LABELS else _DEFAULT_CLASSES


def _problem_type(file: Path, config: dict[str, Any]) -> ProblemType | None:
    value = config.get("problem_type")
    if value is not None and value not in get_args(ProblemType):
        wanted = ", ".join(get_args(ProblemType))
        raise CheckpointError(f"{file}: problem_type is {str(value)[:200]!r}; wanted one of {wanted}, or none")
    return cast("ProblemType | None", value)


def _activation(file: Path, config: dict[str, Any], declared: ProblemType | None, num_classes: int) -> Activation:
    """By `problem_type`, as transformers' text-classification pipeline does it. A head of one output without it gets
    what sentence-transformers' CrossEncoder would apply: the activation that it saved, else a sigmoid."""
    if declared == "regression":
        return "identity"
    if declared == "multi_label_classification":
        return "sigmoid"
    if num_classes > 1:
        return "softmax"  # a CrossEncoder saves Identity here, because it returns logits
    return _cross_encoder_activation(file, config) if declared is None else "sigmoid"


def _cross_encoder_activation(file: Path, config: dict[str, Any]) -> Activation:
    """Source: `CrossEncoder` of sentence-transformers. It saved the activation in a key of config.json before version
    4.0, then in a table of config.json, and later in a file of its own."""
    own_file = file.parent / _CROSS_ENCODER_FILE
    table = config.get("sentence_transformers")
    places = (
        (own_file, "activation_fn", read_json(own_file) if own_file.is_file() else {}),
        (file, "activation_fn", table if isinstance(table, dict) else {}),
        (file, "sbert_ce_default_activation_function", config),
    )
    for place, key, values in places:
        if (name := values.get(key)) is None:
            continue
        if not isinstance(name, str) or name not in _CROSS_ENCODER_ACTIVATIONS:
            wanted = ", ".join(_CROSS_ENCODER_ACTIVATIONS)
            raise CheckpointError(f"{place}: {key} is {str(name)[:200]!r}; wanted one of {wanted}")
        return _CROSS_ENCODER_ACTIVATIONS[name]
    return "sigmoid"
