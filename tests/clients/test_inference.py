"""The clients of OpenAI, Hugging Face and Cohere, each in its own process, against a server with real models."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import pytest

from tests.clients.environments import PASSED, checks_of, run_checks
from tests.clients.serving import Served, secret, serving_all

pytestmark = [pytest.mark.slow, pytest.mark.system]
CLIENTS = ("openai", "huggingface", "cohere")
SCRIPTS = (*CLIENTS, "openai_batch")
CHECKS = [(script, check) for script in SCRIPTS for check in checks_of(f"{script}_calls")]
Outcomes = Mapping[str, Mapping[str, str]]


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    with serving_all(tmp_path_factory.mktemp("clients")) as served:
        yield served


@pytest.fixture(scope="module")
def outcomes(served: Served) -> Outcomes:
    secrets = {"KEY": secret("app"), "OTHER": secret("other")}
    return {
        script: run_checks(
            "inference", f"{script}_calls", URL=served.url, LIMITED=secret(script.removesuffix("_batch")), **secrets
        )
        for script in SCRIPTS
    }


@pytest.mark.parametrize(("script", "check"), CHECKS, ids=lambda value: value.removeprefix("check_"))
def test_a_call_of_a_client_works(outcomes: Outcomes, script: str, check: str) -> None:
    assert outcomes[script][check] == PASSED, outcomes[script][check]


@pytest.mark.parametrize("client", CLIENTS)
def test_the_limited_key_was_refused(served: Served, outcomes: Outcomes, client: str) -> None:
    assert served.num_refused(client) >= 1
