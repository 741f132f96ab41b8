"""A new MegatronBert, initialised so that it can be trained on a small corpus.

It differs from random weights in two ways: word embeddings are computed from counts in the corpus, and half of the
heads of the first layers start with equal query and key projections, so that a token attends to similar tokens from the
first step (after Trockman and Kolter, "Mimetic Initialization of Self-Attention Layers", 2023). The model learns much
sooner what a text has in common with a snippet, a question or a paraphrase.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence

import numpy as np
import torch
from scipy.sparse import coo_matrix, csr_matrix, diags
from scipy.sparse.linalg import svds
from tokenizers import Tokenizer
from tokenizers.models import WordPiece
from tokenizers.trainers import WordPieceTrainer
from torch import Tensor
from transformers import MegatronBertConfig, MegatronBertForMaskedLM

from service.domain import FloatArray
from service.tasks.tokenizer import NO, SPECIAL, YES, build_tokenizer
from service.tools.training.recipe import Fresh

WINDOW = 5
MIN_COUNT = 3
EMBEDDING_STD = 0.1
QUERY_GAIN = 0.9


def learn_vocabulary(texts: Iterable[str], size: int, always: str = "") -> list[str]:
    """Special tokens, yes and no, every character of `always` and every frequent one, then WordPieces up to `size`."""
    blank = build_tokenizer({token: index for index, token in enumerate(SPECIAL)}, {})
    words: Counter[str] = Counter()
    for text in texts:
        words.update(word for word, _ in blank.pre_tokenizer.pre_tokenize_str(blank.normalizer.normalize_str(text)))
    characters = Counter({word: count for word, count in words.items() if len(word) == 1})
    known = [character for character, count in characters.most_common() if count >= MIN_COUNT]
    entries = list(dict.fromkeys([*SPECIAL, YES, NO, *sorted(set(always) - {" ", "\n"}), *known]))
    pieces = _word_pieces(words, size - len(entries))
    return list(dict.fromkeys([*entries, *pieces]))[:size]


def _word_pieces(words: Counter[str], size: int) -> list[str]:
    """Pieces of the words of more than one character: Latin words, numbers."""
    long_words = [word for word, count in words.items() if len(word) > 1 for _ in range(min(count, 50))]
    tokenizer = Tokenizer(WordPiece({"[UNK]": 0}, unk_token="[UNK]"))
    tokenizer.train_from_iterator(long_words, WordPieceTrainer(vocab_size=max(size, 1), show_progress=False))
    return [token for token, _ in sorted(tokenizer.get_vocab().items(), key=lambda entry: entry[1])]


def count_embeddings(rows: Sequence[Sequence[int]], vocab_size: int, hidden_size: int, seed: int) -> FloatArray:
    """Word vectors [vocab_size, hidden_size] of standard deviation near one; unseen tokens get small noise."""
    random = np.random.default_rng(seed)
    start = random.standard_normal(vocab_size)
    counts = _cooccurrences(rows, vocab_size)
    left, values, _ = svds(_ppmi(counts), k=hidden_size, v0=start)
    vectors = left * np.sqrt(values)
    norms = np.linalg.norm(vectors, axis=1, keepdims=True)
    unit = np.where(norms > 1e-6, vectors / np.maximum(norms, 1e-6) * np.sqrt(hidden_size), 0.0)
    return np.asarray(unit + 0.1 * random.standard_normal(unit.shape), dtype=np.float32)


def _cooccurrences(rows: Sequence[Sequence[int]], vocab_size: int) -> csr_matrix:
    """Counts of token pairs at most WINDOW apart, weighted by 1 / distance; -1 separates the rows."""
    gap = [-1] * WINDOW
    flat = np.fromiter((token for row in rows for token in (*row, *gap)), dtype=np.int32)
    total = csr_matrix((vocab_size, vocab_size), dtype=np.float32)
    for distance in range(1, WINDOW + 1):
        first, second = flat[:-distance], flat[distance:]
        inside = (first >= 0) & (second >= 0)
        weight = np.full(int(inside.sum()), 1.0 / distance, dtype=np.float32)
        total = total + coo_matrix((weight, (first[inside], second[inside])), shape=total.shape).tocsr()
    return total + total.T


def _ppmi(counts: csr_matrix) -> csr_matrix:
    """Positive pointwise mutual information; an exponent of 0.75 smooths context counts (Levy et al., 2015)."""
    sums = np.asarray(counts.sum(axis=1)).ravel()
    smoothed = sums**0.75
    context = np.divide(smoothed.sum(), smoothed, out=np.zeros_like(sums), where=smoothed > 0)
    inverse = np.divide(1.0, sums, out=np.zeros_like(sums), where=sums > 0)
    ratio = (diags(inverse) @ counts @ diags(context)).tocsr()
    ratio.data = np.maximum(np.log(np.maximum(ratio.data, 1e-9)), 0.0)
    ratio.eliminate_zeros()
    return ratio


def fresh_config(shape: Fresh, vocab_size: int, dropout: float) -> MegatronBertConfig:
    return MegatronBertConfig(
        architectures=["MegatronBertForMaskedLM"],
        vocab_size=vocab_size,
        hidden_size=shape.hidden_size,
        num_hidden_layers=shape.num_layers,
        num_attention_heads=shape.num_heads,
        intermediate_size=shape.ffn_size,
        max_position_embeddings=shape.max_positions,
        hidden_act="gelu_new",
        hidden_dropout_prob=dropout,
        attention_probs_dropout_prob=0.0,
        initializer_range=0.6 / shape.hidden_size**0.5,
        layer_norm_eps=1e-12,
    )


def fresh_model(shape: Fresh, vocab_size: int, embeddings: FloatArray, dropout: float) -> MegatronBertForMaskedLM:
    """A masked LM with tied embeddings. Its weights depend on torch's seed, which the caller sets."""
    model = MegatronBertForMaskedLM(fresh_config(shape, vocab_size, dropout))
    with torch.no_grad():
        tables = model.bert.embeddings
        tables.word_embeddings.weight.copy_(torch.from_numpy(embeddings) * EMBEDDING_STD)
        tables.position_embeddings.weight.mul_(0.25)
        for index in range(min(shape.matching_layers, shape.num_layers)):
            projection = model.bert.encoder.get_submodule(f"layer.{index}.attention.self").get_parameter
            _match_similar(projection("query.weight"), projection("key.weight"))
    return model


def _match_similar(query: Tensor, key: Tensor) -> None:
    """Sets queries and keys of half of the heads to one projection, so that equal tokens score highest."""
    size = len(query)
    rotation = QUERY_GAIN * torch.linalg.qr(torch.randn(size, size))[0]
    query[: size // 2] = rotation[: size // 2]
    key[: size // 2] = rotation[: size // 2]
