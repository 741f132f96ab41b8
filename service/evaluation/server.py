"""Asks a running server, a few requests at a time. Knows no data files and counts nothing."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from typing import Any

import httpx

from service.datasets.example import Example
from service.evaluation.asked import Asked, EvaluationError, asked, chunks, request_of

IN_FLIGHT = 8
MAX_ATTEMPTS = 8
MAX_WAIT_S = 30.0
TIMEOUT_S = 120.0
BUSY = (429, 503)

Sleep = Callable[[float], Awaitable[object]]
Progress = Callable[[int], object]


class Server:
    """Asks one server, a few requests at a time, and waits when it says that it is busy."""

    def __init__(self, client: httpx.AsyncClient, model: str | None = None, sleep: Sleep = asyncio.sleep) -> None:
        self._client = client
        self._model = model
        self._sleep = sleep
        self.model = model

    async def ask(self, examples: Sequence[Example], done: Progress, *, head: bool = False) -> list[Asked]:
        """Every example with its answer, in order.

        Raises:
            EvaluationError: the server is not there, breaks off, or cannot do this task.
        """
        room = asyncio.Semaphore(IN_FLIGHT)

        async def one(chunk: Sequence[Example]) -> list[Asked]:
            async with room:
                answers = await self._chunk(chunk, head)
            done(len(chunk))
            return answers

        try:
            async with asyncio.TaskGroup() as group:
                tasks = [group.create_task(one(chunk)) for chunk in chunks(examples)]
        except ExceptionGroup as errors:
            raise _first(errors) from None
        return [one for task in tasks for one in task.result()]

    async def _chunk(self, chunk: Sequence[Example], head: bool) -> list[Asked]:
        """A chunk in which an input is refused is asked again one by one, so that the others count."""
        path, body = request_of(chunk, head)
        reply = await self._post(path, body if self._model is None else body | {"model": self._model})
        if reply.status_code == 200:
            self.model = reply.json()["model"]
            return [asked(example, result) for example, result in zip(chunk, reply.json()["results"], strict=True)]
        detail, fields = _problem(reply)
        if reply.status_code != 422 or "model" in fields:
            raise EvaluationError(f"{path} answers {reply.status_code}: {detail}")
        if len(chunk) == 1:
            return [Asked(chunk[0], None, reason=detail)]
        return [one for example in chunk for one in await self._chunk([example], head)]

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
    """The detail and the fields of a problem document; something else in between may have answered without one."""
    try:
        problem = reply.json()
        return str(problem["detail"]), {error["field"] for error in problem.get("errors", ())}
    except (ValueError, KeyError, TypeError):
        return reply.reason_phrase, set()


def _retry_after_s(reply: httpx.Response, otherwise: float) -> float:
    try:
        return float(reply.headers.get("Retry-After", otherwise))
    except ValueError:
        return otherwise


def _first(errors: ExceptionGroup[Exception]) -> Exception:
    error: Exception = errors
    while isinstance(error, ExceptionGroup):
        error = error.exceptions[0]
    return error
