"""Evaluation of a running server: examples as requests, the server's answers, and the report of its accuracy."""

from __future__ import annotations

import asyncio
import math
from collections import Counter
from collections.abc import Awaitable, Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any

import httpx

from service.host import is_loopback
from service.tools.data.converters import Example

CHUNK = 16
"""Inputs per request."""
IN_FLIGHT = 8
MAX_ATTEMPTS = 8
MAX_WAIT_S = 30.0
TIMEOUT_S = 120.0
BUSY = (429, 503)
SIMILAR = 0.5
"""The lowest score of a similar pair."""

Sleep = Callable[[float], Awaitable[object]]
OnExamples = Callable[[int], object]
"""Called with the number of examples that have been answered since the last call."""


class EvaluationError(Exception):
    """The server cannot be reached, or cannot do the task."""


@dataclass(frozen=True, slots=True)
class Answer:
    """One example and the option that the server chose: None with the reason if it refused the input."""

    example: Example
    chosen: str | None
    truncated: bool = False
    reason: str = ""

    @property
    def expected(self) -> str:
        return self.example.options[self.example.answer]

    @property
    def is_correct(self) -> bool:
        return self.chosen == self.expected


def chunks(examples: Sequence[Example]) -> Iterator[Sequence[Example]]:
    """Runs of examples that fit into one request: the inputs of a classification share labels and question."""
    for _, group in groupby(examples, _request_key):
        members = list(group)
        yield from (members[start : start + CHUNK] for start in range(0, len(members), CHUNK))


def request_of(chunk: Sequence[Example], head: bool = False) -> tuple[str, dict[str, Any]]:
    """Path and body. With `head` a classification sends no labels: a fine-tuned model answers with its own."""
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


def read_answer(example: Example, result: dict[str, Any]) -> Answer:
    match example.task:
        case "mrc":
            chosen = result["answer"]
        case "similarity":
            chosen = example.options[int(result["score"] >= SIMILAR)]
        case _:
            chosen = result["label"]
    return Answer(example, chosen, result["truncated"])


def _request_key(example: Example) -> tuple[object, ...]:
    if example.task == "classify":
        return example.task, example.options, example.question
    return (example.task,)


def _text(example: Example) -> str | dict[str, str]:
    first, *rest = example.texts
    return {"text": first, "text_pair": rest[0]} if rest else first


def _reading(example: Example) -> dict[str, Any]:
    return {"passage": example.texts[0], "question": example.question or "", "choices": _distinct(example.options)}


def _distinct(options: Iterable[str]) -> list[str]:
    """Some data sets repeat an option; the service refuses duplicates."""
    return list(dict.fromkeys(options))


def report_of(answers: Sequence[Answer]) -> dict[str, Any]:
    """The report as JSON-ready numbers. Inputs that the server refused are counted, but not in the accuracy.

    Raises:
        EvaluationError: nothing was answered, or no answer is one of the options.
    """
    answered = [one for one in answers if one.chosen is not None]
    refused = [one for one in answers if one.chosen is None]
    if not answered:
        raise EvaluationError(f"every input was refused: {refused[0].reason}" if refused else "there are no examples")
    if not any(one.chosen in one.example.options for one in answered):
        chosen, expected = sorted({one.chosen or "" for one in answered}), answered[0].example.options
        raise EvaluationError(f"the model calls its classes {', '.join(chosen)}, the data set {', '.join(expected)}")
    correct = sum(one.is_correct for one in answered)
    return {
        "examples": len(answered),
        "correct": correct,
        "accuracy": round(correct / len(answered), 4),
        "interval_95": [round(bound, 4) for bound in wilson(correct, len(answered))],
        "chance": round(sum(1 / len(set(one.example.options)) for one in answered) / len(answered), 4),
        "truncated": sum(one.truncated for one in answered),
        "refused": dict(Counter(one.reason for one in refused)),
        "confusion": confusion(answered),
    }


def confusion(answers: Iterable[Answer]) -> dict[str, dict[str, int]] | None:
    """Counts by expected class, then by chosen class; None where the examples have different options."""
    answered = [one for one in answers if one.chosen is not None]
    if len({one.example.options for one in answered}) != 1:
        return None
    counts = Counter((one.expected, one.chosen or "") for one in answered)
    chosen = dict.fromkeys((*answered[0].example.options, *sorted({one.chosen or "" for one in answered})))
    return {expected: {got: counts[expected, got] for got in chosen} for expected in answered[0].example.options}


def wilson(correct: int, total: int, z: float = 1.959964) -> tuple[float, float]:
    """Wilson's score interval of a share, 95 % by default; it stays within 0 to 1 for small samples, too."""
    if not total:
        return 0.0, 1.0
    share, weight = correct / total, z * z / total
    middle = (share + weight / 2) / (1 + weight)
    half = z * math.sqrt(share * (1 - share) / total + weight / (4 * total)) / (1 + weight)
    return max(0.0, middle - half), min(1.0, middle + half)


def open_client(url: str, key: str | None, transport: httpx.AsyncBaseTransport | None = None) -> httpx.AsyncClient:
    """A client of the server at `url` that sends the key. `transport` replaces the network in tests."""
    return httpx.AsyncClient(
        base_url=url,
        headers={"Authorization": f"Bearer {key}"} if key else {},
        timeout=TIMEOUT_S,
        limits=httpx.Limits(max_connections=IN_FLIGHT),
        transport=transport,
        # The proxy of the environment cannot reach this machine's loopback address.
        trust_env=not is_loopback(httpx.URL(url).host),
    )


class EvaluationClient:
    """Sends examples to one server, IN_FLIGHT requests at a time, and waits while the server is busy.

    `model` is the requested model, then the one that answered.
    """

    def __init__(self, client: httpx.AsyncClient, model: str | None = None, sleep: Sleep = asyncio.sleep) -> None:
        self._client = client
        self._model = model
        self._sleep = sleep
        self.model = model

    async def evaluate(
        self, examples: Sequence[Example], on_examples: OnExamples, *, head: bool = False
    ) -> list[Answer]:
        """The answer of every example, in order.

        Raises:
            EvaluationError: the server cannot be reached, keeps failing, or cannot do this task.
        """
        slots = asyncio.Semaphore(IN_FLIGHT)

        async def one(chunk: Sequence[Example]) -> list[Answer]:
            async with slots:
                answers = await self._send(chunk, head)
            on_examples(len(chunk))
            return answers

        try:
            async with asyncio.TaskGroup() as group:
                tasks = [group.create_task(one(chunk)) for chunk in chunks(examples)]
        except ExceptionGroup as errors:
            raise _first(errors) from None
        return [one for task in tasks for one in task.result()]

    async def ask(self, path: str, body: dict[str, Any]) -> dict[str, Any]:
        """The reply to one request.

        Raises:
            EvaluationError: the server cannot be reached, keeps failing, or refuses the request.
        """
        reply = await self._post(path, body)
        if reply.status_code != 200:
            raise EvaluationError(f"{path} answers {reply.status_code}: {_problem(reply)[0]}")
        content: dict[str, Any] = reply.json()
        return content

    async def _send(self, chunk: Sequence[Example], head: bool) -> list[Answer]:
        """A chunk with a refused input is sent again one by one, so that the other inputs count."""
        path, body = request_of(chunk, head)
        reply = await self._post(path, body if self._model is None else body | {"model": self._model})
        if reply.status_code == 200:
            self.model = reply.json()["model"]
            return [
                read_answer(example, result) for example, result in zip(chunk, reply.json()["results"], strict=True)
            ]
        detail, fields = _problem(reply)
        if reply.status_code != 422 or "model" in fields:
            raise EvaluationError(f"{path} answers {reply.status_code}: {detail}")
        if len(chunk) == 1:
            return [Answer(chunk[0], None, reason=detail)]
        return [one for example in chunk for one in await self._send([example], head)]

    async def _post(self, path: str, body: dict[str, Any]) -> httpx.Response:
        for attempt in range(MAX_ATTEMPTS):
            wait_s = 0.25 * 2**attempt
            try:
                reply = await self._client.post(path, json=body)
            except httpx.ConnectError as error:
                raise EvaluationError(f"no server answers at {self._client.base_url}: is it running?") from error
            except httpx.TimeoutException as error:
                raise EvaluationError(f"{path}: no answer within {TIMEOUT_S:.0f} s") from error
            except httpx.TransportError as error:
                problem = f"{path}: {type(error).__name__} {error}".rstrip()
            else:
                if reply.status_code not in BUSY:
                    return reply
                problem = f"{path} answers {reply.status_code}: {_problem(reply)[0]}"
                wait_s = _retry_after_s(reply, wait_s)
            await self._sleep(min(wait_s, MAX_WAIT_S))
        raise EvaluationError(f"{problem} (tried {MAX_ATTEMPTS} times)")


def _problem(reply: httpx.Response) -> tuple[str, set[str]]:
    """The detail and the fields of a problem document; a proxy in between may answer without one."""
    try:
        problem = reply.json()
        return str(problem["detail"]), {error["field"] for error in problem.get("errors", ())}
    except (ValueError, KeyError, TypeError):
        return reply.reason_phrase, set()


def _retry_after_s(reply: httpx.Response, default: float) -> float:
    try:
        return float(reply.headers.get("Retry-After", default))
    except ValueError:
        return default


def _first(errors: ExceptionGroup[Exception]) -> Exception:
    error: Exception = errors
    while isinstance(error, ExceptionGroup):
        error = error.exceptions[0]
    return error
