"""The parts of a checkpoint that tasks need: its tokenizer, its labels and its limits.

Special tokens in a request's text are plain text: the tokenizer is built without added tokens, so `[SEP]` becomes `[`,
`sep`, `]` and cannot change the structure of a row.

A model keeps only its `max_length` tokens of a text, so no more of it is tokenized. A long text is read in slices that
are cut where the tokenizer starts a new word, whatever stands around the cut.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cache
from itertools import zip_longest
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer
from tokenizers.models import WordPiece
from tokenizers.normalizers import BertNormalizer
from tokenizers.pre_tokenizers import BertPreTokenizer

from service.checkpoints.checkpoint import Checkpoint, Kind
from service.checkpoints.files import read_json
from service.checkpoints.heads import Head
from service.errors import CheckpointError
from service.slices import between_slices

YES, NO = "是", "非"
FLAGS = ("do_lower_case", "strip_accents", "tokenize_chinese_chars")
SPECIAL = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
_MAX_TOKEN_CHARS = 256
"""On average over a vocab.txt: a larger file is not read."""
SLICE_CHARS = 16_384
"""Characters that the tokenizer reads in one call, unless no word ends there: some milliseconds."""
CHINESE = ("\u3400-\u4dbf", "\u4e00-\u9fff", "\uf900-\ufaff", "\U00020000-\U0002a6df", "\U0002a700-\U0002ceaf")
"""Blocks of characters that BERT's normalizer makes words of their own."""


@dataclass(frozen=True, slots=True, eq=False)
class TextModel:
    """A checkpoint without its weights; `max_length` is in tokens, special tokens included."""

    name: str
    kind: Kind
    labels: tuple[str, ...]
    tasks: tuple[str, ...]
    max_length: int
    tokenizer: Tokenizer
    cls: int
    sep: int
    mask: int
    yes: int | None
    no: int | None
    hidden_size: int
    head: Head | None = None
    """Of a sequence classifier."""
    source: str = ""
    _single: dict[str, int] = field(init=False)
    _others: re.Pattern[str] = field(init=False)
    _word_start: re.Pattern[str] = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "_single", find_single_characters(self.tokenizer))
        listed = re.escape("".join(self._single))
        object.__setattr__(self, "_others", re.compile(f"[^{listed}]+" if listed else "(?s:.+)"))
        object.__setattr__(self, "_word_start", find_word_starts(self.tokenizer))

    @classmethod
    def load(cls, checkpoint: Checkpoint) -> TextModel:
        """Reads the vocabulary and the tokenizer configuration of a checkpoint.

        Raises:
            CheckpointError: no vocabulary, or one that lacks a special token or has more entries than the embeddings.
        """
        vocab = read_vocab(checkpoint.path, checkpoint.shape.vocab_size)
        check_vocab(vocab, checkpoint)
        return cls(
            name=checkpoint.name,
            kind=checkpoint.kind,
            labels=checkpoint.labels,
            tasks=checkpoint.tasks,
            max_length=checkpoint.shape.max_positions,
            tokenizer=build_tokenizer(vocab, _tokenizer_config(checkpoint.path)),
            cls=vocab["[CLS]"],
            sep=vocab["[SEP]"],
            mask=vocab["[MASK]"],
            yes=vocab.get(YES),
            no=vocab.get(NO),
            hidden_size=checkpoint.shape.hidden_size,
            head=checkpoint.head,
            source=checkpoint.source,
        )

    @property
    def can_choose(self) -> bool:
        """Whether this model can do UniMC: a masked LM whose vocabulary has the words for yes and no."""
        return self.kind == "masked-lm" and self.yes is not None and self.no is not None

    def tokenize(
        self, texts: Sequence[str], max_tokens: int | None = None, *, from_end: bool = False
    ) -> list[list[int]]:
        """Token ids of each text, without special tokens.

        With `max_tokens`, a longer text is read only until it has at least as many tokens: from its start, or with
        `from_end` from its end. At most about twice as many are returned.
        """
        kept = (
            slice(None) if max_tokens is None else slice(-2 * max_tokens, None) if from_end else slice(2 * max_tokens)
        )
        found: list[list[int]] = [[] for _ in texts]
        unread = {index: (0, len(text)) for index, text in enumerate(texts)}
        num_chars = SLICE_CHARS if max_tokens is None else min(2 * max_tokens, SLICE_CHARS)
        while unread:
            spans = {index: self._slice(texts[index], *rest, num_chars, from_end) for index, rest in unread.items()}
            read = self._read([texts[index][start:end] for index, (start, end) in spans.items()], kept)
            for (index, (start, end)), ids in zip(spans.items(), read, strict=True):
                found[index] = ids + found[index] if from_end else found[index] + ids
                rest = (unread[index][0], start) if from_end else (end, unread[index][1])
                unread[index] = rest
                if rest[0] == rest[1] or (max_tokens is not None and len(found[index]) >= max_tokens):
                    del unread[index]
            num_chars = min(2 * num_chars, SLICE_CHARS)
        return found

    def _slice(self, text: str, start: int, end: int, num_chars: int, from_end: bool) -> tuple[int, int]:
        """About `num_chars` of the span at its start or end, cut where a word starts; more where no word does."""
        if end - start <= num_chars:
            return start, end
        if not from_end:
            cut = self._word_start.search(text, start + num_chars, end)
            return start, cut.start() if cut else end
        while num_chars < end - start:
            if cut := self._word_start.search(text, end - num_chars, end):
                return cut.start(), end
            num_chars *= 2
        return start, end

    def _read(self, texts: Sequence[str], kept: slice) -> list[list[int]]:
        """The `kept` token ids of each text; SLICE_CHARS at most, or one text, in each call of the tokenizer."""
        read: list[list[int]] = []
        while len(read) < len(texts):
            between_slices()
            first, num_chars = len(read), 0
            last = first
            while last < len(texts) and (last == first or num_chars + len(texts[last]) <= SLICE_CHARS):
                num_chars += len(texts[last])
                last += 1
            read += [ids[kept] for ids in self._read_at_once(texts[first:last])]
        return read

    def _read_at_once(self, texts: Sequence[str]) -> list[list[int]]:
        """Characters that are always single tokens, most of a Chinese text, are looked up in a table. The tokenizer
        reads only the runs between them, and releases the GIL meanwhile."""
        between = [self._others.findall(text) for text in texts]
        runs = [run for found in between for run in found]
        read = iter(self.tokenizer.encode_batch_fast(runs) if runs else ())
        return [self._join(text, [next(read).ids for _ in found]) for text, found in zip(texts, between, strict=True)]

    def _join(self, text: str, runs: list[list[int]]) -> list[int]:
        known = self._single.__getitem__
        if not runs:
            return list(map(known, text))
        ids: list[int] = []
        for piece, run in zip_longest(self._others.split(text), runs, fillvalue=()):
            ids += map(known, piece)
            ids += run
        return ids

    def token(self, token_id: int) -> str:
        """The token of an id; empty for an id outside the vocabulary, which padded embeddings can produce."""
        return self.tokenizer.id_to_token(token_id) or ""


def build_tokenizer(vocab: dict[str, int], config: dict[str, Any]) -> Tokenizer:
    """BERT's WordPiece tokenizer, with the defaults of `BertTokenizer`: lower case, accents stripped, every Chinese
    character a word."""
    tokenizer = Tokenizer(WordPiece(vocab, unk_token="[UNK]", max_input_chars_per_word=100))
    tokenizer.normalizer = BertNormalizer(
        clean_text=True,
        handle_chinese_chars=config.get("tokenize_chinese_chars", True),
        strip_accents=config.get("strip_accents"),
        lowercase=config.get("do_lower_case", True),
    )
    tokenizer.pre_tokenizer = BertPreTokenizer()
    return tokenizer


def find_single_characters(tokenizer: Tokenizer) -> dict[str, int]:
    """Ids of the characters that are always a token of their own, in any context: Chinese characters and punctuation.

    BERT's pre-tokenizer splits by the character alone, so encoding it once between two letters decides it.
    """
    vocab = tokenizer.get_vocab()
    characters = [token for token in vocab if len(token) == 1]
    read = tokenizer.encode_batch_fast([f"a{character}a" for character in characters])
    return {
        character: vocab[character]
        for character, ids in zip(characters, (encoding.ids for encoding in read), strict=True)
        if len(ids) == 3 and ids[0] == ids[2] and ids[1] == vocab[character]
    }


def find_word_starts(tokenizer: Tokenizer) -> re.Pattern[str]:
    """Matches a character that is never in a word with its neighbours: white space, punctuation, a Chinese character.

    The candidates are tried with the tokenizer, so that a cut before one never changes the tokens. Of the characters
    above U+FFFF only Chinese ones are candidates: with more of them a search takes 80 times as long.
    """
    letter = tokenizer.encode("a").ids
    candidates = [*_separators(), *CHINESE]
    read = tokenizer.encode_batch_fast([f"a{each[0]}a" for each in candidates])
    starts = [
        each if len(each) == 3 else re.escape(each)
        for each, ids in zip(candidates, (encoding.ids for encoding in read), strict=True)
        if len(ids) in (2, 3) and ids[:1] == letter == ids[-1:]
    ]
    return re.compile(f"[{''.join(starts)}]" if starts else "(?!)")


@cache
def _separators() -> tuple[str, ...]:
    """White space, and the punctuation of Unicode and the symbols of ASCII that stand below U+10000."""
    symbols = [chr(code) for code in range(33, 127) if not chr(code).isalnum()]
    others = [character for character in map(chr, range(128, 0x10000)) if unicodedata.category(character)[0] == "P"]
    return (" ", "\t", "\n", "\r", *symbols, *others)


def read_vocab(path: Path, vocab_size: int) -> dict[str, int]:
    """`vocab.txt` (one token a line), else the WordPiece vocabulary inside `tokenizer.json`.

    Raises:
        CheckpointError: neither exists, or the file cannot be read or is far too large for `vocab_size` tokens.
    """
    lines, whole = path / "vocab.txt", path / "tokenizer.json"
    if lines.is_file():
        return {token: index for index, token in enumerate(_read_text(lines, vocab_size).rstrip("\n").split("\n"))}
    model = read_json(whole).get("model") if whole.is_file() else None
    if not isinstance(model, dict) or model.get("type") != "WordPiece" or not isinstance(model.get("vocab"), dict):
        raise CheckpointError(f"{path}: has neither vocab.txt nor a WordPiece tokenizer.json")
    vocab = dict(model["vocab"])
    for token, index in vocab.items():
        if isinstance(index, bool) or not isinstance(index, int) or index < 0:
            raise CheckpointError(f"{whole}: vocab: {token!r} is {str(index)[:200]!r}; wanted a whole number from 0")
    return vocab


def check_vocab(vocab: dict[str, int], checkpoint: Checkpoint) -> None:
    missing = [token for token in SPECIAL if token not in vocab]
    if missing:
        raise CheckpointError(f"{checkpoint.path}: the vocabulary lacks {', '.join(missing)}")
    if max(vocab.values()) >= checkpoint.shape.vocab_size:
        raise CheckpointError(
            f"{checkpoint.path}: the vocabulary has {max(vocab.values()) + 1} entries, but config.json says"
            f" vocab_size {checkpoint.shape.vocab_size}"
        )


def _read_text(file: Path, vocab_size: int) -> str:
    limit = vocab_size * _MAX_TOKEN_CHARS
    try:
        with file.open(encoding="utf-8-sig") as stream:  # Windows editors put a byte-order mark before the first token
            text = stream.read(limit + 1)
    except OSError as error:
        raise CheckpointError(f"{file}: cannot be read: {error.strerror}") from error
    except ValueError as error:
        raise CheckpointError(f"{file}: is not UTF-8 text ({error})") from error
    if len(text) > limit:
        raise CheckpointError(
            f"{file}: has more than {limit} characters, which is too large for the {vocab_size} tokens (vocab_size) of"
            " config.json"
        )
    return text


def _tokenizer_config(path: Path) -> dict[str, Any]:
    """The flags for case, accents and Chinese characters in `tokenizer_config.json`; upstream has no such file."""
    file = path / "tokenizer_config.json"
    config = read_json(file) if file.is_file() else {}
    for key in FLAGS:
        if not isinstance(config.get(key), bool | None):
            raise CheckpointError(f"{file}: {key} is {config[key]!r}; wanted true or false")
    return {key: config[key] for key in FLAGS if config.get(key) is not None}
