"""The tools of the Model Context Protocol: the description of each for a language model, and its native request."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import orjson

from service.api.exchange import Exchange, whole
from service.api.native_bodies import answer_body
from service.errors import InvalidRequest
from service.pipeline import Answer
from service.tasks.registry import tasks_of
from service.tasks.text_model import TextModel

Structured = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Tool:
    """`body` makes the body of the native request of the arguments, `structured` the result of the answer."""

    task: str
    description: dict[str, Any]
    body: Callable[[dict[str, Any]], dict[str, Any]]
    structured: Callable[[Answer[Any]], Structured]
    summary: Callable[[Structured], str]

    @property
    def name(self) -> str:
        return str(self.description["name"])

    async def run(self, exchange: Exchange, arguments: dict[str, Any]) -> Structured:
        """Raises InvalidRequest, whose fields are those of the arguments."""
        known = self.description["inputSchema"]["properties"]
        if unknown := next((name for name in arguments if name not in known), None):
            raise InvalidRequest.of(unknown[:64], f"unknown argument; the known ones are {', '.join(known)}")
        answer = await answer_body(exchange, self.task, self.body(arguments), whole, rename=_argument)
        return self.structured(answer)


def offered(models: Mapping[str, TextModel]) -> list[Tool]:
    """The tools that the served models can do."""
    able = {task for model in models.values() for task in tasks_of(model)}
    return [tool for tool in TOOLS.values() if tool.task in able]


def _argument(path: str) -> str:
    return path.replace("inputs", "texts", 1) if path.startswith("inputs") else path


def _json(structured: Structured) -> str:
    return orjson.dumps(structured).decode()


def _described(
    name: str, title: str, text: str, required: tuple[str, ...], result: dict[str, Any], **arguments: Any
) -> dict[str, Any]:
    return {
        "name": name,
        "title": title,
        "description": text,
        "inputSchema": {
            "type": "object",
            "properties": arguments,
            "required": list(required),
            "additionalProperties": False,
        },
        "outputSchema": {
            "type": "object",
            "properties": {"model": {"type": "string"}, **result},
            "required": ["model", *result],
        },
        "annotations": {"readOnlyHint": True, "idempotentHint": True, "openWorldHint": False},
    }


_TEXT = {"type": "string", "minLength": 1}
_TEXTS = {"type": "array", "items": _TEXT, "minItems": 1}
_SCORE = {"type": "number"}
_LABEL = {"label": {"type": "string"}, "score": _SCORE}


def _results(properties: dict[str, Any]) -> dict[str, Any]:
    item = {"type": "object", "properties": properties, "required": list(properties)}
    return {"results": {"type": "array", "items": item}}


def _text_named(arguments: dict[str, Any], name: str) -> Any:
    if name not in arguments:
        raise InvalidRequest.of(name, "is required")
    return arguments[name]


def _classify_body(arguments: dict[str, Any]) -> dict[str, Any]:
    return {
        "inputs": _text_named(arguments, "texts"),
        **{name: arguments[name] for name in arguments if name != "texts"},
    }


def _classify_result(answer: Answer[Any]) -> Structured:
    results = [
        {
            "label": result.label,
            "score": result.score,
            "scores": [{"label": each.label, "score": each.score} for each in result.scores],
        }
        for result in answer.results
    ]
    return {"model": answer.model, "results": results}


def _similarity_body(arguments: dict[str, Any]) -> dict[str, Any]:
    return {"source": _text_named(arguments, "source"), "candidates": _text_named(arguments, "candidates")}


def _similarity_result(answer: Answer[Any]) -> Structured:
    return {"model": answer.model, "scores": [result.score for result in answer.results]}


def _answer_body(arguments: dict[str, Any]) -> dict[str, Any]:
    reading = {name: _text_named(arguments, name) for name in ("passage", "question")}
    return {"inputs": [reading | {name: arguments[name] for name in ("choices",) if name in arguments}]}


def _answer_result(answer: Answer[Any]) -> Structured:
    [result] = answer.results
    return {"model": answer.model, "answer": result.answer, "score": result.score}


def _embed_body(arguments: dict[str, Any]) -> dict[str, Any]:
    return {"inputs": _text_named(arguments, "texts")}


def _embed_result(answer: Answer[Any]) -> Structured:
    return {"model": answer.model, "embeddings": [result.embedding for result in answer.results]}


def _embed_summary(structured: Structured) -> str:
    vectors = structured["embeddings"]
    return f"{len(vectors)} vectors of {len(vectors[0])} numbers each, in structuredContent.embeddings"


_ALL = (
    Tool(
        "classify",
        _described(
            "classify",
            "Classify texts",
            "Choose for each text the label that fits, by labels of your own in natural language, or by a label set "
            "that is stored on the server. Works best for Chinese.",
            ("texts",),
            _results({**_LABEL, "scores": {"type": "array", "items": {"type": "object", "properties": _LABEL}}}),
            texts={**_TEXTS, "description": "The texts to classify."},
            labels={**_TEXTS, "uniqueItems": True, "description": "The labels to choose from, such as 好评 and 差评."},
            label_set={**_TEXT, "description": "Name of a stored label set, instead of labels."},
            question={**_TEXT, "description": "The question that the labels answer."},
            multi_label={"type": "boolean", "description": "Score each label by itself: several may fit."},
            top_k={"type": "integer", "minimum": 1, "description": "Number of best labels in scores."},
        ),
        _classify_body,
        _classify_result,
        _json,
    ),
    Tool(
        "similarity",
        _described(
            "similarity",
            "Compare texts",
            "Score from 0 to 1 how much each candidate means the same as the source.",
            ("source", "candidates"),
            {"scores": {"type": "array", "items": _SCORE}},
            source={**_TEXT, "description": "The text to compare with."},
            candidates={**_TEXTS, "description": "The texts to compare; the scores come in their order."},
        ),
        _similarity_body,
        _similarity_result,
        _json,
    ),
    Tool(
        "mrc",
        _described(
            "answer",
            "Answer a question on a passage",
            "Answer a question by a passage: choose one of the choices, or, without choices, find the part of the "
            "passage that answers (this needs a question-answering model on the server). The answer is null if the "
            "passage has none.",
            ("passage", "question"),
            {"answer": {"type": ["string", "null"]}, "score": _SCORE},
            passage={**_TEXT, "description": "The text that holds the answer."},
            question={**_TEXT, "description": "The question."},
            choices={**_TEXTS, "uniqueItems": True, "description": "The answers to choose from."},
        ),
        _answer_body,
        _answer_result,
        _json,
    ),
    Tool(
        "embed",
        _described(
            "embed",
            "Embed texts",
            "Make a vector for each text, for search and clustering.",
            ("texts",),
            {"embeddings": {"type": "array", "items": {"type": "array", "items": {"type": "number"}}}},
            texts={**_TEXTS, "description": "The texts to embed."},
        ),
        _embed_body,
        _embed_result,
        _embed_summary,
    ),
)
TOOLS = {tool.name: tool for tool in _ALL}
"""By name."""
