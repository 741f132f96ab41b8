"""Embeddings of random models equal those of sentence-transformers, from the same folder."""

from __future__ import annotations

import atexit
import shutil
import tempfile
from collections.abc import Callable
from functools import cache
from itertools import product
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pytest
from numpy.typing import NDArray
from sentence_transformers import SentenceTransformer
from sentence_transformers.base.modules import Dense, Normalize, Transformer
from sentence_transformers.sentence_transformer.modules import Pooling

from service.checkpoints.checkpoint import describe
from service.domain import PoolingMode
from service.engine.engine import Engine
from service.tasks.embedding import EMBED, EmbedQuery
from service.tasks.similarity import SIMILARITY, SimilarityQuery
from service.tasks.text_model import TextModel
from tests.checkpoints import Family, FileFormat
from tests.sentence_folders import DenseOf, make_embedding_model, write_json
from tests.tokenizers import write_unigram

TOLERANCE = 1e-5
FAMILIES: tuple[Family, ...] = ("bert", "megatron-bert", "xlm-roberta")
POOLINGS: tuple[tuple[PoolingMode, ...], ...] = (*((mode,) for mode in get_args(PoolingMode)), ("cls", "max", "mean"))
ACTIVATIONS = ("Tanh", "ReLU", "GELU", "Sigmoid", "SiLU")
TEXTS = ("今天天气怎么样？", "好", "手机拍照 abc 很清晰，Hello " * 20, "ABC 服务")
"""The third is longer than the longest row of the models made here."""
SETTINGS = {"prompts": {"query": "查询: ", "passage": "文章："}, "default_prompt_name": "query"}
PROMPTS: tuple[dict[str, str], ...] = ({}, {"prompt_name": "passage"}, {"prompt": "好的 "}, {"prompt": ""})
LAYERS = (
    DenseOf(24, "torch.nn.modules.activation.GELU"),
    DenseOf(24, "torch.nn.modules.activation.SiLU", use_residual=True),
    DenseOf(12, bias=False, use_residual=True),
)


def make(path: Path, family: Family, **more: Any) -> Path:
    made = make_embedding_model(path, family=family, num_layers=2, transformer={"max_seq_length": 40}, **more)
    if family == "xlm-roberta":
        shutil.copytree(unigram(), made, dirs_exist_ok=True)
        (made / "vocab.txt").unlink()
    return made


@cache
def unigram() -> Path:
    """A folder of the files of XLM-RoBERTa's tokenizer; it is trained once."""
    folder = Path(tempfile.mkdtemp())
    atexit.register(shutil.rmtree, folder)
    write_unigram(folder, vocab_size=500)
    return folder


def embed(path: Path) -> Callable[..., NDArray[Any]]:
    """Embeds TEXTS; the arguments are fields of the query."""
    checkpoint = describe(path, "m")
    model, engine = TextModel.load(checkpoint), Engine.load(checkpoint, precision="float32")

    def call(**fields: Any) -> NDArray[Any]:
        query = EmbedQuery(TEXTS, **fields)
        rows = EMBED.encode(model, query)
        return np.array([each.embedding for each in EMBED.decode(model, query, rows, engine.run(rows))])

    return call


def assert_equal(path: Path, **fields: Any) -> None:
    wanted = SentenceTransformer(str(path), device="cpu").encode(list(TEXTS), **fields)
    found = embed(path)(**fields)
    assert found.shape == wanted.shape
    assert np.abs(found - wanted).max() < TOLERANCE


@pytest.mark.parametrize("pooling", POOLINGS, ids="-".join)
@pytest.mark.parametrize("family", FAMILIES)
def test_every_pooling_with_and_without_dense_and_normalize(
    tmp_path: Path, family: Family, pooling: tuple[PoolingMode, ...]
) -> None:
    for dense, normalize in product((False, True), (False, True)):
        path = make(
            tmp_path / f"{dense}-{normalize}",
            family,
            pooling=pooling,
            dense=LAYERS[:1] if dense else (),
            normalize=normalize,
            layout="2.0" if dense == normalize else "6.0",
        )
        assert_equal(path)


@pytest.mark.parametrize("include_prompt", [True, False])
@pytest.mark.parametrize("family", FAMILIES)
def test_prompts_and_what_is_pooled_of_them(tmp_path: Path, family: Family, include_prompt: bool) -> None:
    path = make(
        tmp_path, family, settings=SETTINGS, include_prompt=include_prompt, pooling=("weightedmean", "cls", "mean")
    )
    found, reference = embed(path), SentenceTransformer(str(path), device="cpu")
    for prompt in PROMPTS:
        assert np.abs(found(**prompt) - reference.encode(list(TEXTS), **prompt)).max() < TOLERANCE
    assert np.abs(found() - found(prompt="")).max() > 100 * TOLERANCE


def test_a_request_for_another_normalization(tmp_path: Path) -> None:
    path = make(tmp_path, "bert")
    wanted = SentenceTransformer(str(path), device="cpu").encode(list(TEXTS), normalize_embeddings=True)
    assert np.abs(embed(path)(normalize=True) - wanted).max() < TOLERANCE


@pytest.mark.parametrize("file_format", ["safetensors", "bin"])
@pytest.mark.parametrize("activation", ["linear.Identity", *(f"activation.{name}" for name in ACTIVATIONS)])
def test_every_activation_of_a_dense_layer(tmp_path: Path, activation: str, file_format: FileFormat) -> None:
    layers = [DenseOf(24, f"torch.nn.modules.{activation}", file_format=file_format)]
    assert_equal(make(tmp_path, "bert", dense=layers))


def test_several_dense_layers_with_residuals(tmp_path: Path) -> None:
    assert_equal(make(tmp_path, "bert", dense=LAYERS, normalize=True))


def test_texts_in_lower_case_before_a_tokenizer_that_keeps_it(tmp_path: Path) -> None:
    path = make(tmp_path, "bert", settings={"prompts": {"query": "ABC "}, "default_prompt_name": "query"})
    write_json(path / "tokenizer_config.json", {"do_lower_case": False, "tokenizer_class": "BertTokenizer"})
    kept = embed(path)()
    write_json(path / "sentence_bert_config.json", {"max_seq_length": 40, "do_lower_case": True})
    assert_equal(path)
    assert np.abs(embed(path)() - kept).max() > 100 * TOLERANCE


@pytest.mark.parametrize("family", FAMILIES)
def test_a_folder_that_sentence_transformers_saved(tmp_path: Path, family: Family) -> None:
    encoder = Transformer(str(make(tmp_path / "made", family)), max_seq_length=30)
    modules = [encoder, Pooling(16, pooling_mode=("mean", "lasttoken")), Dense(32, 20), Normalize()]
    SentenceTransformer(modules=modules, device="cpu", **SETTINGS).save(str(tmp_path / "saved"))
    assert_equal(tmp_path / "saved")
    assert_equal(tmp_path / "saved", prompt_name="passage")


def test_an_encoder_in_a_folder_of_its_own(tmp_path: Path) -> None:
    assert_equal(make(tmp_path, "bert", subfolder="0_Transformer", layout="2.0", pooling=("max",)))


@pytest.mark.parametrize("similarity", ["cosine", "dot"])
def test_the_similarity_of_pairs(tmp_path: Path, similarity: str) -> None:
    settings = SETTINGS | {"similarity_fn_name": similarity}
    path = make(tmp_path, "bert", pooling=("cls",), normalize=similarity == "dot", settings=settings)
    reference = SentenceTransformer(str(path), device="cpu")
    vectors = reference.encode(list(TEXTS))
    wanted = np.asarray(reference.similarity(vectors, vectors))
    checkpoint = describe(path, "m")
    model, engine = TextModel.load(checkpoint), Engine.load(checkpoint, precision="float32")
    query = SimilarityQuery(tuple(product(TEXTS, TEXTS)))
    rows = SIMILARITY.encode(model, query)
    found = [result.score for result in SIMILARITY.decode(model, query, rows, engine.run(rows))]
    np.testing.assert_allclose(np.reshape(found, wanted.shape), wanted.clip(0, 1), atol=TOLERANCE)
