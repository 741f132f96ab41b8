"""An example as a request of the native HTTP protocol, and the option that its reply chose. Knows no connections."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any

from service.datasets.example import Example

CHUNK = 16
SIMILAR = 0.5


class EvaluationError(Exception):
    """The server cannot be reached, or cannot do what is measured."""


@dataclass(frozen=True, slots=True)
class Asked:
    """One example and the option that the server chose; None when it refused the input, with the reason."""

    example: Example
    chosen: str | None
    truncated: bool = False
    reason: str = ""

    @property
    def wanted(self) -> str:
        return self.example.options[self.example.answer]

    @property
    def is_correct(self) -> bool:
        return self.chosen == self.wanted


def chunks(examples: Sequence[Example]) -> Iterator[Sequence[Example]]:
    """Neighbours that fit into one request: classification shares labels and question among its inputs."""
    for _, group in groupby(examples, _shared):
        members = list(group)
        yield from (members[start : start + CHUNK] for start in range(0, len(members), CHUNK))


def request_of(chunk: Sequence[Example], head: bool = False) -> tuple[str, dict[str, Any]]:
    """Path and body. With `head` a classification names no labels: a fine-tuned model answers with its own."""
    first = chunk[0]
    if first.task == "mrc":
        return "/v1/mrc", {"inputs": [_reading(example) for example in chunk]}
    if first.task in ("similarity", "nli"):
        return f"/v1/{first.task}", {"inputs": [list(example.texts) for example in chunk]}
    body: dict[str, Any] = {"inputs": [_text(example) for example in chunk]}
    if not head:
        body["labels"] = _distinct(first.options)
        if first.question is not None:
            body["question"] = first.question
    return "/v1/classify", body


def asked(example: Example, result: dict[str, Any]) -> Asked:
    match example.task:
        case "mrc":
            chosen = result["answer"]
        case "similarity":
            chosen = example.options[int(result["score"] >= SIMILAR)]
        case _:
            chosen = result["label"]
    return Asked(example, chosen, result["truncated"])


def _shared(example: Example) -> tuple[object, ...]:
    if example.task == "classify":
        return example.task, example.options, example.question
    return (example.task,)


def _text(example: Example) -> str | dict[str, str]:
    first, *rest = example.texts
    return {"text": first, "text_pair": rest[0]} if rest else first


def _reading(example: Example) -> dict[str, Any]:
    return {"passage": example.texts[0], "question": example.question or "", "choices": _distinct(example.options)}


def _distinct(options: Iterable[str]) -> list[str]:
    """Data sets repeat an option now and then; the service refuses to be asked the same twice."""
    return list(dict.fromkeys(options))
