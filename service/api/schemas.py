"""Wire models of the native API: the request body of each task, its response, and the response of /v1/models.

Validation is strict: a number is not accepted as a string, and unknown fields are rejected.
"""

from __future__ import annotations

import re
from abc import abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import cached_property
from typing import Annotated, Any, ClassVar, Generic, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field, PrivateAttr, computed_field

from service.api.field_types import (
    DEFAULT_TOP_K,
    AnswerTokens,
    InlineLabels,
    LabelObject,
    ManyStrings,
    MaskedStrings,
    Pairs,
    Probability,
    Prompt,
    PromptName,
    ReadingInput,
    Readings,
    Separator,
    SetLabels,
    SpanTopK,
    Str,
    Stride,
    Strings,
    Temperature,
    TextInput,
    TextInputs,
    Threshold,
    Timeout,
    TopK,
    Wire,
    label_of,
)
from service.checkpoints.heads import Activation, LabelSource, ProblemType
from service.checkpoints.sentence_modules import Similarity
from service.domain import PoolingMode, Priority
from service.errors import InvalidRequest
from service.metric_labels import UsedMethod
from service.tasks.classification import ClassifyResult, ClassifyWindowResult
from service.tasks.classify_query import ClassifyQuery, Text
from service.tasks.decision import Rule
from service.tasks.embedding import EmbedQuery, EmbedResult, EmbedWindowResult
from service.tasks.extraction import SpanOptions, SpanResult
from service.tasks.fill_mask import FillMaskQuery, FillMaskResult
from service.tasks.labels import NO_LABELS, LabelList
from service.tasks.mrc import MrcQuery, MrcResult, MrcWindowResult, Reading
from service.tasks.nli import NliQuery, NliResult
from service.tasks.similarity import SimilarityQuery, SimilarityResult
from service.tasks.task import Method, Truncation
from service.tasks.windows import DEFAULT_STRIDE, MAX_WINDOWS, WindowOptions, WindowPooling

R = TypeVar("R")
LongTruncation = Literal["right", "left", "head_tail", "window", "error"]


class TaskRequest(Wire):
    """The fields that the requests of all tasks share."""

    parts: ClassVar[Mapping[str, type[Wire]]] = {}
    """What a list of objects consists of, by field."""

    model: Annotated[str, Field(min_length=1, max_length=4096)] | None = Field(
        None,
        description="Name or source of a model in GET /v1/models; default: one fine-tuned for this task, else the "
        "first able to.",
    )
    timeout_ms: Timeout | None = Field(
        None, description="Deadline in milliseconds; after it the response is 504.", examples=[5000]
    )
    priority: Priority | None = Field(
        None, description="`bulk` requests wait behind `interactive` ones, the default.", examples=["bulk"]
    )

    @abstractmethod
    def query(self, max_windows: int = MAX_WINDOWS) -> Any:
        """The query of this request; `max_windows` is the server's limit on the windows of a request.

        Raises InvalidRequest.
        """

    def field(self, path: str) -> str:
        """The path in this request of a field that a task's error names."""
        return path


class CutRequest(TaskRequest):
    """The requests of tasks that cut a text that is too long."""

    truncation: Truncation = Field(
        "right",
        description="Where to cut a text that is too long for the model (`head_tail`: in its middle); `error`: respond "
        "with 422 instead.",
    )


class WindowedRequest(TaskRequest):
    """The requests of tasks that can read a long text in windows."""

    truncation: LongTruncation = Field(
        "right",
        description="Where to cut a text that is too long for the model (`head_tail`: in its middle); `window`: read "
        "it in windows that overlap; `error`: respond with 422 instead.",
    )
    stride: Stride | None = Field(
        None,
        description="With `window`: tokens that neighbouring windows share, at most half of a window; default: 64.",
        examples=[64],
    )
    window_pooling: WindowPooling | None = Field(
        None,
        description="With `window`: how the results of the windows become one; default: `mean` of vectors and of "
        "labels, `max` of choices and where labels are scored independently. `first`: only the first one is read.",
        examples=["mean"],
    )

    @property
    def cut(self) -> Truncation:
        """How a row is cut: a window that does not fit, as a long second text may leave it no room, at its end."""
        return "right" if self.truncation == "window" else self.truncation

    def windows(self, max_windows: int) -> WindowOptions | None:
        """Raises InvalidRequest."""
        if self.truncation == "window":
            stride = DEFAULT_STRIDE if self.stride is None else self.stride
            return WindowOptions(stride, self.window_pooling, max_windows)
        for name in ("stride", "window_pooling"):
            if getattr(self, name) is not None:
                raise InvalidRequest.of(name, "requires truncation window")
        return None


def _combine(*given: str, without: Sequence[str] = (), **values: Any) -> dict[str, Any]:
    """JSON Schema of one valid combination of fields: `given` are required, `without` absent, `values` constant, or of
    a schema of their own."""
    present = {name: {"not": {"type": "null"}} for name in given}
    absent = {name: {"type": "null"} for name in without}
    fixed = {name: value if isinstance(value, dict) else {"const": value} for name, value in values.items()}
    return {"required": list(given), "properties": present | absent | fixed}


_WITH_LABELS = _combine("labels", without=("label_set",))
_WITH_LABEL_SET = _combine("label_set", without=("labels",))
_WITHOUT_LABELS = _combine(without=("labels", "label_set", "question", "hierarchy"), multi_label=False, method="auto")
_OF_PAIRS = _combine("inputs", without=("source", "candidates"))
_OF_CANDIDATES = _combine("source", "candidates", without=("inputs",))
_ONE_PROMPT: dict[str, Any] = {"anyOf": [_combine(without=("prompt",)), _combine(without=("prompt_name",))]}
_ONE_RULE: dict[str, Any] = {"anyOf": [_combine(without=("margin",)), _combine(multi_label=False)]}
_IN_WINDOWS = _combine("truncation", truncation="window")
_MAYBE_WINDOWS: dict[str, Any] = {"anyOf": [_IN_WINDOWS, _combine(without=("stride", "window_pooling"))]}
_OPTIONS_OF_SPANS = ("top_k", "max_answer_tokens", "null_threshold", "min_score")
_OF_CHOICES: dict[str, Any] = {
    "allOf": [_combine(without=_OPTIONS_OF_SPANS, inputs={"items": _combine("choices")}), _MAYBE_WINDOWS]
}
_OF_SPANS = _combine(without=("window_pooling",), inputs={"items": _combine(without=("choices",))})


_METHOD: Any = Field(
    "auto",
    description="`choice`: a choice model (UniMC) decides, or a model of pairs; `embedding`: an embedding model; "
    "`auto`: both together where both are served and `model` is not set, else the one that is there.",
)


_HIERARCHY: Any = Field(
    None,
    description="What separates the components of labels that are paths, as in `体育/足球`; the score of a label then "
    "follows from that of the label above it.",
    examples=["/"],
)
_MIN_SCORE: Any = Field(
    None,
    description="Least score of a label to be chosen; below it `decision` is `none`. Default: 0; where labels are "
    "independent of each other (multi_label, a single label, a multi-label head): 0.5.",
)
_MARGIN: Any = Field(
    None,
    description="Least lead of the first label over the second; below it `decision` is `ambiguous`. Default: 0: "
    "only equal scores are ambiguous. Not for labels that are independent of each other.",
)
_NONE_LABEL: Any = Field(None, description="The `label` of a text for which no label has `min_score`.")
_OF_LABEL_SET = ("question", "method", "hierarchy", "min_score", "margin", "none_label")
"""What a request has from its label set unless it says otherwise."""


class LabelSetBody(Wire):
    """A label set as a client writes it: labels, and what requests for them have unless they say otherwise."""

    parts: ClassVar[Mapping[str, type[Wire]]] = {"labels": LabelObject}

    labels: SetLabels = Field(description="The labels, in natural language: names, or objects.")
    question: Str | None = Field(None, description="The question that the labels answer.")
    method: Method = _METHOD
    hierarchy: Separator | None = _HIERARCHY
    min_score: Probability | None = _MIN_SCORE
    margin: Probability | None = _MARGIN
    none_label: Str | None = _NONE_LABEL
    temperature: Temperature | None = Field(
        None,
        description="Temperature of the scores, as `evaluate --calibrate` fits it; it counts in requests without "
        "model, method, question, multi_label, hierarchy and text_pair of their own.",
    )

    @cached_property
    def label_list(self) -> LabelList:
        return LabelList(tuple([label_of(each) for each in self.labels]))


class LabelSetInfo(BaseModel):
    """A stored label set."""

    name: str
    version: int = Field(description="Increases by one with each write.")
    num_labels: int
    owner: str = Field(description="Name of the key that wrote it; empty without keys.")


class VectorProgress(BaseModel):
    """How many labels of a set have vectors, those above the labels of a hierarchy included."""

    done: int
    of: int
    error: str | None = Field(description="What the last try met with; it is repeated unless the set cannot be kept.")


class LabelSetReply(LabelSetInfo, LabelSetBody):
    """A stored label set with its labels."""

    vectors: VectorProgress | None = Field(None, description="Null where no embedding model takes part.")


class LabelSetsReply(BaseModel):
    """All stored label sets, by name."""

    label_sets: list[LabelSetInfo]


class LabelSetVersion(BaseModel):
    name: str
    version: int


class ClassifyRequest(WindowedRequest):
    """Texts to classify, by the labels in the request (zero-shot) or by the labels of a fine-tuned model."""

    model_config = ConfigDict(
        json_schema_extra={
            "allOf": [{"anyOf": [_WITH_LABELS, _WITH_LABEL_SET, _WITHOUT_LABELS]}, _ONE_RULE, _MAYBE_WINDOWS]
        }
    )
    parts: ClassVar[Mapping[str, type[Wire]]] = {"inputs": TextInput, "labels": LabelObject}

    inputs: TextInputs = Field(description="A text, or a list of texts or of objects with `text` and `text_pair`.")
    labels: InlineLabels | None = Field(
        None,
        description="Labels to choose from, in natural language: names, or objects with `name`, `description` and "
        "`examples`; default: the labels of a fine-tuned model.",
    )
    label_set: Annotated[str, Field(min_length=1, max_length=64)] | None = Field(
        None, description="Name of a stored label set, instead of `labels`; see GET /v1/label-sets."
    )
    question: Str | None = Field(None, description="The question that the labels answer; requires labels.")
    multi_label: bool = Field(False, description="Score each label independently of the others; requires labels.")
    top_k: TopK | None = Field(
        None, description=f"Number of best labels to return in `scores`; default: {DEFAULT_TOP_K}."
    )
    method: Method = _METHOD
    hierarchy: Separator | None = _HIERARCHY
    min_score: Probability | None = _MIN_SCORE
    margin: Probability | None = _MARGIN
    none_label: Str | None = _NONE_LABEL

    def with_labels_of(self, label_set: LabelSetBody) -> ClassifyRequest:
        """This request with the labels of the set, and its other fields where the request does not have them."""
        if self.labels is not None:
            raise InvalidRequest.of("labels", "cannot be combined with label_set")
        given = {name for name in self.model_fields_set if getattr(self, name) is not None}
        names = set(_OF_LABEL_SET) - given - ({"margin"} if self.multi_label else set())
        fields = dict(self) | {name: getattr(label_set, name) for name in names}
        filled = _FilledRequest.model_construct(self.model_fields_set, **fields)
        filled._label_set = label_set
        filled._temperature = label_set.temperature if self._is_scored_as_set(given) else None
        return filled

    def _labels(self) -> LabelList:
        return LabelList(tuple([label_of(each) for each in self.labels])) if self.labels else NO_LABELS

    def _is_scored_as_set(self, given: set[str]) -> bool:
        """Whether nothing in this request changes the scores that the labels of a set have by default."""
        changes = given & {"model", "method", "question", "hierarchy"}
        return not (changes or self.multi_label) and all(one.text_pair is None for one in self.inputs)

    def query(self, max_windows: int = MAX_WINDOWS) -> ClassifyQuery:
        labels = self._labels()
        for name in ("question", "multi_label", "hierarchy"):
            if getattr(self, name) and not labels:
                raise InvalidRequest.of(name, "requires labels")
        if self.method != "auto" and not labels:
            raise InvalidRequest.of("method", "requires labels")
        if self.multi_label and self.margin is not None:
            raise InvalidRequest.of("margin", "cannot be combined with multi_label; use min_score")
        return ClassifyQuery(
            inputs=tuple(Text(one.text, one.text_pair) for one in self.inputs),
            labels=labels,
            question=self.question,
            multi_label=self.multi_label,
            top_k=self.top_k or DEFAULT_TOP_K,
            truncation=self.cut,
            method=self.method,
            is_alone=self.model is not None,
            hierarchy=self.hierarchy,
            rule=Rule(self.min_score, self.margin or 0.0, self.none_label),
            windows=self.windows(max_windows),
        )


class _FilledRequest(ClassifyRequest):
    """A request with what its label set has. Private attributes cost most of a small model, so others have none."""

    _label_set: LabelSetBody = PrivateAttr()
    _temperature: float | None = PrivateAttr(None)

    def query(self, max_windows: int = MAX_WINDOWS) -> ClassifyQuery:
        return replace(super().query(max_windows), temperature=self._temperature)

    def _labels(self) -> LabelList:
        return self._label_set.label_list

    def field(self, path: str) -> str:
        return f"label_set.{path}" if path.startswith("labels") else path


def _check_one_prompt(prompt: str | None, prompt_name: str | None) -> None:
    if prompt is not None and prompt_name is not None:
        raise InvalidRequest.of("prompt_name", "cannot be combined with prompt")


class SimilarityRequest(CutRequest):
    """Pairs to compare, or one source and the candidates to compare it with."""

    model_config = ConfigDict(json_schema_extra={"allOf": [{"anyOf": [_OF_PAIRS, _OF_CANDIDATES]}, _ONE_PROMPT]})

    inputs: Pairs | None = Field(None, description="Pairs of texts, as in `[[a, b], ...]`.")
    source: Str | None = Field(None, description="The text to compare every candidate with.")
    candidates: ManyStrings | None = Field(None, description="Texts to compare `source` with.")
    method: Method = _METHOD
    prompt_name: PromptName | None = Field(
        None,
        description="Name of one of the prompts of an embedding model, which is put before each text; default: its "
        "default prompt, if it has one.",
        examples=["query"],
    )
    prompt: Prompt | None = Field(
        None, description="A text to put before each text, for an embedding model; empty: none.", examples=["query: "]
    )

    def query(self, max_windows: int = MAX_WINDOWS) -> SimilarityQuery:
        _check_one_prompt(self.prompt, self.prompt_name)
        return SimilarityQuery(
            pairs=self._pairs(),
            truncation=self.truncation,
            prompt=self.prompt,
            prompt_name=self.prompt_name,
            method=self.method,
            is_alone=self.model is not None,
        )

    def _pairs(self) -> tuple[tuple[str, str], ...]:
        if self.inputs is not None:
            for name in ("source", "candidates"):
                if getattr(self, name) is not None:
                    raise InvalidRequest.of(name, "cannot be combined with inputs")
            return tuple((first, second) for first, second in self.inputs)
        if self.source is None and self.candidates is None:
            raise InvalidRequest.of("inputs", "is required, or source and candidates")
        if self.source is None:
            raise InvalidRequest.of("source", "is required with candidates")
        if self.candidates is None:
            raise InvalidRequest.of("candidates", "is required with source")
        return tuple((self.source, candidate) for candidate in self.candidates)

    def field(self, path: str) -> str:
        if self.inputs is not None:
            return path
        return re.sub(r"^inputs(\[\d+\])(\[1\])?", r"candidates\1", re.sub(r"^inputs\[\d+\]\[0\]", "source", path))


class MrcRequest(WindowedRequest):
    """Reading comprehension: each input with `choices`, one of which answers, or none, and spans of the passages do."""

    model_config = ConfigDict(json_schema_extra={"anyOf": [_OF_CHOICES, _OF_SPANS]})
    parts: ClassVar[Mapping[str, type[Wire]]] = {"inputs": ReadingInput}

    inputs: Readings
    top_k: SpanTopK | None = Field(None, description="Without choices: number of spans in `candidates`; default: 1.")
    max_answer_tokens: AnswerTokens | None = Field(
        None, description="Without choices: longest answer in tokens; default: 50."
    )
    stride: Stride | None = Field(
        None,
        description="Without choices, and with `window`: tokens that neighbouring windows of a long passage share, at "
        "most half of a window; default: 128 without choices, 64 with them.",
    )
    null_threshold: Threshold | None = Field(
        None,
        description="Without choices: `answer` is null if the logits of no answer are by more than this above those of "
        "the best span; default: 0.",
    )
    min_score: Probability | None = Field(
        None, description="Without choices: spans with a lower score are left out; default: 0."
    )

    def query(self, max_windows: int = MAX_WINDOWS) -> MrcQuery:
        given = {name: value for name in _OPTIONS_OF_SPANS if (value := getattr(self, name)) is not None}
        has_choices = self.inputs[0].choices is not None
        for index, one in enumerate(self.inputs):
            if (one.choices is not None) != has_choices:
                found, first = ("is there", "has none") if one.choices else ("is missing", "has choices")
                detail = (
                    f"{found}, but inputs[0] {first}; send inputs with and without choices in requests of their own"
                )
                raise InvalidRequest.of(f"inputs[{index}].choices", detail)
        for name in given if has_choices else ():
            raise InvalidRequest.of(name, "cannot be combined with choices")
        readings = tuple(Reading(one.passage, one.question, tuple(one.choices or ())) for one in self.inputs)
        if has_choices:
            return MrcQuery(readings, self.cut, windows=self.windows(max_windows))
        if self.window_pooling is not None:
            raise InvalidRequest.of("window_pooling", "requires choices")
        given |= {"stride": self.stride} if self.stride is not None else {}
        return MrcQuery(readings, self.cut, SpanOptions(**given, max_windows=max_windows))


class NliRequest(CutRequest):
    """Pairs of texts: does the hypothesis follow from the premise?"""

    inputs: Pairs = Field(description="Pairs of premise and hypothesis.")

    def query(self, max_windows: int = MAX_WINDOWS) -> NliQuery:
        return NliQuery(tuple((premise, hypothesis) for premise, hypothesis in self.inputs), self.truncation)


class FillMaskRequest(CutRequest):
    """Texts with at least one `[MASK]` each."""

    inputs: MaskedStrings = Field(description="A text with `[MASK]`, or a list of such texts.")
    top_k: TopK = Field(5, description="Number of tokens to return for each `[MASK]`.")

    def query(self, max_windows: int = MAX_WINDOWS) -> FillMaskQuery:
        return FillMaskQuery(tuple(self.inputs), self.top_k, self.truncation)


class EmbedRequest(WindowedRequest):
    """Texts to embed."""

    model_config = ConfigDict(json_schema_extra={"allOf": [_ONE_PROMPT, _MAYBE_WINDOWS]})

    inputs: Strings = Field(description="A text, or a list of texts.")
    pooling: PoolingMode | None = Field(
        None,
        description="What makes one vector of the hidden states of the tokens; default: as the model declares, else "
        "`mean`.",
        examples=["mean"],
    )
    normalize: bool | None = Field(
        None, description="Scale each vector to L2 norm 1; default: as the model declares, else true.", examples=[True]
    )
    prompt_name: PromptName | None = Field(
        None,
        description="Name of one of the model's prompts (GET /v1/models), which is put before each text; default: its "
        "default prompt, if it has one.",
        examples=["query"],
    )
    prompt: Prompt | None = Field(
        None,
        description="A text to put before each text, instead of a prompt of the model; empty: none.",
        examples=["query: "],
    )

    def query(self, max_windows: int = MAX_WINDOWS) -> EmbedQuery:
        _check_one_prompt(self.prompt, self.prompt_name)
        return EmbedQuery(
            inputs=tuple(self.inputs),
            pooling=self.pooling,
            normalize=self.normalize,
            prompt=self.prompt,
            prompt_name=self.prompt_name,
            truncation=self.cut,
            windows=self.windows(max_windows),
        )


class Usage(BaseModel):
    tokens: int = Field(description="Tokens of all inputs, special tokens included.")


class LabelUsage(Usage):
    label_tokens: int = Field(
        description="Tokens of labels and their examples whose vectors were computed for this request; they are kept."
    )


class TaskReply(BaseModel, Generic[R]):
    model: str = Field(description="Name of the model that computed the results.")
    task: str
    results: list[R] = Field(description="One result per input, in the order of the inputs.")
    usage: Usage


class MethodReply(TaskReply[R]):
    model: str = Field(description="Name of the model that decided, of two the choice model.")
    method: UsedMethod = Field(
        description="What answered: `blend` (a choice model and an embedding model together), `choice`, `embedding`, "
        "or `classifier` (a fine-tuned one)."
    )
    models: list[str] = Field(description="Names of the models that took part.")


class ClassifyReply(MethodReply[ClassifyResult | ClassifyWindowResult]):
    """The labels of each text, best first."""

    usage: LabelUsage

    label_set: LabelSetVersion | None = Field(None, description="The stored label set, where the request names one.")


class SimilarityReply(MethodReply[SimilarityResult]):
    """One score per pair, from 0 (different meaning) to 1 (same meaning)."""


class MrcReply(TaskReply[MrcResult | MrcWindowResult | SpanResult]):
    """The chosen answer to each question, or the span of the passage that answers it."""


class NliReply(TaskReply[NliResult]):
    """One label per pair: entailment, neutral or contradiction."""


class FillMaskReply(TaskReply[FillMaskResult]):
    """The most probable tokens for each mask."""


class EmbedReply(TaskReply[EmbedResult | EmbedWindowResult]):
    """One vector per text."""


class HeadInfo(BaseModel):
    """The head of a model, and how its outputs become scores."""

    model_config = ConfigDict(frozen=True)

    kind: str = Field(description="`masked-lm`, `sequence-classification` or `question-answering`.")
    num_classes: int | None = Field(None, description="Outputs of a classification head.")
    problem_type: ProblemType | None = Field(
        None,
        description="Of a classification head: as in its config.json, else `single_label_classification`; null for a "
        "head of one output whose config.json has none.",
    )
    activation: Activation | None = Field(
        None,
        description="What makes scores of the outputs of a classification head: `softmax` (they sum to 1), `sigmoid` "
        "(each is from 0 to 1) or `identity` (the outputs themselves).",
    )


class EmbeddingInfo(BaseModel):
    """How an embedding model makes the vector of a text."""

    model_config = ConfigDict(frozen=True)

    pooling: list[PoolingMode] = Field(description="The vectors of several are concatenated.")
    normalize: bool = Field(description="Whether vectors have L2 norm 1.")
    dimensions: int = Field(description="Numbers of a vector.")
    max_length: int = Field(description="Largest number of tokens of a text, special tokens and the prompt included.")
    prompts: dict[str, str] = Field(description="Texts to put before a text, by the name for `prompt_name`.")
    default_prompt_name: str | None = Field(description="The prompt of a request that names none; null: none.")
    similarity: Similarity = Field(description="What the model was trained to be compared by.")


class ModelInfo(BaseModel):
    """A model that is served."""

    model_config = ConfigDict(frozen=True)

    name: str = Field(description="Value of `model` in a request.")
    source: str = Field(description="Directory or hub id of the checkpoint; also accepted as `model` in a request.")
    revision: str | None = Field(None, description="Revision on the hub as in the settings.")
    resolved_revision: str | None = Field(
        None, description="Commit of the hub repository whose files are served; null for any other directory."
    )
    family: str = Field(description="`megatron-bert`, `bert`, `xlm-roberta` or `roberta`.")
    tokenizer: str = Field(description="Model of the tokenizer, such as `WordPiece`.")
    kind: str = Field(description="`masked-lm`, `sequence-classification`, `question-answering` or `encoder`.")
    head: HeadInfo | None = Field(description="The head of the model; null for an encoder.")
    embedding: EmbeddingInfo | None = Field(
        None,
        description="How an embedding model makes vectors, as sentence-transformers; null for any other model, whose "
        "vectors are the mean of all tokens, normalized.",
    )
    tasks: list[str] = Field(description="Tasks that this model can do.")
    zero_shot: bool = Field(description="Whether a request may define its own labels.")
    partner: str | None = Field(
        None, description="The embedding model that decides together with this choice model; null: none."
    )
    labels: list[str] = Field(
        description="Labels of the classification head; empty if there is none, or if its labels have no names: then "
        "results have LABEL_0, LABEL_1, ..."
    )
    label_source: LabelSource | None = Field(
        description="Where the labels come from: `setting` (--labels), `config` (id2label of config.json), `name` "
        "(known for this repository) or `placeholder` (no names); null without a classification head."
    )
    max_length: int = Field(description="Largest number of tokens of one row, special tokens included.")
    num_parameters: int = Field(description="Parameters of embeddings and encoder, without the head.")
    num_layers: int
    hidden_size: int
    ffn_size: int = Field(description="Inner width of the feed-forward network of a layer.")
    precision: list[str] = Field(description="Distinct precisions of the replicas; empty until the model is loaded.")


class ModelCard(BaseModel):
    """A model as clients of OpenAI's API and of KServe read it."""

    id: str
    object: str = "model"
    created: int = Field(0, description="Always 0: the time at which a checkpoint was made is not known.")
    owned_by: str = "erlangshen-service"
    root: str = Field(description="The source of the model.")
    max_model_len: int
    name: str
    ready: bool

    @classmethod
    def of(cls, model: ModelInfo) -> ModelCard:
        return cls(
            id=model.name,
            root=model.source,
            max_model_len=model.max_length,
            name=model.name,
            ready=bool(model.precision),
        )


class ReplicaInfo(BaseModel):
    """A worker process and its device."""

    model_config = ConfigDict(frozen=True)

    name: str
    device: str
    threads: int = Field(description="CPU threads for computing.")
    state: str = Field(description="starting, loading, ready, restarting or stopped.")
    left_out: list[str] = Field(
        default=[], description="Kernels that failed the self-test and are not used, as `model: kind name`."
    )


class ModelsReply(BaseModel):
    """The models and replicas of the service."""

    models: list[ModelInfo]
    replicas: list[ReplicaInfo]
    object: str = Field("list", description="For clients of OpenAI's API: always `list`.")

    @computed_field(description="For clients of OpenAI's API: the models once more.")  # type: ignore[prop-decorator]
    @property
    def data(self) -> list[ModelCard]:
        return [ModelCard.of(model) for model in self.models]
