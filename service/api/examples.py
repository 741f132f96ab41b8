"""Requests and replies in Chinese for the API's documentation; the tests send every one of them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, slots=True)
class Example:
    """`requests` by title; `reply` answers the first."""

    requests: dict[str, dict[str, Any]]
    reply: dict[str, Any]


def _reply(task: str, *results: tuple[dict[str, Any], int]) -> dict[str, Any]:
    """Each result with its number of tokens."""
    shown = [{**result, "tokens": tokens, "truncated": False} for result, tokens in results]
    total = sum(tokens for _, tokens in results)
    return {"model": "mini", "task": task, "results": shown, "usage": {"tokens": total}}


def _scores(**scores: float) -> dict[str, Any]:
    """A label, its score and all scores, of labels given best first."""
    pairs = [{"label": label, "score": score} for label, score in scores.items()]
    return {**pairs[0], "scores": pairs}


_PREMISE = "一个男人在公园里弹吉他。"

EXAMPLES = {
    "classify": Example(
        {
            "sentiment": {"inputs": "这家餐厅的菜很好吃，服务也周到。", "labels": ["好评", "差评"]},
            "news": {
                "inputs": ["国足客场两球取胜，晋级十二强赛", "央行宣布下调存款准备金率"],
                "labels": ["体育", "财经", "娱乐"],
                "question": "下面新闻属于哪一个类别？",
                "top_k": 2,
            },
            "several labels": {
                "inputs": "手机拍照清晰，但是电池不耐用。",
                "labels": ["拍照", "电池", "屏幕"],
                "multi_label": True,
            },
        },
        _reply("classify", (_scores(好评=0.97, 差评=0.03), 25)),
    ),
    "similarity": Example(
        {
            "pairs": {"inputs": [["怎么更换绑定的手机号？", "绑定的手机号如何修改"]]},
            "candidates": {
                "source": "怎么更换绑定的手机号？",
                "candidates": ["绑定的手机号如何修改", "忘记密码怎么办"],
            },
        },
        _reply("similarity", ({"score": 0.93}, 48)),
    ),
    "mrc": Example(
        {
            "choice": {
                "inputs": [
                    {
                        "passage": "小王每天早上六点起床，先跑步半个小时，然后吃早饭，七点半去上班。",
                        "question": "小王几点去上班？",
                        "choices": ["六点", "六点半", "七点半"],
                    }
                ]
            }
        },
        _reply("mrc", ({"answer": "七点半", "index": 2, "score": 0.88, "scores": [0.05, 0.07, 0.88]}, 55)),
    ),
    "nli": Example(
        {"pairs": {"inputs": [[_PREMISE, "有人在演奏乐器。"], [_PREMISE, "公园里一个人也没有。"]]}},
        _reply(
            "nli",
            (_scores(entailment=0.9, neutral=0.08, contradiction=0.02), 60),
            (_scores(contradiction=0.94, neutral=0.05, entailment=0.01), 66),
        ),
    ),
    "fill-mask": Example(
        {"one mask": {"inputs": ["北京是中国的首[MASK]。"], "top_k": 2}},
        _reply("fill-mask", ({"masks": [[{"token": "都", "score": 0.98}, {"token": "府", "score": 0.01}]]}, 11)),
    ),
    "embed": Example(
        {"texts": {"inputs": ["今天天气怎么样？", "明天会下雨吗"], "pooling": "mean", "normalize": True}},
        _reply("embed", ({"embedding": [0.031, -0.124, 0.087]}, 10), ({"embedding": [0.042, -0.117, 0.065]}, 8)),
    ),
}

ERROR = {
    "type": "about:blank",
    "title": "Unprocessable Entity",
    "status": 422,
    "code": "invalid_request",
    "detail": "inputs[3].text: must not be empty",
    "errors": [{"field": "inputs[3].text", "message": "must not be empty"}],
    "request_id": "5f2b0c6e9d8a4e63a1f7c2d4b8e90a11",
}
