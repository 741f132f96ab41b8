"""Calibration: temperatures that make scores probabilities, the file that holds them, and which of them is whose.

A score of 0.8 is calibrated if eight of ten such answers are right. One number, the temperature, is fitted to labelled
texts (`tools.confidence`), and divides the logits: above 1 it makes a model less certain, below 1 more. It never
changes which label comes first (Guo et al. 2017, On Calibration of Modern Neural Networks).
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from itertools import product
from pathlib import Path
from typing import Annotated, Literal, Self

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from service.domain import FloatArray
from service.errors import CheckpointError, SettingError
from service.metric_labels import UsedMethod
from service.tasks.scores import sigmoid

Numbers = NDArray[np.float64]

VERSION = 1
MIN_TEMPERATURE = 0.01
MAX_TEMPERATURE = 100.0
LOWEST = 1e-30
"""Smaller probabilities, which a server rounds to 0, count as this one: the logarithm of 0 has no temperature."""
FILE_NAME = "calibration.json"
"""The file in a folder of a model, with the temperatures for that model."""
MAX_FILE_BYTES = 16 * 2**20
READ_QUESTIONS = ("choice", "blend")
"""The methods whose scores depend on the question."""


def scale_probabilities(probabilities: FloatArray | Numbers, temperature: float) -> FloatArray:
    """Probabilities that sum to 1 in the last dimension, at another temperature: softmax(log p / temperature).

    Zeros stay zeros, so rows of different lengths can be filled up with them.
    """
    exact = probabilities.astype(np.float64)
    logits = np.log(np.maximum(exact, LOWEST)) / temperature
    powers = np.where(exact > 0, np.exp(logits - logits.max(axis=-1, keepdims=True)), 0.0)
    return np.asarray(powers / powers.sum(axis=-1, keepdims=True), dtype=np.float32)


def scale_independent(probabilities: FloatArray | Numbers, temperature: float) -> FloatArray:
    """Probabilities that are independent of each other, at another temperature: sigmoid(logit p / temperature)."""
    return sigmoid(logits_of(probabilities) / temperature)


def logits_of(probabilities: FloatArray | Numbers) -> Numbers:
    """The logits of independent probabilities."""
    exact = probabilities.astype(np.float64)
    return np.asarray(np.log(np.maximum(exact, LOWEST)) - np.log(np.maximum(1.0 - exact, LOWEST)))


def label_digest(labels: Iterable[str]) -> str:
    """SHA-256, in hex, of the names of a label set, in any order."""
    names = sorted(labels)
    return hashlib.sha256(json.dumps(names, ensure_ascii=False, separators=(",", ":")).encode()).hexdigest()


# the file

Key = tuple[tuple[str, ...], UsedMethod, str | None, str | None, bool]
Share = Annotated[float, Field(ge=0, le=1, allow_inf_nan=False)]


class Entry(BaseModel):
    """The temperature of one label set with one or two models, and what it was fitted to.

    `models` are names or sources, as `models` of a reply has them. An entry in the folder of a model needs none: it is
    that model's. `labels_sha256` is the `label_digest` of the labels; without one, they are those of the model's own
    head. `name` says for a reader what the labels are.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: str | None = None
    models: Annotated[tuple[str, ...], Field(max_length=2)] = ()
    method: UsedMethod
    labels_sha256: Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")] | None = None
    question: str | None = None
    multi_label: bool = False
    temperature: Annotated[float, Field(ge=MIN_TEMPERATURE, le=MAX_TEMPERATURE, allow_inf_nan=False)]
    examples: Annotated[int, Field(ge=1)]
    ece_before: Share
    ece_after: Share

    @model_validator(mode="after")
    def _names_its_labels(self) -> Self:
        if self.labels_sha256 is None and self.method != "classifier":
            raise ValueError("labels_sha256 is required, except for the own labels of a classifier")
        return self

    @property
    def key(self) -> Key:
        """What no two entries of a file have in common."""
        return _key(self.models, self.method, self.labels_sha256, self.question, self.multi_label)


def _key(models: Sequence[str], method: UsedMethod, digest: str | None, question: str | None, multi_label: bool) -> Key:
    """A question counts only where it is read; a classifier decides by itself whether its labels are independent."""
    is_read = method in READ_QUESTIONS
    return tuple(models), method, digest, question if is_read else None, multi_label and method != "classifier"


class _File(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)

    version: Literal[1]
    entries: tuple[Entry, ...]


def read_calibration(path: Path) -> tuple[Entry, ...]:
    """The entries of the file of `models.calibration`. Raises SettingError, with the file and the field."""
    try:
        entries = _read(path)
    except ValueError as error:
        raise SettingError(f"models.calibration: {path}: {error}") from error
    for index, entry in enumerate(entries):
        if not entry.models:
            raise SettingError(f"models.calibration: {path}: entries.{index}.models: is required")
    return entries


def read_own_calibration(folder: Path, name: str) -> tuple[Entry, ...]:
    """The entries in the folder of a model, as entries of the model `name`, whatever it was called when they were
    fitted; none without the file.

    Raises CheckpointError, with the file and the field.
    """
    path = folder / FILE_NAME
    if not path.exists():
        return ()
    try:
        entries = _read(path)
    except ValueError as error:
        raise CheckpointError(f"{path}: {error}") from error
    for index, entry in enumerate(entries):
        if len(entry.models) > 1:
            raise CheckpointError(f"{path}: entries.{index}.models: are two; start the server with --calibration FILE")
    return tuple(entry.model_copy(update={"models": (name,)}) for entry in entries)


def write_entry(path: Path, entry: Entry) -> None:
    """Adds an entry to the file, in place of one with the same key. The file is replaced in one step.

    Raises ValueError, with the field, where the file is none of these or cannot be written.
    """
    others = [one for one in (_read(path) if path.exists() else ()) if one.key != entry.key]
    content = _File(version=VERSION, entries=(*others, entry)).model_dump(exclude_none=True)
    part = path.with_name(f".{path.name}.part")
    try:
        part.write_text(json.dumps(content, ensure_ascii=False, indent=2) + "\n", encoding="utf-8")
        part.replace(path)
    except OSError as error:
        with suppress(OSError):
            part.unlink(missing_ok=True)
        raise ValueError(f"cannot be written: {error.strerror}") from error


def _read(path: Path) -> tuple[Entry, ...]:
    """Raises ValueError with the field and the problem."""
    try:
        with path.open("rb") as stream:
            data = stream.read(MAX_FILE_BYTES + 1)
    except OSError as error:
        raise ValueError(f"cannot be read: {error.strerror}") from error
    if len(data) > MAX_FILE_BYTES:
        raise ValueError(f"is larger than {MAX_FILE_BYTES} bytes")
    try:
        read = _File.model_validate_json(data)
    except ValidationError as error:
        [first, *_] = error.errors(include_url=False, include_input=False, include_context=False)
        field = ".".join(map(str, first["loc"])) or "the file"
        raise ValueError(f"{field}: {first['msg']}") from error
    seen: dict[Key, int] = {}
    for index, entry in enumerate(read.entries):
        if (before := seen.setdefault(entry.key, index)) != index:
            raise ValueError(f"entries.{index}: has the models, method, labels and question of entries.{before}")
    return read.entries


class Calibration:
    """The temperatures of the models that are served.

    `names_of` returns the served models of a name or a source. Of two entries for the same scores the later one counts.
    Entries of models that are not served have no effect; `unused` has them.
    """

    def __init__(self, entries: Iterable[Entry], names_of: Callable[[str], Sequence[str]]) -> None:
        self._places: dict[Key, tuple[int, float]] = {}
        """The place of the entry, and its temperature."""
        self.unused: list[Entry] = []
        for place, entry in enumerate(entries):
            found = list(product(*map(names_of, entry.models)))
            if not found:
                self.unused.append(entry)
            for models in found:
                key = _key(models, entry.method, entry.labels_sha256, entry.question, entry.multi_label)
                self._places[key] = place, entry.temperature
        self._methods = {(models, method) for models, method, *_ in self._places}

    def find(
        self,
        models: tuple[str, ...],
        method: UsedMethod,
        labels: Sequence[str],
        question: str | None = None,
        multi_label: bool = False,
    ) -> float | None:
        """The temperature of these labels, decided by these models, the choice model first; None: not calibrated."""
        if (models, method) not in self._methods:
            return None
        digests = (None, label_digest(labels))
        keys = [_key(models, method, digest, question, multi_label) for digest in digests]
        found = [self._places[key] for key in keys if key in self._places]
        return max(found)[1] if found else None
