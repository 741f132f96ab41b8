"""Examples as requests, by table."""

from __future__ import annotations

from service.datasets.example import Example
from service.evaluation.asked import CHUNK, asked, chunks, request_of

REVIEW = Example("classify", ("味道不错",), ("这是一条差评", "这是一条好评"), 1)
TITLE = Example("classify", ("国足今晚出战",), ("财经", "体育"), 1, "下面新闻属于哪一个类别？")
PAIR = Example("similarity", ("怎么还款", "如何还钱"), ("不相似", "相似"), 1)
INFERENCE = Example("nli", ("他在跑步", "他在运动"), ("contradiction", "neutral", "entailment"), 2)
READING = Example("mrc", ("男：去哪儿？\n女：图书馆。",), ("图书馆", "超市", "图书馆"), 0, "女的去哪儿？")


def test_zero_shot_classification_sends_labels_and_question() -> None:
    assert request_of([TITLE]) == (
        "/v1/classify",
        {"inputs": ["国足今晚出战"], "labels": ["财经", "体育"], "question": "下面新闻属于哪一个类别？"},
    )
    assert request_of([REVIEW])[1] == {"inputs": ["味道不错"], "labels": ["这是一条差评", "这是一条好评"]}


def test_a_pair_to_classify_is_sent_as_text_and_text_pair() -> None:
    pair = Example("classify", ("甲", "乙"), ("否", "是"), 1)
    assert request_of([pair])[1]["inputs"] == [{"text": "甲", "text_pair": "乙"}]


def test_head_sends_the_texts_alone() -> None:
    assert request_of([TITLE, REVIEW], head=True) == ("/v1/classify", {"inputs": ["国足今晚出战", "味道不错"]})


def test_pairs_and_readings() -> None:
    assert request_of([PAIR]) == ("/v1/similarity", {"inputs": [["怎么还款", "如何还钱"]]})
    assert request_of([INFERENCE]) == ("/v1/nli", {"inputs": [["他在跑步", "他在运动"]]})
    path, body = request_of([READING])
    assert path == "/v1/mrc"
    assert body["inputs"] == [
        {"passage": "男：去哪儿？\n女：图书馆。", "question": "女的去哪儿？", "choices": ["图书馆", "超市"]}
    ]


def test_chunks_are_full_and_share_what_a_request_shares() -> None:
    examples = [REVIEW] * (CHUNK + 2) + [TITLE] * 3 + [REVIEW]
    assert [len(chunk) for chunk in chunks(examples)] == [CHUNK, 2, 3, 1]
    assert [len(chunk) for chunk in chunks([READING, READING, PAIR])] == [2, 1]
    assert list(chunks([])) == []


def test_what_the_server_chose() -> None:
    assert asked(TITLE, {"label": "体育", "truncated": True}).is_correct
    assert asked(TITLE, {"label": "体育", "truncated": True}).truncated
    assert not asked(INFERENCE, {"label": "neutral", "truncated": False}).is_correct
    assert asked(PAIR, {"score": 0.5, "truncated": False}).chosen == "相似"
    assert asked(PAIR, {"score": 0.49, "truncated": False}).chosen == "不相似"


def test_a_repeated_choice_is_right_at_either_place() -> None:
    second = Example(READING.task, READING.texts, READING.options, 2, READING.question)
    assert asked(second, {"answer": "图书馆", "index": 0, "truncated": False}).is_correct
