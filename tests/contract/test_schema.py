"""The service against its own OpenAPI: schemathesis makes requests that fit it and requests that do not."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import schemathesis
from schemathesis.config import SchemathesisConfig
from schemathesis.engine import Status, events, from_schema

from service.tasks.text_model import SPECIAL, TextModel, build_tokenizer
from tests.contract.fakes import running, text_model

SETTINGS = {
    "cache": {"enabled": False},
    "continue-on-failure": True,
    "generation": {"max-examples": 25, "deterministic": True, "database": "none"},
}
VOCABULARY = [*SPECIAL, *map(chr, range(0x4E00, 0x4E00 + 1100))]
"""No fewer words than `top_k` may ask for."""
ANY_HEADER = "in header - object with unexpected properties"
"""HTTP lets every header pass that a server does not know."""
OF_THE_MODELS = ["model"]
"""What a model that is asked by name can do is not for a schema to say."""
TASKS = ("classify", "similarity", "mrc", "nli", "fill-mask", "embed")


@dataclass(frozen=True, slots=True)
class Found:
    """What one run came to: how many answers were looked at by route, and what is wrong, in words."""

    answers: dict[str, int]
    wrong: list[str]


def models() -> tuple[TextModel, TextModel]:
    """One for labels of the request, one for its own."""
    tokenizer = build_tokenizer({token: index for index, token in enumerate(VOCABULARY)}, {})
    tuned = text_model("tuned", "sequence-classification", ("好", "差"))
    return replace(text_model(), tokenizer=tokenizer), replace(tuned, tokenizer=tokenizer)


def run(app: Any) -> Found:
    config = SchemathesisConfig.from_dict(SETTINGS)
    schema = schemathesis.openapi.from_asgi("/openapi.json", app, config=config)
    answers: dict[str, int] = {}
    wrong: list[str] = []
    for event in from_schema(schema).execute():
        if isinstance(event, events.NonFatalError | events.FatalError):
            wrong.append(str(event))
        elif isinstance(event, events.ScenarioFinished):
            label = event.recorder.label
            answers[label] = answers.get(label, 0) + len(event.recorder.checks)
            wrong += failures(event.recorder)
    return Found(answers, wrong)


def failures(recorder: Any) -> Iterator[str]:
    for case_id, checks in recorder.checks.items():
        for check in checks:
            if check.status == Status.SUCCESS or ANY_HEADER in (message := check.failure_info.failure.message):
                continue
            reply = recorder.interactions[case_id].response.json()
            if reply.get("code") == "deadline_exceeded":  # with a time-out of a millisecond
                continue
            if [one["field"] for one in reply.get("errors", ())] != OF_THE_MODELS:
                yield f"{recorder.label}: {check.name}: {message}\n{check.failure_info.code_sample}"


async def test_what_fits_the_schema_is_answered_and_what_does_not_is_refused() -> None:
    async with running(*models()) as service:
        found = await asyncio.to_thread(run, service.app)
    assert found.wrong == []
    assert {label for label, count in found.answers.items() if count >= 50} == {f"POST /v1/{task}" for task in TASKS}
    assert {"GET /livez", "GET /readyz", "GET /metrics", "GET /v1/models"} < set(found.answers)
