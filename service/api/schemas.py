"""The wire models of the native API: what a request may hold, checked to the letter, and what a reply looks like.

Strict: a number is not a string, an unknown field is refused. Limits come from the settings, through pydantic's
validation context. Every request knows how to become a query; none knows how it is answered.
"""

from __future__ import annotations

import re
from abc import abstractmethod
from typing import Annotated, Any, ClassVar, Generic, Literal, TypeVar

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, ValidationInfo, model_validator
from pydantic_core import PydanticCustomError

from service.errors import InvalidRequest
from service.settings import Server
from service.tasks.classification import ClassifyQuery, ClassifyResult, Text
from service.tasks.embedding import EmbedQuery, EmbedResult
from service.tasks.fill_mask import FillMaskQuery, FillMaskResult
from service.tasks.inference import NliQuery, NliResult
from service.tasks.mrc import MrcQuery, MrcResult, Reading
from service.tasks.similarity import SimilarityQuery, SimilarityResult
from service.tasks.task import Truncation

R = TypeVar("R")
MAX_TOP_K = 1000
MAX_FIELDS = 32


def _limits(info: ValidationInfo) -> Server:
    return info.context if isinstance(info.context, Server) else Server()


def _wrong(message: str) -> PydanticCustomError:
    # As context, not as template: a message is free to hold braces.
    return PydanticCustomError("invalid", "{message}", {"message": message})


def _check_text(text: str, info: ValidationInfo) -> str:
    most = _limits(info).max_chars
    if not text or text.isspace():
        raise _wrong("must not be empty")
    if len(text) > most:
        raise _wrong(f"has {len(text)} characters; at most {most} are allowed")
    return text


def _check_list(value: object, most: int, noun: str) -> list[Any]:
    if not isinstance(value, list):
        raise _wrong("must be a list")
    if not value:
        raise _wrong(f"must hold at least one {noun}")
    if len(value) > most:
        raise _wrong(f"holds {len(value)} {noun}s; at most {most} are allowed")
    return value


def _many(value: object, info: ValidationInfo) -> list[Any]:
    return _check_list(value, _limits(info).max_inputs, "input")


def _one_or_many(value: object, info: ValidationInfo) -> list[Any]:
    if not isinstance(value, str | list):
        raise _wrong("must be a string or a list")
    return _many([value] if isinstance(value, str) else value, info)


def _as_text_input(value: object) -> object:
    if isinstance(value, str):
        return {"text": value}
    if not isinstance(value, dict):
        raise _wrong("must be a string, or an object with text and text_pair")
    return value


def _check_pair(value: object) -> object:
    if not isinstance(value, list) or len(value) != 2:
        raise _wrong("must be a list of two texts")
    return value


def _check_names(value: object, info: ValidationInfo) -> list[Any]:
    names = _check_list(value, _limits(info).max_labels, "label" if info.field_name == "labels" else "choice")
    first: dict[str, int] = {}
    for index, name in enumerate(names):
        if isinstance(name, str) and first.setdefault(name.strip(), index) != index:
            raise _wrong(f"entry {index} repeats entry {first[name.strip()]}")
    return names


def _check_timeout(milliseconds: int, info: ValidationInfo) -> int:
    most = _limits(info).max_timeout_ms
    if not 1 <= milliseconds <= most:
        raise _wrong(f"must be from 1 to {most}")
    return milliseconds


class Wire(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)

    @model_validator(mode="before")
    @classmethod
    def _check_size(cls, value: object) -> object:
        """An object of a million unknown fields would cost a million error messages."""
        if isinstance(value, dict) and len(value) > MAX_FIELDS:
            raise _wrong(f"has {len(value)} fields; there are {', '.join(cls.model_fields)}")
        return value


Str = Annotated[str, Field(min_length=1), AfterValidator(_check_text)]


class TextInput(Wire):
    """One text, or two for models that read pairs."""

    text: Str
    text_pair: Str | None = None


class ReadingInput(Wire):
    """A passage, a question on it, and the answers to choose from."""

    passage: Str
    question: Str
    choices: Annotated[list[Str], BeforeValidator(_check_names), Field(min_length=1)]


OneText = Annotated[TextInput, BeforeValidator(_as_text_input, json_schema_input_type=str | TextInput)]
TextInputs = Annotated[list[OneText], BeforeValidator(_one_or_many, json_schema_input_type=str | list[str | TextInput])]
Strings = Annotated[list[Str], BeforeValidator(_one_or_many, json_schema_input_type=str | list[str])]
Pair = Annotated[list[Str], BeforeValidator(_check_pair), Field(min_length=2, max_length=2)]
Pairs = Annotated[list[Pair], BeforeValidator(_many)]


class TaskRequest(Wire):
    """What every task's request may hold."""

    part: ClassVar[type[Wire] | None] = None

    model: Annotated[str, Field(min_length=1, max_length=200)] | None = Field(
        None, description="Name of the model, from GET /v1/models; default: the one that does this task best."
    )
    truncation: Truncation = Field(
        "right", description="Where a text too long for the model is cut; `error` refuses it with 422."
    )
    timeout_ms: Annotated[int, AfterValidator(_check_timeout)] | None = Field(
        None, description="Answer within this many milliseconds, else 504.", examples=[5000]
    )

    @abstractmethod
    def query(self) -> Any:
        """The same, protocol-free."""

    def field(self, path: str) -> str:
        """The caller's name of a field that a task names."""
        return path


class ClassifyRequest(TaskRequest):
    """Texts to classify: by the given labels (zero-shot), or by the labels of a fine-tuned model."""

    part = TextInput

    inputs: TextInputs = Field(description="A text, or a list of texts or of objects with `text` and `text_pair`.")
    labels: Annotated[list[Str], BeforeValidator(_check_names), Field(min_length=1)] | None = Field(
        None, description="Labels to choose from, in words; without them a fine-tuned model's own labels are used."
    )
    question: Str | None = Field(None, description="What the labels answer; only beside `labels`.")
    multi_label: bool = Field(
        False, description="Score each label by itself, not against the others; only beside `labels`."
    )
    top_k: Annotated[int, Field(ge=1, le=MAX_TOP_K)] | None = Field(
        None, description="Keep this many of the best `scores`; default: all."
    )

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

    inputs: Pairs | None = Field(None, description="Pairs of texts, as in `[[a, b], ...]`.")
    source: Str | None = Field(None, description="The text that every candidate is compared with.")
    candidates: Annotated[list[Str], BeforeValidator(_many), Field(min_length=1)] | None = Field(
        None, description="One result for each, in this order."
    )

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

    inputs: Annotated[list[ReadingInput], BeforeValidator(_many), Field(min_length=1)]

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

    inputs: Strings = Field(description="A text with `[MASK]`, or a list of such.")
    top_k: int = Field(5, ge=1, le=MAX_TOP_K, description="Tokens to tell for each `[MASK]`.")

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
