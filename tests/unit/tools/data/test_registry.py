"""Every data set in the layout of its publisher, its splits and their halves."""

from __future__ import annotations

from pathlib import Path

import pytest

from service.errors import DatasetError
from service.tools.data.converters import (
    NEWS_QUESTION,
    PAIR_LABELS,
    REVIEW_LABELS,
    THUCNEWS_LABELS,
    TNEWS_LABELS,
    Example,
)
from service.tools.data.registry import DATASETS, load
from tests.unit.tools.data.layouts import Make, c3, json_document, json_lines, lines, tab_separated, tabs, text, write

NLI_LABELS = ("contradiction", "neutral", "entailment")


def tnews(data: Path) -> Path:
    first = {"label": 115, "label_desc": "news_story", "sentence": "从前有座山", "keywords": "", "id": 1}
    second = {"label": "100", "label_desc": "news_game", "sentence": "新赛季开始", "keywords": "赛季,游戏", "id": 2}
    return json_lines(data / "fewclue/tnews/dev_few_all.json", first, second)


def csldcp(data: Path) -> Path:
    write(data / "fewclue/csldcp/labels_all.txt", "哲学\n理论经济学 \n\n法学\n")
    return json_lines(data / "fewclue/csldcp/dev_few_all.json", {"content": "论法", "label": "法学", "id": 0})


def iflytek(data: Path) -> Path:
    folder = data / "fewclue/iflytek"
    json_lines(folder / "train_few_all.json", {"label": 10, "label_des": "地图", "sentence": "导航"})
    json_lines(folder / "test_public.json", {"id": 0, "sentence": "没有答案"})
    records = [
        {"label": 9, "label_des": "办公", "sentence": "打卡"},
        {"label": 100, "label_des": "其他", "sentence": "别的"},
    ]
    return json_lines(folder / "dev_few_all.json", *records)


TALK = c3(
    "d", (["女：喝茶吗？", "男：喝水。"], [("男的喝什么？", ["茶", "水"], "水"), ("谁问？", ["女的", "男的"], "女的")])
)
PROSE = c3("m", (["春天来了。"], [("什么来了？", ["春天", "冬天", "夏天"], "春天")]))
TALK_EXAMPLES = [
    Example("mrc", ("女：喝茶吗？\n男：喝水。",), ("茶", "水"), 1, "男的喝什么？"),
    Example("mrc", ("女：喝茶吗？\n男：喝水。",), ("女的", "男的"), 0, "谁问？"),
]
PROSE_EXAMPLES = [Example("mrc", ("春天来了。",), ("春天", "冬天", "夏天"), 0, "什么来了？")]


def both(data: Path) -> Path:
    PROSE(data)
    return TALK(data)


def news(text: str, answer: int) -> Example:
    return Example("classify", (text,), tuple(TNEWS_LABELS.values()), answer, NEWS_QUESTION)


def review(text: str, answer: int) -> Example:
    return Example("classify", (text,), REVIEW_LABELS, answer)


def similar(first: str, second: str, answer: int) -> Example:
    return Example("similarity", (first, second), PAIR_LABELS, answer)


def infers(first: str, second: str, label: str) -> Example:
    return Example("nli", (first, second), NLI_LABELS, NLI_LABELS.index(label))


def category(text: str, answer: int) -> Example:
    return Example("classify", (text,), ("书籍", "酒店"), answer, "这条评论说的是什么？")


def idiom(text: str, answer: int) -> Example:
    return Example("mrc", (text,), ("画蛇添足", "雪中送炭"), answer, "括号里应该填哪一个成语？")


def chid_of_clue(data: Path) -> Path:
    json_document(data / "chid/dev_answer.json", {"#idiom000001#": 1, "#idiom000002#": 0})
    record = {"content": ["#idiom000001#之后，#idiom000002#。"], "candidates": ["画蛇添足", "雪中送炭"]}
    return json_lines(data / "chid/dev.json", record)


TARGET = {"span1_index": 2, "span1_text": "舌头", "span2_index": 9, "span2_text": "它"}
SHOPPING = '\ufeffcat,label,review\n书籍,1,好看\n酒店,0,"又吵,\n又脏"\n书籍,0,\n书籍,0,无聊\n'
UNSURE = {"sentence1": "甲", "sentence2": "乙", "label": "-"}
PAIR_FILE = [("借呗怎么还", "怎么还借呗", "1"), ("甲", "乙", "0")]
PAIRS = [similar("借呗怎么还", "怎么还借呗", 1), similar("甲", "乙", 0)]

LAYOUTS: dict[str, tuple[str, Make, list[Example]]] = {
    "tnews": ("tnews", tnews, [news("从前有座山", 0), news("新赛季开始", 14)]),
    "thucnews": (
        "thucnews",
        tabs("thucnews/dev.txt", ("倚天屠龙记十大创新", "8"), ("港股缩量回调", "2")),
        [
            Example("classify", ("倚天屠龙记十大创新",), THUCNEWS_LABELS, 8, NEWS_QUESTION),
            Example("classify", ("港股缩量回调",), THUCNEWS_LABELS, 2, NEWS_QUESTION),
        ],
    ),
    "eprstmt": (
        "eprstmt",
        lines(
            "fewclue/eprstmt/dev_few_all.json",
            {"id": 0, "sentence": "好用", "label": "Positive"},
            {"id": 1, "sentence": "坏了", "label": "Negative"},
        ),
        [review("好用", 1), review("坏了", 0)],
    ),
    "csldcp": (
        "csldcp",
        csldcp,
        [Example("classify", ("论法",), ("哲学", "理论经济学", "法学"), 2, "这篇论文属于哪一个学科？")],
    ),
    "iflytek": (
        "iflytek",
        iflytek,
        [
            Example("classify", ("打卡",), ("办公", "地图", "其他"), 0, "这个应用属于哪一个类别？"),
            Example("classify", ("别的",), ("办公", "地图", "其他"), 2, "这个应用属于哪一个类别？"),
        ],
    ),
    "csl": (
        "csl",
        lines("fewclue/csl/dev_few_all.json", {"id": 0, "abst": "摘要", "keyword": ["侵权", "环境"], "label": "1"}),
        [Example("classify", ("摘要",), ("这些词不能概括文章：侵权、环境", "这些词可以概括文章：侵权、环境"), 1)],
    ),
    "chid": (
        "chid",
        lines(
            "fewclue/chid/dev_few_all.json",
            {"id": 1, "candidates": ["画蛇添足", "雪中送炭"], "content": "真是#idiom#。", "answer": 1},
        ),
        [Example("mrc", ("真是（）。",), ("画蛇添足", "雪中送炭"), 1, "括号里应该填哪一个成语？")],
    ),
    "cluewsc": (
        "cluewsc",
        lines(
            "fewclue/cluewsc/dev_few_all.json",
            {"target": TARGET, "idx": 0, "label": "true", "text": "那舌头，它"},
            {"target": TARGET, "idx": 1, "label": False, "text": "这舌头，它"},
        ),
        [
            Example("classify", ("那舌头，它",), ("它不是舌头", "它是舌头"), 1),
            Example("classify", ("这舌头，它",), ("它不是舌头", "它是舌头"), 0),
        ],
    ),
    "hotel": (
        "hotel",
        text("sentiment/ChnSentiCorp_htl_all.csv", 'label,review\n1,"离""车站""近, 好"\n0,\n0,差\n'),
        [review('离"车站"近, 好', 1), review("差", 0)],
    ),
    "takeaway": ("takeaway", text("sentiment/waimai_10k.csv", "label,review\r\n1,很快\r\n"), [review("很快", 1)]),
    "shopping": (
        "shopping",
        text("sentiment/online_shopping_10_cats.csv", SHOPPING),
        [review("好看", 1), review("又吵,\n又脏", 0), review("无聊", 0)],
    ),
    "shopping by category": (
        "shopping-category",
        text("sentiment/online_shopping_10_cats.csv", SHOPPING),
        [category("好看", 0), category("又吵,\n又脏", 1), category("无聊", 0)],
    ),
    "bustm": (
        "bustm",
        lines("fewclue/bustm/dev_few_all.json", {"id": 0, "sentence1": "甲", "sentence2": "乙", "label": "1"}),
        [similar("甲", "乙", 1)],
    ),
    "afqmc, tab-separated": ("afqmc", tabs("afqmc/dev.txt", *PAIR_FILE), PAIRS),
    "afqmc, as CLUE has it": (
        "afqmc",
        lines("afqmc/dev.json", *({"sentence1": a, "sentence2": b, "label": label} for a, b, label in PAIR_FILE)),
        PAIRS,
    ),
    "lcqmc": ("lcqmc", tabs("lcqmc/dev.txt", *PAIR_FILE), PAIRS),
    "oppo": ("oppo", tabs("oppo/dev.txt", *PAIR_FILE), PAIRS),
    "paws-x": (
        "paws-x",
        tabs(
            "paws-x/dev_2k.tsv",
            ("id", "sentence1", "sentence2", "label"),
            ("4", "甲", "乙", "1"),
            ("5", "", "乙", "0"),
            ("6", "丙", "丁", "0"),
        ),
        [similar("甲", "乙", 1), similar("丙", "丁", 0)],
    ),
    "sts-b": (
        "sts-b",
        tabs("sts-b/dev.txt", *(("甲", "乙", grade) for grade in "012345")),
        [similar("甲", "乙", answer) for answer in (0, 0, 0, 1, 1)],
    ),
    "ocnli": (
        "ocnli",
        lines("fewclue/ocnli/dev_few_all.json", UNSURE, *(UNSURE | {"label": label} for label in NLI_LABELS)),
        [infers("甲", "乙", label) for label in NLI_LABELS],
    ),
    "ocnli, as CLUE has it": (
        "ocnli",
        lines("ocnli/dev.json", UNSURE | {"label": "neutral"}),
        [infers("甲", "乙", "neutral")],
    ),
    "ocnli-10k": (
        "ocnli-10k",
        lines("ocnli/dev.10k.json", UNSURE | {"label": "neutral"}),
        [infers("甲", "乙", "neutral")],
    ),
    "ocnli of CLUE": (
        "ocnli",
        lines("ocnli_public/dev.json", UNSURE | {"label": "neutral"}),
        [infers("甲", "乙", "neutral")],
    ),
    "chid of CLUE": ("chid", chid_of_clue, [idiom("（）之后，____。", 1), idiom("____之后，（）。", 0)]),
    "wsc of CLUE": (
        "cluewsc",
        lines("wsc/dev.json", {"target": TARGET, "idx": 0, "label": "true", "text": "那舌头，它"}),
        [Example("classify", ("那舌头，它",), ("它不是舌头", "它是舌头"), 1)],
    ),
    "csl of CLUE": (
        "csl",
        lines("csl_public/dev.json", {"id": 1, "abst": "摘要", "keyword": ["侵权"], "label": "0"}),
        [Example("classify", ("摘要",), ("这些词不能概括文章：侵权", "这些词可以概括文章：侵权"), 0)],
    ),
    "qbqtc": (
        "qbqtc",
        lines("qbqtc/dev.json", {"id": 0, "query": "感冒", "title": "感冒吃什么药", "label": "2"}),
        [Example("classify", ("感冒", "感冒吃什么药"), ("不相关", "部分相关", "相关"), 2)],
    ),
    "sts-b-graded": (
        "sts-b-graded",
        tabs("sts-b/dev.txt", ("甲", "乙", "2.5"), ("甲", "丙", "5")),
        [
            Example("similarity", ("甲", "乙"), (), -1, grade=2.5),
            Example("similarity", ("甲", "丙"), (), -1, grade=5.0),
        ],
    ),
    "cmnli": (
        "cmnli",
        tabs("cmnli/dev.txt", ("甲", "乙", "entailment"), ("甲", "乙", "-")),
        [infers("甲", "乙", "entailment")],
    ),
    "snli": ("snli", tabs("snli/dev.txt", ("甲", "乙", "contradiction")), [infers("甲", "乙", "contradiction")]),
    "c3": ("c3", both, [*PROSE_EXAMPLES, *TALK_EXAMPLES]),
    "c3-m": ("c3-m", both, PROSE_EXAMPLES),
    "c3-d": ("c3-d", both, TALK_EXAMPLES),
}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_data_set_is_read_in_the_layout_of_its_publisher(tmp_path: Path, layout: str) -> None:
    name, make, examples = LAYOUTS[layout]
    make(tmp_path)
    assert load(name, tmp_path, "dev") == examples
    assert {example.task for example in examples} == {DATASETS[name].task}
    assert all(example.grade is not None or 0 <= example.answer < len(example.options) for example in examples)


def test_every_data_set_has_a_layout_here() -> None:
    assert {name for name, *_ in LAYOUTS.values()} == set(DATASETS)
    assert all(name == dataset.name for name, dataset in DATASETS.items())


def test_dev_is_the_default_split(tmp_path: Path) -> None:
    json_lines(tmp_path / "tnews/train.json", {"label_desc": "news_car", "sentence": "新车"})
    json_lines(tmp_path / "tnews/dev.json", {"label_desc": "news_car", "sentence": "旧车"})
    assert load("tnews", tmp_path) == [news("旧车", 6)]
    assert load("tnews", tmp_path, "train") == [news("新车", 6)]


CAR = {"label_desc": "news_car", "sentence": "新车"}


@pytest.mark.parametrize("folder", ["tnews", "tnews_public", "clue/tnews", "clue/tnews_public"])
def test_a_bare_name_that_is_in_two_collections_is_refused(tmp_path: Path, folder: str) -> None:
    json_lines(tmp_path / "fewclue/tnews/dev_few_all.json", CAR)
    json_lines(tmp_path / folder / "dev.json", CAR)
    with pytest.raises(DatasetError, match=r"^tnews: there are fewclue/tnews \(.*\) and clue/tnews \(.*\); name one"):
        load("tnews", tmp_path)


def test_a_fold_is_of_the_few_shot_data_whatever_lies_beside_it(tmp_path: Path) -> None:
    json_lines(tmp_path / "fewclue/tnews/dev_0.json", CAR)
    json_lines(tmp_path / "tnews/dev.json", CAR | {"sentence": "旧车"})
    assert load("tnews", tmp_path, "dev", "0") == [news("新车", 6)]


UNLABELLED_FILES: dict[str, tuple[str, str, dict[str, object], int | str]] = {
    "tnews": ("clue/tnews", "tnews_public/test1.1.json", {"id": 7, "sentence": "新车"}, 7),
    "iflytek": ("clue/iflytek", "iflytek/test.json", {"id": 8, "sentence": "导航"}, 8),
    "afqmc": ("clue/afqmc", "afqmc/test.json", {"id": 9, "sentence1": "甲", "sentence2": "乙"}, 9),
    "ocnli": ("clue/ocnli", "ocnli/test.json", {"id": 3, "sentence1": "甲", "sentence2": "乙"}, 3),
    "cmnli": ("clue/cmnli", "cmnli_public/test.json", {"id": 4, "sentence1": "甲", "sentence2": "乙"}, 4),
    "eprstmt": ("fewclue/eprstmt", "fewclue/eprstmt/test.json", {"id": 0, "sentence": "好"}, 0),
    "csl": ("clue/csl", "csl/test.json", {"id": 2, "abst": "摘要", "keyword": ["词"]}, 2),
    "qbqtc": ("qbqtc", "qbqtc/test.json", {"id": 5, "query": "甲", "title": "乙"}, 5),
    "chid": (
        "clue/chid",
        "chid/test1.1.json",
        {"candidates": ["甲", "乙"], "content": ["他#idiom000001#。"]},
        "#idiom000001#",
    ),
    "few-shot chid": (
        "fewclue/chid",
        "FewCLUE/datasets/chid/test.json",
        {"id": 6, "candidates": ["甲", "乙"], "content": "他#idiom#。"},
        6,
    ),
    "wsc": (
        "clue/wsc",
        "cluewsc2020_public/test1.1.json",
        {
            "id": 1,
            "text": "那舌头它",
            "target": {"span1_index": 1, "span1_text": "舌头", "span2_index": 3, "span2_text": "它"},
        },
        1,
    ),
}


@pytest.mark.parametrize("case", UNLABELLED_FILES)
def test_a_test_file_without_answers_is_read_with_its_ids(tmp_path: Path, case: str) -> None:
    name, path, record, expected = UNLABELLED_FILES[case]
    json_lines(tmp_path / path, record)
    [example] = load(name, tmp_path, "board")
    assert (example.id, example.is_labelled) == (expected, False)


def test_the_one_test_file_of_c3_is_read_once(tmp_path: Path) -> None:
    content = [[["春天。"], [{"question": "什么？", "choice": ["春", "冬"], "id": "q7"}], "1"]]
    json_document(tmp_path / "c3_public/test1.1.json", content)
    [example] = load("clue/c3", tmp_path, "board")
    assert (example.id, example.is_labelled) == ("q7", False)


def test_the_public_test_file_is_not_that_of_the_leaderboard(tmp_path: Path) -> None:
    json_lines(tmp_path / "fewclue/bustm/test_public.json", {"sentence1": "甲", "sentence2": "乙", "label": "1"})
    json_lines(tmp_path / "fewclue/bustm/test.json", {"sentence1": "丙", "sentence2": "丁"})
    assert load("fewclue/bustm", tmp_path, "test") == [similar("甲", "乙", 1)]
    assert load("fewclue/bustm", tmp_path, "board")[0].texts == ("丙", "丁")


def test_ocnli_of_clue_trains_on_all_50_thousand_pairs(tmp_path: Path) -> None:
    for stem, first in (("train.50k", "甲"), ("train.10k", "乙")):
        json_lines(tmp_path / f"ocnli/{stem}.json", UNSURE | {"sentence1": first, "label": "neutral"})
    assert load("clue/ocnli", tmp_path, "train")[0].texts == ("甲", "乙")


def test_the_training_set_of_10_thousand_pairs_is_measured_on_the_dev_set(tmp_path: Path) -> None:
    json_lines(tmp_path / "ocnli/train.10k.json", UNSURE | {"label": "neutral"})
    json_lines(tmp_path / "ocnli/dev.json", UNSURE | {"label": "entailment"})
    assert [load("ocnli-10k", tmp_path, split)[0].answer for split in ("train", "dev")] == [1, 2]


def test_the_classifier_of_csl_reads_keywords_and_abstract(tmp_path: Path) -> None:
    json_lines(tmp_path / "clue/csl/dev.json", {"id": 0, "abst": "摘要", "keyword": ["侵权", "环境"], "label": "1"})
    [example] = load("clue/csl", tmp_path)
    assert (example.forms.head, example.forms.labels) == (("侵权 环境", "摘要"), ("不能概括", "可以概括"))


def test_the_classifier_of_wsc_reads_marks_around_name_and_pronoun(tmp_path: Path) -> None:
    target = {"span1_index": 3, "span1_text": "舌头", "span2_index": 0, "span2_text": "它"}
    json_lines(tmp_path / "wsc/dev.json", {"id": 0, "text": "它是那舌头！", "target": target, "label": "true"})
    [example] = load("clue/wsc", tmp_path)
    assert example.forms.head == ("[它]是那_舌头_！",)
    assert example.forms.upstream == ("_它_是那[舌头]！",)


def test_the_blanks_of_one_line_of_clue_are_decided_together(tmp_path: Path) -> None:
    chid_of_clue(tmp_path)
    first, second = load("chid", tmp_path)
    assert first.group == second.group
    assert (first.id, second.id) == ("#idiom000001#", "#idiom000002#")
    assert first.forms.upstream == ("#idiom#之后，画蛇添足。",)


def test_a_fold_is_one_part_of_few_shot_data(tmp_path: Path) -> None:
    for fold in ("0", "4", "few_all"):
        json_lines(tmp_path / f"fewclue/tnews/train_{fold}.json", {"label_desc": "news_car", "sentence": fold})
    assert load("tnews", tmp_path, "train", "4") == [news("4", 6)]
    assert load("tnews", tmp_path, "train", "all") == load("tnews", tmp_path, "train") == [news("few_all", 6)]


@pytest.mark.parametrize(("name", "fold"), [("tnews", "5"), ("afqmc", "0")])
def test_a_fold_that_is_not_published_is_refused(tmp_path: Path, name: str, fold: str) -> None:
    with pytest.raises(DatasetError, match=f"^fold '{fold}' of {name}: FewCLUE's data sets have 0, 1, 2, 3, 4, all$"):
        load(name, tmp_path, "train", fold)


def test_a_collection_in_the_name_selects_its_files(tmp_path: Path) -> None:
    json_lines(tmp_path / "fewclue/tnews/dev_few_all.json", {"label_desc": "news_car", "sentence": "少"})
    json_lines(tmp_path / "tnews/dev.json", {"label_desc": "news_car", "sentence": "全"})
    assert load("fewclue/tnews", tmp_path) == [news("少", 6)]
    assert load("clue/tnews", tmp_path) == [news("全", 6)]
    with pytest.raises(DatasetError, match=r"^afqmc is not in fewclue$"):
        load("fewclue/afqmc", tmp_path)


@pytest.mark.parametrize(("split", "numbers"), [("dev.even", "024"), ("dev.odd", "13"), ("dev", "01234")])
def test_even_and_odd_select_half_of_a_split(tmp_path: Path, split: str, numbers: str) -> None:
    tab_separated(tmp_path / "thucnews/dev.txt", *(("标题", str(number)) for number in range(5)))
    assert [str(example.answer) for example in load("thucnews", tmp_path, split)] == list(numbers)


def test_examples_become_choices_as_in_the_service() -> None:
    assert similar("甲", "乙", 1).as_choice().options == ("不能理解为：乙", "可以理解为：乙")
    assert infers("甲", "乙", "neutral").as_choice().options == ("不能推断出：乙", "很难推断出：乙", "可以推断出：乙")
    assert similar("甲", "乙", 1).as_choice().texts == ("甲",)
    choice = news("标题", 3).as_choice()
    assert (choice.texts, choice.question, len(choice.options)) == (("标题",), NEWS_QUESTION, 15)
