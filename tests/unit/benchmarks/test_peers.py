"""The comparison with other servers, as far as it can be tried without them: the work, the ratios, the requests."""

from __future__ import annotations

import json
from pathlib import Path
from typing import cast

import pytest

from benchmarks.engine.models import vocabulary
from benchmarks.peers import processes
from benchmarks.peers.__main__ import agreed, installed, parse_args
from benchmarks.peers.checkpoint import VOCAB_SIZE
from benchmarks.peers.peers import PEERS, Server, ours
from benchmarks.peers.processes import REQUIREMENTS, Running
from benchmarks.peers.rounds import (
    BEST,
    BEST_BATCHING,
    BEST_EQUAL,
    LEAST_PASSES,
    Kind,
    Measured,
    Passes,
    make_texts,
    summarize,
    table,
)
from service.tools.bench.client import Response

RATES = {"ours": (60, 50), "a": (20, 25), "b": (10, 50), "naive": (30, 10)}


def test_ratios_are_of_one_round_and_show_their_spread() -> None:
    measured = [
        Measured(number, server, 8, requests=10 * rate, seconds=10.0)
        for server, rates in RATES.items()
        for number, rate in enumerate(rates)
    ]
    kinds = {"a": Kind("float32"), "b": Kind("float32"), "naive": Kind("float32", is_batching=False)}
    (level,) = summarize(measured, {"ours": Kind("float32")}, kinds)
    assert level["concurrency"] == 8
    assert level["requests_per_s"]["a"] == {"min": 20.0, "median": 22.5, "max": 25.0}
    over = level["ours_over"]["ours"]
    assert over[BEST] == {"min": 1.0, "median": 1.5, "max": 2.0}  # 60 / 30 and 50 / 50
    assert over[BEST_BATCHING] == {"min": 1.0, "median": 2.0, "max": 3.0}  # 60 / 20 and 50 / 50
    assert over["a"] == {"min": 2.0, "median": 2.5, "max": 3.0}
    assert "ours / best peer" in table([level])
    assert "2.00 (1.00 to 3.00)" in table([level])


def test_ours_in_float32_is_compared_with_float32_and_ours_in_bfloat16_with_all() -> None:
    rates = {"ours": 10, "ours bf16": 30, "a": 5, "a bf16": 20}
    measured = [Measured(0, server, 1, requests=rate, seconds=1.0) for server, rate in rates.items()]
    mine = {"ours": Kind("float32"), "ours bf16": Kind("bfloat16")}
    (level,) = summarize(measured, mine, {"a": Kind("float32"), "a bf16": Kind("bfloat16")})
    best = {name: rivals[BEST]["median"] for name, rivals in level["ours_over"].items()}
    assert best == {"ours": 2.0, "ours bf16": 1.5}


def test_ours_in_int8_is_also_compared_with_the_best_peer_in_int8() -> None:
    rates = {"ours": 30, "a": 40, "a int8": 20, "b int8": 15}
    measured = [Measured(0, server, 1, requests=rate, seconds=1.0) for server, rate in rates.items()]
    peers = {"a": Kind("float32"), "a int8": Kind("int8"), "b int8": Kind("int8")}
    (level,) = summarize(measured, {"ours": Kind("int8")}, peers)
    over = level["ours_over"]["ours"]
    assert (over[BEST]["median"], over[BEST_EQUAL]["median"]) == (0.75, 1.5)


def test_a_peer_is_started_only_in_a_precision_that_is_wanted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(processes, "ensure", Path)
    entrants = installed([peer for peer in PEERS if peer.name == "openvino"], ("float32", "int8"), {})
    assert [(entrant.name, entrant.python) for entrant in entrants] == [
        ("openvino", Path("runtimes")),
        ("openvino int8", Path("runtimes")),
    ]


def test_a_run_is_clocked_over_whole_passes_after_its_lead() -> None:
    passes = Passes(lead=3, texts=10, min_seconds=0.0)
    for number in range(1, 100):
        passes.answered(now=float(number))
    assert (passes.requests, passes.seconds) == (10 * LEAST_PASSES, 10.0 * LEAST_PASSES)


class Answering:
    """In place of a server that runs."""

    def __init__(self, name: str, score: float, precision: str = "float32", *, starts: bool = True) -> None:
        self.name = name
        self.precision = precision
        self.server = ours()
        self.is_stopped = False
        self._score = score
        self._starts = starts

    async def ready(self, text: str) -> None:
        if not self._starts:
            raise RuntimeError(f"{self.name} has ended")

    async def ask(self, body: bytes) -> Response:
        return Response(200, json.dumps({"results": [{"label": "体育", "score": self._score}]}).encode())

    def stop(self) -> None:
        self.is_stopped = True


async def test_a_peer_that_fails_is_left_out_and_ended() -> None:
    mine, good, near = Answering("ours", 0.7), Answering("good", 0.7), Answering("near", 0.73, "bfloat16")
    dead, wrong = Answering("dead", 0.7, starts=False), Answering("wrong", 0.6)
    left_out: dict[str, str] = {}
    servers = cast(list[Running], [mine, dead, good, wrong, near])
    found = await agreed(servers, ["天气"], 1, left_out)
    assert [server.name for server in found] == ["ours", "good", "near"]
    assert left_out == {"dead": "dead has ended", "wrong": "wrong answers 体育 0.6000, wanted 体育 0.7000"}
    assert (dead.is_stopped, wrong.is_stopped, good.is_stopped) == (True, True, False)


async def test_without_our_server_nothing_is_measured() -> None:
    servers = cast(list[Running], [Answering("ours", 0.7, starts=False)])
    with pytest.raises(RuntimeError, match="ours has ended"):
        await agreed(servers, ["天气"], 1, {})


def test_a_peer_that_cannot_be_installed_is_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    def ensure(name: str) -> Path:
        if name == "mosec":
            raise RuntimeError("no network")
        return Path(name)

    monkeypatch.setattr(processes, "ensure", ensure)
    left_out: dict[str, str] = {}
    peers = [peer for peer in PEERS if peer.name in ("litserve", "mosec", "naive")]
    entrants = installed(peers, ("float32", "bfloat16"), left_out)
    assert [entrant.name for entrant in entrants] == ["litserve", "naive", "naive bfloat16"]
    assert left_out == {"mosec": "no network"}


def test_a_pass_has_more_texts_than_there_are_clients(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        parse_args(["--requests", "32", "--concurrency", "8", "32"])
    assert "--requests: wanted more texts than clients" in capsys.readouterr().err
    assert parse_args(["--requests", "33", "--concurrency", "8", "32"]).requests == 33


def test_every_text_is_in_the_vocabulary() -> None:
    words = vocabulary(VOCAB_SIZE)
    assert len(words) == len(set(words)) == VOCAB_SIZE
    assert set("".join(make_texts("fixed:500", 40, seed=1))) <= set(words)


@pytest.mark.parametrize("peer", PEERS, ids=lambda peer: peer.name)
def test_every_peer_is_pinned_with_torch_first_where_it_needs_that(peer: Server) -> None:
    lines = (REQUIREMENTS / f"{peer.installed_as}.txt").read_text().splitlines()
    pins = [line for line in lines if line and not line.startswith("#")]
    assert all("==" in pin for pin in pins)
    assert peer.is_exported or pins[0].startswith("torch==")
