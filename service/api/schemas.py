"""The wire models of the native API: what a request may hold, checked to the letter, and what a reply looks like.

Strict: a number is not a string, an unknown field is refused. Every request knows how to become a query; none knows how
it is answered.
"""

from __future__ import annotations

import re
from abc import abstractmethod
from collections.abc import Sequence
from typing import Annotated, Any, ClassVar, Generic, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field

from service.api.field_types import (
    ManyStrings,
    MaskedStrings,
    Names,
    Pairs,
    ReadingInput,
    Readings,
    Str,
    Strings,
    TextInput,
    TextInputs,
    Timeout,
    TopK,
    Wire,
)
from service.domain import Priority
from service.errors import InvalidRequest
from service.tasks.classification import ClassifyQuery, ClassifyResult, Text
from service.tasks.embedding import EmbedQuery, EmbedResult
from service.tasks.fill_mask import FillMaskQuery, FillMaskResult
from service.tasks.mrc import MrcQuery, MrcResult, Reading
from service.tasks.nli import NliQuery, NliResult
from service.tasks.similarity import SimilarityQuery, SimilarityResult
from service.tasks.task import Truncation

R = TypeVar("R")


class TaskRequest(Wire):
    """What every task's request may hold."""

    part: ClassVar[type[Wire] | None] = None

    model: Annotated[str, Field(min_length=1, max_length=200)] | None = Field(
        None, description="Name of the model, from GET /v1/models; default: the one that does this task best."
    )
    truncation: Truncation = Field(
        "right", description="Where a text too long for the model is cut; `error` refuses it with 422."
    )
    timeout_ms: Timeout | None = Field(
        None, description="Answer within this many milliseconds, else 504.", examples=[5000]
    )
    priority: Priority | None = Field(
        None, description="`bulk` waits behind `interactive`, which is the default.", examples=["bulk"]
    )

    @abstractmethod
    def query(self) -> Any:
        """The same, protocol-free."""

    def field(self, path: str) -> str:
        """The caller's name of a field that a task names."""
        return path


def _together(*given: str, without: Sequence[str] = (), **values: Any) -> dict[str, Any]:
    """What JSON Schema says of fields that need one another, or exclude one another."""
    there = {name: {"not": {"type": "null"}} for name in given}
    absent = {name: {"type": "null"} for name in without}
    fixed = {name: {"const": value} for name, value in values.items()}
    return {"required": list(given), "properties": there | absent | fixed}


_LABELLED = _together("labels")
_PLAIN = _together(without=("labels", "question"), multi_label=False)
_OF_PAIRS = _together("inputs", without=("source", "candidates"))
_OF_CANDIDATES = _together("source", "candidates", without=("inputs",))


class ClassifyRequest(TaskRequest):
    """Texts to classify: by the given labels (zero-shot), or by the labels of a fine-tuned model."""

    model_config = ConfigDict(json_schema_extra={"anyOf": [_LABELLED, _PLAIN]})
    part = TextInput

    inputs: TextInputs = Field(description="A text, or a list of texts or of objects with `text` and `text_pair`.")
    labels: Names | None = Field(
        None, description="Labels to choose from, in words; without them a fine-tuned model's own labels are used."
    )
    question: Str | None = Field(None, description="What the labels answer; only beside `labels`.")
    multi_label: bool = Field(
        False, description="Score each label by itself, not against the others; only beside `labels`."
    )
    top_k: TopK | None = Field(None, description="Keep this many of the best `scores`; default: all.")

    def query(self) -> ClassifyQuery:
        for name in ("question", "multi_label"):
            if getattr(self, name) and not self.labels:
                raise InvalidRequest.of(name, "is of use only beside labels")
        return ClassifyQuery(
            inputs=tuple(Text(one.text, one.text_pair) for one in self.inputs),
            labels=tuple(self.labels or ()),
            question=self.question,
            multi_label=self.multi_label,
            top_k=self.top_k,
            truncation=self.truncation,
        )


class SimilarityRequest(TaskRequest):
    """Pairs to compare, or one source and the candidates to compare it with."""

    model_config = ConfigDict(json_schema_extra={"anyOf": [_OF_PAIRS, _OF_CANDIDATES]})

    inputs: Pairs | None = Field(None, description="Pairs of texts, as in `[[a, b], ...]`.")
    source: Str | None = Field(None, description="The text that every candidate is compared with.")
    candidates: ManyStrings | None = Field(None, description="One result for each, in this order.")

    def query(self) -> SimilarityQuery:
        return SimilarityQuery(self._pairs(), self.truncation)

    def _pairs(self) -> tuple[tuple[str, str], ...]:
        if self.inputs is not None:
            for name in ("source", "candidates"):
                if getattr(self, name) is not None:
                    raise InvalidRequest.of(name, "cannot stand beside inputs")
            return tuple((first, second) for first, second in self.inputs)
        if self.source is None and self.candidates is None:
            raise InvalidRequest.of("inputs", "is required, or source and candidates")
        if self.source is None:
            raise InvalidRequest.of("source", "is required beside candidates")
        if self.candidates is None:
            raise InvalidRequest.of("candidates", "is required beside source")
        return tuple((self.source, candidate) for candidate in self.candidates)

    def field(self, path: str) -> str:
        return path if self.inputs is not None else re.sub(r"^inputs(\[\d+\])(\[\d\])?", r"candidates\1", path)


class MrcRequest(TaskRequest):
    """Multiple-choice reading comprehension."""

    part = ReadingInput

    inputs: Readings

    def query(self) -> MrcQuery:
        readings = (Reading(one.passage, one.question, tuple(one.choices)) for one in self.inputs)
        return MrcQuery(tuple(readings), self.truncation)


class NliRequest(TaskRequest):
    """Does the hypothesis follow from the premise?"""

    inputs: Pairs = Field(description="Pairs of premise and hypothesis.")

    def query(self) -> NliQuery:
        return NliQuery(tuple((premise, hypothesis) for premise, hypothesis in self.inputs), self.truncation)


class FillMaskRequest(TaskRequest):
    """Texts with one or more `[MASK]`."""

    inputs: MaskedStrings = Field(description="A text with `[MASK]`, or a list of such.")
    top_k: TopK = Field(5, description="Tokens to tell for each `[MASK]`.")

    def query(self) -> FillMaskQuery:
        return FillMaskQuery(tuple(self.inputs), self.top_k, self.truncation)


class EmbedRequest(TaskRequest):
    """Texts to turn into vectors."""

    inputs: Strings = Field(description="A text, or a list of texts.")
    pooling: Literal["mean", "cls"] = Field("mean", description="The mean over all tokens, or the first token's state.")
    normalize: bool = Field(True, description="Scale every vector to length 1.")

    def query(self) -> EmbedQuery:
        return EmbedQuery(tuple(self.inputs), self.pooling, self.normalize, self.truncation)


class Usage(BaseModel):
    tokens: int = Field(description="Tokens that the model read, over all inputs.")


class TaskReply(BaseModel, Generic[R]):
    model: str = Field(description="The model that answered.")
    task: str
    results: list[R] = Field(description="One for each input, in the order of the inputs.")
    usage: Usage


class ClassifyReply(TaskReply[ClassifyResult]):
    """Labels, best first."""


class SimilarityReply(TaskReply[SimilarityResult]):
    """Scores from 0 (different) to 1 (the same meaning)."""


class MrcReply(TaskReply[MrcResult]):
    """The chosen answers."""


class NliReply(TaskReply[NliResult]):
    """entailment, neutral or contradiction."""


class FillMaskReply(TaskReply[FillMaskResult]):
    """The most probable tokens of each mask."""


class EmbedReply(TaskReply[EmbedResult]):
    """One vector for each text."""


class ModelInfo(BaseModel):
    """One model that is served."""

    model_config = ConfigDict(frozen=True)

    name: str = Field(description="What `model` in a request calls it.")
    source: str = Field(description="Where it came from: a directory or a hub id.")
    revision: str | None = None
    family: str = Field(description="`megatron-bert` or `bert`.")
    kind: str = Field(description="`masked-lm`, `sequence-classification` or `encoder`.")
    tasks: list[str] = Field(description="The tasks it can do.")
    zero_shot: bool = Field(description="Whether a request may bring its own labels.")
    labels: list[str] = Field(description="The labels of its own head; empty when it has none.")
    max_length: int = Field(description="Tokens of one row, special ones included.")
    num_parameters: int = Field(description="Of embeddings and encoder; a head adds a little.")
    num_layers: int
    hidden_size: int
    ffn_size: int = Field(description="Width inside the feed-forward of a layer.")
    precision: list[str] = Field(description="Arithmetic in use, by replica where they differ; empty until loaded.")


class ReplicaInfo(BaseModel):
    """One process that computes."""

    model_config = ConfigDict(frozen=True)

    name: str
    device: str
    threads: int = Field(description="CPU threads that it computes with.")
    state: str = Field(description="starting, loading, ready, restarting or stopped.")


class ModelsReply(BaseModel):
    """What is served, and by whom."""

    models: list[ModelInfo]
    replicas: list[ReplicaInfo]
