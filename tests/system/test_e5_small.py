"""The embedding model that ships: its files, its vectors and tokens, and what a server without `--model` answers.

`e5_small_vectors.json` holds vectors of the whole multilingual-e5-small, of all 250,002 pieces: times 10,000, rounded,
by transformers' BertModel in float32, mean over all tokens, L2 norm 1, prefix `query: `. The model was written by
`python -m service.tools.embedder PACKAGE FOLDER --all-pieces --plain`.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import httpx
import numpy as np
import pytest

import service
from service.checkpoints.checkpoint import describe
from service.domain import Encoding, Mean
from service.engine.engine import Engine
from service.tasks.text_model import TextModel
from tests.system.test_serve import Running, serving
from tests.tokenizers import odd_strings

pytestmark = pytest.mark.system

FOLDER = Path(service.__file__).parent / "models" / "e5-small"
VECTORS = Path(__file__).parent / "e5_small_vectors.json"
MAX_BYTES = 32_000_000
LONGEST = 16
"""Characters of a piece."""
UNKNOWN, UNKNOWN_PENALTY = "<unk>", 10.0
"""A character that no piece has scores this much below the worst piece, in sentencepiece and in tokenizers."""


@pytest.fixture(scope="module")
def model() -> TextModel:
    return TextModel.load(describe(FOLDER, "e5-small"))


@pytest.fixture(scope="module")
def server() -> Iterator[Running]:
    with serving() as running:
        yield running


def test_the_folder_is_complete_and_small() -> None:
    files = {str(path.relative_to(FOLDER)): path.stat().st_size for path in FOLDER.rglob("*") if path.is_file()}
    assert files.keys() == {
        "1_Pooling/config.json",
        "LICENSE",
        "README.md",
        "config.json",
        "config_sentence_transformers.json",
        "model.safetensors",
        "modules.json",
        "sentence_bert_config.json",
        "tokenizer.json",
        "tokenizer_config.json",
    }
    assert sum(files.values()) <= MAX_BYTES


@pytest.mark.parametrize(("precision", "least"), [("float32", 0.99999), ("bfloat16", 0.9995)])
def test_vectors_are_those_of_the_whole_model(model: TextModel, precision: str, least: float) -> None:
    cases = json.loads(VECTORS.read_text(encoding="utf-8"))
    rows = [_row(model, f"query: {case['text']}") for case in cases]
    outputs = Engine.load(describe(FOLDER, "e5-small"), precision=precision).run(rows)
    found = np.stack([output.scores[0] for output in outputs])
    wanted = np.array([case["vector"] for case in cases], np.float32)
    cosines = (found * wanted).sum(1) / np.linalg.norm(found, axis=1) / np.linalg.norm(wanted, axis=1)
    assert cosines.min() >= least


def test_tokens_are_the_best_pieces(model: TextModel) -> None:
    """Compared with a Viterbi search of our own over the pieces of tokenizer.json; equal scores are equally good."""
    content = json.loads((FOLDER / "tokenizer.json").read_text(encoding="utf-8"))
    scores: dict[str, float] = dict(content["model"]["vocab"][4:-1])
    unknown = min(scores.values()) - UNKNOWN_PENALTY
    for text in (*odd_strings(3000, ("～", "ＡＢ", "<s>", "<mask>", "iPhone", "臺灣", "𠮷", "🤖"), seed=5), "好" * 600):
        words = [f"▁{word}" for word in model.tokenizer.normalizer.normalize_str(text).split()]
        tokens = [model.token(index) for index in model.tokenize([text])[0]]
        wanted = sum(_best(word, scores, unknown) for word in words)
        assert _score(tokens, scores, unknown, "".join(words)) == pytest.approx(wanted, abs=1e-6)


def _best(word: str, scores: dict[str, float], unknown: float) -> float:
    best = [0.0] + [-np.inf] * len(word)
    for end in range(1, len(word) + 1):
        best[end] = best[end - 1] + scores.get(word[end - 1], unknown)
        for start in range(max(0, end - LONGEST), end):
            if word[start:end] in scores:
                best[end] = max(best[end], best[start] + scores[word[start:end]])
    return best[-1]


def _score(tokens: list[str], scores: dict[str, float], unknown: float, text: str) -> float:
    """The score of the tokens, which must spell the text; an unknown token is a run of characters without a piece."""
    total, place = 0.0, 0
    for token, following in zip(tokens, [*tokens, ""][1:], strict=True):
        if token != UNKNOWN:
            assert text.startswith(token, place)
            total, place = total + scores[token], place + len(token)
            continue
        total, place = total + unknown, place + 1
        while place < len(text) and not (following and text.startswith(following, place)):
            total, place = total + unknown, place + 1
    assert place == len(text)
    return total


def test_a_server_without_model_serves_both_models_and_embeds_with_this_one(server: Running) -> None:
    with httpx.Client(base_url=server.url, timeout=60, trust_env=False) as client:
        assert [each["name"] for each in client.get("/v1/models").json()["models"]] == ["mini", "e5-small"]
        reply = client.post(
            "/v1/embed", json={"inputs": ["今天天气怎么样", "今天的天气如何", "借呗怎么提前还款"]}
        ).json()
        assert reply["model"] == "e5-small"
        one, paraphrase, other = (np.array(result["embedding"]) for result in reply["results"])
        assert len(one) == 384
        assert one @ paraphrase > 0.9 > one @ other
        assert (
            len(client.post("/v1/embed", json={"inputs": "好", "model": "mini"}).json()["results"][0]["embedding"])
            == 256
        )
        body = {"inputs": "味道很好，送得也快", "labels": ["好评", "差评"]}
        assert client.post("/v1/classify", json=body).json()["model"] == "mini"


def _row(model: TextModel, text: str) -> Encoding:
    ids = np.array([model.cls, *model.tokenize([text])[0], model.sep], np.int32)
    return Encoding("e5-small", ids, np.zeros_like(ids), np.arange(len(ids), dtype=np.int32), Mean())
