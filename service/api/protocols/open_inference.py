"""The Open Inference Protocol v2, as `tritonclient[http]` and KServe speak it: every task with tensors of texts.

A model of the protocol is a served model, or a task by its name, which the server gives to the model it would choose.
The inputs become the body of the native request for the task: what that accepts, this protocol accepts.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
from pydantic import Field
from starlette.responses import Response

from service.api.accounts import KeyScope
from service.api.auth import OPEN, READERS
from service.api.calls import RAW, Call, Handle
from service.api.exchange import Exchange, json_response, server_timing
from service.api.field_types import Lenient
from service.api.json_body import Body, is_quick, max_values, parse_json, text_memory, validate
from service.api.native_bodies import answer_request, read_body
from service.api.protocols.tensors import (
    HEADER_LENGTH,
    InputTensor,
    Output,
    OutputTensor,
    header_length,
    read_texts,
    write,
)
from service.api.request import not_ready
from service.api.schemas import TaskRequest
from service.errors import InvalidRequest, ModelNotFound, Unavailable
from service.pipeline import Answer
from service.settings import VERSION as SERVICE_VERSION
from service.tasks.registry import TASKS, names_of, tasks_of
from service.tasks.text_model import TextModel

PLATFORM = "erlangshen"
VERSION = "1"
MAX_TENSORS = 16
MICROSECONDS = 1000
_RESERVED = frozenset({"sequence_id", "sequence_start", "sequence_end", "headers"})
"""Parameters of Triton that mean nothing here."""
_READ_ELSEWHERE = frozenset({"priority", "timeout", "binary_data_output", "task"})


class InferRequest(Lenient):
    """The JSON of an inference request."""

    id: str | None = Field(None, max_length=256)
    inputs: list[InputTensor] = Field(min_length=1, max_length=MAX_TENSORS)
    outputs: list[OutputTensor] | None = Field(None, max_length=MAX_TENSORS)
    parameters: dict[str, bool | int | float | str] = Field({}, max_length=32)


@dataclass(frozen=True, slots=True)
class Signature:
    """The tensors of a task; `text` comes first and is required, of the `optional` ones some exclude each other."""

    required: tuple[str, ...]
    outputs: Mapping[str, tuple[str, int]]
    """The datatype and the number of dimensions of each."""
    optional: tuple[str, ...] = ()
    singular: tuple[str, ...] = ()
    """Those of one element, whatever the number of texts."""


SIGNATURES = {
    "classify": Signature(
        ("text",),
        {"label": ("BYTES", 1), "score": ("FP32", 1), "labels": ("BYTES", 2), "scores": ("FP32", 2)},
        optional=("text_pair", "labels", "question"),
        singular=("question",),
    ),
    "similarity": Signature(("text", "text_pair"), {"score": ("FP32", 1)}),
    "mrc": Signature(
        ("text", "question"),
        {"answer": ("BYTES", 1), "score": ("FP32", 1)},
        optional=("choices",),
    ),
    "nli": Signature(
        ("text", "text_pair"),
        {"label": ("BYTES", 1), "score": ("FP32", 1), "labels": ("BYTES", 2), "scores": ("FP32", 2)},
    ),
    "fill-mask": Signature(("text",), {"tokens": ("BYTES", 3), "scores": ("FP32", 3)}),
    "embed": Signature(("text",), {"embedding": ("FP32", 2)}),
}
"""By task. `labels` and `choices` hold for all texts."""


def find_model(models: Mapping[str, TextModel], name: str, task: str | None) -> tuple[str, str | None]:
    """The task and the served model that a model of the protocol stands for; None: the server chooses the model.

    Raises:
        ModelNotFound: it is neither a served model nor a task.
        InvalidRequest: `task` is no task, or contradicts the name.
    """
    if task is not None and task not in TASKS:
        raise InvalidRequest.of("parameters.task", f"must be one of {', '.join(TASKS)}")
    if len(found := names_of(models, name)) == 1:
        return task or default_task(models[found[0]]), found[0]
    if name not in TASKS:
        raise ModelNotFound(f"model: not served; there are {', '.join([*models, *TASKS])}")
    if task not in (None, name):
        raise InvalidRequest.of("parameters.task", f"must be {name} or absent: this model is that task")
    return name, None


def default_task(model: TextModel) -> str:
    """The task of a model where a request names none: what it was made for, else the first that it can do."""
    if model.tasks:
        return model.tasks[0]
    return "embed" if model.embedding is not None else tasks_of(model)[0]


def metadata(name: str, task: str) -> dict[str, Any]:
    """The reply of `GET /v2/models/{name}`: optional inputs are listed, too."""
    signature = SIGNATURES[task]
    inputs = [_tensor(each, "BYTES", 1) for each in (*signature.required, *signature.optional)]
    outputs = [_tensor(each, datatype, ndim) for each, (datatype, ndim) in signature.outputs.items()]
    return {"name": name, "versions": [VERSION], "platform": PLATFORM, "inputs": inputs, "outputs": outputs}


def config(name: str, task: str, max_inputs: int) -> dict[str, Any]:
    """The reply of `GET /v2/models/{name}/config`, as Triton has it; it says which inputs are optional."""
    signature = SIGNATURES[task]
    triton = {"BYTES": "TYPE_STRING", "FP32": "TYPE_FP32"}
    return {
        "name": name,
        "platform": PLATFORM,
        "max_batch_size": 0,
        "input": [
            {"name": each, "data_type": "TYPE_STRING", "dims": [-1], "optional": each in signature.optional}
            for each in (*signature.required, *signature.optional)
        ],
        "output": [
            {"name": each, "data_type": triton[datatype], "dims": [-1] * ndim}
            for each, (datatype, ndim) in signature.outputs.items()
        ],
        "parameters": {"max_inputs": {"string_value": str(max_inputs)}},
    }


def _tensor(name: str, datatype: str, ndim: int) -> dict[str, Any]:
    return {"name": name, "datatype": datatype, "shape": [-1] * ndim}


def native_body(
    task: str, tensors: Mapping[str, list[str]], parameters: Mapping[str, Any], max_timeout_ms: int
) -> dict[str, Any]:
    """The body of the native request: the texts and labels of the tensors, and what the parameters say.

    Raises InvalidRequest.
    """
    signature = SIGNATURES[task]
    if len(tensors) == 1 and signature.required == ("text",):
        tensors = {"text": next(iter(tensors.values()))}  # clients of other servers have other names for it
    known = (*signature.required, *signature.optional)
    for name in tensors:
        if name not in known:
            raise InvalidRequest.of("inputs", f"an input of this model is {' or '.join(known)}")
    for name in signature.required:
        if name not in tensors:
            raise InvalidRequest.of("inputs", f"the input {name} is required")
    ignored = _RESERVED | _READ_ELSEWHERE
    body = {name: value for name, value in parameters.items() if name not in ignored}
    body |= {"inputs": _inputs(task, tensors)}
    if task == "classify":
        body |= {name: tensors[name] for name in ("labels",) if name in tensors}
        body |= {"question": _single(tensors["question"])} if "question" in tensors else {}
    return body | _urgency(parameters, max_timeout_ms)


def _inputs(task: str, tensors: Mapping[str, list[str]]) -> list[Any]:
    texts = tensors["text"]
    for name in ("text_pair",) if task != "mrc" else ():
        if name in tensors and len(tensors[name]) != len(texts):
            raise InvalidRequest.of("inputs", f"{name} has {len(tensors[name])} elements, and text {len(texts)}")
    match task:
        case "classify" if "text_pair" in tensors:
            pairs = zip(texts, tensors["text_pair"], strict=True)
            return [{"text": text, "text_pair": pair} for text, pair in pairs]
        case "similarity" | "nli":
            return [[text, pair] for text, pair in zip(texts, tensors["text_pair"], strict=True)]
        case "mrc":
            return _readings(texts, tensors["question"], tensors.get("choices"))
        case _:
            return texts


def _readings(passages: list[str], questions: list[str], choices: list[str] | None) -> list[dict[str, Any]]:
    """One question may be for all passages, and one passage for all questions."""
    count = max(len(passages), len(questions))
    if not passages or not questions or len(passages) not in (1, count) or len(questions) not in (1, count):
        raise InvalidRequest.of("inputs", f"question has {len(questions)} elements, and text {len(passages)}")
    given = {} if choices is None else {"choices": choices}
    return [
        {"passage": passages[index % len(passages)], "question": questions[index % len(questions)], **given}
        for index in range(count)
    ]


def _single(texts: list[str]) -> str:
    if len(texts) != 1:
        raise InvalidRequest.of("inputs", f"question must have one element, not {len(texts)}")
    return texts[0]


def _urgency(parameters: Mapping[str, Any], max_timeout_ms: int) -> dict[str, Any]:
    """`priority` and `timeout` (microseconds) as Triton has them: 1 is the highest priority, 0 the default one."""
    found: dict[str, Any] = {}
    for name in ("priority", "timeout"):
        value = parameters.get(name, 0)
        if isinstance(value, bool) or not isinstance(value, int) or value < 0:
            raise InvalidRequest.of(f"parameters.{name}", "must be a whole number of at least 0")
        if name == "priority" and value > 1:
            found["priority"] = "bulk"
        if name == "timeout" and value:
            found["timeout_ms"] = min(math.ceil(value / MICROSECONDS), max_timeout_ms)
    return found


def outputs_of(task: str, results: Sequence[Any]) -> list[Output]:
    """The tensors of the results, in the order of the signature.

    Raises InvalidRequest where results of different sizes fit into no tensor.
    """
    count = len(results)
    match task:
        case "classify" | "nli":
            best = [[each.label for each in result.scores] for result in results]
            scores = [[each.score for each in result.scores] for result in results]
            return [
                _texts("label", [result.label for result in results], (count,)),
                _numbers("score", [result.score for result in results]),
                _texts("labels", [label for row in best for label in row], (count, len(best[0]))),
                _numbers("scores", scores),
            ]
        case "mrc":
            return [
                _texts("answer", [result.answer or "" for result in results], (count,)),
                _numbers("score", [result.score for result in results]),
            ]
        case "fill-mask":
            return _masks(results)
        case "embed":
            return [_numbers("embedding", [result.embedding for result in results])]
        case _:
            return [_numbers("score", [result.score for result in results])]


def _masks(results: Sequence[Any]) -> list[Output]:
    num_masks = len(results[0].masks)
    if any(len(result.masks) != num_masks for result in results):
        raise InvalidRequest.of("inputs", "must have the same number of masks in each text of a request")
    shape = (len(results), num_masks, len(results[0].masks[0]))
    tokens = [each.token for result in results for mask in result.masks for each in mask]
    scores = [[[each.score for each in mask] for mask in result.masks] for result in results]
    return [_texts("tokens", tokens, shape), _numbers("scores", scores)]


def _texts(name: str, texts: list[str], shape: tuple[int, ...]) -> Output:
    return Output(name, shape, texts)


def _numbers(name: str, values: Any) -> Output:
    array = np.asarray(values, dtype=np.float32)
    return Output(name, array.shape, array)


def select(
    outputs: Sequence[Output], wanted: Sequence[OutputTensor] | None, is_binary: bool
) -> list[tuple[Output, bool]]:
    """The outputs that a request names, or all, and whether each is sent as binary data. Raises InvalidRequest."""
    if not wanted:
        return [(output, is_binary) for output in outputs]
    by_name = {output.name: output for output in outputs}
    for one in wanted:
        if one.name not in by_name:
            raise InvalidRequest.of("outputs", f"an output of this model is {' or '.join(by_name)}")
    return [
        (by_name[one.name], is_binary if one.parameters.binary_data is None else one.parameters.binary_data)
        for one in wanted
    ]


async def infer(exchange: Exchange, data: Body) -> Response:
    """`POST /v2/models/{name}/infer`."""
    given = exchange.request.headers.get(HEADER_LENGTH)
    size = len(data) if given is None else header_length(given, len(data))
    read = partial(_read, exchange, data, size)
    if is_quick(data):
        return await _answer(exchange, *read())
    with exchange.state.memory.reserved(text_memory(data)):
        return await _answer(exchange, *await exchange.in_thread(read))


async def _answer(exchange: Exchange, infer: InferRequest, task: str, body: TaskRequest) -> Response:
    exchange.context.task = task
    name = exchange.request.path_params["name"]
    exchange.narrow(timeout_ms=body.timeout_ms, priority=body.priority)
    return await answer_request(exchange, task, body, partial(_respond, infer, name, task), rename=_rename)


def _read(exchange: Exchange, data: Body, size: int) -> tuple[InferRequest, str, TaskRequest]:
    """The request of a body whose first `size` bytes are JSON, its task, and its native form."""
    limits, view = exchange.limits, memoryview(data)
    infer = validate(parse_json(data[:size], max_values(limits)), InferRequest, limits)
    given = infer.parameters.get("task")
    task, model = find_model(
        exchange.state.pipeline.models, exchange.request.path_params["name"], None if given is None else str(given)
    )
    tensors = read_texts(infer.inputs, view[size:], max(limits.max_inputs, limits.max_labels))
    value = native_body(task, tensors, infer.parameters, limits.max_timeout_ms)
    if model is not None:
        value["model"] = model
    return infer, task, read_body(exchange, task, value, _rename)


def _rename(path: str) -> str:
    """`inputs` is the tensor of texts; the others have the names of the native fields, or are parameters."""
    return path if path.startswith(("inputs", "labels", "question")) else f"parameters.{path}"


def _respond(infer: InferRequest, name: str, task: str, answer: Answer[Any], is_large: bool) -> Response:
    is_binary = infer.parameters.get("binary_data_output") is True
    chosen = select(outputs_of(task, answer.results), infer.outputs, is_binary)
    head = {"model_name": name, "model_version": VERSION} | ({} if infer.id is None else {"id": infer.id})
    content, size = write(head, [output for output, _ in chosen], [binary for _, binary in chosen])
    headers = server_timing(answer.timing) | ({} if size is None else {HEADER_LENGTH: str(size)})
    media_type = "application/json" if size is None else "application/octet-stream"
    return Response(content, 200, headers, media_type)


async def describe(exchange: Exchange, _: None) -> Response:
    """`GET /v2/models/{name}`."""
    name, task = _named(exchange)
    return json_response(metadata(name, task))


async def configure(exchange: Exchange, _: None) -> Response:
    """`GET /v2/models/{name}/config`."""
    name, task = _named(exchange)
    return json_response(config(name, task, exchange.limits.max_inputs))


async def model_ready(exchange: Exchange, _: None) -> Response:
    """`GET /v2/models/{name}/ready`."""
    name, _task = _named(exchange)
    _check_ready(exchange)
    return json_response({"name": name, "ready": True})


async def ready(exchange: Exchange, _: None) -> Response:
    """`GET /v2/health/ready`."""
    _check_ready(exchange)
    return json_response({"ready": True})


async def live(exchange: Exchange, _: None) -> Response:
    """`GET /v2/health/live`."""
    check_alive(exchange)
    return json_response({"live": True})


def check_alive(exchange: Exchange) -> None:
    """Raises Unavailable."""
    if reason := exchange.state.why_not_alive():
        raise Unavailable(f"not alive: {reason}")


async def describe_server(exchange: Exchange, _: None) -> Response:
    """`GET /v2`."""
    extensions = ["binary_tensor_data", "model_configuration", "parameters"]
    return json_response({"name": "erlangshen-service", "version": SERVICE_VERSION, "extensions": extensions})


async def index(exchange: Exchange, _: Body) -> Response:
    """`POST /v2/repository/index`: the served models, and the tasks that they can do."""
    models = exchange.state.pipeline.models
    tasks = dict.fromkeys(task for model in models.values() for task in tasks_of(model))
    names = dict.fromkeys([*models, *tasks])
    state = "READY" if exchange.state.why_not_ready() is None else "UNAVAILABLE"
    return json_response([{"name": name, "version": VERSION, "state": state, "reason": ""} for name in names])


def _named(exchange: Exchange) -> tuple[str, str]:
    name = exchange.request.path_params["name"]
    return name, find_model(exchange.state.pipeline.models, name, None)[0]


def _check_ready(exchange: Exchange) -> None:
    if reason := exchange.state.why_not_ready():
        raise not_ready(reason)


def _get(path: str, handle: Handle, summary: str, scopes: frozenset[KeyScope] = READERS) -> Call:
    return Call("GET", path, handle, scopes=scopes, roots=(path,), summary=summary)


_MODEL = "/v2/models/{name}"
_VERSIONED = f"{_MODEL}/versions/{VERSION}"
CALLS = (
    _get("/v2", describe_server, "The server and its extensions"),
    _get("/v2/health/live", live, "Liveness", OPEN),
    _get("/v2/health/ready", ready, "Readiness", OPEN),
    *(
        call
        for path in (_MODEL, _VERSIONED)
        for call in (
            _get(path, describe, "The tensors of a model"),
            _get(f"{path}/config", configure, "The same as Triton has it"),
            _get(f"{path}/ready", model_ready, "Whether a model is ready"),
            Call(
                "POST",
                f"{path}/infer",
                infer,
                RAW,
                task="classify",
                roots=(f"{path}/infer",),
                narrows=True,
                summary="Any task, with tensors of texts",
            ),
        )
    ),
    Call(
        "POST",
        "/v2/repository/index",
        index,
        RAW,
        scopes=READERS,
        roots=("/v2/repository/index",),
        is_limited=False,
        summary="All models",
    ),
)
