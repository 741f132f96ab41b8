"""The service against its OpenAPI schema: schemathesis generates valid and invalid requests."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import schemathesis
from schemathesis.config import SchemathesisConfig
from schemathesis.engine import Status, events, from_schema

from service.api.schemas import LabelSetBody
from service.settings import Server
from service.stores.label_sets import LabelSets
from service.tasks.text_model import TextModel
from service.tasks.tokenizer import SPECIAL, build_tokenizer
from tests.contract.fakes import running, text_model

SETTINGS = {
    "cache": {"enabled": False},
    "continue-on-failure": True,
    "generation": {"max-examples": 25, "deterministic": True, "database": "none"},
}
VOCABULARY = [*SPECIAL, *map(chr, range(0x4E00, 0x4E00 + 1100))]
"""At least as many tokens as the maximum of `top_k`."""
ANY_HEADER = "in header - object with unexpected properties"
"""An unknown header is not an error in HTTP."""
UNDESCRIBED = (["model"], ["method"], ["prompt_name"], ["label_set"])
"""The schema does not describe which tasks, methods and prompts the models have, nor the names of label sets: errors of
these fields are expected."""
OF_LABELS = re.compile(
    r"is the same to |has no token for |takes at least \d+ tokens; at most \d+ leave room|"
    r"has an empty component next to "
)
"""The schema does not describe which labels a model's vocabulary tells apart, the tokens of a prompt, and what the
separator of a hierarchy leaves of a label, so these messages are expected."""
STORED = ("label_set_not_found", "quota_exceeded", "precondition_failed")
"""Codes that depend on what is stored."""
TASKS = ("classify", "similarity", "mrc", "nli", "fill-mask", "embed")


@dataclass(frozen=True, slots=True)
class Found:
    """The result of a run: the number of checked answers by route, and the failures as text."""

    answers: dict[str, int]
    wrong: list[str]


def models() -> tuple[TextModel, ...]:
    """A model for labels of the request, and fine-tuned ones."""
    tokenizer = build_tokenizer({token: index for index, token in enumerate(VOCABULARY)}, {})
    tuned = text_model("tuned", "sequence-classification", ("好", "差"))
    reader = text_model("reader", "question-answering")
    return tuple(replace(each, tokenizer=tokenizer) for each in (text_model(), tuned, reader))


def run(app: Any) -> Found:
    config = SchemathesisConfig.from_dict(SETTINGS)
    schema = schemathesis.openapi.from_asgi("/openapi.json", app, config=config)
    schema = schema.exclude(path="/v1/bulk")  # which has the errors of its lines in its reply
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
            errors = reply.get("errors", ())
            if any(OF_LABELS.match(one["message"]) for one in errors):
                continue
            if [one["field"] for one in errors] not in UNDESCRIBED and reply.get("code") not in STORED:
                yield f"{recorder.label}: {check.name}: {message}\n{check.failure_info.code_sample}"


async def test_valid_requests_are_answered_and_invalid_ones_refused_as_in_the_schema(tmp_path: Path) -> None:
    label_sets = LabelSets(tmp_path, partial(LabelSetBody.model_validate, context=Server()), max_sets=9, max_labels=99)
    async with running(*models(), label_sets=label_sets, settings=Server(protocols=("none",))) as service:
        found = await asyncio.to_thread(run, service.app)
    assert found.wrong == []
    many = {label for label, count in found.answers.items() if count >= 50} - {"Stateful tests"}
    assert many == {*(f"POST /v1/{task}" for task in TASKS), "PUT /v1/label-sets/{name}"}
    assert {"GET /livez", "GET /readyz", "GET /metrics", "GET /v1/models"} < set(found.answers)
