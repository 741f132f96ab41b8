"""The shipped model in a real server: the documented examples have the documented answers, and quality checks."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

import service
from tests.readme_examples import ENGLISH, answers, examples, read
from tests.system.test_serve import Running, serving

pytestmark = pytest.mark.system

MINI = Path(service.__file__).parent / "models" / "mini"
SHOWN = read(ENGLISH)
MAX_BYTES = 25_000_000
TOLERANCE = 0.03
"""Absolute tolerance of a score: the documented answers may come from another precision."""


@pytest.fixture(scope="module")
def client() -> Iterator[httpx.Client]:
    with serving() as running, _client(running) as opened:
        yield opened


def _client(running: Running) -> httpx.Client:
    return httpx.Client(base_url=running.url, timeout=60, trust_env=False)


def test_the_shipped_model_is_small_and_complete() -> None:
    names = {path.name for path in MINI.iterdir()}
    assert names == {"README.md", "config.json", "model.safetensors", "vocab.txt"}
    assert sum(path.stat().st_size for path in MINI.iterdir()) <= MAX_BYTES


@pytest.mark.parametrize("name", [name for name in examples(SHOWN) if name not in ("models", "embed")])
def test_the_answers_in_the_readme_are_those_of_the_server(client: httpx.Client, name: str) -> None:
    shown, answered = answers(SHOWN)[name], examples(SHOWN)[name].send(client)
    assert _without_id(answered) == _Close(_without_id(shown))


@pytest.mark.parametrize(
    ("text", "labels", "label"),
    [
        ("中国女排三比零战胜对手，夺得冠军", ["体育", "财经", "教育"], "体育"),
        ("股市今日大涨，银行股领先", ["体育", "股票", "游戏"], "股票"),
        ("高考志愿填报指南：如何选择大学专业", ["房产", "教育", "娱乐"], "教育"),
        ("质量太差了，用了两天就坏了，后悔", ["这是一条差评", "这是一条好评"], "这是一条差评"),
        ("味道很好，送得也快，下次还买", ["这是一条差评", "这是一条好评"], "这是一条好评"),
    ],
)
def test_easy_texts_are_classified_correctly(client: httpx.Client, text: str, labels: list[str], label: str) -> None:
    body = {"inputs": text, "labels": labels}
    [result] = client.post("/v1/classify", content=json.dumps(body)).json()["results"]
    assert result["label"] == label


@pytest.mark.parametrize(
    ("source", "same", "other"),
    [
        ("讲个笑话给我听", "给我讲个笑话吧", "借呗怎么提前还款"),
        ("今天天气怎么样", "今天的天气如何", "我想听歌"),
        ("借呗怎么提前还款", "借呗如何提前还款", "今天天气怎么样"),
    ],
)
def test_a_paraphrase_is_more_similar_than_another_sentence(
    client: httpx.Client, source: str, same: str, other: str
) -> None:
    body = {"source": source, "candidates": [same, other]}
    paraphrase, other_sentence = client.post("/v1/similarity", content=json.dumps(body)).json()["results"]
    assert paraphrase["score"] > other_sentence["score"]


class _Close:
    """Equal to a value of the same shape with the same strings, and with numbers within the tolerance."""

    def __init__(self, value: Any) -> None:
        self.value = value

    def __eq__(self, other: object) -> bool:
        if isinstance(self.value, dict) and isinstance(other, dict):
            return self.value.keys() == other.keys() and all(other[key] == _Close(self.value[key]) for key in other)
        if isinstance(self.value, list) and isinstance(other, list):
            return len(self.value) == len(other) and all(b == _Close(a) for a, b in zip(self.value, other, strict=True))
        if isinstance(self.value, float) and isinstance(other, float):
            return abs(self.value - other) <= TOLERANCE
        return self.value == other

    def __hash__(self) -> int:
        return hash(str(self.value))

    def __repr__(self) -> str:
        return repr(self.value)


def _without_id(reply: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in reply.items() if key != "request_id"}
