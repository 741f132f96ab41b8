"""Rows of the authors' wordings, against a reference written from their formula and their tables of wordings.

Where a row of two texts does not fit, the longer one is cut first here, and the second one there: docs/claims.md.

Sources: Fengshenbang-LM c8fb7b8, fengshen/models/unimc/modeling_unimc.py (`UniMCDataset.encode`),
fengshen/examples/unimc/README.md and fengshen/examples/clue1.1/data_preprocessing.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from service.checkpoints.checkpoint import describe
from service.errors import SettingError
from service.tasks.text_model import TextModel
from service.tasks.unimc import encode_choices
from service.tools.data.registry import load
from service.tools.training.samples import choices_of
from service.tools.training.wordings import wording_of
from tests.unit.tools.data.layouts import json_document, json_lines

MINI = Path(__file__).parents[4] / "service" / "models" / "mini"


@dataclass(frozen=True)
class Item:
    """What upstream's preprocessing makes of a record."""

    choice: Sequence[str]
    texta: str
    textb: str = ""
    question: str = ""
    label: int = 0


@pytest.fixture(scope="module")
def model() -> TextModel:
    return TextModel.load(describe(MINI, "mini"))


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    transformers = pytest.importorskip("transformers")
    return transformers.BertTokenizer(str(MINI / "vocab.txt"), do_lower_case=True)


def reference(tokenizer: Any, item: Item, max_length: int) -> dict[str, list[Any]]:
    choice = list(item.choice)
    while len(tokenizer.encode("[MASK]".join(choice))) > max_length - 32:
        choice = [each[: len(each) // 2] for each in choice]
    parts = [part for part in (item.question,) if part] + [item.texta] + [part for part in (item.textb,) if part]
    text = "".join(f"[MASK]{each}" for each in choice) + "".join(f"[SEP]{part}" for part in parts)
    ids = tokenizer.encode(text, truncation="longest_first", max_length=max_length)
    sizes = [1 + len(tokenizer.encode(each, add_special_tokens=False)) for each in choice]
    positions = [0] + [place for size in sizes for place in range(1, size + 1)]
    positions += range(max(sizes) + 1, max(sizes) + 1 + len(ids) - len(positions))
    starts = [1 + sum(sizes[:index]) for index in range(len(sizes))]
    return {
        "ids": ids,
        "positions": positions,
        "segments": [0] + [1] * (sum(sizes) + 1) + [0] * (len(ids) - sum(sizes) - 2),
        "blocks": [(start, start + size) for start, size in zip(starts, sizes, strict=True)],
    }


def rows(model: TextModel, name: str, data: Path, max_length: int = 512) -> list[tuple[dict[str, list[Any]], int]]:
    """The rows of the authors' profile, and the index of the right option of each."""
    wording = wording_of(name, "upstream")
    examples = [wording.arrange(example) for example in load(name, data)]
    shorter = replace(model, max_length=max_length)
    encodings = encode_choices(shorter, choices_of(shorter, wording, examples), "right")
    found = [
        {
            "ids": row.ids.tolist(),
            "positions": row.positions.tolist(),
            "segments": row.segment_ids.tolist(),
            "blocks": list(row.blocks),
        }
        for row in encodings
    ]
    return [(row, example.answer) for row, example in zip(found, examples, strict=True)]


NEWS = "故事 文化 娱乐 体育 财经 房产 汽车 教育 科技 军事 旅游 国际 股票 农业 电竞"
PAIR = {"id": 0, "sentence1": "花呗怎么还款", "sentence2": "还款方式是什么"}
TARGET = {"span1_index": 1, "span1_text": "舌头", "span2_index": 8, "span2_text": "它"}
WSC_TEXT = "那舌头跳出来，看它往上去。"

TASKS: dict[str, tuple[str, dict[str, Any], Item]] = {
    "fewclue/eprstmt": (
        "fewclue/eprstmt/dev_few_all.json",
        {"id": 0, "sentence": "质量很好，下次再来", "label": "Positive"},
        Item(["这是一条差评", "这是一条好评"], "质量很好，下次再来", label=1),
    ),
    "clue/tnews": (
        "tnews_public/dev.json",
        {"label": "112", "label_desc": "news_travel", "sentence": "这里的风景最美", "keywords": ""},
        Item(NEWS.split(), "这里的风景最美", question="下面新闻属于哪一个类别？", label=10),
    ),
    "clue/afqmc": (
        "afqmc/dev.json",
        PAIR | {"label": "1"},
        Item(["不能理解为：还款方式是什么", "可以理解为：还款方式是什么"], "花呗怎么还款", label=1),
    ),
    "fewclue/bustm": (
        "fewclue/bustm/dev_few_all.json",
        PAIR | {"label": "0"},
        Item(["不能理解为：还款方式是什么", "可以理解为：还款方式是什么"], "花呗怎么还款"),
    ),
    "clue/ocnli": (
        "ocnli/dev.json",
        PAIR | {"label": "neutral"},
        Item(
            ["不能推断出：还款方式是什么", "很难推断出：还款方式是什么", "可以推断出：还款方式是什么"],
            "花呗怎么还款",
            label=1,
        ),
    ),
    "clue/cmnli": (
        "cmnli/dev.json",
        PAIR | {"label": "entailment"},
        Item(
            ["不能推断出：还款方式是什么", "很难推断出：还款方式是什么", "可以推断出：还款方式是什么"],
            "花呗怎么还款",
            label=2,
        ),
    ),
    "clue/wsc": (
        "cluewsc2020_public/dev.json",
        {"target": TARGET, "label": "true", "text": WSC_TEXT},
        Item(["它是舌头", "它不是舌头"], "那[舌头]跳出来，看_它_往上去。", label=0),
    ),
    "fewclue/cluewsc": (
        "fewclue/cluewsc/dev_few_all.json",
        {"target": TARGET, "label": "false", "text": WSC_TEXT},
        Item(["它是舌头", "它不是舌头"], "那[舌头]跳出来，看_它_往上去。", label=1),
    ),
    "qbqtc": (
        "qbqtc/dev.json",
        {"id": 0, "query": "感冒怎么办", "title": "感冒吃什么", "label": "2"},
        Item(["不相关", "部分相关", "相关"], "感冒怎么办", "感冒吃什么", label=2),
    ),
}


@pytest.mark.parametrize("name", TASKS)
def test_a_row_is_upstreams(tmp_path: Path, model: TextModel, tokenizer: Any, name: str) -> None:
    path, record, item = TASKS[name]
    json_lines(tmp_path / path, record)
    assert rows(model, name, tmp_path) == [(reference(tokenizer, item, 512), item.label)]


LABELS = {0: "打车", 10: "社区服务", 99: "银行", 106: "电商", 52: "成人", 68: "民宿短租", 92: "支付"}


def test_iflytek_is_asked_by_upstreams_words_in_its_order(tmp_path: Path, model: TextModel, tokenizer: Any) -> None:
    records = [{"label": number, "label_des": name, "sentence": f"打开{name}"} for number, name in LABELS.items()]
    json_lines(tmp_path / "iflytek/dev.json", *records)
    words = ["银行", "社区", "电商", "支付", "打车", "两性", "民宿"]
    answers = [words.index(word) for word in ("打车", "社区", "银行", "电商", "两性", "民宿", "支付")]
    expected = [
        (reference(tokenizer, Item(words, f"打开{name}", question="请问app应用属于？"), 512), answer)
        for name, answer in zip(LABELS.values(), answers, strict=True)
    ]
    assert rows(model, "clue/iflytek", tmp_path) == expected


def test_csl_puts_the_typical_words_before_the_abstract(
    tmp_path: Path, model: TextModel, tokenizer: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    tags = {"环境侵权的归责原则": ["归责", "侵权", "原则"]}
    analyse = SimpleNamespace(extract_tags=lambda text, **count: tags[text][: count["topK"]])
    monkeypatch.setitem(sys.modules, "jieba", SimpleNamespace(analyse=analyse))
    monkeypatch.setitem(sys.modules, "jieba.analyse", analyse)
    record = {"id": 0, "abst": "环境侵权的归责原则", "keyword": ["环境", "侵权"], "label": "0"}
    json_lines(tmp_path / "csl/dev.json", record)
    options = ["可以使用环境、侵权概括摘要", "不能使用环境、侵权概括摘要"]
    item = Item(options, "归责、侵权、原则。环境侵权的归责原则")
    assert rows(model, "clue/csl", tmp_path) == [(reference(tokenizer, item, 512), 1)]


def test_csl_without_jieba_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "jieba.analyse", None)
    json_lines(tmp_path / "csl/dev.json", {"id": 0, "abst": "摘要", "keyword": ["词"], "label": "0"})
    [example] = load("clue/csl", tmp_path)
    with pytest.raises(SettingError, match=r"pip install -r requirements/tuning\.txt, or choose --wording mini"):
        wording_of("csl", "upstream").choice_of(example)


def test_c3_is_asked_by_its_choices_over_the_joined_lines(tmp_path: Path, model: TextModel, tokenizer: Any) -> None:
    questions = [{"question": "男的喝什么？", "choice": ["茶", "水", "奶"], "answer": "水"}]
    json_document(tmp_path / "c3_public/m-dev.json", [[["女：喝茶吗？", "男：喝水。"], questions, "1"]])
    json_document(tmp_path / "c3_public/d-dev.json", [])
    item = Item(["茶", "水", "奶"], "女：喝茶吗？\n男：喝水。", question="男的喝什么？")
    assert rows(model, "clue/c3", tmp_path) == [(reference(tokenizer, item, 512), 1)]


IDIOMS = ["画蛇添足", "雪中送炭", "一心一意", "守株待兔"]


def test_chid_fills_each_idiom_into_its_clause(tmp_path: Path, model: TextModel, tokenizer: Any) -> None:
    content = "天亮了，他#idiom000001#，走了。这真是#idiom000002#！人人都知道。"
    json_document(tmp_path / "chid/dev_answer.json", {"#idiom000001#": 2, "#idiom000002#": 0})
    json_lines(tmp_path / "chid/dev.json", {"content": [content], "candidates": IDIOMS})
    first = Item([f"他{each}，" for each in IDIOMS], "天亮了，", "走了。这真是画蛇添足！人人都知道。", label=2)
    second = Item([f"这真是{each}！" for each in IDIOMS], "天亮了，他一心一意，走了。", "人人都知道。")
    expected = [(reference(tokenizer, item, 512), item.label) for item in (first, second)]
    assert rows(model, "clue/chid", tmp_path) == expected


CHID_TEXTS: dict[str, tuple[str, Item]] = {
    "the first clause": ("#idiom#，走了。真的。", Item([f"{each}，" for each in IDIOMS], "", "走了。真的。")),
    "the last clause": ("走了。真的，他#idiom#", Item([f"他{each}" for each in IDIOMS], "走了。真的，")),
    "one clause": ("他#idiom#", Item([f"他{each}" for each in IDIOMS], "")),
    "one sentence, cut at commas only": (
        "他#idiom#。真的",
        Item([f"他{each}。真的" for each in IDIOMS], ""),
    ),
    "a long clause": (
        "走" * 60 + "#idiom#" + "了" * 60 + "。好。",
        Item(IDIOMS, "走" * 60, "了" * 60 + "。好。"),
    ),
    "a long context": (
        "甲 " * 300 + "。" + "他#idiom#，" + "乙 " * 300 + "。好。",
        Item([f"他{each}，" for each in IDIOMS], ("甲 " * 300 + "。")[-243:], ("乙 " * 300)[:243]),
    ),
    "a long context after it": (
        "天亮了。他#idiom#，" + "乙" * 600 + "。好。",
        Item([f"他{each}，" for each in IDIOMS], "天亮了。", "乙" * 481),
    ),
}


@pytest.mark.parametrize("case", CHID_TEXTS)
def test_chid_is_cut_as_upstream_cuts_it(tmp_path: Path, model: TextModel, tokenizer: Any, case: str) -> None:
    text, item = CHID_TEXTS[case]
    record = {"id": 1, "candidates": IDIOMS, "content": text, "answer": 3}
    json_lines(tmp_path / "fewclue/chid/dev_few_all.json", record)
    assert rows(model, "fewclue/chid", tmp_path) == [(reference(tokenizer, item, 512), 3)]


@pytest.mark.parametrize("max_length", [48, 64, 96])
def test_options_that_do_not_fit_are_all_halved(
    tmp_path: Path, model: TextModel, tokenizer: Any, max_length: int
) -> None:
    questions = [{"question": "为什么？", "choice": ["因为天气" * 4, "所以下雨" * 5, "但是"], "answer": "但是"}]
    json_document(tmp_path / "c3/c3-m-dev.json", [[["今天" * 40], questions, "1"]])
    item = Item(["因为天气" * 4, "所以下雨" * 5, "但是"], "今天" * 40, question="为什么？")
    assert rows(model, "c3-m", tmp_path, max_length) == [(reference(tokenizer, item, max_length), 2)]
