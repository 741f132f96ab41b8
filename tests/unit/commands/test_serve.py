"""The serve command without processes: model specs, binding, threads and progress of loading."""

from __future__ import annotations

import asyncio
import logging
import threading
from pathlib import Path

import pytest

import service
from service.api.schemas import ClassifyRequest, EmbedRequest, MrcRequest
from service.commands.application import first_request, run_in_daemon_thread
from service.commands.models import LoadingBars, LoadingLines, locate_shipped, parse_specs
from service.errors import CheckpointError, SettingError
from service.replicas.protocol import Loading
from service.server.listener import bind, url_of
from service.settings import Models, Server
from tests.contract.fakes import text_model


def test_the_shipped_models_are_the_default() -> None:
    specs = parse_specs(Models())
    assert [(spec.name, spec.source) for spec in specs] == [("mini", "mini"), ("e5-small", "e5-small")]
    for spec in specs:
        assert Path(locate_shipped(spec).source) == Path(service.__file__).parent / "models" / spec.name
        assert parse_specs(Models(specs=(spec.name,))) == [spec]
    spec = specs[0]
    assert parse_specs(Models(specs=("mini", "other=x")))[0] == spec
    (small,) = parse_specs(Models(specs=("small=mini",)))
    assert locate_shipped(small).source == locate_shipped(spec).source


@pytest.mark.parametrize(
    ("models", "words"),
    [
        (Models(specs=("a=x", "a=y")), "two models are called a"),
        (Models(specs=("a=x",), labels={"b": ("p", "q")}), "b is not served; the served models are a"),
        (Models(specs=("@x",)), "wanted SOURCE"),
    ],
)
def test_conflicting_models_are_refused(models: Models, words: str) -> None:
    with pytest.raises(SettingError, match=words):
        parse_specs(models)


def test_first_request_fits_the_served_models() -> None:
    task, body = first_request([text_model("e", "encoder"), text_model()])
    assert task == "classify"
    assert ClassifyRequest.model_validate(body).labels
    task, body = first_request([text_model("c", "sequence-classification")])
    assert ClassifyRequest.model_validate(body).labels is None
    task, body = first_request([text_model("e", "encoder"), text_model("q", "question-answering")])
    assert task == "mrc"
    assert MrcRequest.model_validate(body).query().spans
    task, body = first_request([text_model("e", "encoder")])
    assert task == "embed"
    EmbedRequest.model_validate(body)


def test_port_0_finds_a_free_port_and_a_port_in_use_is_refused() -> None:
    with bind(Server(port=0)) as listener:
        port = listener.getsockname()[1]
        assert url_of(listener) == f"http://127.0.0.1:{port}"
        with pytest.raises(SettingError, match=f"127.0.0.1 port {port}: Address already in use; choose another"):
            bind(Server(port=port))


def test_the_url_of_0_0_0_0_is_on_loopback() -> None:
    with bind(Server(host="0.0.0.0", port=0)) as listener:
        assert url_of(listener).startswith("http://127.0.0.1:")


def test_an_address_of_another_machine_is_refused() -> None:
    with pytest.raises(SettingError, match="cannot listen on"):
        bind(Server(host="192.0.2.1", port=0))


async def test_run_in_daemon_thread_returns_or_raises() -> None:
    threads = []
    await run_in_daemon_thread(lambda: threads.append(threading.current_thread()))
    assert threads[0].daemon

    def fail() -> None:
        raise CheckpointError("no such model")

    with pytest.raises(CheckpointError, match="no such model"):
        await run_in_daemon_thread(fail)


async def test_cancelling_does_not_wait_for_the_thread() -> None:
    gate, began = threading.Event(), asyncio.Event()
    loop = asyncio.get_running_loop()

    def fetch() -> None:
        loop.call_soon_threadsafe(began.set)
        gate.wait()

    waiting = asyncio.create_task(run_in_daemon_thread(fetch))
    await began.wait()
    waiting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await waiting
    gate.set()


def test_loading_is_logged_in_steps(caplog: pytest.LogCaptureFixture) -> None:
    show = LoadingLines()
    with caplog.at_level(logging.INFO):
        for done in range(0, 1001, 10):
            show("cpu", Loading("mini", done, 1000))
    assert [record.percent for record in caplog.records] == [0, 25, 50, 75, 100]  # type: ignore[attr-defined]


def test_a_second_pass_of_loading_is_logged(caplog: pytest.LogCaptureFixture) -> None:
    show = LoadingLines()
    with caplog.at_level(logging.INFO):
        for done in (0, 1000, 0, 900):
            show("cpu", Loading("mini", done, 1000))
    assert [record.percent for record in caplog.records] == [0, 100, 0, 90]  # type: ignore[attr-defined]


def test_loading_draws_a_bar_per_model(capsys: pytest.CaptureFixture[str]) -> None:
    show = LoadingBars()
    for done in (0, 500, 1000):
        show("cpu", Loading("mini", done, 1000))
    assert "loading mini on cpu" in capsys.readouterr().err
