"""Tokenizers of checkpoints: tokens equal to transformers' own, special tokens stay text, what is refused."""

from __future__ import annotations

import json
import random
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import AddedToken, Tokenizer
from transformers import BertTokenizer, PreTrainedTokenizerFast, XLMRobertaTokenizerFast

from service.checkpoints.checkpoint import Checkpoint
from service.domain import Cls
from service.errors import CheckpointError, InvalidRequest
from service.tasks import text_model
from service.tasks.fill_mask import FILL_MASK, FillMaskQuery
from service.tasks.rows import encode_rows
from service.tasks.text_model import TextModel
from service.tasks.unimc import Choice, encode_choices
from service.tasks.word_starts import PieceEnds, find_single_characters, find_word_starts
from tests.checkpoints import vocabulary
from tests.tokenizers import XLM_ROBERTA_SPECIAL, odd_strings, write_unigram
from tests.unit.tasks.test_text_model import SHAPE, VOCABULARY, folder

NUM_STRINGS = 5000
WORD_PIECES = list(dict.fromkeys((*VOCABULARY, *vocabulary())))
ADDED = ("😡", "[退货]", "新词", "<e1>", "ab1", "Ünit")


def load(path: Path, **shape: Any) -> TextModel:
    shapes = replace(SHAPE, **({"vocab_size": 2000} | shape))
    return TextModel.load(Checkpoint("m", str(path), None, path, "bert", "masked-lm", shapes))


def added_tokens(**flags: Any) -> list[AddedToken]:
    return [AddedToken(content, **({"normalized": index % 2 == 1} | flags)) for index, content in enumerate(ADDED)]


def decoder(tokens: list[AddedToken], first: int) -> dict[str, Any]:
    """`added_tokens_decoder` of tokenizer_config.json."""
    keys = ("content", "lstrip", "rstrip", "single_word", "normalized", "special")
    return {str(first + index): {key: getattr(token, key) for key in keys} for index, token in enumerate(tokens)}


def word_piece(path: Path, tokens: list[AddedToken], **config: Any) -> Path:
    config |= {"tokenizer_class": "BertTokenizer", "added_tokens_decoder": decoder(tokens, len(WORD_PIECES))}
    return folder(path, WORD_PIECES, tokenizer_config=config)


def assert_equal(model: TextModel, reference: Any, strings: list[str]) -> None:
    wanted = reference(strings, add_special_tokens=False)["input_ids"]
    ours = model.tokenize(strings)
    different = [(text, a, b) for text, a, b in zip(strings, ours, wanted, strict=True) if a != b]
    assert different == []
    assert len({token for row in wanted for token in row}) > 100, "most strings are more than unknown tokens"


# equal to transformers


@pytest.mark.parametrize("flags", [{}, {"single_word": True}, {"lstrip": True}, {"rstrip": True, "normalized": True}])
def test_word_piece_tokens_equal_transformers(tmp_path: Path, flags: dict[str, bool]) -> None:
    path = word_piece(tmp_path, added_tokens(**flags))
    strings = odd_strings(NUM_STRINGS, ADDED)
    assert_equal(load(path), BertTokenizer.from_pretrained(path), strings)


def test_cased_word_piece_tokens_equal_transformers(tmp_path: Path) -> None:
    path = word_piece(tmp_path, added_tokens(), do_lower_case=False)
    assert_equal(load(path), BertTokenizer.from_pretrained(path), odd_strings(NUM_STRINGS, ADDED, seed=1))


@pytest.mark.parametrize("flags", [None, {}, {"single_word": True}, {"lstrip": True}, {"rstrip": True}])
def test_unigram_tokens_equal_transformers(tmp_path: Path, flags: dict[str, bool] | None) -> None:
    write_unigram(tmp_path, added=[] if flags is None else added_tokens(**flags))
    strings = odd_strings(NUM_STRINGS, ADDED, seed=2)
    assert_equal(load(tmp_path), XLMRobertaTokenizerFast.from_pretrained(tmp_path), strings)


@pytest.mark.parametrize("flags", [None, {}])
def test_unigram_tokens_of_newer_files_equal_transformers(tmp_path: Path, flags: dict[str, bool] | None) -> None:
    write_unigram(tmp_path, added=[] if flags is None else added_tokens(**flags), collapses=True)
    strings = odd_strings(NUM_STRINGS, ADDED, seed=3)
    assert_equal(load(tmp_path), PreTrainedTokenizerFast(tokenizer_file=str(tmp_path / "tokenizer.json")), strings)


@pytest.mark.parametrize("slice_chars", [5, text_model.SLICE_CHARS])
@pytest.mark.parametrize("kind", ["word-piece", "cased", "added", "unigram", "unigram-added", "collapses"])
def test_places_of_tokens_equal_transformers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str, slice_chars: int
) -> None:
    monkeypatch.setattr(text_model, "SLICE_CHARS", slice_chars)
    reference: Any
    if kind in ("word-piece", "cased", "added"):
        word_piece(tmp_path, added_tokens() if kind == "added" else [], do_lower_case=kind != "cased")
        reference = BertTokenizer.from_pretrained(tmp_path)
    else:
        write_unigram(tmp_path, added=added_tokens() if kind == "unigram-added" else [], collapses=kind == "collapses")
        reference = PreTrainedTokenizerFast(tokenizer_file=str(tmp_path / "tokenizer.json"))
    model = load(tmp_path)
    for text in odd_strings(NUM_STRINGS, ADDED, seed=4):
        wanted = reference(text, add_special_tokens=False, return_offsets_mapping=True)
        found = model.tokenize_with_places(text, 10**6)
        places = [*zip(found.starts.tolist(), found.ends.tolist(), strict=True)]
        assert (text, found.ids, places) == (text, wanted["input_ids"], wanted["offset_mapping"])


def test_places_are_read_for_as_many_tokens_as_are_wanted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(text_model, "SLICE_CHARS", 5)
    model = load(word_piece(tmp_path, []))
    found = model.tokenize_with_places("今天天气很好" * 100, 12)
    assert len(found.ids) == len(found.starts) == len(found.ends) == 15


def test_pairs_and_masks_of_unigram_models_are_encoded_as_in_transformers(tmp_path: Path) -> None:
    write_unigram(tmp_path, added=added_tokens())
    model, reference = load(tmp_path), XLMRobertaTokenizerFast.from_pretrained(tmp_path)
    pairs = [("今天 天气", "很好"), ("", "a"), ("[退货]😡", "ok ok")]
    for row, pair in zip(encode_rows(model, pairs, Cls(), "right"), pairs, strict=True):
        assert row.ids.tolist() == reference(*pair)["input_ids"]
        assert (row.segment_ids.tolist(), row.positions.tolist()) == ([0] * len(row.ids), [*range(len(row.ids))])
    for text in ("[MASK]天气 很 [MASK] 。", "the [MASK]", "[MASK] [MASK]"):
        [row] = FILL_MASK.encode(model, FillMaskQuery((text,)))
        assert row.ids.tolist() == reference(text.replace("[MASK]", "<mask>"))["input_ids"]
    assert [model.token(model.mask), model.token(model.cls)] == ["<mask>", "<s>"]


def test_pairs_of_a_word_piece_model_are_encoded_as_in_transformers(tmp_path: Path) -> None:
    path = word_piece(tmp_path, added_tokens())
    model, reference = load(path), BertTokenizer.from_pretrained(path)
    [row] = encode_rows(model, [("今天[退货]", "很好")], Cls(), "right")
    wanted = reference("今天[退货]", "很好")
    assert (row.ids.tolist(), row.segment_ids.tolist()) == (wanted["input_ids"], wanted["token_type_ids"])


def test_a_pair_that_is_too_long_leaves_room_for_both_separators(tmp_path: Path) -> None:
    write_unigram(tmp_path)
    [row] = encode_rows(load(tmp_path, max_positions=20), [("天气 " * 30, "很好 " * 30)], Cls(), "right")
    assert (row.num_tokens, row.truncated, row.ids.tolist().count(2)) == (20, True, 3)
    with pytest.raises(InvalidRequest, match="at most 16 fit"):
        encode_rows(load(tmp_path, max_positions=20), [("天气 " * 30, "很好")], Cls(), "error")


# one segment


@pytest.mark.parametrize("is_unigram", [False, True])
def test_all_segments_of_a_model_with_one_segment_are_0(tmp_path: Path, is_unigram: bool) -> None:
    write_unigram(tmp_path) if is_unigram else word_piece(tmp_path, [])
    model = load(tmp_path, num_segments=1)
    [pair] = encode_rows(model, [("今天", "很好")], Cls(), "right")
    [choice] = encode_choices(replace(model, yes=5, no=6), [Choice(("好", "坏"), ("今天",))], "right")
    assert set(pair.segment_ids.tolist()) == set(choice.segment_ids.tolist()) == {0}
    [choice] = encode_choices(replace(load(tmp_path), yes=5, no=6), [Choice(("好", "坏"), ("今天",))], "right")
    assert set(choice.segment_ids.tolist()) == {0, 1}


@pytest.mark.parametrize(("inputs", "segment"), [(None, 1), (["input_ids"], 0), (["input_ids", "token_type_ids"], 1)])
def test_segments_are_given_if_the_tokenizer_gives_them(tmp_path: Path, inputs: list[str] | None, segment: int) -> None:
    path = word_piece(tmp_path, [], **({"model_input_names": inputs} if inputs else {}))
    assert load(path).second_segment == segment


# special tokens typed by a caller


def test_special_tokens_typed_into_a_unigram_model_are_text(tmp_path: Path) -> None:
    typed = (*XLM_ROBERTA_SPECIAL, "<mask>", "[SEP]", "[MASK]", "<e1>", "\0 0 \0", "\0 4 \0", " <mask> ")
    write_unigram(tmp_path, added=added_tokens(special=True))
    model = load(tmp_path)
    assert set(model.names) >= {0, 1, 2, 3, model.mask}
    texts = odd_strings(2000, (*typed, *ADDED), seed=4)
    # The same model with names for its special tokens that are in no text, and no added tokens.
    content = json.loads((tmp_path / "tokenizer.json").read_text(encoding="utf-8"))
    for index in (0, 1, 2, 3, model.mask):
        content["model"]["vocab"][index][0] = f"\ue000\ue001\ue002{index}"
    reference = Tokenizer.from_str(json.dumps(content | {"added_tokens": [], "post_processor": None}))
    wanted = [encoding.ids for encoding in reference.encode_batch(texts)]
    assert model.tokenize(texts) == wanted
    assert not {token for row in wanted for token in row} & (set(model.names) - {3})
    assert model.tokenize(["<s>"]) != [[0]]


def test_special_tokens_of_any_name_typed_into_word_piece_are_text(tmp_path: Path) -> None:
    """`cls` is a whole word, which a text has without meaning the special token."""
    names = {
        "cls_token": "cls",
        "sep_token": {"content": "sep"},
        "mask_token": "mask",
        "additional_special_tokens": ["the"],
    }
    model = load(word_piece(tmp_path, [], **names))
    assert (model.cls, model.sep, model.mask) == tuple(WORD_PIECES.index(name) for name in ("cls", "sep", "mask"))
    texts = odd_strings(1000, ("cls", "sep", "mask", "the", " cls ", "[MASK]", "the mask"), seed=5)
    special = {model.cls, model.sep, model.mask, WORD_PIECES.index("the")}
    assert not {token for row in model.tokenize(texts) for token in row} & special
    assert [model.token(model.cls), model.token(WORD_PIECES.index("the"))] == ["cls", "the"]


# slices


@pytest.mark.parametrize("kind", ["word-piece", "cased", "unigram", "collapses", "strips"])
def test_slices_of_a_long_text_have_the_tokens_of_the_whole(
    tmp_path: Path, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With added tokens: a text is never cut within one, whatever characters it consists of."""
    added = [*added_tokens(), AddedToken("a b", normalized=False), AddedToken("退 x", normalized=True)]
    if kind in ("word-piece", "cased"):
        word_piece(tmp_path, added_tokens() if kind == "cased" else added, do_lower_case=kind != "cased")
    else:
        write_unigram(
            tmp_path,
            added=added_tokens(lstrip=True) if kind == "strips" else added_tokens(),
            collapses=kind == "collapses",
        )
    model = load(tmp_path)
    monkeypatch.setattr(text_model, "SLICE_CHARS", 5)
    odd = st.text("aäA今臺，.<e1>b退货[]新词Ü n\u0308\ufe0f\u0000 \n\u30001😀😡哈", max_size=60)

    @settings(deadline=None)
    @given(st.lists(odd | st.sampled_from(TEXTS), max_size=3), st.integers(1, 12))
    def same(texts: list[str], limit: int) -> None:
        wanted = [model.tokenizer.encode(text).ids for text in texts]
        assert model.tokenize(texts) == wanted
        assert [ids[:limit] for ids in model.tokenize(texts, limit)] == [ids[:limit] for ids in wanted]
        ends = model.tokenize(texts, limit, from_end=True)
        assert [ids[-limit:] for ids in ends] == [ids[-limit:] for ids in wanted]

    same()


TEXTS = [text for text in odd_strings(500, ADDED, seed=6) if text]


@pytest.mark.parametrize(
    ("text", "from_end"),
    [
        ("the 天气 is, nice " * 5000, False),
        ("the 天气 is, nice " * 5000, True),  # the end of a text without spaces cannot be read alone
        ("今天天气，" * 5000, False),
        ("the weather" * 5000, False),
    ],
)
def test_a_long_text_is_read_only_as_far_as_its_tokens_are_kept(
    tmp_path: Path, text: str, from_end: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_unigram(tmp_path, added=added_tokens())
    model = load(tmp_path)
    wanted = model.tokenizer.encode(text).ids
    calls: list[int] = []
    read = TextModel._read_at_once
    monkeypatch.setattr(
        TextModel, "_read_at_once", lambda self, texts: calls.append(len(texts[0])) or read(self, texts)
    )
    [ids] = model.tokenize([text], 128, from_end=from_end)
    assert 128 <= len(ids) <= 256
    assert ids == (wanted[-len(ids) :] if from_end else wanted[: len(ids)])
    assert sum(calls) < 4096


@pytest.mark.parametrize("collapses", [False, True])
def test_the_start_of_a_text_without_spaces_has_the_tokens_of_the_whole(tmp_path: Path, collapses: bool) -> None:
    """Pieces of a small alphabet overlap in many ways, and many ways to cut have equal scores."""
    write_unigram(tmp_path, added=added_tokens(), collapses=collapses)
    model, draw = load(tmp_path), random.Random(7)
    shorter = 0
    for _ in range(300):
        pieces = draw.choices(
            ("天气", "今天", "哈哈", "哈", "a", "the", "好", "，", "[退货]", "😡", "龘", "龘龘", " "), k=400
        )
        text = "".join(pieces)
        limit = draw.choice((8, 16, 64))
        [ids] = model.tokenize([text], limit)
        wanted = model.tokenizer.encode(text).ids
        assert ids[:limit] == wanted[:limit]
        shorter += len(ids) < min(len(wanted), 2 * limit)
    assert shorter > 100, "most texts are not read as a whole"


@pytest.mark.parametrize(
    "change",
    [
        {"normalizer": {"type": "Replace", "pattern": {"Regex": "(?<=a.{9}) b"}, "content": "c"}},
        {"normalizer": {"type": "Replace", "pattern": {"String": "b"}, "content": "\u0301"}},
        {"normalizer": {"type": "Replace", "pattern": {"String": "is"}, "content": "c"}},
        {"pre_tokenizer": {"type": "Sequence", "pretokenizers": [{"type": "Punctuation", "behavior": "Isolated"}]}},
    ],
)
def test_texts_of_a_tokenizer_with_other_parts_are_read_whole(tmp_path: Path, change: dict[str, Any]) -> None:
    write_unigram(tmp_path)
    file = tmp_path / "tokenizer.json"
    content = json.loads(file.read_text(encoding="utf-8"))
    if parts := change.get("pre_tokenizer", {}).get("pretokenizers"):
        parts += content["pre_tokenizer"]["pretokenizers"]
    file.write_text(json.dumps(content | change), encoding="utf-8")
    model, text = load(tmp_path), "a the weather is b, nice " * 100
    whole = model.tokenizer.encode(text).ids
    assert [model.tokenize([text], 8), model.tokenize([text], 8, from_end=True)] == [[whole[:16]], [whole[-16:]]]
    assert PieceEnds.of(model.tokenizer) is None
    assert find_word_starts(model.tokenizer).search(text) is None


def test_texts_of_a_tokenizer_that_replaces_single_characters_are_read_in_part(tmp_path: Path) -> None:
    write_unigram(tmp_path)
    file = tmp_path / "tokenizer.json"
    content = json.loads(file.read_text(encoding="utf-8"))
    replace = {"type": "Replace", "pattern": {"String": "～"}, "content": "b"}
    content["normalizer"] = {"type": "Sequence", "normalizers": [{"type": "NFKC"}, replace]}
    file.write_text(json.dumps(content), encoding="utf-8")
    model, text = load(tmp_path), "a the～ weather is b, nice " * 100
    assert PieceEnds.of(model.tokenizer)
    assert find_word_starts(model.tokenizer).search(text)
    assert model.tokenize([text], 8)[0][:8] == model.tokenizer.encode(text).ids[:8]


def test_added_tokens_leave_other_characters_in_the_table_of_single_ones(tmp_path: Path) -> None:
    plain, added = (load(word_piece(tmp_path, tokens)) for tokens in ([], added_tokens()))
    assert {"今", "，", "["} <= find_single_characters(plain.tokenizer).keys()
    found = find_single_characters(added.tokenizer).keys()
    assert {"今", "，"} <= found
    assert not found & set("".join(ADDED))


# added tokens


def test_added_tokens_of_an_old_file_are_read(tmp_path: Path) -> None:
    """added_tokens.json alone, with a gap before the last id, whose token is named by no file."""
    first = len(WORD_PIECES)
    path = folder(tmp_path, WORD_PIECES, added_tokens={"😡": first, "[退货]": first + 2})
    model = load(path)
    assert model.tokenize(["我要[退货]😡"])[0][-2:] == [first + 2, first]
    assert [model.token(first), model.token(first + 1), model.token(first + 2)] == ["😡", "", "[退货]"]


def test_added_tokens_keep_their_ids_when_the_vocabulary_repeats_a_line(tmp_path: Path) -> None:
    tokens = [*WORD_PIECES, "今"]
    model = load(folder(tmp_path, tokens, added_tokens={"😡": len(tokens)}))
    assert model.tokenize(["😡今"]) == [[len(tokens), len(tokens) - 1]]


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ({"😡": 2000}, "has 2001 entries, but config.json says vocab_size 2000"),
        ({"😡": 7}, "added token '😡' has the id 7 of another token"),
        ({"😡": "x"}, r"added_tokens.json: added token .* has the id 'x'"),
        ({" ": 300}, "added_tokens.json: added token ' ' is blank"),
        ({"😡": 300, "😀": 300}, "added token '😀' has the id 300; another file says '😡'"),
    ],
)
def test_added_tokens_that_cannot_be_honoured_are_refused(tmp_path: Path, content: dict[str, Any], words: str) -> None:
    with pytest.raises(CheckpointError, match=words):
        load(folder(tmp_path, WORD_PIECES, added_tokens=content))


# refused


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"pre_tokenizer": {"type": "Whitespace"}}, r"pre_tokenizer is .*Whitespace.*; wanted a Metaspace"),
        ({"pre_tokenizer": None}, "pre_tokenizer is 'None'; wanted a Metaspace"),
        ({"pre_tokenizer": {"type": "Metaspace", "replacement": "▁", "prepend_scheme": "first"}}, "wanted a Metaspace"),
        ({"normalizer": {"type": "Unheard"}}, r"tokenizer\.json: cannot be read as a tokenizer"),
        ({"normalizer": {"type": "Precompiled", "precompiled_charsmap": ""}}, "cannot be read as a tokenizer"),
        ({"normalizer": {"type": "Precompiled", "precompiled_charsmap": "BAAAAAAAAAA="}}, "cannot be read as a token"),
        ({"post_processor": {"type": "ByteLevel"}}, "post_processor makes rows that are not served"),
        (
            {"post_processor": {"type": "RobertaProcessing", "cls": ["a", 0], "sep": ["b", "2"]}},
            "rows that are not served",
        ),
        (
            {"post_processor": {"type": "RobertaProcessing", "cls": ["a", 0], "sep": ["b", 9999]}},
            "wanted special tokens",
        ),
        ({"added_tokens": [{"id": 701, "content": "a", "lstrip": "no"}]}, "lstrip is 'no'; wanted true or false"),
        ({"model": {"type": "Unigram", "vocab": [["a", 0.0]] * 2, "unk_id": 0}}, "wanted distinct pieces"),
        ({"model": {"type": "Unigram", "vocab": [["a", 0.0]], "unk_id": 1}}, "model.unk_id is '1'"),
        ({"model": {"type": "BPE", "vocab": {}, "merges": []}}, "its tokenizer.json is BPE, which is not served"),
    ],
)
def test_a_tokenizer_that_cannot_be_honoured_is_refused(tmp_path: Path, change: dict[str, Any], words: str) -> None:
    write_unigram(tmp_path)
    file = tmp_path / "tokenizer.json"
    file.write_text(json.dumps(json.loads(file.read_text(encoding="utf-8")) | change), encoding="utf-8")
    with pytest.raises(CheckpointError, match=words):
        load(tmp_path)


def test_a_sentencepiece_model_alone_is_refused_with_what_to_do(tmp_path: Path) -> None:
    (tmp_path / "sentencepiece.bpe.model").write_bytes(b"\n")
    with pytest.raises(CheckpointError, match=r"sentencepiece\.bpe\.model is not read: write tokenizer\.json with "):
        load(tmp_path)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"normalizer": {"type": "NFKC"}}, "normalizer is .*NFKC.*; wanted BertNormalizer, as of BERT"),
        ({"pre_tokenizer": {"type": "Whitespace"}}, "pre_tokenizer is .*; wanted BertPreTokenizer, as of BERT"),
        ({"post_processor": {"type": "TemplateProcessing", "single": [], "pair": []}}, "post_processor makes rows"),
    ],
)
def test_a_word_piece_tokenizer_unlike_berts_is_refused(tmp_path: Path, change: dict[str, Any], words: str) -> None:
    vocab = {token: index for index, token in enumerate(WORD_PIECES)}
    path = folder(tmp_path, WORD_PIECES, tokenizer={"model": {"type": "WordPiece", "vocab": vocab}} | change)
    with pytest.raises(CheckpointError, match=words):
        load(path)


def test_a_role_that_is_no_token_is_refused(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="cls_token of the tokenizer is '7'; wanted a token"):
        load(word_piece(tmp_path, [], cls_token=7))
