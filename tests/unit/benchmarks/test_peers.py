"""The comparison with other servers, as far as it can be tried without them: the work, the ratios, the requests."""

from __future__ import annotations

import json
from statistics import median

import pytest

from benchmarks.peers.checkpoint import SPECIAL, VOCAB_SIZE, vocabulary
from benchmarks.peers.environments import REQUIREMENTS
from benchmarks.peers.peers import PEERS, Server, chosen, ours
from benchmarks.peers.ratios import BEST, BEST_BATCHING, summarize, table
from benchmarks.peers.rounds import SPECIAL_TOKENS, Measured, make_texts

RATES = {"ours": (60, 50), "a": (20, 25), "b": (10, 50), "naive": (30, 10)}


def test_ratios_are_of_one_round_and_show_their_spread() -> None:
    measured = [
        Measured(number, server, 8, requests=10 * rate, seconds=10.0)
        for server, rates in RATES.items()
        for number, rate in enumerate(rates)
    ]
    (level,) = summarize(measured, ["ours"], {"a": True, "b": True, "naive": False})
    assert level["concurrency"] == 8
    assert level["requests_per_s"]["a"] == {"min": 20.0, "median": 22.5, "max": 25.0}
    over = level["ours_over"]["ours"]
    assert over[BEST] == {"min": 1.0, "median": 1.5, "max": 2.0}  # 60 / 30 and 50 / 50
    assert over[BEST_BATCHING] == {"min": 1.0, "median": 2.0, "max": 3.0}  # 60 / 20 and 50 / 50
    assert over["a"] == {"min": 2.0, "median": 2.5, "max": 3.0}
    assert "ours / best peer" in table([level])
    assert "2.00 (1.00 to 3.00)" in table([level])


def test_texts_have_the_tokens_that_were_asked_for() -> None:
    texts = make_texts("lognormal:31:152", 96, seed=1)
    assert median(len(text) for text in texts) + SPECIAL_TOKENS == pytest.approx(31, abs=1)
    assert texts == make_texts("lognormal:31:152", 96, seed=1)


def test_every_text_is_in_the_vocabulary() -> None:
    words = vocabulary()
    assert len(words) == len(set(words)) == VOCAB_SIZE
    assert tuple(words[:5]) == SPECIAL
    assert set("".join(make_texts("fixed:500", 40, seed=1))) <= set(words)


@pytest.mark.parametrize("server", [*PEERS, ours("float32")], ids=lambda server: server.name)
def test_the_text_is_in_the_request(server: Server) -> None:
    assert "天气" in json.dumps(json.loads(server.request("天气")), ensure_ascii=False)


@pytest.mark.parametrize("peer", PEERS, ids=lambda peer: peer.name)
def test_every_peer_is_pinned_torch_first(peer: Server) -> None:
    lines = (REQUIREMENTS / f"{peer.name}.txt").read_text().splitlines()
    pins = [line for line in lines if line and not line.startswith("#")]
    assert pins[0].startswith("torch==")
    assert all("==" in pin for pin in pins)


def test_an_unknown_peer_is_refused() -> None:
    with pytest.raises(ValueError, match="there are infinity"):
        chosen(["nobody"])
