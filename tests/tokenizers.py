"""Makes small tokenizers in the files of upstream: XLM-RoBERTa's Unigram, and odd strings to compare tokens with."""

from __future__ import annotations

import json
import random
import struct
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from tokenizers import AddedToken, Regex, Tokenizer, normalizers, pre_tokenizers, processors
from tokenizers.models import Unigram
from tokenizers.trainers import UnigramTrainer

from tests.checkpoints import CHARACTERS

XLM_ROBERTA_SPECIAL = ("<s>", "<pad>", "</s>", "<unk>")
NORMAL_FORMS = {
    "\u3000": " ",
    "\u00a0": " ",
    "\u200b": " ",
    "\u2028": " ",
    "\n": " ",
    "\t": " ",
    "ﬁ": "fi",
    "：": ":",
    "，": ",",
    "½": "1⁄2",
    "㍿": "株式会社",
    **{chr(0xFEE0 + code): chr(code) for code in (*range(0x30, 0x3A), *range(0x61, 0x7B))},
    "e\u0301": "é",
    "A\u0308": "Ä",
}
"""A part of sentencepiece's rules `nmt_nfkc`, which XLM-RoBERTa has as a whole."""

_WORDS = ("the", "weather", "is", "nice", "model", "price", "3.14", "100%", "http://a.b/c", "ok", "haha", "aaa")
_SCRIPTS = (
    "ａｂｃ １２ ， ： ﬁ ½ ㍿ 豈 한국어 あいア я ال İ ß ẞ 臺灣 《三体》 —— ！！ 哈哈哈 aaaa ... ---- ▁ ##a [ ] < > / \\"
)
_ODD = (
    *_SCRIPTS.split(),
    *(
        "😀",
        "👨\u200d👩",
        "❤\ufe0f",
        "\U00020000",
        "𪚥",
        "e\u0301",
        "A\u0308",
        "\u0301",
        "\u0600",
        "\ue000",
        "\U0010ffff",
    ),
    *("\x00", "\x01", "\x7f", "\u200b", "\u200e", "\ufeff", "\u00ad", "\u2028", "\u2029", "\u0085", "\r\n", "\n", "\t"),
    *("\u3000", "\xa0", " ", "  ", "     "),
)


def odd_strings(count: int, extra: Sequence[str] = (), seed: int = 0) -> list[str]:
    """Strings of odd pieces, Chinese characters and words, the empty one among them; `extra` are further pieces."""
    draw = random.Random(seed)
    pieces = (*_ODD, *extra, *extra)

    def one() -> str:
        kinds = (lambda: draw.choice(pieces), lambda: draw.choice(CHARACTERS), lambda: draw.choice(_WORDS), lambda: " ")
        return "".join(draw.choice(kinds)() for _ in range(draw.randrange(1, 14)))

    return ["", " ", "\n", *(one() for _ in range(count - 3))]


def write_unigram(
    path: Path,
    *,
    added: Sequence[AddedToken] = (),
    collapses: bool = False,
    special: Sequence[str] = XLM_ROBERTA_SPECIAL,
    mask: str = "<mask>",
    vocab_size: int = 700,
    config: Mapping[str, Any] | None = None,
) -> int:
    """Trains XLM-RoBERTa's tokenizer on a few words, writes its files into `path`, and returns the number of tokens.

    With `collapses` runs of spaces become one in the normalizer and Metaspace alone cuts words, as in newer files; else
    the words are split at white space first. `added` follow the mask.
    """
    pretokenizer = pre_tokenizers.Metaspace(replacement="▁", prepend_scheme="always")
    rules = normalizers.Precompiled(precompiled(NORMAL_FORMS))
    tokenizer = Tokenizer(Unigram())
    if collapses:
        collapse = normalizers.Replace(Regex(" {2,}"), "▁")
        tokenizer.normalizer = normalizers.Sequence([rules, normalizers.Strip(left=False, right=True), collapse])
        tokenizer.pre_tokenizer = pretokenizer
    else:
        tokenizer.normalizer = rules
        tokenizer.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.WhitespaceSplit(), pretokenizer])
    trainer = UnigramTrainer(
        vocab_size=vocab_size, special_tokens=[*special, mask], unk_token=special[3], show_progress=False
    )
    tokenizer.train_from_iterator(_sentences(), trainer)
    content = json.loads(tokenizer.to_str())
    # The mask is the last piece, as in the published files; the trainer puts special tokens first.
    pieces = [piece for piece in content["model"]["vocab"] if piece[0] != mask]
    content["model"] |= {"vocab": [*pieces, [mask, 0.0]], "unk_id": 3}
    content["added_tokens"] = []
    tokenizer = Tokenizer.from_str(json.dumps(content))
    tokenizer.add_special_tokens([*special, AddedToken(mask, lstrip=True, special=True)])
    tokenizer.add_tokens(list(added))
    ids = [(token, tokenizer.token_to_id(token)) for token in (special[0], special[2])]
    tokenizer.post_processor = processors.TemplateProcessing(
        single=[special[0], "$A", special[2]],
        pair=[special[0], "$A", special[2], special[2], "$B", special[2]],
        special_tokens=ids,
    )
    tokenizer.save(str(path / "tokenizer.json"))
    roles = {"cls_token": special[0], "bos_token": special[0], "pad_token": special[1], "sep_token": special[2]}
    roles |= {"eos_token": special[2], "unk_token": special[3], "mask_token": mask}
    (path / "tokenizer_config.json").write_text(
        json.dumps({"tokenizer_class": "XLMRobertaTokenizer", **roles, **(config or {})}), encoding="utf-8"
    )
    return tokenizer.get_vocab_size()


def _sentences() -> list[str]:
    draw = random.Random(1)
    half = CHARACTERS[:260]
    return [
        "".join(draw.choice((*half, *(f" {word} " for word in _WORDS), "哈哈", "今天", "天气")) for _ in range(12))
        for _ in range(600)
    ]


def precompiled(rules: Mapping[str, str]) -> bytes:
    """Rules in sentencepiece's form: the size and the units of a double-array trie, then the texts that it points to.

    Source: the format of darts-clone. Each node has 256 units of its own, so that no two nodes meet.
    """
    texts, offsets = bytearray(), {}
    for text in dict.fromkeys(rules.values()):
        offsets[text] = len(texts)
        texts += text.encode() + b"\0"
    nodes: list[dict[int, int]] = [{}]
    values: dict[int, int] = {}
    for key, text in rules.items():
        node = 0
        for byte in key.encode():
            if byte not in nodes[node]:
                nodes.append({})
                nodes[node][byte] = len(nodes) - 1
            node = nodes[node][byte]
        values[node] = offsets[text]
    units = [0] * (256 * (len(nodes) + 1))
    places = {0: 0}
    for node, children in enumerate(nodes):  # a child's number is greater than its parent's
        base, place = 256 * (node + 1), places[node]
        units[place] |= (place ^ base) << 10
        if node in values:
            units[place] |= 1 << 8
            units[base] = values[node] | 1 << 31
        for byte, child in children.items():
            places[child] = base ^ byte
            units[base ^ byte] |= byte
    return struct.pack(f"<I{len(units)}I", 4 * len(units), *units) + bytes(texts)
