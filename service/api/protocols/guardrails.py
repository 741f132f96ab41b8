"""Moderation for gateways: LiteLLM's generic guardrail and Dify's moderation extension, by a stored label set.

Each label of the set is scored by itself. A text with a label at or above the threshold is flagged. The set and the
threshold are those of the settings, or come with the request: from LiteLLM in `additional_provider_specific_params`,
from Dify in the query of the URL that is configured there.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

from pydantic import Field
from starlette.responses import Response

from service.api.calls import Call, Protocol
from service.api.exchange import Exchange, json_response, whole
from service.api.field_types import MAX_TOP_K, Lenient, Wire
from service.api.json_body import validate
from service.api.native_bodies import answer_body
from service.errors import InvalidRequest, ServiceError

MAX_VARIABLES = 1000


class Rule(Wire):
    """What is flagged; `allowed` are labels of the set that are not."""

    label_set: str = Field(min_length=1, max_length=64)
    threshold: float = Field(gt=0, le=1)
    allowed: list[str] = Field([], max_length=256)
    response: str = Field("", max_length=2000)
    """What is shown instead; default: the labels found."""


class GuardrailRequest(Lenient):
    """LiteLLM's request: the texts of a prompt or of an answer."""

    input_type: Literal["request", "response"] = "request"
    texts: list[str] | None = None
    additional_provider_specific_params: dict[str, Any] | None = None


class DifyInput(Lenient):
    inputs: dict[str, Any] = Field({}, max_length=MAX_VARIABLES)
    query: str | None = None


class DifyOutput(Lenient):
    text: str


class DifyRequest(Lenient):
    """Dify's request at one of its extension points."""

    point: Literal["ping", "app.moderation.input", "app.moderation.output"]
    params: dict[str, Any] = Field({}, max_length=MAX_VARIABLES)


@dataclass(frozen=True, slots=True)
class Verdict:
    """The labels that were found, highest score first."""

    found: tuple[tuple[str, float], ...]

    def reason(self, rule: Rule) -> str:
        return rule.response or "flagged as " + ", ".join(f"{label} ({score:.2f})" for label, score in self.found)


async def judge(exchange: Exchange, rule: Rule, texts: Sequence[tuple[str, str]]) -> Verdict:
    """The labels of the rule's set at or above its threshold, in any of the texts; each text comes with its field."""
    kept = [(field, text) for field, text in texts if text.strip()]
    num_labels = len((await exchange.label_set(rule.label_set)).value.labels) if kept else 0
    highest: dict[str, float] = {}
    size = exchange.limits.max_inputs
    for start in range(0, len(kept), size):
        part = kept[start : start + size]
        body = {
            "inputs": [text for _, text in part],
            "label_set": rule.label_set,
            "multi_label": True,
            "top_k": min(num_labels, MAX_TOP_K),
        }

        def rename(path: str, part: Sequence[tuple[str, str]] = part) -> str:
            if not path.startswith("inputs["):
                return path
            return part[int(path[len("inputs[") :].partition("]")[0])][0]

        answer = await answer_body(exchange, "classify", body, whole, rename=rename)
        for each in (each for result in answer.results for each in result.scores):
            highest[each.label] = max(each.score, highest.get(each.label, 0.0))
    found = [
        (label, score) for label, score in highest.items() if score >= rule.threshold and label not in rule.allowed
    ]
    return Verdict(tuple(sorted(found, key=lambda each: -each[1])))


async def guard(exchange: Exchange, body: GuardrailRequest) -> Response:
    """`POST /beta/litellm_basic_guardrail_api`: images, tools and messages are not looked at, only `texts`."""
    given = body.additional_provider_specific_params or {}
    rule = _rule({name: given[name] for name in Rule.model_fields if name in given}, exchange)
    texts = [(f"texts[{index}]", text) for index, text in enumerate(body.texts or [])]
    verdict = await judge(exchange, rule, texts)
    if not verdict.found:
        return json_response({"action": "NONE"})
    return json_response({"action": "BLOCKED", "blocked_reason": verdict.reason(rule)})


async def moderate(exchange: Exchange, body: DifyRequest) -> Response:
    """`POST /dify`: Dify sends `ping` when the extension is saved, and one of the points for each message."""
    if body.point == "ping":
        return json_response({"result": "pong"})
    rule = _query_rule(exchange)
    if body.point == "app.moderation.output":
        texts = [("params.text", validate(body.params, DifyOutput, exchange.limits).text)]
    else:
        params = validate(body.params, DifyInput, exchange.limits)
        texts = [(f"params.inputs.{name[:64]}", text) for name, text in params.inputs.items() if isinstance(text, str)]
        texts.append(("params.query", params.query or ""))
    verdict = await judge(exchange, rule, texts)
    if not verdict.found:
        return json_response({"flagged": False, "action": "direct_output", "preset_response": ""})
    return json_response({"flagged": True, "action": "direct_output", "preset_response": verdict.reason(rule)})


def _query_rule(exchange: Exchange) -> Rule:
    query = exchange.request.query_params
    given: dict[str, Any] = {name: query[name] for name in ("label_set", "response") if name in query}
    if "threshold" in query:
        try:
            given["threshold"] = float(query["threshold"])
        except ValueError:
            raise InvalidRequest.of("threshold", "must be a number above 0, at most 1") from None
    if "allowed" in query:
        given["allowed"] = query.getlist("allowed")
    return _rule(given, exchange)


def _rule(given: dict[str, Any], exchange: Exchange) -> Rule:
    limits = exchange.limits
    default = {"label_set": limits.moderation_label_set, "threshold": limits.moderation_threshold}
    return validate({**default, **given}, Rule, limits)


def error_body(error: ServiceError, request_id: str) -> dict[str, Any]:
    """Both gateways fail on any other status than 200, and show the text of the body."""
    return {"error": error.detail, "code": error.code, "request_id": request_id}


_GUARD = "/beta/litellm_basic_guardrail_api"
PROTOCOL = Protocol(
    "guardrails",
    "LiteLLM generic guardrail, Dify moderation extension",
    (
        Call("POST", _GUARD, guard, GuardrailRequest, task="classify", roots=(_GUARD,), summary="LiteLLM's guardrail"),
        Call("POST", "/dify", moderate, DifyRequest, task="classify", summary="Dify's moderation extension"),
    ),
    error_body,
)
