"""The description of a checkpoint: family, kind, shape and labels, from its name and its config.json.

No tensor is read. Where config.json does not say which heads there are, the names of the tensors do.
"""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, fields
from functools import partial
from pathlib import Path
from typing import Any, cast, get_args

from service.checkpoints import folders
from service.checkpoints.adapter import (
    Adapter,
    base_source,
    check_targets,
    how_to_name_base,
    is_adapter,
    read_adapter,
)
from service.checkpoints.files import config_file, has_config, read_json, tensor_names, weight_files
from service.checkpoints.heads import Head, count_classes, describe_head
from service.checkpoints.sentence_modules import EmbeddingSpec, Modules, describe_embedding, read_modules
from service.checkpoints.shape import Family, Kind, Shape, read_shape, wrong
from service.checkpoints.spec import BASE_MARK, COMMIT, MODELSCOPE, ModelSpec, parse_spec
from service.errors import CheckpointError, SettingError
from service.host import service_command

_CLASS_PREFIXES: dict[str, Family] = {
    "MegatronBert": "megatron-bert",
    "Bert": "bert",
    "XLMRoberta": "xlm-roberta",
    "Roberta": "roberta",
}
_CLASS_KINDS: dict[str, Kind] = {
    "ForMaskedLM": "masked-lm",
    "ForPreTraining": "masked-lm",
    "ForSequenceClassification": "sequence-classification",
    "ForQuestionAnswering": "question-answering",
    "Model": "encoder",
}

# The fine-tuned repositories of upstream have no useful id2label; their model cards say what the labels mean.
_KNOWN_LABELS = {
    "-Similarity": ("不相似", "相似"),
    "-NLI": ("矛盾", "中立", "蕴含"),
    "-Sentiment": ("负面", "正面"),
}
_KNOWN_TASKS = {"-Similarity": ("similarity",), "-NLI": ("nli",)}
_TASKS_OF_LABELS: dict[frozenset[str], tuple[str, ...]] = {
    frozenset(("不相似", "相似")): ("similarity",),
    frozenset(("相似",)): ("similarity",),
    frozenset(("矛盾", "中立", "蕴含")): ("nli",),
    frozenset(("contradiction", "neutral", "entailment")): ("nli",),
}
"""The tasks of a copy in a folder of any name, by its labels."""

BLOCKS, BLOCK_SIZE = "blocks-4bit", 32
"""`quant_method` and `block_size` of `quantization_config` where weights are packed (see `engine.blocks`)."""

TASKS_KEY = "erlangshen_tasks"
"""The key in config.json for the tasks, beyond plain classification, that a classifier was fine-tuned for."""
_PURPOSES = {"similarity", "nli"}

CHOICE_KEY = "erlangshen_choice"
"""The key in config.json for the labels that a choice model was fine-tuned for."""


@dataclass(frozen=True, slots=True)
class OwnChoice:
    """The labels that a choice model was fine-tuned for, and how they were worded: it classifies without labels.

    `options` are the labels as they stand in a row, in the same order.
    """

    labels: tuple[str, ...]
    options: tuple[str, ...]
    question: str | None = None
    multi_label: bool = False


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """A checkpoint in a local folder.

    `labels` is empty when they have no names; `tasks` are those beyond its kind; `head` is that of a classifier;
    `embedding` is there for an embedding model, one that declares how it makes embeddings. `path` is the folder of
    config.json and the weights, `root` the one above it where sentence-transformers gave them a folder of their own.
    `are_packed` says whether its weights may be 4-bit blocks. `choice` are the labels of a fine-tuned choice model.
    With an `adapter`, `path` is the folder of its base, and `root` that of the adapter.
    """

    name: str
    source: str
    revision: str | None
    path: Path
    family: Family
    kind: Kind
    shape: Shape
    labels: tuple[str, ...] = ()
    tasks: tuple[str, ...] = ()
    head: Head | None = None
    embedding: EmbeddingSpec | None = None
    are_packed: bool = False
    root: Path | None = None
    choice: OwnChoice | None = None
    adapter: Adapter | None = None

    @property
    def own_folder(self) -> Path:
        """The folder of what belongs to this model alone, such as its calibration."""
        return self.adapter.folder if self.adapter else self.path

    @property
    def folder(self) -> Path:
        """The folder as it was found."""
        return self.root or self.path

    @property
    def commit(self) -> str | None:
        """The commit of the hub repository, for a folder of the hub's cache."""
        is_snapshot = self.folder.parent.name == "snapshots" and COMMIT.fullmatch(self.folder.name)
        return self.folder.name if is_snapshot else None

    @property
    def origin(self) -> str:
        """The folder, or the repository (of the hub, or in its cache) and revision; updates do not change it."""
        if not folders.is_folder(self.source):
            return f"{self.source}@{self.revision or 'main'}"
        path = self.folder
        is_by_repository = folders.repository_of(path) and folders.expand(self.source).resolve() != path
        return f"{path.parents[1]}@{self.revision or 'main'}" if is_by_repository else str(path)


def resolve(
    spec: ModelSpec,
    *,
    labels: Sequence[str] = (),
    cache_dir: Path | None = None,
    offline: bool = False,
    token_to_mirror: bool = False,
    only_description: bool = False,
) -> Checkpoint:
    """Finds the checkpoint in a local directory, or downloads it from its hub, and describes it.

    With `only_description` no weights are downloaded. Raises CheckpointError when there is none, or when its
    config.json is invalid.
    """
    locate = partial(
        _locate,
        cache_dir=cache_dir,
        offline=offline,
        token_to_mirror=token_to_mirror,
        only_description=only_description,
    )
    path = locate(spec)
    if is_adapter(path):
        adapter = read_adapter(path)
        base = _find_base(adapter, spec, locate)
        return describe(base, spec.name, spec.source, spec.revision, labels=labels, adapter=adapter)
    if spec.base is not None:
        raise SettingError(f"model {spec.name}: {spec.source} is no adapter; leave out {BASE_MARK}{spec.base}")
    return describe(path, spec.name, spec.source, spec.revision, labels=labels)


def _locate(spec: ModelSpec, **options: Any) -> Path:
    """The folder of a source; `options` are those of the download from its hub."""
    path = folders.find(spec.source, spec.revision)
    if path is not None:
        return path
    from service.checkpoints import hub, modelscope

    fetch = modelscope.fetch if spec.source.startswith(MODELSCOPE) else hub.fetch
    return fetch(spec.source.removeprefix(MODELSCOPE), spec.revision, **options)


def _find_base(adapter: Adapter, spec: ModelSpec, locate: Callable[[ModelSpec], Path]) -> Path:
    """The folder of an adapter's base: the one of the spec, else the one that the adapter names."""
    named = spec.base or base_source(adapter, spec.name, spec.source)
    try:
        path = locate(parse_spec(f"base={folders.locate_shipped(named)}", spec.hub))
    except CheckpointError as error:
        hint = "" if spec.base else f"; {how_to_name_base(spec.name, spec.source)}"
        raise CheckpointError(f"the base of the adapter {adapter.folder}: {error.detail}{hint}") from error
    if is_adapter(path):
        line = service_command(f"export {shlex.quote(named)} --to folder --output DIR")
        raise CheckpointError(f"{path}: the base of {adapter.folder} is itself an adapter; merge it first: {line}")
    return path


def source_files(checkpoint: Checkpoint) -> tuple[Path, ...]:
    """The files that decide the weights of a model: those of its weights, and of its adapter."""
    adapter = checkpoint.adapter
    return weight_files(checkpoint.path) + ((adapter.file, adapter.config_file) if adapter else ())


def describe(
    path: Path,
    name: str,
    source: str | None = None,
    revision: str | None = None,
    *,
    labels: Sequence[str] = (),
    adapter: Adapter | None = None,
) -> Checkpoint:
    """Reads config.json of the folder `path`, or bert_config.json, and the modules of sentence-transformers where there
    are any. `labels` override those of the config. With an `adapter`, `path` is the folder of its base."""
    modules = read_modules(path)
    root, path = path, modules.transformer if modules else path
    file = config_file(path)
    config = read_json(file)
    family, kind = _family_and_kind(file, config)
    are_packed = _are_packed(file, config)
    num_classes: int | None = None
    if adapter is not None:
        file, config, kind, modules = _adapt(adapter, file, config, kind, modules)
        root, num_classes = adapter.folder, adapter.num_classes or count_classes(path)
    purpose = _purpose(source or str(root), root) if kind == "sequence-classification" else ""
    head, labels = _head(file, config, kind, name, labels, _KNOWN_LABELS.get(purpose, ()), num_classes)
    by_labels = _TASKS_OF_LABELS.get(frozenset(map(str.lower, labels)), ())
    shape = read_shape(file, config, family, kind)
    embedding = describe_embedding(modules, shape.hidden_size, shape.max_positions) if modules else None
    return Checkpoint(
        name=name,
        source=source or str(root),
        revision=revision,
        path=path,
        family=family,
        kind=kind,
        shape=shape,
        labels=labels,
        tasks=(_tasks(file, config) or _KNOWN_TASKS.get(purpose, by_labels)) + (("embed",) if embedding else ()),
        head=head,
        embedding=embedding,
        root=root if root != path else None,
        are_packed=are_packed,
        choice=_choice(file, config) if kind == "masked-lm" else None,
        adapter=adapter,
    )


def _adapt(
    adapter: Adapter, file: Path, config: dict[str, Any], kind: Kind, modules: Modules | None
) -> tuple[Path, dict[str, Any], Kind, Modules | None]:
    """The config of an adapted model: that in the folder of its adapter, if there is one, else that of its base."""
    family, _ = _family_and_kind(file, config)
    shape = read_shape(file, config, family, kind)
    check_targets(adapter, shape.num_layers)
    adapted_kind: Kind = adapter.kind or kind
    if has_config(adapter.folder):
        own_file = config_file(adapter.folder)
        own = read_json(own_file)
        own_family, own_kind = _family_and_kind(own_file, own) if own.get("architectures") else (family, adapted_kind)
        own_shape = read_shape(own_file, own, own_family, own_kind)
        for field in fields(Shape):
            found, wanted = getattr(own_shape, field.name), getattr(shape, field.name)
            if found != wanted:
                raise CheckpointError(
                    f"{own_file}: {field.name} is {found}, and {wanted} in {file}: the adapter is of another base"
                )
        file, config, adapted_kind = own_file, own, own_kind
    elif adapted_kind != kind:  # what the base says of its own head is not true of the new one
        config = {key: value for key, value in config.items() if key not in ("problem_type", TASKS_KEY)}
    return file, config, adapted_kind, modules if adapted_kind in (kind, "encoder") else None


def _purpose(source: str, path: Path) -> str:
    """The last part of an upstream name, such as `-NLI`: of the source, or of the folder or repository behind it."""
    names = (source.rstrip("/"), path.name, folders.repository_of(path) or "")
    found = [re.sub(r".*(?=-)", "", name) for name in names]
    return next((each for each in found if each in _KNOWN_LABELS), "")


def _family_and_kind(file: Path, config: dict[str, Any]) -> tuple[Family, Kind]:
    classes = config.get("architectures") or []
    if not isinstance(classes, list):
        raise wrong(file, "architectures", classes, "a list")
    found = {_split_class(file, name) for name in classes}
    families = {family for family, _ in found}
    if "model_type" in config:
        families.add(str(config["model_type"]).lower().replace("_", "-"))
    if not families:
        families.add(_family_by_tensors(file, config))
    if len(families) != 1 or not families <= set(get_args(Family)):
        raise wrong(file, "model_type", config.get("model_type"), f"{_either(get_args(Family))}, as in architectures")
    kinds = {kind for _, kind in found}
    kind = kinds.pop() if len(kinds) == 1 else _kind_by_tensors(file.parent)
    return cast("Family", families.pop()), kind


def _family_by_tensors(file: Path, config: dict[str, Any]) -> Family:
    """The family where neither model_type nor architectures name it, as in Google's bert_config.json."""
    names = {name.removeprefix("bert.") for name in tensor_names(file.parent)}
    if not names.isdisjoint(("encoder.ln.weight", "encoder.ln.gamma")):
        return "megatron-bert"
    has_bert_norm = not names.isdisjoint(("embeddings.LayerNorm.weight", "embeddings.LayerNorm.gamma"))
    # RoBERTa has the same names and other positions; its padding has another id.
    if has_bert_norm and config.get("pad_token_id") in (0, None):
        return "bert"
    raise CheckpointError(
        f'{file}: model_type is missing, and the tensors are not those of BERT; add "model_type": "bert" or '
        '"megatron-bert" if the model is one'
    )


def _split_class(file: Path, name: object) -> tuple[str, Kind]:
    for prefix, family in _CLASS_PREFIXES.items():
        kind = _CLASS_KINDS.get(str(name).removeprefix(prefix))
        if str(name).startswith(prefix) and kind:
            return family, kind
    raise wrong(file, "architectures", name, f"{_either(_CLASS_PREFIXES)}, then " + ", ".join(_CLASS_KINDS))


def _kind_by_tensors(folder: Path) -> Kind:
    names = tensor_names(folder)
    if any(name.startswith(("cls.predictions.", "lm_head.")) for name in names):
        return "masked-lm"
    if "qa_outputs.weight" in names:
        return "question-answering"
    is_classifier = not names.isdisjoint(("classifier.weight", "classifier.out_proj.weight"))
    return "sequence-classification" if is_classifier else "encoder"


def _are_packed(file: Path, config: dict[str, Any]) -> bool:
    """Whether `quantization_config` says so; every other one is refused: its numbers would be taken for weights."""
    found, ours = config.get("quantization_config"), {"quant_method": BLOCKS, "block_size": BLOCK_SIZE}
    if found and found != ours:
        wanted = f"{json.dumps(ours)}, or the model before it was quantized"
        raise wrong(file, "quantization_config", json.dumps(found, ensure_ascii=False), wanted)
    return bool(found)


def _tasks(file: Path, config: dict[str, Any]) -> tuple[str, ...]:
    """The tasks of a classifier, as `finetune` writes them."""
    value = config.get(TASKS_KEY, [])
    if not isinstance(value, list) or not set(value) <= _PURPOSES:
        raise wrong(file, TASKS_KEY, value, "a list of " + ", ".join(sorted(_PURPOSES)))
    return tuple(value)


def _choice(file: Path, config: dict[str, Any]) -> OwnChoice | None:
    """The labels of a choice model, as `finetune` writes them."""
    value = config.get(CHOICE_KEY)
    if value is None:
        return None
    try:
        labels, options = value["labels"], value["options"]
        question, multi_label = value.get("question"), value.get("multi_label", False)
        are_texts = all(isinstance(each, str) and each for each in (*labels, *options))
        are_pairs = len(labels) == len(options) == len(set(labels)) == len(set(options)) > 1
        if are_texts and are_pairs and isinstance(question, str | None) and isinstance(multi_label, bool):
            return OwnChoice(tuple(labels), tuple(options), question or None, multi_label)
    except (AttributeError, KeyError, TypeError):
        pass
    raise wrong(file, CHOICE_KEY, value, "an object of labels, as many options, question and multi_label")


def _head(
    file: Path,
    config: dict[str, Any],
    kind: Kind,
    model: str,
    setting: Sequence[str],
    by_name: Sequence[str],
    num_classes: int | None,
) -> tuple[Head | None, tuple[str, ...]]:
    if kind == "sequence-classification":
        return describe_head(file, config, model, setting=setting, by_name=by_name, num_classes=num_classes)
    if setting:
        raise CheckpointError(
            f"{file}: --labels names classes of {model}, but the checkpoint has no classifier ({kind}); leave it out, "
            "and send `labels` in each request"
        )
    return None, ()


def _either(names: Iterable[str]) -> str:
    *first, last = names
    return f"{', '.join(first)} or {last}"
