"""Clients of Triton, KServe, chat, retrieval, the Model Context Protocol and Label Studio against a server, each in its
own process."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import pytest

from tests.clients.environments import PASSED, checks_of, run_checks
from tests.clients.serving import Served, secret, serving_all

pytestmark = [pytest.mark.slow, pytest.mark.system]
GROUPS = {
    "triton": "triton",
    "kserve": "kserve",
    "chat": "chat",
    "retrieval": "retrieval",
    "mcp": "mcp",
    "label_studio": "label-studio",
}
"""The environment of each client."""
CHECKS = [(client, check) for client in GROUPS for check in checks_of(f"{client}_calls")]
Outcomes = Mapping[str, Mapping[str, str]]


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    with serving_all(tmp_path_factory.mktemp("platforms")) as served:
        yield served


@pytest.fixture(scope="module")
def outcomes(served: Served) -> Outcomes:
    offline = {"LITELLM_LOCAL_MODEL_COST_MAP": "True"}
    return {
        client: run_checks(
            group, f"{client}_calls", URL=served.url, KEY=secret("app"), LIMITED=secret(client), **offline
        )
        for client, group in GROUPS.items()
    }


@pytest.mark.parametrize(("client", "check"), CHECKS, ids=lambda value: value.removeprefix("check_"))
def test_a_call_of_a_client_works(outcomes: Outcomes, client: str, check: str) -> None:
    assert outcomes[client][check] == PASSED, outcomes[client][check]


@pytest.mark.parametrize("client", ["triton", "chat", "retrieval", "mcp"])
def test_the_limited_key_was_refused(served: Served, outcomes: Outcomes, client: str) -> None:
    assert served.num_refused(client) >= 1
