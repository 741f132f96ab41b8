"""The modules of a sentence-transformers folder: how the hidden states of a text become its embedding.

modules.json lists them: Transformer, Pooling, then any Dense, then Normalize. Each has its configuration in a folder of
its own; that of the Transformer is mostly the folder itself. A module that cannot be honoured is an error: the
embeddings would be others than those that the model was trained for.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any, Literal, cast, get_args

from service.checkpoints.files import read_json, read_json_list
from service.domain import PoolingMode
from service.errors import CheckpointError

MODULES_FILE = "modules.json"
SETTINGS_FILE = "config_sentence_transformers.json"
TRANSFORMER_FILES = (
    "sentence_bert_config.json",
    "sentence_roberta_config.json",
    "sentence_xlm-roberta_config.json",
)
"""The configuration of the Transformer; old versions named it after the family."""

Similarity = Literal["cosine", "dot", "euclidean", "manhattan"]
DenseActivation = Literal["identity", "tanh", "relu", "gelu", "sigmoid", "silu"]

_PACKAGE = "sentence_transformers."
_KINDS = ("Transformer", "Pooling", "Dense", "Normalize", "Dropout")
"""Dropout does nothing outside of training."""
_ORDER = re.compile(r"Transformer Pooling( Dense)*( Normalize)*")
_OLD_MODES: dict[str, PoolingMode] = {
    "pooling_mode_cls_token": "cls",
    "pooling_mode_max_tokens": "max",
    "pooling_mode_mean_tokens": "mean",
    "pooling_mode_mean_sqrt_len_tokens": "mean_sqrt_len_tokens",
    "pooling_mode_weightedmean_tokens": "weightedmean",
    "pooling_mode_lasttoken": "lasttoken",
}
"""In the order in which sentence-transformers concatenates them."""
_ACTIVATIONS: dict[str, DenseActivation] = {
    "Identity": "identity",
    "Tanh": "tanh",
    "ReLU": "relu",
    "GELU": "gelu",
    "Sigmoid": "sigmoid",
    "SiLU": "silu",
}
_ACTIVATION_MODULES = ("torch.nn", "torch.nn.modules.activation", "torch.nn.modules.linear")
_TOKENS, _SENTENCE = "token_embeddings", "sentence_embedding"
_TEXT_ONLY = {"text": {"method": "forward", "method_output_name": "last_hidden_state"}}
_BUILT_IN_PROMPTS = ("query", "document")
"""sentence-transformers has these in every model, empty where the files do not have them."""
_FEWEST_TOKENS = 3
"""The first token, one of the text, the last token."""
_MAX_FEATURES = 65_536


@dataclass(frozen=True, slots=True)
class Dense:
    """A linear map and its activation, after the pooling; `folder` holds the weights.

    With `is_residual` its input is added to its output, through a second map if they differ in size.
    """

    folder: Path
    num_in: int
    num_out: int
    has_bias: bool = True
    activation: DenseActivation = "tanh"
    is_residual: bool = False


@dataclass(frozen=True, slots=True)
class EmbeddingSpec:
    """How a checkpoint makes the embedding of a text.

    `pooling` are the modes whose vectors are concatenated, `dense` what follows. A text is cut to `max_length` tokens.
    `prompts` are texts to put before it, by name. `include_prompt` says whether the tokens of a prompt are pooled, and
    `lower_case` that a text is put into lower case, whatever the tokenizer does.
    """

    pooling: tuple[PoolingMode, ...]
    normalize: bool
    dimensions: int
    max_length: int
    dense: tuple[Dense, ...] = ()
    prompts: Mapping[str, str] = field(default_factory=dict, hash=False)
    default_prompt_name: str | None = None
    include_prompt: bool = True
    lower_case: bool = False
    similarity: Similarity = "cosine"

    @property
    def default_prompt(self) -> str:
        return self.prompts.get(self.default_prompt_name or "", "")

    @property
    def has_cosine(self) -> bool:
        """Whether embeddings are compared by their cosine; of vectors of length 1 the dot product is the same."""
        return self.similarity == "cosine" or (self.similarity == "dot" and self.normalize)


@dataclass(frozen=True, slots=True)
class Modules:
    """The modules of a folder, in their order. `folders` are those of the modules of each kind."""

    file: Path
    kinds: tuple[str, ...]
    folders: tuple[Path, ...]

    @property
    def transformer(self) -> Path:
        """The folder of config.json, the tokenizer and the weights."""
        return self.folders[0]

    def of(self, kind: str) -> list[Path]:
        return [folder for each, folder in zip(self.kinds, self.folders, strict=True) if each == kind]


def read_modules(folder: Path) -> Modules | None:
    """The modules of an embedding model; None where `folder` is none of sentence-transformers, or of a cross-encoder.

    Raises:
        CheckpointError: a module of another kind, at another place, or a path that leads out of the folder.
    """
    file = folder / MODULES_FILE
    if not file.is_file():
        return None
    settings = _read_if_there(folder / SETTINGS_FILE)
    model_type = settings.get("model_type", "SentenceTransformer")
    if model_type == "CrossEncoder":
        return None
    if model_type != "SentenceTransformer":
        raise _wrong(folder / SETTINGS_FILE, "model_type", model_type, "SentenceTransformer or CrossEncoder")
    found = [_read_module(file, index, entry) for index, entry in enumerate(read_json_list(file))]
    modules = [(kind, folder / path) for kind, path in found if kind != "Dropout"]
    if not _ORDER.fullmatch(" ".join(kind for kind, _ in modules)):
        listed = ", ".join(kind for kind, _ in modules) or "none"
        raise CheckpointError(
            f"{file}: the modules are {listed}; wanted Transformer, Pooling, any Dense, then Normalize"
        )
    return Modules(file, tuple(kind for kind, _ in modules), tuple(path for _, path in modules))


def list_modules(folder: Path) -> list[tuple[str, str]]:
    """The kind and the path of each module; none where modules.json is not there, or not valid: `read_modules` reports
    it."""
    try:
        file = folder / MODULES_FILE
        return [_read_module(file, index, entry) for index, entry in enumerate(read_json_list(file))]
    except CheckpointError:
        return []


def describe_embedding(modules: Modules, hidden_size: int, max_positions: int) -> EmbeddingSpec:
    """Reads the configuration of each module of an encoder with these sizes.

    Raises:
        CheckpointError: names the file and the key that cannot be honoured, and what was wanted.
    """
    root = modules.file.parent
    [pooling_folder] = modules.of("Pooling")
    pooling, include_prompt = _read_pooling(pooling_folder / "config.json", hidden_size)
    size = len(pooling) * hidden_size
    dense: list[Dense] = []
    for folder in modules.of("Dense"):
        dense.append(_read_dense(folder, size))
        size = dense[-1].num_out
    for folder in modules.of("Normalize"):
        _check_names(folder / "config.json", _read_if_there(folder / "config.json"))
    max_length, lower_case = _read_transformer(modules.transformer, max_positions)
    prompts, default_prompt_name, similarity = _read_settings(root / SETTINGS_FILE)
    return EmbeddingSpec(
        pooling=pooling,
        normalize="Normalize" in modules.kinds,
        dimensions=size,
        max_length=max_length,
        dense=tuple(dense),
        prompts=prompts,
        default_prompt_name=default_prompt_name,
        include_prompt=include_prompt,
        lower_case=lower_case,
        similarity=similarity,
    )


def _read_module(file: Path, index: int, entry: Any) -> tuple[str, str]:
    """The kind and the path of a module. Its class has moved between versions; the name of the class has not."""
    path = _read_path(file.parent, index, entry)
    class_path = entry.get("type")
    kind = class_path.rpartition(".")[2] if isinstance(class_path, str) else ""
    if kind not in _KINDS or not class_path.startswith(_PACKAGE):
        raise _wrong(file, f"[{index}].type", class_path, f"a class of sentence-transformers: {', '.join(_KINDS)}")
    return kind, path


def _read_path(folder: Path, index: int, entry: Any) -> str:
    path = entry.get("path") if isinstance(entry, dict) else None
    parts = PurePosixPath(path).parts if isinstance(path, str) else ("..",)
    if not isinstance(path, str) or ".." in parts or path.startswith("/") or "\\" in path or "\0" in path:
        raise _wrong(folder / MODULES_FILE, f"[{index}].path", path, "a path inside of the folder")
    return path


def _read_pooling(file: Path, hidden_size: int) -> tuple[tuple[PoolingMode, ...], bool]:
    config = read_json(file)
    key = "embedding_dimension" if "embedding_dimension" in config else "word_embedding_dimension"
    if config.get(key) != hidden_size:
        raise _wrong(file, key, config.get(key), f"the hidden_size of the encoder, {hidden_size}")
    include_prompt = config.get("include_prompt", True)
    if not isinstance(include_prompt, bool):
        raise _wrong(file, "include_prompt", include_prompt, "true or false")
    return _read_modes(file, config), include_prompt


def _read_modes(file: Path, config: Mapping[str, Any]) -> tuple[PoolingMode, ...]:
    if "pooling_mode" in config:
        value = config["pooling_mode"]
        modes = [value] if isinstance(value, str) else value
        if not isinstance(modes, list) or not modes or not all(mode in get_args(PoolingMode) for mode in modes):
            raise _wrong(file, "pooling_mode", value, f"one or a list of {', '.join(get_args(PoolingMode))}")
        return tuple(modes)
    flags = {key: value for key, value in config.items() if key.startswith("pooling_mode_")}
    for key, value in flags.items():
        if not isinstance(value, bool) or (value and key not in _OLD_MODES):
            known = ", ".join(_OLD_MODES)
            raise _wrong(file, key, value, "true or false" if key in _OLD_MODES else f"one of {known}")
    return tuple(mode for key, mode in _OLD_MODES.items() if flags.get(key)) or ("mean",)


def _read_dense(folder: Path, num_in: int) -> Dense:
    file = folder / "config.json"
    config = read_json(file)
    _check_names(file, config)
    if config.get("in_features") != num_in:
        raise _wrong(file, "in_features", config.get("in_features"), f"the size of what comes before it, {num_in}")
    num_out = config.get("out_features")
    if isinstance(num_out, bool) or not isinstance(num_out, int) or not 1 <= num_out <= _MAX_FEATURES:
        raise _wrong(file, "out_features", num_out, f"a whole number from 1 to {_MAX_FEATURES}")
    flags = {"bias": config.get("bias", True), "use_residual": config.get("use_residual", False)}
    for key, value in flags.items():
        if not isinstance(value, bool):
            raise _wrong(file, key, value, "true or false")
    return Dense(
        folder=folder,
        num_in=num_in,
        num_out=num_out,
        has_bias=flags["bias"],
        activation=_read_activation(file, config.get("activation_function", "torch.nn.Tanh")),
        is_residual=flags["use_residual"],
    )


def _read_activation(file: Path, value: Any) -> DenseActivation:
    module, _, name = value.rpartition(".") if isinstance(value, str) else ("", "", "")
    if module not in _ACTIVATION_MODULES or name not in _ACTIVATIONS:
        wanted = ", ".join(f"torch.nn.{each}" for each in _ACTIVATIONS)
        raise _wrong(file, "activation_function", value, f"one of {wanted}")
    return _ACTIVATIONS[name]


def _check_names(file: Path, config: Mapping[str, Any]) -> None:
    """A module that reads or writes something else than the embedding of the text is refused."""
    for key in ("module_input_name", "module_output_name"):
        if config.get(key) not in (None, _SENTENCE):
            raise _wrong(file, key, config[key], _SENTENCE)


def _read_transformer(folder: Path, max_positions: int) -> tuple[int, bool]:
    """The largest number of tokens, and whether texts are put into lower case."""
    file = next(
        (folder / name for name in TRANSFORMER_FILES if (folder / name).is_file()), folder / TRANSFORMER_FILES[0]
    )
    config = _read_if_there(file)
    for key, plain in (
        ("transformer_task", "feature-extraction"),
        ("modality_config", _TEXT_ONLY),
        ("module_output_name", _TOKENS),
    ):
        if config.get(key) not in (None, plain):
            raise _wrong(file, key, config[key], str(plain))
    lower_case = config.get("do_lower_case") or False
    if not isinstance(lower_case, bool):
        raise _wrong(file, "do_lower_case", lower_case, "true or false")
    max_length = config.get("max_seq_length")
    if max_length is None:  # since version 6 the tokenizer alone has it
        file, declared = folder / "tokenizer_config.json", _read_if_there(folder / "tokenizer_config.json")
        max_length = declared.get("model_max_length")
        max_length = max_positions if isinstance(max_length, float) or max_length is None else max_length
    if isinstance(max_length, bool) or not isinstance(max_length, int) or max_length < _FEWEST_TOKENS:
        key = "max_seq_length" if file.name in TRANSFORMER_FILES else "model_max_length"
        raise _wrong(file, key, max_length, f"a whole number from {_FEWEST_TOKENS}")
    return min(max_length, max_positions), lower_case


def _read_settings(file: Path) -> tuple[dict[str, str], str | None, Similarity]:
    config = _read_if_there(file)
    prompts = config.get("prompts") or {}
    if not isinstance(prompts, dict) or not all(isinstance(text, str | None) for text in prompts.values()):
        raise _wrong(file, "prompts", prompts, "an object of name -> text")
    default = config.get("default_prompt_name")
    if default is not None and default not in (*prompts, *_BUILT_IN_PROMPTS):
        raise _wrong(
            file, "default_prompt_name", default, f"one of the prompts: {', '.join(prompts) or 'there are none'}"
        )
    similarity = config.get("similarity_fn_name") or "cosine"
    if similarity not in get_args(Similarity):
        raise _wrong(file, "similarity_fn_name", similarity, f"one of {', '.join(get_args(Similarity))}")
    return {name: text or "" for name, text in prompts.items()}, default, cast("Similarity", similarity)


def _read_if_there(file: Path) -> dict[str, Any]:
    return read_json(file) if file.is_file() else {}


def _wrong(file: Path, key: str, value: object, wanted: str) -> CheckpointError:
    found = "is missing" if value is None else f"is {str(value)[:200]!r}"
    return CheckpointError(f"{file}: {key} {found}; wanted {wanted}")
