"""text-embeddings-inference: embed, predict, rerank, similarity, tokenize and info, with its timing headers.

Source: router/src/http of huggingface/text-embeddings-inference. Its server ignores unknown fields.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from itertools import chain
from typing import Annotated, Any, Literal, Self

from pydantic import BeforeValidator, Field, ModelWrapValidatorHandler, PrivateAttr, ValidationInfo, model_validator
from pydantic_core import PydanticCustomError
from starlette.responses import Response

from service.api.auth import READERS
from service.api.calls import Call, Models, Protocol
from service.api.exchange import Exchange, json_lists, json_response, renamed
from service.api.field_types import Lenient, ManyStrings, PromptName, Str, Strings, check_inputs
from service.api.protocols import ranking
from service.api.protocols.common import HEALTH
from service.api.protocols.vectors import vectors_of
from service.api.request import not_ready
from service.api.schemas import ModelInfo
from service.domain import Timing
from service.errors import InvalidRequest, ServiceError
from service.pipeline import Answer
from service.settings import VERSION
from service.slices import between_slices
from service.tasks.classification import ClassifyResult
from service.tasks.classify_query import ClassifyQuery, Text
from service.tasks.embedding import EmbedQuery, choose_prompt
from service.tasks.registry import TASKS, route
from service.tasks.task import Truncation
from service.tasks.text_model import TextModel

TOKEN_BYTES = 80
"""A token in JSON."""
MAX_BYTES_PER_CHARACTER = 4
"""A tokenizer may make a token of each byte of an unknown character."""
Direction = Annotated[
    Literal["left", "right"], BeforeValidator(lambda value: value.lower() if isinstance(value, str) else value)
]
Dimensions = Annotated[int, Field(ge=1)]


class TeiRequest(Lenient):
    """`truncate`: false refuses a text that is too long; by default it is cut, as with --auto-truncate there."""

    truncate: bool | None = None
    truncation_direction: Direction = "right"

    @property
    def truncation(self) -> Truncation:
        return "error" if self.truncate is False else self.truncation_direction


class TeiEmbedRequest(TeiRequest):
    inputs: Strings
    normalize: bool = True
    prompt_name: PromptName | None = None
    dimensions: Dimensions | None = None


def _to_texts(value: object, info: ValidationInfo) -> list[Any]:
    """A text, a pair `[a, b]`, or a batch of `[a]` and `[a, b]`."""
    if isinstance(value, str):
        value = [[value]]
    if isinstance(value, list) and value and isinstance(value[0], str):
        value = [value]
    texts = check_inputs(value, info)
    if not all(isinstance(one, list) and 1 <= len(one) <= 2 for one in texts):
        raise PydanticCustomError("invalid", "must be a text, a pair of texts, or a list of [text] and [text, text]")
    return texts


class TeiPredictRequest(TeiRequest):
    inputs: Annotated[list[list[Str]], BeforeValidator(_to_texts, json_schema_input_type=str | list[str | list[str]])]
    raw_scores: bool = False
    _is_batch: bool = PrivateAttr(False)
    """Decides the shape of the reply, and is not seen in the validated inputs."""

    @model_validator(mode="wrap")
    @classmethod
    def _note_batch(cls, value: Any, validate: ModelWrapValidatorHandler[Self]) -> Self:
        request = validate(value)
        request._is_batch = isinstance(value["inputs"], list) and isinstance(value["inputs"][0], list)
        return request


class TeiRerankRequest(TeiRequest):
    query: Str
    texts: ManyStrings
    raw_scores: bool = False
    return_text: bool = False


class SimilarityInput(Lenient):
    source_sentence: Str
    sentences: ManyStrings


class SimilarityParameters(TeiRequest):
    prompt_name: PromptName | None = None


class TeiSimilarityRequest(Lenient):
    inputs: SimilarityInput
    parameters: SimilarityParameters = SimilarityParameters()


class TeiTokenizeRequest(Lenient):
    inputs: Strings
    add_special_tokens: bool = True
    prompt_name: PromptName | None = None


def timing_headers(timing: Timing, tokens: int, texts: Iterable[str]) -> dict[str, str]:
    """The headers of its replies; times in milliseconds."""
    seconds = {
        "x-compute-time": timing.total,
        "x-total-time": timing.total,
        "x-tokenization-time": timing.tokenize,
        "x-queue-time": timing.queue,
        "x-inference-time": timing.compute,
    }
    counts = {"x-compute-characters": sum(map(len, texts)), "x-compute-tokens": tokens}
    return {name: str(value) for name, value in counts.items()} | {
        name: str(round(value * 1000)) for name, value in seconds.items()
    }


async def embed(exchange: Exchange, body: TeiEmbedRequest) -> Response:
    query = EmbedQuery(
        tuple(body.inputs), normalize=body.normalize, prompt_name=body.prompt_name, truncation=body.truncation
    )

    def write(answer: Answer[Any], is_large: bool) -> Response:
        vectors = vectors_of(answer.results, body.dimensions, is_scaled=body.normalize)
        return json_response(json_lists(vectors), timing_headers(answer.timing, answer.tokens, body.inputs))

    return await exchange.answer("embed", query, write)


async def predict(exchange: Exchange, body: TeiPredictRequest) -> Response:
    query = ClassifyQuery(tuple(Text(*one) for one in body.inputs), truncation=body.truncation)

    def write(answer: Answer[Any], is_large: bool) -> Response:
        model = exchange.state.pipeline.models[answer.model]
        found = [_predictions(result, model, body.raw_scores) for result in answer.results]
        content = found if body._is_batch else found[0]
        return json_response(content, timing_headers(answer.timing, answer.tokens, chain(*body.inputs)))

    return await exchange.answer("classify", query, write)


def _predictions(result: ClassifyResult, model: TextModel, is_raw: bool) -> list[dict[str, Any]]:
    """Raw scores are the outputs of the head; those of a softmax are known up to a constant, which is left out."""
    between_slices()
    scores = {one.label: one.score for one in result.scores}
    activation = model.head.activation if model.head else "softmax"
    if is_raw and activation != "identity":
        undo = ranking.logit if activation == "sigmoid" else ranking.log
        scores = {label: undo(score) for label, score in scores.items()}
    return [{"score": score, "label": label} for label, score in scores.items()]


async def rerank(exchange: Exchange, body: TeiRerankRequest) -> Response:
    pairs = [(body.query, text) for text in body.texts]
    scored = await ranking.score(exchange, pairs, truncation=body.truncation, second=renamed({"inputs": "texts"}))
    scores = scored.outputs() if body.raw_scores else scored.probabilities()
    ranks = [
        {"index": index, **({"text": body.texts[index]} if body.return_text else {}), "score": scores[index]}
        for index, _ in scored.ranked()
    ]
    return json_response(ranks, timing_headers(scored.timing, scored.tokens, (body.query, *body.texts)))


async def similarity(exchange: Exchange, body: TeiSimilarityRequest) -> Response:
    scored = await ranking.compare(
        exchange,
        body.inputs.source_sentence,
        body.inputs.sentences,
        truncation=body.parameters.truncation,
        prompt_name=body.parameters.prompt_name,
    )
    texts = (body.inputs.source_sentence, *body.inputs.sentences)
    return json_response(scored.scores, timing_headers(scored.timing, scored.tokens, texts))


async def tokenize(exchange: Exchange, body: TeiTokenizeRequest) -> Response:
    """The tokens of each text, by the model that embeds. A Chinese character is about one token."""
    if reason := exchange.state.why_not_accepting():
        raise not_ready(reason)
    num_bytes = TOKEN_BYTES * sum(len(text) + 2 for text in body.inputs)
    if num_bytes > (limit := exchange.limits.max_reply_bytes):
        detail = f"the response would have about {num_bytes} bytes, at most {limit} are sent; send fewer inputs"
        raise InvalidRequest.of("inputs", detail)
    model = route(exchange.state.pipeline.models, TASKS["embed"], EmbedQuery(()), None)
    prompt = choose_prompt(model, prompt_name=body.prompt_name) if body.prompt_name else ""

    def read() -> tuple[Response, int]:
        found = [_tokens(model, prompt + text, body.add_special_tokens) for text in body.inputs]
        return json_response(found), sum(map(len, found))

    with exchange.state.memory.reserved(num_bytes):
        response, num_tokens = await exchange.in_thread(read)
    exchange.context.encoded(len(body.inputs), num_tokens)
    return response


def _tokens(model: TextModel, text: str, with_special: bool) -> list[dict[str, Any]]:
    between_slices()
    placed = model.tokenize_with_places(text, MAX_BYTES_PER_CHARACTER * len(text) + 1)
    found = [
        {"id": one, "text": model.token(one), "special": False, "start": start, "stop": end}
        for one, start, end in zip(placed.ids, placed.starts.tolist(), placed.ends.tolist(), strict=True)
    ]
    if not with_special:
        return found
    first, last = (
        {"id": one, "text": model.token(one), "special": True, "start": None, "stop": None}
        for one in (model.cls, model.sep)
    )
    return [first, *found, last]


async def info(exchange: Exchange, body: None) -> Response:
    """The model that /embed takes, or the first one."""
    models = exchange.state.models()
    model = next((each for each in models.models if each.embedding), next(iter(models.models), None))
    limits = exchange.limits
    return json_response(
        {
            "model_id": model.source if model else "",
            "model_sha": model.resolved_revision if model else None,
            "model_dtype": _dtype(model),
            "model_type": _model_type(model),
            "max_concurrent_requests": limits.max_connections,
            "max_input_length": (model.embedding.max_length if model.embedding else model.max_length) if model else 0,
            "max_batch_tokens": 0,
            "max_batch_requests": None,
            "max_client_batch_size": limits.max_inputs,
            "auto_truncate": True,
            "tokenization_workers": 0,
            "version": VERSION,
            "sha": None,
            "docker_label": None,
        }
    )


def _dtype(model: ModelInfo | None) -> str:
    return model.precision[0] if model and model.precision else ""


def _model_type(model: ModelInfo | None) -> Mapping[str, Any]:
    if model is None or model.embedding or not model.labels:
        return {"embedding": {"pooling": model.embedding.pooling[0] if model and model.embedding else "mean"}}
    by_id = {str(index): label for index, label in enumerate(model.labels)}
    return {"classifier": {"id2label": by_id, "label2id": {label: int(index) for index, label in by_id.items()}}}


_TYPES = {401: "Unauthorized", 403: "Unauthorized", 429: "Overloaded", 500: "Backend", 503: "Unhealthy", 504: "Backend"}


def error_body(error: ServiceError, request_id: str) -> dict[str, Any]:
    kind = _TYPES.get(error.status, "Validation")
    return {"error": error.detail, "error_type": kind, "code": error.code, "request_id": request_id}


def _is_embeddable(value: Any, models: Models) -> bool:
    """Of its POST /: as one with an embedding model does, unless only classifiers are served."""
    return isinstance(value, dict) and "inputs" in value and not _is_predictable(value, models)


def _is_predictable(value: Any, models: Models) -> bool:
    return isinstance(value, dict) and "inputs" in value and _has_classifiers_only(models.values())


def _has_classifiers_only(models: Any) -> bool:
    return all(model.kind == "sequence-classification" for model in models)


_TEXTS = {"inputs": ["今天天气怎么样？", "明天会下雨吗"]}
_RERANK = {"query": "怎么更换手机号", "texts": ["如何修改绑定的手机", "电池多久充满"], "return_text": True}
_SIMILARITY = {"inputs": {"source_sentence": "怎么更换手机号", "sentences": ["如何修改绑定的手机", "电池多久充满"]}}


def _post(path: str, handle: Any, body: Any, task: str | None, summary: str, example: Any, **more: Any) -> Call:
    return Call("POST", path, handle, body=body, task=task, summary=summary, example=example, **more)


CALLS: Sequence[Call] = (
    _post("/embed", embed, TeiEmbedRequest, "embed", "Embeddings", _TEXTS, roots=("/embed",)),
    _post(
        "/predict",
        predict,
        TeiPredictRequest,
        "classify",
        "Labels of a classifier",
        _TEXTS,
        roots=("/predict",),
        wants="`inputs`",
    ),
    _post("/rerank", rerank, TeiRerankRequest, "similarity", "Texts by relevance", _RERANK, roots=("/rerank",)),
    _post(
        "/similarity",
        similarity,
        TeiSimilarityRequest,
        "similarity",
        "Similarities",
        _SIMILARITY,
        roots=("/similarity",),
    ),
    _post("/tokenize", tokenize, TeiTokenizeRequest, None, "Tokens of texts", _TEXTS, roots=("/tokenize",)),
    _post("", rerank, TeiRerankRequest, "similarity", "The same as /rerank", _RERANK),
    _post("", embed, TeiEmbedRequest, "embed", "The same as /embed", _TEXTS, claims=_is_embeddable),
    _post("", predict, TeiPredictRequest, "classify", "The same as /predict", _TEXTS, claims=_is_predictable),
    Call("GET", "/info", info, scopes=READERS, roots=("/info",), summary="Model and limits"),
    HEALTH,
)

PROTOCOL = Protocol("tei", "text-embeddings-inference", tuple(CALLS), error_body)
