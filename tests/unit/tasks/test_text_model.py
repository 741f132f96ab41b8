"""TextModel: loading from a checkpoint's folder, its errors, and parity of its tokenizer with BERT's."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import BertTokenizer

from service.checkpoints.checkpoint import Checkpoint, describe
from service.checkpoints.shape import Kind, Shape
from service.errors import CheckpointError
from service.tasks import text_model
from service.tasks.text_model import TextModel
from service.tasks.tokenizer import SPECIAL, build_tokenizer, read_vocab
from service.tasks.word_starts import CHINESE, find_single_characters
from tests.checkpoints import make_checkpoint, vocabulary

SHAPE = Shape(
    num_layers=1,
    hidden_size=8,
    num_heads=1,
    ffn_size=8,
    vocab_size=1000,
    max_positions=512,
    num_segments=2,
    norm_eps=1e-12,
    activation="gelu",
)
SMALL = [*SPECIAL, "是", "非", "a", "ä", "b"]


def checkpoint(path: Path, kind: Kind = "masked-lm", labels: tuple[str, ...] = ()) -> Checkpoint:
    return Checkpoint("m", str(path), None, path, "bert", kind, SHAPE, labels=labels, tasks=("nli",))


def folder(path: Path, tokens: list[str] = SMALL, **files: Any) -> Path:
    """A checkpoint's folder with a vocabulary and any JSON files, by the stem of their names."""
    (path / "vocab.txt").write_text("\n".join(tokens) + "\n", encoding="utf-8")
    for stem, content in files.items():
        (path / f"{stem}.json").write_text(json.dumps(content), encoding="utf-8")
    return path


# loading


@pytest.mark.parametrize("kind", ["masked-lm", "sequence-classification", "encoder"])
def test_load_reads_the_upstream_layout(tmp_path: Path, kind: Kind) -> None:
    make_checkpoint(tmp_path, kind=kind, id2label={0: "差评", 1: "好评"}, max_positions=64)
    model = TextModel.load(describe(tmp_path, "mine"))
    vocab = vocabulary()
    assert (model.name, model.kind, model.max_length) == ("mine", kind, 64)
    assert model.labels == (("差评", "好评") if kind == "sequence-classification" else ())
    assert (model.cls, model.sep, model.mask) == (2, 3, 4)
    assert (model.yes, model.no) == (vocab.index("是"), vocab.index("非"))
    assert model.can_choose is (kind == "masked-lm")
    assert [model.token(token_id) for token_id in model.tokenize(["今天ab臺"])[0]] == ["今", "天", "a", "##b", "[UNK]"]


def test_labels_and_tasks_come_from_the_checkpoint(tmp_path: Path) -> None:
    model = TextModel.load(checkpoint(folder(tmp_path), "sequence-classification", ("x", "y")))
    assert (model.labels, model.tasks) == (("x", "y"), ("nli",))


def test_a_vocabulary_without_yes_or_no_cannot_choose(tmp_path: Path) -> None:
    model = TextModel.load(checkpoint(folder(tmp_path, [*SPECIAL, "是"])))
    assert (model.yes, model.no, model.can_choose) == (5, None, False)


def test_vocab_txt_may_have_windows_line_ends(tmp_path: Path) -> None:
    (tmp_path / "vocab.txt").write_bytes("\r\n".join(SMALL).encode())
    assert TextModel.load(checkpoint(tmp_path)).tokenize(["ab 是"]) == [[1, 5]]


def test_the_vocabulary_is_read_from_tokenizer_json(tmp_path: Path) -> None:
    vocab = {token: index for index, token in enumerate(SMALL)}
    (tmp_path / "tokenizer.json").write_text(json.dumps({"model": {"type": "WordPiece", "vocab": vocab}}))
    assert TextModel.load(checkpoint(tmp_path)).tokenize(["a", "非b"]) == [[7], [6, 9]]


def test_case_and_accents_follow_tokenizer_config(tmp_path: Path) -> None:
    assert TextModel.load(checkpoint(folder(tmp_path))).tokenize(["Ä"]) == [[7]]
    cased = folder(tmp_path, tokenizer_config={"do_lower_case": False, "strip_accents": None})
    assert TextModel.load(checkpoint(cased)).tokenize(["Ä", "ä"]) == [[1], [8]]
    accents = folder(tmp_path, tokenizer_config={"do_lower_case": True, "strip_accents": False})
    assert TextModel.load(checkpoint(accents)).tokenize(["Ä"]) == [[8]]


def test_a_missing_vocabulary_is_refused(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"has neither vocab\.txt nor a WordPiece or Unigram tokenizer\.json"):
        TextModel.load(checkpoint(tmp_path))


@pytest.mark.parametrize("content", [{}, {"model": []}, {"model": {"type": "BPE", "vocab": {}}}, {"model": None}])
def test_a_tokenizer_json_of_another_kind_is_refused(tmp_path: Path, content: dict[str, Any]) -> None:
    (tmp_path / "tokenizer.json").write_text(json.dumps(content))
    with pytest.raises(CheckpointError, match=r"nor a WordPiece or Unigram tokenizer\.json"):
        TextModel.load(checkpoint(tmp_path))


@pytest.mark.parametrize("index", ["0", -1, 1.5, True, None])
def test_a_vocabulary_with_invalid_ids_is_refused(tmp_path: Path, index: object) -> None:
    vocab = {token: place for place, token in enumerate(SMALL)} | {"好": index}
    (tmp_path / "tokenizer.json").write_text(json.dumps({"model": {"type": "WordPiece", "vocab": vocab}}))
    with pytest.raises(CheckpointError, match=r"tokenizer\.json: vocab: '好' is .*; wanted a whole number from 0$"):
        read_vocab(tmp_path, 533)


def test_an_unreadable_vocabulary_is_refused(tmp_path: Path) -> None:
    (tmp_path / "vocab.txt").symlink_to("/proc/self/mem")
    with pytest.raises(CheckpointError, match=r"vocab\.txt: cannot be read: Input/output error$"):
        read_vocab(tmp_path, 533)


@pytest.mark.parametrize("newline", [b"\n", b"\r\n"])
def test_a_vocabulary_saved_by_a_windows_editor_has_the_same_ids(tmp_path: Path, newline: bytes) -> None:
    file = folder(tmp_path) / "vocab.txt"
    wanted = read_vocab(tmp_path, 533)
    file.write_bytes(b"\xef\xbb\xbf" + newline.join(file.read_bytes().splitlines()) + newline)
    assert read_vocab(tmp_path, 533) == wanted
    assert wanted["[PAD]"] == 0


def test_a_repeated_line_keeps_the_ids_of_the_others(tmp_path: Path) -> None:
    (tmp_path / "vocab.txt").write_text("\n".join([*SMALL, "好", "坏", "好"]))
    vocab = read_vocab(tmp_path, 533)
    assert (vocab["坏"], vocab["好"]) == (len(SMALL) + 1, len(SMALL) + 2)


def test_a_vocabulary_file_far_larger_than_vocab_size_is_refused(tmp_path: Path) -> None:
    (tmp_path / "vocab.txt").write_text("词" * (533 * 256 + 1))
    with pytest.raises(CheckpointError, match=r"more than 136448 characters, .* the 533 tokens \(vocab_size\)"):
        read_vocab(tmp_path, 533)


def test_the_error_of_missing_special_tokens_names_them(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"the vocabulary lacks \[CLS\], \[MASK\]$"):
        TextModel.load(checkpoint(folder(tmp_path, ["[PAD]", "[UNK]", "[SEP]", "是"])))


def test_an_empty_vocabulary_is_refused(tmp_path: Path) -> None:
    (tmp_path / "vocab.txt").touch()
    with pytest.raises(CheckpointError, match="lacks"):
        TextModel.load(checkpoint(tmp_path))


def test_a_vocabulary_larger_than_vocab_size_is_refused(tmp_path: Path) -> None:
    tokens = [*SPECIAL, *(f"t{index}" for index in range(996))]
    with pytest.raises(CheckpointError, match=r"has 1001 entries, but config\.json says vocab_size 1000$"):
        TextModel.load(checkpoint(folder(tmp_path, tokens)))


def test_a_vocabulary_that_is_not_utf_8_is_refused(tmp_path: Path) -> None:
    (tmp_path / "vocab.txt").write_bytes("\n".join(SMALL).encode("gb18030"))
    with pytest.raises(CheckpointError, match=r"vocab\.txt: is not UTF-8 text"):
        TextModel.load(checkpoint(tmp_path))


@pytest.mark.parametrize("value", ["yes", 1, []])
def test_a_tokenizer_flag_that_is_not_boolean_is_refused(tmp_path: Path, value: Any) -> None:
    path = folder(tmp_path, tokenizer_config={"do_lower_case": value})
    with pytest.raises(CheckpointError, match=r"tokenizer_config\.json: do_lower_case is .*; wanted true or false$"):
        TextModel.load(checkpoint(path))


# tokens

PIECES = """
ａ ｂ ##ｂ ##１ 😀 ##👨 ##\u200d ##👩 ❤ ##\ufe0f あ ##い ##ア 한 ᄒ ##ᅡ ##ᆫ я ##б ا ##ل ⅷ ##① ##½ ##㎡ ½ ㎡ ﬁ
cls sep mask the ##ing un ##aff ##able
"""
# Many kinds of characters, so that few differences are hidden by [UNK].
VOCABULARY = [
    *SPECIAL,
    *("今天气很好臺灣國語體㐀𠀀𪚥々〇ヶ,.!?，。！？：；“”【】《》…—·￥$€%@#&*()[]{}<>~`^_-+=|\\/'\""),
    *"abcdefghijklmnopqrstuvwxyzäéñøßðı0123456789",
    *(f"##{piece}" for piece in "abcdefghijklmnopqrstuvwxyzäéñøßðı0123456789"),
    *PIECES.split(),
]
HARD = [
    "今天天气很好。",
    "臺灣國語體",
    "今天weather很好,ok?",
    "unaffable UNAFFABLE Unaffing",
    "Äpfel, Éñø; naïve ﬁ ß ẞ ð",
    "A\u0308 e\u0301",
    "İstanbul ısı",
    "㐀𠀀𪚥々〇ヶ",
    "😀👨\u200d👩 ❤\ufe0f",
    "a\x00b\x01c\x7f d\x9f\ufffde\u200b\u200ef\ufeffg\xad",
    " a\t\tb\r\nc\u3000d\xa0e\u2003f\u2028g ",
    "ａｂ１，！？",
    "ａ、ｂ",
    "あいア 한 Яб ال あいアヴ 한국어",
    "ⅷ①½㎡ 3.14 1,000 50%",
    "《三体》——“你好”……",
    "http://a.b/c?d=e&f#g_h @x ￥100 $5 €3",
    "a" * 100,
    "a" * 101,
    "##a [unused1] [ MASK ] <mask>",
    "\U0010ffff\ue000 \u0300",
    "",
    " ",
    "\n",
]


def test_tokens_equal_berts_on_hard_strings(tmp_path: Path) -> None:
    model = TextModel.load(checkpoint(folder(tmp_path, VOCABULARY)))
    reference = BertTokenizer.from_pretrained(tmp_path)
    wanted = [reference.encode(text, add_special_tokens=False) for text in HARD]
    assert model.tokenize(HARD) == wanted == OURS_ON_HARD
    assert [model.tokenize([text])[0] for text in HARD] == wanted


def test_cased_tokens_equal_berts_on_hard_strings(tmp_path: Path) -> None:
    path = folder(tmp_path, VOCABULARY, tokenizer_config={"do_lower_case": False})
    reference = BertTokenizer.from_pretrained(path, do_lower_case=False)
    wanted = [reference.encode(text, add_special_tokens=False) for text in HARD]
    assert TextModel.load(checkpoint(path)).tokenize(HARD) == wanted
    assert wanted != OURS_ON_HARD


# "[" is excluded: special tokens in a text are text here, unlike in BERT's tokenizer; other tests cover them.
TEXTS = st.text(st.characters(exclude_characters="[", exclude_categories=["Cs"]), max_size=30)
VOCAB = {token: index for index, token in enumerate(VOCABULARY)}
OURS = build_tokenizer(VOCAB, {})
OURS_ON_HARD = [OURS.encode(text).ids for text in HARD]
BERTS = BertTokenizer(vocab=VOCAB)


@settings(deadline=None)
@given(TEXTS | st.text("aäAÄ今臺ａ\u0308\u200d\u0000 .，", max_size=30))
def test_tokens_equal_berts_on_any_string(text: str) -> None:
    assert OURS.encode(text).ids == BERTS.encode(text, add_special_tokens=False)


@pytest.mark.parametrize("config", [{}, {"do_lower_case": False}, {"tokenize_chinese_chars": False}])
def test_looking_up_single_characters_does_not_change_the_tokens(config: dict[str, bool]) -> None:
    whole = build_tokenizer(VOCAB, config)
    model = TextModel("m", "encoder", (), (), 512, whole, cls=2, sep=3, mask=4, yes=None, no=None, hidden_size=8)

    @settings(deadline=None)
    @given(st.lists(TEXTS | st.text("aäA今臺，.#\u0308\ufe0f\u0000 1", max_size=30), max_size=3))
    def same(texts: list[str]) -> None:
        assert model.tokenize(texts) == [whole.encode(text).ids for text in texts]

    same()


@pytest.mark.parametrize("config", [{}, {"do_lower_case": False}, {"tokenize_chinese_chars": False}])
def test_slices_of_a_long_text_have_the_tokens_of_the_whole(
    config: dict[str, bool], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(text_model, "SLICE_CHARS", 5)
    whole = build_tokenizer(VOCAB, config)
    model = TextModel("m", "encoder", (), (), 512, whole, cls=2, sep=3, mask=4, yes=None, no=None, hidden_size=8)
    odd = st.text("aäA今臺𪚥，.፡#\u0308\ufe0f\u0000 \n\u30001😀한", max_size=60)

    @settings(deadline=None)
    @given(st.lists(TEXTS | odd, max_size=3), st.integers(1, 12))
    def same(texts: list[str], limit: int) -> None:
        wanted = [whole.encode(text).ids for text in texts]
        assert model.tokenize(texts) == wanted
        assert [ids[:limit] for ids in model.tokenize(texts, limit)] == [ids[:limit] for ids in wanted]
        ends = model.tokenize(texts, limit, from_end=True)
        assert [ids[-limit:] for ids in ends] == [ids[-limit:] for ids in wanted]

    same()


@pytest.mark.parametrize("block", CHINESE)
def test_every_character_of_a_chinese_block_is_a_word_to_the_library(block: str) -> None:
    characters = [chr(code) for code in range(ord(block[0]), ord(block[2]) + 1)]
    normalizer = build_tokenizer(VOCAB, {"strip_accents": False}).normalizer
    assert normalizer.normalize_str("a".join(characters)) == " " + " a ".join(characters) + " "


@pytest.mark.parametrize("text", ["今" * 50_000, "a." * 25_000, "ab " * 20_000, "a፡" * 25_000])
@pytest.mark.parametrize("from_end", [False, True])
def test_a_long_text_is_read_only_as_far_as_its_tokens_are_kept(
    text: str, from_end: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = TextModel("m", "encoder", (), (), 512, OURS, cls=2, sep=3, mask=4, yes=None, no=None, hidden_size=8)
    read: list[int] = []
    monkeypatch.setattr(text_model, "between_slices", lambda: read.append(1))
    [ids] = model.tokenize([text], 128, from_end=from_end)
    assert 128 <= len(ids) <= 256
    assert len(read) <= 3, "slices of 256, 512 and 1024 characters"


def test_only_characters_that_are_always_one_token_are_looked_up() -> None:
    found = find_single_characters(OURS)
    assert {"今", "𪚥", "，", "!"} <= found.keys()
    assert not found.keys() & {"a", "ä", "1", "я", "한", "あ", "ａ", "😀"}
    assert find_single_characters(build_tokenizer({"[UNK]": 0}, {})) == {}


def test_most_tokens_of_the_hard_strings_are_in_the_vocabulary() -> None:
    tokens = [token for row in OURS_ON_HARD for token in row]
    assert len(set(tokens)) > 100
    assert tokens.count(VOCAB["[UNK]"]) < len(tokens) / 10


def test_special_tokens_in_a_text_are_text() -> None:
    assert OURS.encode("[CLS][SEP] [MASK]").tokens == ["[", "cls", "]", "[", "sep", "]", "[", "mask", "]"]


def test_an_id_beyond_the_vocabulary_has_no_text(tmp_path: Path) -> None:
    model = TextModel.load(checkpoint(folder(tmp_path)))
    assert [model.token(7), model.token(999)] == ["a", ""]


def test_no_texts_give_no_tokens(tmp_path: Path) -> None:
    assert TextModel.load(checkpoint(folder(tmp_path))).tokenize([]) == []
