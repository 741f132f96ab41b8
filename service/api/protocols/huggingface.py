"""Hugging Face Inference: what `InferenceClient` of huggingface_hub sends to a URL that it is given as the model.

It appends nothing to the URL, so the payload says which task it is: `source_sentence` similarity, `question` and
`context` reading comprehension, `candidate_labels` zero-shot, `[MASK]` fill-mask. `parameters` come with all but the
embeddings, whose options stand at the root of the body.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Annotated, Any, Literal, Self

from pydantic import BeforeValidator, Field, ModelWrapValidatorHandler, PrivateAttr, ValidationInfo, model_validator
from pydantic_core import PydanticCustomError
from starlette.responses import Response

from service.api.calls import Call, Models, Protocol
from service.api.exchange import Exchange, json_lists, json_response, renamed, server_timing
from service.api.field_types import (
    MAX_ANSWER_TOKENS,
    MAX_SPANS,
    MAX_STRIDE,
    MAX_THRESHOLD,
    ManyStrings,
    Names,
    PromptName,
    Str,
    Strings,
    TextInputs,
    TopK,
    Wire,
    check_inputs,
)
from service.api.protocols import ranking
from service.api.protocols.vectors import vectors_of
from service.checkpoints.heads import Activation
from service.errors import InvalidRequest, ServiceError
from service.pipeline import Answer
from service.slices import between_slices
from service.tasks.classify_query import ClassifyQuery, Text
from service.tasks.embedding import EmbedQuery
from service.tasks.extraction import SpanOptions, SpanResult
from service.tasks.fill_mask import MASK, FillMaskQuery
from service.tasks.labels import LabelList
from service.tasks.mrc import MrcQuery, Reading
from service.tasks.registry import TASKS, route
from service.tasks.task import Truncation
from service.tasks.text_model import TextModel

LISTS_SINCE = (1, 2)
"""From this version of huggingface_hub on, zero-shot replies are lists of labels with scores."""
_CLIENT = re.compile(r"hf_hub/(\d+)\.(\d+)")
_EMBED_OPTIONS = frozenset(
    {"normalize", "prompt_name", "truncate", "truncation_direction", "dimensions", "encoding_format"}
)
_APPLIED: dict[str, Activation] = {"softmax": "softmax", "sigmoid": "sigmoid", "none": "identity"}


class Options(Wire):
    """Of the former Inference API; a server of one's own has neither a cache to skip nor a model to wait for."""

    use_cache: bool | None = None
    wait_for_model: bool | None = None


class HfRequest(Wire):
    options: Options = Options()
    _is_single: bool = PrivateAttr(False)
    """Whether `inputs` is no list: the reply is none, either."""

    @model_validator(mode="wrap")
    @classmethod
    def _note_single(cls, value: Any, validate: ModelWrapValidatorHandler[Self]) -> Self:
        request = validate(value)
        request._is_single = not isinstance(value["inputs"], list)
        return request


class Sentences(Wire):
    source_sentence: Str
    sentences: ManyStrings


class NoParameters(Wire):
    pass


class HfSimilarityRequest(HfRequest):
    inputs: Sentences
    parameters: NoParameters = NoParameters()


class Question(Wire):
    question: Str
    context: Str


class QuestionParameters(Wire):
    """`align_to_words` has no effect: an answer always begins and ends with a token, and Chinese has no spaces."""

    top_k: Annotated[int, Field(ge=1, le=MAX_SPANS)] = 1
    doc_stride: Annotated[int, Field(ge=0, le=MAX_STRIDE)] | None = None
    max_answer_len: Annotated[int, Field(ge=1, le=MAX_ANSWER_TOKENS)] | None = None
    handle_impossible_answer: bool = False
    align_to_words: bool | None = None


class HfQuestionRequest(HfRequest):
    inputs: Question
    parameters: QuestionParameters = QuestionParameters()


def _split_labels(value: object) -> object:
    """The former API took labels with commas between them, too."""
    return [label.strip() for label in value.split(",")] if isinstance(value, str) else value


class ZeroShotParameters(Wire):
    candidate_labels: Annotated[Names, BeforeValidator(_split_labels)]
    multi_label: bool = False
    hypothesis_template: Str | None = None


class HfZeroShotRequest(HfRequest):
    inputs: Strings
    parameters: ZeroShotParameters


class MaskParameters(Wire):
    top_k: TopK = 5
    targets: (
        Annotated[ManyStrings, BeforeValidator(lambda value: [value] if isinstance(value, str) else value)] | None
    ) = None


class HfFillMaskRequest(HfRequest):
    inputs: Strings
    parameters: MaskParameters = MaskParameters()


class HfEmbedRequest(HfRequest):
    inputs: Strings
    normalize: bool | None = None
    prompt_name: PromptName | None = None
    truncate: bool | None = None
    truncation_direction: Annotated[
        Literal["left", "right"], BeforeValidator(lambda value: value.lower() if isinstance(value, str) else value)
    ] = "right"
    dimensions: Annotated[int, Field(ge=1)] | None = None
    encoding_format: Literal["float"] | None = None
    parameters: NoParameters = NoParameters()

    @property
    def truncation(self) -> Truncation:
        return "error" if self.truncate is False else self.truncation_direction


class ClassifyParameters(Wire):
    top_k: TopK | None = None
    function_to_apply: Literal["sigmoid", "softmax", "none"] | None = None


def _one_or_many(value: object, info: ValidationInfo) -> list[Any]:
    if not isinstance(value, str | dict | list):
        raise PydanticCustomError("invalid", "must be a text, an object with text and text_pair, or a list of those")
    return check_inputs(value if isinstance(value, list) else [value], info)


class HfClassifyRequest(HfRequest):
    inputs: Annotated[TextInputs, BeforeValidator(_one_or_many)]
    parameters: ClassifyParameters = ClassifyParameters()


def _model(exchange: Exchange) -> str | None:
    """The model that the URL names."""
    name: str | None = exchange.request.path_params.get("model")
    return name


async def sentence_similarity(exchange: Exchange, body: HfSimilarityRequest) -> Response:
    source, sentences = body.inputs.source_sentence, body.inputs.sentences
    scored = await ranking.compare(exchange, source, sentences, model=_model(exchange))
    return json_response(scored.scores, server_timing(scored.timing))


async def question_answering(exchange: Exchange, body: HfQuestionRequest) -> Response:
    """One answer for `top_k` 1, else a list. Without `handle_impossible_answer` the best span is the answer."""
    given = body.parameters
    stride = {} if given.doc_stride is None else {"stride": given.doc_stride}
    longest = {} if given.max_answer_len is None else {"max_answer_tokens": given.max_answer_len}
    threshold = 0.0 if given.handle_impossible_answer else MAX_THRESHOLD
    spans = SpanOptions(top_k=given.top_k, null_threshold=threshold, **stride, **longest)
    query = MrcQuery((Reading(body.inputs.context, body.inputs.question),), spans=spans)

    def write(answer: Answer[Any], is_large: bool) -> Response:
        found = _answers(answer.results[0], given.handle_impossible_answer)
        content = found[0] if given.top_k == 1 else found
        return json_response(content, server_timing(answer.timing))

    rename = renamed({"inputs[0].passage": "inputs.context", "inputs[0].question": "inputs.question"})
    return await exchange.answer("mrc", query, write, model=_model(exchange), rename=rename)


def _answers(result: SpanResult, can_be_none: bool) -> list[dict[str, Any]]:
    found = [
        {"answer": one.answer, "score": one.score, "start": one.start, "end": one.end} for one in result.candidates
    ]
    nothing = {"answer": "", "score": result.no_answer_score, "start": 0, "end": 0}
    if not found:
        return [nothing]
    return [nothing, *found] if can_be_none and result.answer is None else found


async def zero_shot_classification(exchange: Exchange, body: HfZeroShotRequest) -> Response:
    labels, template = body.parameters.candidate_labels, body.parameters.hypothesis_template
    if template is not None and "{}" not in template:
        raise InvalidRequest.of("parameters.hypothesis_template", "must have {} in the place of the label")
    # Not str.format: a template is a client's text, and could name attributes.
    shown = {template.replace("{}", label) if template else label: label for label in labels}
    query = ClassifyQuery(
        tuple(Text(text) for text in body.inputs),
        LabelList.of(shown),
        multi_label=body.parameters.multi_label,
        is_alone=_model(exchange) is not None,
    )
    has_lists = _takes_lists(exchange)

    def write(answer: Answer[Any], is_large: bool) -> Response:
        found: list[Any] = []
        for text, result in zip(body.inputs, answer.results, strict=True):
            between_slices()
            ranked = [(shown[one.label], one.score) for one in result.scores]
            if has_lists:
                found.append([{"label": label, "score": score} for label, score in ranked])
            else:
                found.append(
                    {"sequence": text, "labels": [one for one, _ in ranked], "scores": [one for _, one in ranked]}
                )
        return json_response(found[0] if body._is_single else found, server_timing(answer.timing))

    rename = renamed({"labels": "parameters.candidate_labels"})
    return await exchange.answer("classify", query, write, model=_model(exchange), rename=rename)


def _takes_lists(exchange: Exchange) -> bool:
    found = _CLIENT.search(exchange.request.headers.get("user-agent", ""))
    return found is None or (int(found[1]), int(found[2])) >= LISTS_SINCE


async def fill_mask(exchange: Exchange, body: HfFillMaskRequest) -> Response:
    """The best tokens of each mask; of several masks one list for each."""
    models, given = exchange.state.pipeline.models, body.parameters
    chosen = route(models, TASKS["fill-mask"], FillMaskQuery(()), _model(exchange))
    targets = None if given.targets is None else _target_ids(chosen, given.targets)
    # Probabilities are those of the whole vocabulary: with targets, all of it is asked for.
    top_k = given.top_k if targets is None else chosen.tokenizer.get_vocab_size()
    query = FillMaskQuery(tuple(body.inputs), top_k)

    def write(answer: Answer[Any], is_large: bool) -> Response:
        content = []
        for text, result in zip(body.inputs, answer.results, strict=True):
            masks = [
                _filled(chosen, text, place, [(one.token, one.score) for one in mask], targets, given.top_k)
                for place, mask in enumerate(result.masks)
            ]
            content.append(masks[0] if len(masks) == 1 else masks)
        return json_response(content[0] if body._is_single else content, server_timing(answer.timing))

    return await exchange.answer("fill-mask", query, write, model=chosen.name)


def _target_ids(model: TextModel, targets: Sequence[str]) -> frozenset[int]:
    """The first token of each target, as the pipeline of transformers takes it."""
    found = model.tokenize(targets, 1)
    for index, ids in enumerate(found):
        if not ids:
            raise InvalidRequest.of(f"parameters.targets[{index}]", f"has no token for {model.name}")
    return frozenset(ids[0] for ids in found)


def _filled(
    model: TextModel,
    text: str,
    place: int,
    tokens: Sequence[tuple[str, float]],
    targets: frozenset[int] | None,
    top_k: int,
) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = []
    before, after = _around(text, place)
    for token, score in tokens:
        between_slices()
        token_id = model.tokenizer.token_to_id(token)
        if targets is not None and token_id not in targets:
            continue
        word = token.removeprefix("##").removeprefix("▁")
        found.append({"score": score, "token": token_id, "token_str": word, "sequence": before + word + after})
        if len(found) == top_k:
            break
    return found


def _around(text: str, place: int) -> tuple[str, str]:
    """The text before and after its mask number `place`."""
    pieces = text.split(MASK)
    return MASK.join(pieces[: place + 1]), MASK.join(pieces[place + 1 :])


async def feature_extraction(exchange: Exchange, body: HfEmbedRequest) -> Response:
    """One vector for a text, a list of vectors for a list."""
    query = EmbedQuery(
        tuple(body.inputs), normalize=body.normalize, prompt_name=body.prompt_name, truncation=body.truncation
    )

    def write(answer: Answer[Any], is_large: bool) -> Response:
        vectors = vectors_of(answer.results, body.dimensions, is_scaled=body.normalize is not False)
        content = vectors[0] if body._is_single else json_lists(vectors)
        return json_response(content, server_timing(answer.timing))

    return await exchange.answer("embed", query, write, model=_model(exchange))


async def text_classification(exchange: Exchange, body: HfClassifyRequest) -> Response:
    """A list of labels for each text, also for one."""
    given = body.parameters
    query = ClassifyQuery(tuple(Text(one.text, one.text_pair) for one in body.inputs), top_k=given.top_k)
    chosen = route(exchange.state.pipeline.models, TASKS["classify"], query, _model(exchange))
    applied = chosen.head.activation if chosen.head else None
    if given.function_to_apply is not None and _APPLIED[given.function_to_apply] != applied:
        detail = f"the scores of {chosen.name} are made by {applied}, which its checkpoint declares"
        raise InvalidRequest.of("parameters.function_to_apply", detail)

    def write(answer: Answer[Any], is_large: bool) -> Response:
        found = []
        for result in answer.results:
            between_slices()
            found.append([{"label": one.label, "score": one.score} for one in result.scores])
        return json_response(found, server_timing(answer.timing))

    return await exchange.answer("classify", query, write, model=chosen.name)


def error_body(error: ServiceError, request_id: str) -> dict[str, Any]:
    return {"error": error.detail, "code": error.code, "request_id": request_id}


def _inputs_with(*names: str) -> Any:
    def claims(value: Any, models: Models) -> bool:
        inputs = value.get("inputs") if isinstance(value, dict) else None
        return isinstance(inputs, dict) and all(name in inputs for name in names)

    return claims


def _has_candidates(value: Any, models: Models) -> bool:
    parameters = value.get("parameters") if isinstance(value, dict) else None
    return isinstance(parameters, dict) and "inputs" in value and "candidate_labels" in parameters


def _has_embed_options(value: Any, models: Models) -> bool:
    return isinstance(value, dict) and "inputs" in value and not _EMBED_OPTIONS.isdisjoint(value)


def _has_masks(value: Any, models: Models) -> bool:
    inputs = value.get("inputs") if isinstance(value, dict) else None
    first = inputs[0] if isinstance(inputs, list) and inputs else inputs
    return isinstance(first, str) and MASK in first and any(model.kind == "masked-lm" for model in models.values())


def _is_classification(value: Any, models: Models) -> bool:
    """A body with `parameters`, or one to a classifier: without them it could be an embedding as well."""
    if not isinstance(value, dict) or "inputs" not in value:
        return False
    has_classifier = any(model.kind == "sequence-classification" for model in models.values())
    return "parameters" in value or (has_classifier and not any(model.embedding for model in models.values()))


def _has_inputs(value: Any, models: Models) -> bool:
    return isinstance(value, dict) and "inputs" in value


_SIMILARITY = {"inputs": {"source_sentence": "怎么更换手机号", "sentences": ["如何修改绑定的手机", "电池多久充满"]}}
_QUESTION = {"inputs": {"question": "小王几点去上班？", "context": "小王早上六点半起床，七点半去上班。"}}
_ZERO_SHOT = {"inputs": "这家餐厅的菜很好吃", "parameters": {"candidate_labels": ["美食", "体育"]}}
_FILL_MASK = {"inputs": "北京是中国的首[MASK]。", "parameters": {"top_k": 2}}
_EMBED = {"inputs": "今天天气怎么样？", "normalize": True}
_CLASSIFY = {"inputs": "这家餐厅的菜很好吃", "parameters": {"top_k": 1}}
_SIMILARITY_PATH, _EMBED_PATH = "/pipeline/sentence-similarity", "/pipeline/feature-extraction"


def _calls(path: str) -> list[Call]:
    roots = () if path else ("/",)

    def call(task: str, handle: Any, body: Any, claims: Any, summary: str, example: Any, wants: str) -> Call:
        return Call(
            "POST",
            path,
            handle,
            body=body,
            task=task,
            roots=roots,
            claims=claims,
            summary=summary,
            example=example,
            wants=wants,
        )

    return [
        call(
            "similarity",
            sentence_similarity,
            HfSimilarityRequest,
            _inputs_with("source_sentence"),
            "Similarities",
            _SIMILARITY,
            "`inputs` with `source_sentence` and `sentences`",
        ),
        call(
            "mrc",
            question_answering,
            HfQuestionRequest,
            _inputs_with("question", "context"),
            "Answer to a question",
            _QUESTION,
            "`inputs` with `question` and `context`",
        ),
        call(
            "classify",
            zero_shot_classification,
            HfZeroShotRequest,
            _has_candidates,
            "Zero-shot classification",
            _ZERO_SHOT,
            "`inputs` and `parameters.candidate_labels`",
        ),
        call("embed", feature_extraction, HfEmbedRequest, _has_embed_options, "Embeddings", _EMBED, "`inputs`"),
        call("fill-mask", fill_mask, HfFillMaskRequest, _has_masks, "Tokens for masks", _FILL_MASK, "`inputs`"),
        call(
            "classify",
            text_classification,
            HfClassifyRequest,
            _is_classification,
            "Classification",
            _CLASSIFY,
            "`inputs`",
        ),
        call("embed", feature_extraction, HfEmbedRequest, _has_inputs, "Embeddings", _EMBED, "`inputs`"),
    ]


def _pipelines(path: str) -> list[Call]:
    """The URLs that name the task, as those of Hugging Face do for the two tasks of an embedding model."""
    return [
        Call(
            "POST",
            path + _SIMILARITY_PATH,
            sentence_similarity,
            body=HfSimilarityRequest,
            task="similarity",
            summary="Similarities",
            example=_SIMILARITY,
        ),
        Call(
            "POST",
            path + _EMBED_PATH,
            feature_extraction,
            body=HfEmbedRequest,
            task="embed",
            summary="Embeddings",
            example=_EMBED,
        ),
    ]


PROTOCOL = Protocol(
    "huggingface",
    "Hugging Face Inference",
    (*_pipelines(""), *_pipelines("/models/{model:path}"), *_calls(""), *_calls("/models/{model:path}")),
    error_body,
)
