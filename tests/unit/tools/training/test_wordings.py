"""Wordings of a choice: templates, words of classes, what upstream's tasks become."""

from __future__ import annotations

from pathlib import Path

import pytest

from service.errors import SettingError
from service.tasks.unimc import Choice
from service.tools.data.converters import Example, Forms
from service.tools.training.wordings import Wording, as_head, make_wording, read_words, wording_of

REVIEW = Example("classify", ("很快",), ("pos", "neg"), 0, "怎么样？")


def test_without_a_wording_an_example_is_worded_by_its_labels() -> None:
    assert Wording().choice_of(REVIEW) == Choice(("pos", "neg"), ("很快",), "怎么样？")


def test_a_template_and_words_make_the_options() -> None:
    wording = Wording(template="这是一条{label}", words={"pos": "好评", "neg": "差评"}, question="")
    assert wording.choice_of(REVIEW) == Choice(("这是一条好评", "这是一条差评"), ("很快",))


def test_two_classes_with_the_same_word_are_refused() -> None:
    with pytest.raises(SettingError, match="two classes become the option '好评'"):
        Wording(words={"pos": "好评", "neg": "好评"}).options_of(REVIEW.options)


def test_a_template_needs_the_place_of_the_class() -> None:
    with pytest.raises(SettingError, match=r"--template 好评: wanted a text with \{label\}"):
        make_wording(Wording(), question=None, template="好评", words=None)


@pytest.mark.parametrize("text", ['{"pos": "好评", "neg": "差评"}', "pos=好评\n\nneg = 差评\n"])
def test_words_are_json_or_lines(tmp_path: Path, text: str) -> None:
    (tmp_path / "words").write_text(text, encoding="utf-8")
    assert read_words(tmp_path / "words") == {"pos": "好评", "neg": "差评"}


@pytest.mark.parametrize("text", ["pos", '{"pos": 1}', "{"])
def test_a_file_that_holds_no_words_is_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / "words").write_text(text, encoding="utf-8")
    with pytest.raises(SettingError, match="--label-words"):
        read_words(tmp_path / "words")


def test_similarity_is_worded_by_the_service_whatever_the_wording() -> None:
    pair = Example("similarity", ("甲", "乙"), ("不相似", "相似"), 1)
    assert Wording(template="{label}！").choice_of(pair) == pair.as_choice()


def test_upstream_words_iflytek_by_two_characters_that_all_differ() -> None:
    wording = wording_of("clue/iflytek", "upstream")
    assert wording.question == "请问app应用属于？"
    assert len(wording.words) == len(set(wording.words.values())) == 119
    assert all(len(word) == 2 for word in wording.words.values())


def test_the_words_of_a_table_give_the_order_of_the_options() -> None:
    wording = Wording(words={"乙": "二", "甲": "一"}, order="words")
    example = wording.arrange(Example("classify", ("文",), ("甲", "丙", "乙"), 1, answers=(0, 1)))
    assert (example.options, example.answer, example.answers) == (("乙", "甲", "丙"), 2, (1, 2))
    assert wording.choice_of(example).options == ("二", "一", "丙")


def test_a_file_is_worded_by_its_own_labels_in_every_profile() -> None:
    assert wording_of("runs/iflytek.csv", "upstream") == Wording()


def test_a_classifier_reads_what_the_options_hold() -> None:
    forms = Forms(("词 语", "摘要"), ("不能概括", "可以概括"))
    example = Example("classify", ("摘要",), ("不能：词、语", "可以：词、语"), 1, forms=forms)
    assert as_head(example) == Example("classify", ("词 语", "摘要"), ("不能概括", "可以概括"), 1)
    assert as_head(REVIEW) == REVIEW


def test_mini_keeps_the_wordings_that_it_was_trained_with() -> None:
    example = Example("classify", ("文",), ("甲", "乙"), 0, "这个应用属于哪一个类别？")
    assert wording_of("iflytek", "mini").choice_of(example) == example.as_choice()
