"""The parts of the OpenAPI document that FastAPI cannot derive: request bodies, headers, error responses, examples."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from http import HTTPStatus
from typing import Any

from fastapi import APIRouter, FastAPI
from fastapi.openapi.utils import get_openapi
from pydantic import BaseModel
from pydantic.json_schema import models_json_schema

from service.api.problems import MEDIA_TYPE, Problem
from service.api.request import PRIORITY_HEADER, TIMEOUT_HEADER
from service.domain import RANKS
from service.metric_labels import TASKS_WITH_METHODS
from service.settings import Server


@dataclass(frozen=True, slots=True)
class Example:
    """`requests` are by title; `reply` is the response to the first."""

    requests: dict[str, dict[str, Any]]
    reply: dict[str, Any]


def _reply(task: str, *results: tuple[dict[str, Any], int]) -> dict[str, Any]:
    """A response; each of `results` comes with its number of tokens."""
    shown = [{**result, "tokens": tokens, "truncated": False} for result, tokens in results]
    total = sum(tokens for _, tokens in results)
    by = {"method": "choice", "models": ["mini"]} if task in TASKS_WITH_METHODS else {}
    usage = {"tokens": total} | ({"label_tokens": 0} if task == "classify" else {})
    return {"model": "mini", "task": task, **by, "results": shown, "usage": usage}


def _scores(**scores: float) -> dict[str, Any]:
    """A classification result; the labels are given best first."""
    pairs = [{"label": label, "score": score} for label, score in scores.items()]
    return {**pairs[0], "scores": pairs}


def _decided(**scores: float) -> dict[str, Any]:
    """The same, with the decision."""
    found = _scores(**scores)
    return {**found, "decision": "label", "chosen": [found["label"]], "calibrated": False}


_PREMISE = "一个男人在公园里弹吉他。"
_PASSAGE = "小王每天早上六点起床，先跑步半个小时，然后吃早饭，七点半去上班。"

EXAMPLES = {
    "classify": Example(
        {
            "sentiment": {"inputs": "这家餐厅的菜很好吃，服务也周到。", "labels": ["好评", "差评"]},
            "news": {
                "inputs": ["国足客场两球取胜，晋级十二强赛", "央行宣布下调存款准备金率"],
                "labels": ["体育", "财经", "娱乐"],
                "question": "下面新闻属于哪一个类别？",
                "top_k": 2,
            },
            "several labels": {
                "inputs": "手机拍照清晰，但是电池不耐用。",
                "labels": ["拍照", "电池", "屏幕"],
                "multi_label": True,
            },
            "none of the labels": {
                "inputs": "你好，在吗？",
                "labels": ["退款", "物流", "发票"],
                "min_score": 0.8,
                "none_label": "其他",
            },
            "long text": {
                "inputs": "房间很大，早餐一般。" * 60,
                "labels": ["好评", "差评"],
                "truncation": "window",
                "stride": 64,
            },
        },
        _reply("classify", (_decided(好评=0.97, 差评=0.03), 25)),
    ),
    "similarity": Example(
        {
            "pairs": {"inputs": [["怎么更换绑定的手机号？", "绑定的手机号如何修改"]]},
            "candidates": {
                "source": "怎么更换绑定的手机号？",
                "candidates": ["绑定的手机号如何修改", "忘记密码怎么办"],
            },
        },
        _reply("similarity", ({"score": 0.93}, 48)),
    ),
    "mrc": Example(
        {
            "choice": {
                "inputs": [
                    {
                        "passage": _PASSAGE,
                        "question": "小王几点去上班？",
                        "choices": ["六点", "六点半", "七点半"],
                    }
                ]
            },
            "span": {"inputs": [{"passage": _PASSAGE, "question": "小王几点去上班？"}], "top_k": 2},
        },
        _reply("mrc", ({"answer": "七点半", "index": 2, "score": 0.88, "scores": [0.05, 0.07, 0.88]}, 55)),
    ),
    "nli": Example(
        {"pairs": {"inputs": [[_PREMISE, "有人在演奏乐器。"], [_PREMISE, "公园里一个人也没有。"]]}},
        _reply(
            "nli",
            (_scores(entailment=0.9, neutral=0.08, contradiction=0.02), 60),
            (_scores(contradiction=0.94, neutral=0.05, entailment=0.01), 66),
        ),
    ),
    "fill-mask": Example(
        {"one mask": {"inputs": ["北京是中国的首[MASK]。"], "top_k": 2}},
        _reply("fill-mask", ({"masks": [[{"token": "都", "score": 0.98}, {"token": "府", "score": 0.01}]]}, 11)),
    ),
    "embed": Example(
        {"texts": {"inputs": ["今天天气怎么样？", "明天会下雨吗"]}},
        _reply("embed", ({"embedding": [0.031, -0.124, 0.087]}, 10), ({"embedding": [0.042, -0.117, 0.065]}, 8))
        | {"model": "e5-small"},
    ),
}

ERROR = {
    "type": "about:blank",
    "title": "Unprocessable Entity",
    "status": 422,
    "code": "invalid_request",
    "detail": "inputs[3].text: must not be empty",
    "errors": [{"field": "inputs[3].text", "message": "must not be empty"}],
    "request_id": "5f2b0c6e9d8a4e63a1f7c2d4b8e90a11",
}


SCHEMA_REF = "#/components/schemas/{model}"
_CODES = {
    400: ("malformed_body", "Not JSON, not UTF-8, or nested too deep.", "the body is not JSON: it is empty"),
    401: ("unauthorized", "The API key is missing or unknown.", "this API key is unknown"),
    403: ("forbidden", "The API key lacks the scope of this route.", "this route needs a key with the scope infer"),
    404: ("model_not_found", "There is no such model.", "model: not served; the served models are mini, e5-small"),
    408: ("request_timeout", "The body arrived too slowly.", "the body of the request took too long"),
    412: (
        "precondition_failed",
        "The label set has another version.",
        'If-Match: the label set is "3-9f86d081"; read it again',
    ),
    413: ("body_too_large", "The body exceeds the size limit.", "the body is larger than 8388608 bytes"),
    415: ("unsupported_encoding", "The body is compressed.", "the body is compressed; send it as it is"),
    422: ("invalid_request", "A field is invalid, empty, too long or unknown.", ERROR["detail"]),
    429: (
        "queue_full",
        "The queue is full or the API key is at its limit; see Retry-After.",
        "the queue is full",
    ),
    500: ("inference_failed", "The model failed on this input.", "the model failed on inputs[0]"),
    503: (
        "unavailable",
        "Starting, stopping, or no replica is ready; see Retry-After.",
        "not ready: loading",
    ),
    504: (
        "deadline_exceeded",
        "The deadline passed before the response.",
        "the deadline passed while waiting",
    ),
    507: (
        "storage_full",
        "The disk that keeps label sets is full.",
        "the disk that keeps the label sets is full; nothing was changed",
    ),
}

_ID_HEADER = {"description": "Id of the request: the one in its headers, or a new one.", "schema": {"type": "string"}}
REPLY_HEADERS = {
    "X-Request-ID": _ID_HEADER,
    "Server-Timing": {
        "description": "Milliseconds per stage: `tokenize;dur=0.4, queue;dur=1.2, compute;dur=8.3`.",
        "schema": {"type": "string"},
    },
}
_RETRY_HEADERS = {
    "Retry-After": {"description": "Seconds to wait before a retry, rounded up.", "schema": {"type": "integer"}},
    "Retry-After-Ms": {"description": "Milliseconds to wait before a retry.", "schema": {"type": "integer"}},
}


_MORE_HEADERS: dict[int, dict[str, Any]] = {
    401: {"WWW-Authenticate": {"description": "`Bearer`.", "schema": {"type": "string"}}},
    429: _RETRY_HEADERS,
    503: _RETRY_HEADERS,
}


def _error(status: int) -> dict[str, Any]:
    code, description, detail = _CODES[status]
    errors = ERROR["errors"] if status == 422 else []
    example = {**ERROR, "title": HTTPStatus(status).phrase, "status": status, "code": code, "detail": detail}
    return {
        "description": description,
        "headers": {"X-Request-ID": _ID_HEADER, **_MORE_HEADERS.get(status, {})},
        "content": {
            MEDIA_TYPE: {
                "schema": {"$ref": SCHEMA_REF.format(model="Problem")},
                "example": {**example, "errors": errors},
            }
        },
    }


ERRORS: dict[int | str, dict[str, Any]] = {status: _error(status) for status in _CODES}
TASK_ERRORS = {status: error for status, error in ERRORS.items() if status not in (412, 507)}
NOT_READY: dict[int | str, dict[str, Any]] = {503: ERRORS[503]}
NO_KEY: dict[int | str, dict[str, Any]] = {status: ERRORS[status] for status in (401, 403)}
_KEYS = {
    "bearer": {"type": "http", "scheme": "bearer", "description": "The API key as a bearer token."},
    "header": {
        "type": "apiKey",
        "in": "header",
        "name": "X-API-Key",
        "description": "The API key, in a header.",
    },
}
_KEYLESS = ("/livez", "/readyz")


def _parameters(limits: Server) -> list[dict[str, Any]]:
    return [
        {
            "name": "X-Request-ID",
            "in": "header",
            "description": "An id for this request, which appears in the response and in the log.",
            "schema": {"type": "string"},
        },
        {
            "name": PRIORITY_HEADER,
            "in": "header",
            "description": "Same as `priority` in the body; `bulk` applies if either of them is `bulk`.",
            "schema": {"type": "string", "enum": list(RANKS)},
        },
        {
            "name": TIMEOUT_HEADER,
            "in": "header",
            "description": "Same as `timeout_ms` in the body; the shorter of the two applies.",
            "schema": {"type": "integer", "minimum": 1, "maximum": limits.max_timeout_ms},
        },
    ]


def request_body(model: type[BaseModel], examples: dict[str, dict[str, Any]], limits: Server) -> dict[str, Any]:
    """OpenAPI description of the body and the headers of a route that parses them itself."""
    content = {
        "schema": {"$ref": SCHEMA_REF.format(model=model.__name__)},
        "examples": {title: {"value": value} for title, value in examples.items()},
    }
    body = {"required": True, "content": {"application/json": content}}
    return {"requestBody": body, "parameters": _parameters(limits)}


async def described_elsewhere() -> None:
    # The endpoint of the documented routes; requests are served by Starlette routes with the same paths. Has no
    # docstring, because FastAPI would show it as the description of these routes.
    pass


def install(
    app: FastAPI,
    documented: Callable[[], APIRouter],
    requests: list[type[BaseModel]],
    limits: Server,
    *,
    with_keys: bool,
) -> None:
    """Makes `app.openapi()` describe the `documented` routes, the request schemas, the error format and the API keys.

    The routes that serve requests parse bodies themselves: FastAPI's body and response handling would add 90 us to the
    about 230 us of CPU time per request. The router that `documented` makes exists for the document
    alone, and is made with it.
    """

    def openapi() -> dict[str, Any]:
        if app.openapi_schema is None:
            definitions = _definitions(requests, limits)
            schema = get_openapi(
                title=app.title,
                version=app.version,
                description=app.description,
                routes=documented().routes,
                tags=app.openapi_tags,
            )
            schema.setdefault("components", {}).setdefault("schemas", {}).update(definitions)
            if with_keys:
                _require_keys(schema)
            app.openapi_schema = schema
        return app.openapi_schema

    app.openapi = openapi  # type: ignore[method-assign]


def _definitions(requests: list[type[BaseModel]], limits: Server) -> dict[str, Any]:
    """The JSON schemas of the bodies, and of a problem."""
    models = [(model, "validation") for model in (*requests, Problem)]
    _, definitions = models_json_schema(models, ref_template=SCHEMA_REF)  # type: ignore[arg-type]
    found: dict[str, Any] = definitions["$defs"]
    for model in requests:
        if timeout := found[model.__name__].get("properties", {}).get("timeout_ms"):
            timeout["maximum"] = limits.max_timeout_ms
    return found


def _require_keys(schema: dict[str, Any]) -> None:
    schema["components"]["securitySchemes"] = _KEYS
    schema["security"] = [{name: []} for name in _KEYS]
    for path in _KEYLESS:
        schema["paths"][path]["get"]["security"] = []
