"""Reads the tokenizer of a checkpoint: a WordPiece or Unigram model, its special and added tokens, the form of rows.

A request holds text and nothing else. Its text cannot produce a special token, whatever the tokenizer calls that token:
in the vocabulary, special tokens get names with spaces in them, which no word and no piece has. Ordinary added tokens
are tokens wherever they are in a text, as in transformers.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tokenizers import AddedToken, Tokenizer
from tokenizers.models import Unigram, WordPiece
from tokenizers.normalizers import BertNormalizer
from tokenizers.pre_tokenizers import BertPreTokenizer

from service.checkpoints.checkpoint import Checkpoint
from service.errors import CheckpointError
from service.tasks.row_form import RowForm, bert_form, read_form, xlm_roberta_form
from service.tasks.tokenizer_files import (
    ROLES,
    TokenizerFiles,
    hidden_name,
    other_special_names,
    read_added,
    special_names,
)

# The library's own threads would only hand a request's few words to another core, and compete with the replicas.
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

YES, NO = "是", "非"
SPECIAL = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
_XLM_ROBERTA_SPECIAL = ("<pad>", "<unk>", "<s>", "</s>", "<mask>")
_FLAGS = {
    "do_lower_case": "lowercase",
    "strip_accents": "strip_accents",
    "tokenize_chinese_chars": "handle_chinese_chars",
}
"""The keys of tokenizer_config.json for case, accents and Chinese characters, and the same of BERT's normalizer."""
_MAX_TOKEN_CHARS = 256
"""On average over a vocab.txt: a larger file is not read."""


@dataclass(frozen=True, slots=True, eq=False)
class CheckpointTokenizer:
    """`names` are those of special and added tokens, as in their files; `mask_strips` says whether a mask removes the
    white space before and after itself."""

    tokenizer: Tokenizer
    form: RowForm
    mask: int
    yes: int | None
    no: int | None
    names: Mapping[int, str]
    mask_strips: tuple[bool, bool]


def read_tokenizer(checkpoint: Checkpoint) -> CheckpointTokenizer:
    """Reads vocab.txt or tokenizer.json, and the files next to it.

    Raises:
        CheckpointError: no vocabulary, or one that lacks a special token, has more entries than the embeddings, or
            belongs to a tokenizer that cannot be honoured.
    """
    files = TokenizerFiles.read(checkpoint.path)
    is_unigram = files.model_type == "Unigram"
    vocab = _unigram_vocab(files) if is_unigram else read_vocab(files.path, checkpoint.shape.vocab_size)
    added = read_added(files)
    ids = vocab | {token.content: index for index, token in added.items()}
    names = special_names(files, _XLM_ROBERTA_SPECIAL if is_unigram else SPECIAL)
    _check_vocab(ids, names, checkpoint)
    roles = dict(zip(ROLES, (ids[name] for name in names), strict=True))
    form = _read_form(files, roles, set(ids.values()), is_unigram)
    special = {index: token.content for index, token in added.items() if token.special}
    special |= {ids[name]: name for name in (*names, *other_special_names(files)) if name in ids}
    enclosing = (form.cls, form.sep, files.model["unk_id"] if is_unigram else roles["unk_token"])
    special |= {index: token for token, index in ids.items() if index in enclosing}
    ordinary = {index: token for index, token in added.items() if index not in special}
    hidden = {hidden_name(index) if index in special else token: index for token, index in vocab.items()}
    if is_unigram:
        tokenizer = _build_unigram(files, hidden)
    else:
        tokenizer = build_tokenizer(
            _without_gaps(hidden) if ordinary else hidden, _word_piece_flags(files), hidden_name(roles["unk_token"])
        )
    _add_tokens(tokenizer, ordinary, files.path)
    mask = added.get(roles["mask_token"])
    return CheckpointTokenizer(
        tokenizer=tokenizer,
        form=form,
        mask=roles["mask_token"],
        yes=ids.get(YES),
        no=ids.get(NO),
        names={index: token.content for index, token in added.items()} | special,
        mask_strips=(mask.lstrip, mask.rstrip) if mask else (False, False),
    )


def build_tokenizer(vocab: dict[str, int], config: Mapping[str, Any], unk_token: str = "[UNK]") -> Tokenizer:
    """BERT's WordPiece tokenizer, with the defaults of `BertTokenizer`: lower case, accents stripped, every Chinese
    character a word."""
    tokenizer = Tokenizer(WordPiece(vocab, unk_token=unk_token, max_input_chars_per_word=100))
    tokenizer.normalizer = BertNormalizer(
        clean_text=True,
        handle_chinese_chars=config.get("tokenize_chinese_chars", True),
        strip_accents=config.get("strip_accents"),
        lowercase=config.get("do_lower_case", True),
    )
    tokenizer.pre_tokenizer = BertPreTokenizer()
    return tokenizer


def encode(tokenizer: Tokenizer, texts: Sequence[str]) -> list[list[int]]:
    """The ids of each text."""
    return [encoding.ids for encoding in _guarded(tokenizer.encode_batch_fast, texts)]


def encode_with_offsets(tokenizer: Tokenizer, texts: Sequence[str]) -> list[tuple[list[int], list[tuple[int, int]]]]:
    """The ids of each text, and for each the half-open span of its characters in the text."""
    return [(encoding.ids, encoding.offsets) for encoding in _guarded(tokenizer.encode_batch, texts)]


def _guarded(read: Callable[[Sequence[str]], list[Any]], texts: Sequence[str]) -> list[Any]:
    """Calls the library.

    A failed assertion inside it is raised as a BaseException, which would end the thread: it becomes a RuntimeError,
    which fails the request alone.
    """
    try:
        return read(texts)
    except BaseException as error:
        if _is_panic(error):
            raise RuntimeError(f"the tokenizer failed ({error})") from error
        raise


def _is_panic(error: BaseException) -> bool:
    """The class is none of the library's names."""
    return type(error).__name__ == "PanicException"


def read_vocab(path: Path, vocab_size: int) -> dict[str, int]:
    """`vocab.txt` (one token a line), else the WordPiece vocabulary inside `tokenizer.json`.

    Raises:
        CheckpointError: neither exists, or the file cannot be read or is far too large for `vocab_size` tokens.
    """
    lines, whole = path / "vocab.txt", path / "tokenizer.json"
    if lines.is_file():
        return {token: index for index, token in enumerate(_read_text(lines, vocab_size).rstrip("\n").split("\n"))}
    files = TokenizerFiles.read(path)
    if files.model_type != "WordPiece" or not isinstance(files.model.get("vocab"), dict):
        raise CheckpointError(f"{path}: has neither vocab.txt nor a WordPiece or Unigram tokenizer.json{_hint(files)}")
    vocab = dict(files.model["vocab"])
    for token, index in vocab.items():
        if isinstance(index, bool) or not isinstance(index, int) or index < 0:
            raise CheckpointError(f"{whole}: vocab: {token!r} is {str(index)[:200]!r}; wanted a whole number from 0")
    return vocab


def _hint(files: TokenizerFiles) -> str:
    """What is there instead of a vocabulary, and what to do."""
    if files.model:
        return f"; its tokenizer.json is {files.model_type}, which is not served"
    if found := sorted(file.name for file in files.path.glob("*.model")):
        save = "transformers.AutoTokenizer.from_pretrained(FOLDER).save_pretrained(FOLDER)"
        return f"; {found[0]} is not read: write tokenizer.json with {save}"
    return ""


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


def _check_vocab(ids: Mapping[str, int], names: Iterable[str], checkpoint: Checkpoint) -> None:
    missing = [name for name in names if name not in ids]
    if missing:
        raise CheckpointError(f"{checkpoint.path}: the vocabulary lacks {', '.join(missing)}")
    if max(ids.values()) >= checkpoint.shape.vocab_size:
        raise CheckpointError(
            f"{checkpoint.path}: the vocabulary has {max(ids.values()) + 1} entries, but config.json says"
            f" vocab_size {checkpoint.shape.vocab_size}"
        )


def _read_form(files: TokenizerFiles, roles: Mapping[str, int], ids: set[int], is_unigram: bool) -> RowForm:
    default = (xlm_roberta_form if is_unigram else bert_form)(roles["cls_token"], roles["sep_token"])
    processor, inputs = files.whole.get("post_processor"), files.config.get("model_input_names")
    form = read_form(files.path, processor, inputs, default)
    if not {form.cls, form.sep} <= ids:
        raise _unserved(files, "post_processor", processor, "special tokens of the vocabulary")
    return form


def _without_gaps(vocab: Mapping[str, int]) -> dict[str, int]:
    """The library numbers added tokens from the number of entries on: each id gets an entry."""
    used = set(vocab.values())
    return dict(vocab) | {hidden_name(index): index for index in range(max(used)) if index not in used}


def _add_tokens(tokenizer: Tokenizer, added: Mapping[int, AddedToken], path: Path) -> None:
    """Adds ordinary tokens under their own ids; the ids between them get special tokens, which match no text."""
    if not added:
        return
    first = tokenizer.get_vocab_size()
    known = [token for index, token in sorted(added.items()) if index < first]
    new = [
        added.get(index) or AddedToken(hidden_name(index), special=True, normalized=False)
        for index in range(first, max(added) + 1)
    ]
    tokenizer.encode_special_tokens = True
    tokenizer.add_tokens([*known, *new])
    for index, token in added.items():
        if tokenizer.token_to_id(token.content) != index:
            raise CheckpointError(f"{path}: added token {token.content!r} has the id {index} of another token")


def _word_piece_flags(files: TokenizerFiles) -> dict[str, bool]:
    """The flags for case, accents and Chinese characters: of tokenizer_config.json, else of tokenizer.json.

    Upstream has neither file. A tokenizer.json that does not work as BERT's does is refused.
    """
    for key in _FLAGS:
        if not isinstance(files.config.get(key), bool | None):
            file = files.path / "tokenizer_config.json"
            raise CheckpointError(f"{file}: {key} is {files.config[key]!r}; wanted true or false")
    normalizer: dict[str, Any] = {}
    if files.model_type == "WordPiece":
        wanted = {"normalizer": "BertNormalizer", "pre_tokenizer": "BertPreTokenizer"}
        for key, kind in wanted.items():
            part = files.whole.get(key) or {"type": kind}
            if not isinstance(part, dict) or part.get("type") != kind or not part.get("clean_text", True):
                raise _unserved(files, key, part, f"{kind}, as of BERT")
        normalizer = files.whole.get("normalizer") or {}
        for key, value in (("continuing_subword_prefix", "##"), ("max_input_chars_per_word", 100)):
            if files.model.get(key, value) != value:
                raise _unserved(files, f"model.{key}", files.model[key], str(value))
    flags = {key: normalizer.get(ours) for key, ours in _FLAGS.items()}
    flags |= {key: files.config[key] for key in _FLAGS if files.config.get(key) is not None}
    return {key: value for key, value in flags.items() if isinstance(value, bool)}


def _unigram_vocab(files: TokenizerFiles) -> dict[str, int]:
    pieces = files.model.get("vocab")
    is_sound = isinstance(pieces, list) and all(
        isinstance(piece, list) and len(piece) == 2 and isinstance(piece[0], str) for piece in pieces
    )
    if not is_sound or len(vocab := {piece[0]: index for index, piece in enumerate(pieces or [])}) != len(pieces or []):
        raise CheckpointError(f"{files.path / 'tokenizer.json'}: model.vocab: wanted distinct pieces with their scores")
    unknown = files.model.get("unk_id")
    if isinstance(unknown, bool) or not isinstance(unknown, int) or not 0 <= unknown < len(vocab):
        raise _unserved(files, "model.unk_id", unknown, "the id of the unknown token")
    return vocab


def _build_unigram(files: TokenizerFiles, vocab: Mapping[str, int]) -> Tokenizer:
    """The tokenizer of tokenizer.json, with the names of `vocab` and without its added tokens and its row form."""
    _check_metaspace(files)
    parts = {"normalizer": files.whole.get("normalizer"), "pre_tokenizer": files.whole.get("pre_tokenizer")}
    blank: dict[str, Any] = {
        "version": "1.0",
        "added_tokens": [],
        "model": {"type": "WordPiece", "vocab": {}, "unk_token": ""},
    } | parts
    blank["model"] |= {"continuing_subword_prefix": "##", "max_input_chars_per_word": 100}
    scores = (score for _, score in files.model["vocab"])
    try:
        tokenizer = Tokenizer.from_str(json.dumps(blank))
        # Not as JSON: with 250,000 pieces it takes twice as long.
        pieces = [*zip(vocab, scores, strict=True)]
        tokenizer.model = Unigram(pieces, files.model["unk_id"], bool(files.model.get("byte_fallback")))
        encode(tokenizer, ["a 今 ａ\u0308"])  # a damaged normalizer fails here
        return tokenizer
    except BaseException as error:  # the library raises Exception itself
        if not isinstance(error, Exception) and not _is_panic(error):
            raise
        raise CheckpointError(f"{files.path / 'tokenizer.json'}: cannot be read as a tokenizer ({error})") from error


def _check_metaspace(files: TokenizerFiles) -> None:
    """Refuses what does not end in XLM-RoBERTa's cut into words: each starts with its space, written as U+2581."""
    found = files.whole.get("pre_tokenizer")
    parts = found.get("pretokenizers") if isinstance(found, dict) and found.get("type") == "Sequence" else [found]
    last = parts[-1] if isinstance(parts, list) and parts and isinstance(parts[-1], dict) else {}
    scheme = last.get("prepend_scheme", "always" if last.get("add_prefix_space", True) else "never")
    is_ours = last.get("type") == "Metaspace" and last.get("split", True) and scheme in ("always", "never")
    if not is_ours or last.get("replacement") != "▁":
        raise _unserved(files, "pre_tokenizer", found, 'a Metaspace of "▁" that splits, and prepends always or never')


def _unserved(files: TokenizerFiles, key: str, value: object, wanted: str) -> CheckpointError:
    return CheckpointError(f"{files.path / 'tokenizer.json'}: {key} is {str(value)[:200]!r}; wanted {wanted}")
