"""The parts of a checkpoint that tasks need: its tokenizer, its labels and its limits.

Special tokens in a request's text are plain text: the tokenizer is built without added tokens, so `[SEP]` becomes `[`,
`sep`, `]` and cannot change the structure of a row.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import zip_longest
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer
from tokenizers.models import WordPiece
from tokenizers.normalizers import BertNormalizer
from tokenizers.pre_tokenizers import BertPreTokenizer

from service.checkpoints.checkpoint import Checkpoint, Kind
from service.checkpoints.files import read_json
from service.errors import CheckpointError

YES, NO = "是", "非"
FLAGS = ("do_lower_case", "strip_accents", "tokenize_chinese_chars")
SPECIAL = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
_MAX_TOKEN_CHARS = 256
"""On average over a vocab.txt: a larger file is not read."""


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
    _single: dict[str, int] = field(init=False)
    _others: re.Pattern[str] = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "_single", find_single_characters(self.tokenizer))
        listed = re.escape("".join(self._single))
        object.__setattr__(self, "_others", re.compile(f"[^{listed}]+" if listed else "(?s:.+)"))

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
        )

    @property
    def can_choose(self) -> bool:
        """Whether this model can do UniMC: a masked LM whose vocabulary has the words for yes and no."""
        return self.kind == "masked-lm" and self.yes is not None and self.no is not None

    def tokenize(self, texts: Sequence[str]) -> list[list[int]]:
        """Token ids of each text, without special tokens.

        Characters that are always single tokens, most of a Chinese text, are looked up in a table. The tokenizer reads
        only the runs between them, and releases the GIL meanwhile.
        """
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
        with file.open(encoding="utf-8") as stream:
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
