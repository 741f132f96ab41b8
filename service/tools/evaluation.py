"""Labelled and unlabelled inputs as requests to a server, and the server's answers to them."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any
from urllib.parse import quote

import httpx

from service.api.field_types import DEFAULT_TOP_K, MAX_TOP_K
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
"""The lowest score of a similar pair, and of a label that holds where each is scored by itself."""

Sleep = Callable[[float], Awaitable[object]]
OnExamples = Callable[[int], object]
"""Called with the number of examples that have been answered since the last call."""


class EvaluationError(Exception):
    """The server cannot be reached, or cannot do the task."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Ask:
    """How a classification is asked for.

    `head`: without labels, as a fine-tuned model answers with its own. `label_set`: a stored one instead of the options
    of the examples; with `is_undecided` its best label is the answer, whatever least score the set demands.
    `threshold`: the lowest score of a label that holds, where each is scored by itself. `method`: the field of the
    request that says which of the served models answer.
    """

    head: bool = False
    label_set: str | None = None
    is_undecided: bool = False
    multi_label: bool = False
    threshold: float = SIMILAR
    method: str | None = None


@dataclass(frozen=True, slots=True)
class Answer:
    """One example and the option that the server chose: None with the reason if it refused the input.

    `scores` are (label, score) in the order of the reply. `several` are the labels that hold, of a multi-label example.
    `score` is that of the chosen option, or the similarity of a pair. `is_calibrated`: the server has changed the
    scores by a temperature.
    """

    example: Example
    chosen: str | None
    truncated: bool = False
    reason: str = ""
    scores: tuple[tuple[str, float], ...] = ()
    score: float | None = None
    several: tuple[str, ...] | None = None
    is_calibrated: bool = False

    @property
    def expected(self) -> str:
        return self.example.options[self.example.answer]

    @property
    def expected_several(self) -> tuple[str, ...]:
        return tuple(self.example.options[index] for index in self.example.answers or ())

    @property
    def is_correct(self) -> bool:
        if self.example.answers is not None:
            return self.several is not None and set(self.several) == set(self.expected_several)
        return self.chosen == self.expected

    def probabilities(self) -> list[float] | None:
        """The score of each option of the example, in their order; None if one is missing."""
        score_of = dict(self.scores)
        found = [score_of.get(option) for option in dict.fromkeys(self.example.options)]
        known = [score for score in found if score is not None]
        return known if known and len(known) == len(found) else None


def chunks(examples: Sequence[Example]) -> Iterator[Sequence[Example]]:
    """Runs of examples that fit into one request: the inputs of a classification share labels and question."""
    for _, group in groupby(examples, _request_key):
        members = list(group)
        yield from (members[start : start + CHUNK] for start in range(0, len(members), CHUNK))


def request_of(chunk: Sequence[Example], ask: Ask = Ask()) -> tuple[str, dict[str, Any]]:
    """Path and body."""
    first = chunk[0]
    if first.task == "mrc":
        return "/v1/mrc", {"inputs": [_reading(example) for example in chunk]}
    if first.task in ("similarity", "nli"):
        return f"/v1/{first.task}", {"inputs": [list(example.texts) for example in chunk]}
    body: dict[str, Any] = {"inputs": [_text(example) for example in chunk]}
    if len(first.options) > DEFAULT_TOP_K:  # the score of each is needed
        body["top_k"] = min(MAX_TOP_K, len(first.options))
    if ask.head:
        return "/v1/classify", body
    body |= {"label_set": ask.label_set} if ask.label_set is not None else {"labels": _distinct(first.options)}
    if ask.is_undecided:
        body["min_score"] = 0
    if first.question is not None:
        body["question"] = first.question
    if ask.multi_label or first.answers is not None:
        body["multi_label"] = True
    if ask.method is not None:
        body["method"] = ask.method
    return "/v1/classify", body


def read_answer(example: Example, result: dict[str, Any], ask: Ask = Ask()) -> Answer:
    truncated: bool = result["truncated"]
    score: Any = result.get("score")
    match example.task:
        case "mrc":
            scores = zip(_distinct(example.options), result.get("scores") or (), strict=False)
            return Answer(example, result["answer"], truncated, scores=tuple(scores), score=score)
        case "similarity":
            if not example.options:  # graded
                return Answer(example, "", truncated, score=score)
            chosen = example.options[int(score >= SIMILAR)]
            scores = zip(example.options, (1 - score, score), strict=True)
            return Answer(example, chosen, truncated, scores=tuple(scores), score=max(score, 1 - score))
        case _:
            ranked = tuple((one["label"], one["score"]) for one in result.get("scores") or ())
            several = None
            if ask.multi_label or example.answers is not None:
                several = tuple(label for label, value in ranked if value >= ask.threshold)
            return Answer(
                example,
                result["label"],
                truncated,
                scores=ranked,
                score=score,
                several=several,
                is_calibrated=bool(result.get("calibrated")),
            )


def _request_key(example: Example) -> tuple[object, ...]:
    if example.task == "classify":
        return example.task, example.options, example.question, example.answers is None
    return (example.task,)


def _text(example: Example) -> str | dict[str, str]:
    first, *rest = example.texts
    return {"text": first, "text_pair": rest[0]} if rest else first


def _reading(example: Example) -> dict[str, Any]:
    return {"passage": example.texts[0], "question": example.question or "", "choices": _distinct(example.options)}


def _distinct(options: Iterable[str]) -> list[str]:
    """Some data sets repeat an option; the service refuses duplicates."""
    return list(dict.fromkeys(options))


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

    `model` is the requested model, then the one that answered, `method` how it did, and `models` those that took part.
    `tokens` counts those of all inputs.
    """

    def __init__(self, client: httpx.AsyncClient, model: str | None = None, sleep: Sleep = asyncio.sleep) -> None:
        self._client = client
        self._model = model
        self._sleep = sleep
        self.model = model
        self.method: str | None = None
        self.models: tuple[str, ...] = ()
        self.tokens = 0

    async def evaluate(
        self,
        examples: Sequence[Example],
        on_examples: OnExamples,
        ask: Ask = Ask(),
    ) -> list[Answer]:
        """The answer of every example, in order.

        Raises:
            EvaluationError: the server cannot be reached, keeps failing, or cannot do this task.
        """
        slots = asyncio.Semaphore(IN_FLIGHT)

        async def one(chunk: Sequence[Example]) -> list[Answer]:
            async with slots:
                answers = await self.send(chunk, ask)
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

    async def served(self) -> list[dict[str, Any]]:
        """The models of GET /v1/models; none if this key may not see them.

        Raises:
            EvaluationError: the server cannot be reached, or keeps failing.
        """
        reply = await self._request("GET", "/v1/models")
        return list(reply.json()["models"]) if reply.status_code == 200 else []

    async def labels_of(self, label_set: str) -> tuple[str, ...]:
        """The names of the labels of a stored label set.

        Raises:
            EvaluationError: there is none of this name, the server cannot be reached, or keeps failing.
        """
        reply = await self._request("GET", f"/v1/label-sets/{quote(label_set, safe='')}")
        if reply.status_code != 200:
            raise EvaluationError(f"label set {label_set}: {_problem(reply)[0]}")
        return tuple(one["name"] if isinstance(one, dict) else one for one in reply.json()["labels"])

    async def send(self, chunk: Sequence[Example], ask: Ask = Ask()) -> list[Answer]:
        """The answers to the examples of one request. A request with a refused input is sent again one by one, so that
        the other inputs count.

        Raises:
            EvaluationError: as `evaluate`.
        """
        path, body = request_of(chunk, ask)
        reply = await self._post(path, body if self._model is None else body | {"model": self._model})
        if reply.status_code == 200:
            content = reply.json()
            self.model, self.method = content["model"], content.get("method")
            self.models = tuple(content.get("models") or (content["model"],))
            self.tokens += content.get("usage", {}).get("tokens", 0)
            return [
                read_answer(example, result, ask) for example, result in zip(chunk, content["results"], strict=True)
            ]
        detail, fields = _problem(reply)
        if reply.status_code != 422 or "model" in fields:
            raise EvaluationError(f"{path} answers {reply.status_code}: {detail}")
        if len(chunk) == 1:
            return [Answer(chunk[0], None, reason=detail)]
        return [one for example in chunk for one in await self.send([example], ask)]

    async def _post(self, path: str, body: dict[str, Any]) -> httpx.Response:
        return await self._request("POST", path, body)

    async def _request(self, method: str, path: str, body: dict[str, Any] | None = None) -> httpx.Response:
        for attempt in range(MAX_ATTEMPTS):
            wait_s = 0.25 * 2**attempt
            try:
                reply = await self._client.request(method, path, json=body)
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
