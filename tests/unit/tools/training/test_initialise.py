"""The vocabulary, the word vectors and the attention heads of a new model."""

from __future__ import annotations

import numpy as np
import torch

from service.tasks.tokenizer import SPECIAL, build_tokenizer
from service.tools.training.initialise import EMBEDDING_STD, count_embeddings, fresh_model, learn_vocabulary
from service.tools.training.recipe import Fresh

TEXTS = ["苹果和香蕉是水果", "香蕉和苹果都好吃", "火车和飞机很快", "飞机和火车去北京", "ok 的 okay"] * 20


def test_vocabulary_has_special_tokens_first_then_yes_and_no_then_characters() -> None:
    vocab = learn_vocabulary(TEXTS, 60, always="龘")
    assert vocab[:7] == [*SPECIAL, "是", "非"]
    assert {"龘", "苹", "果", "飞"} <= set(vocab)
    assert len(vocab) == len(set(vocab)) <= 60


def test_vocabulary_covers_frequent_characters_and_latin_word_pieces() -> None:
    vocab = {token: index for index, token in enumerate(learn_vocabulary(TEXTS, 60))}
    tokenizer = build_tokenizer(vocab, {})
    assert tokenizer.encode("香蕉很快").tokens == ["香", "蕉", "很", "快"]
    assert "[UNK]" not in tokenizer.encode("OKAY").tokens


def test_tokens_with_similar_contexts_have_similar_vectors() -> None:
    vocab = {token: index for index, token in enumerate(learn_vocabulary(TEXTS, 60))}
    tokenizer = build_tokenizer(vocab, {})
    vectors = count_embeddings([tokenizer.encode(text).ids for text in TEXTS], len(vocab), 8, seed=1)

    def cosine(a: str, b: str) -> float:
        first, second = vectors[vocab[a]], vectors[vocab[b]]
        return float(first @ second / np.linalg.norm(first) / np.linalg.norm(second))

    assert vectors.shape == (len(vocab), 8)
    assert cosine("苹", "蕉") > cosine("苹", "飞")
    assert cosine("飞", "车") > cosine("果", "车")


def test_count_embeddings_is_deterministic() -> None:
    rows = [[1, 2, 3, 4, 5, 6, 7, 8, 9]] * 3 + [[2, 4, 6, 8, 1, 3]] * 2
    first, again = (count_embeddings(rows, 12, 4, seed=7) for _ in range(2))
    np.testing.assert_array_equal(first, again)


def test_fresh_model_starts_from_the_vectors_and_half_of_its_heads_match() -> None:
    shape = Fresh(num_layers=2, hidden_size=16, num_heads=2, ffn_size=32, vocab_size=20, matching_layers=1)
    vectors = np.random.default_rng(0).standard_normal((20, 16)).astype(np.float32)
    torch.manual_seed(0)
    model = fresh_model(shape, 20, vectors, 0.0)
    words = model.get_input_embeddings().weight
    torch.testing.assert_close(words, EMBEDDING_STD * torch.from_numpy(vectors))
    assert model.get_output_embeddings().weight is words
    first, second = (model.get_submodule(f"bert.encoder.layer.{index}.attention.self") for index in range(2))
    assert torch.equal(first.query.weight[:8], first.key.weight[:8])
    assert not torch.equal(first.query.weight[8:], first.key.weight[8:])
    assert not torch.equal(second.query.weight[:8], second.key.weight[:8])
