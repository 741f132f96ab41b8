"""Embedding models: what the modules of a sentence-transformers folder declare, and what is refused by name."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from service.checkpoints.checkpoint import describe
from service.checkpoints.sentence_modules import Dense, EmbeddingSpec
from service.domain import PoolingMode
from service.errors import CheckpointError
from tests.checkpoints import make_checkpoint
from tests.sentence_folders import DenseOf, Layout, edit_json, make_embedding_model, write_json

MODES: tuple[PoolingMode, ...] = ("cls", "max", "mean", "mean_sqrt_len_tokens", "weightedmean", "lasttoken")
PLAIN = EmbeddingSpec(("mean",), normalize=False, dimensions=16, max_length=512)


def spec_of(path: Path) -> EmbeddingSpec:
    embedding = describe(path, "m").embedding
    assert embedding is not None
    return embedding


def refusal(path: Path) -> str:
    with pytest.raises(CheckpointError) as caught:
        describe(path, "m")
    assert "\n" not in caught.value.detail
    return caught.value.detail.replace(str(path), "FOLDER")


# what is read


def test_a_folder_without_modules_declares_no_embedding(tmp_path: Path) -> None:
    checkpoint = describe(make_checkpoint(tmp_path, num_layers=1, hidden_size=16, num_heads=2), "m")
    assert (checkpoint.embedding, checkpoint.tasks, checkpoint.folder) == (None, (), tmp_path)


@pytest.mark.parametrize("layout", ["2.0", "6.0"])
@pytest.mark.parametrize("mode", MODES)
def test_the_pooling_is_read_in_both_layouts(tmp_path: Path, mode: PoolingMode, layout: Layout) -> None:
    path = make_embedding_model(tmp_path, pooling=[mode], layout=layout)
    assert spec_of(path) == replace(PLAIN, pooling=(mode,))
    assert describe(path, "m").tasks == ("embed",)


@pytest.mark.parametrize("layout", ["2.0", "6.0"])
def test_several_poolings_are_concatenated(tmp_path: Path, layout: Layout) -> None:
    path = make_embedding_model(tmp_path, pooling=("cls", "max", "mean"), layout=layout)
    assert spec_of(path) == replace(PLAIN, pooling=("cls", "max", "mean"), dimensions=48)


def test_old_flags_are_concatenated_in_the_order_of_sentence_transformers(tmp_path: Path) -> None:
    path = make_embedding_model(tmp_path, pooling=("lasttoken", "mean", "cls"), layout="2.0")
    assert spec_of(path).pooling == ("cls", "mean", "lasttoken")


@pytest.mark.parametrize("pooling", [{}, {"pooling_mode_cls_token": False}])
def test_a_pooling_without_a_mode_is_the_mean(tmp_path: Path, pooling: dict[str, bool]) -> None:
    path = make_embedding_model(tmp_path)
    write_json(path / "1_Pooling" / "config.json", {"word_embedding_dimension": 16, **pooling})
    assert spec_of(path) == PLAIN


@pytest.mark.parametrize("layout", ["2.0", "6.0"])
def test_dense_layers_and_normalize_are_read(tmp_path: Path, layout: Layout) -> None:
    layers = [DenseOf(24), DenseOf(8, "torch.nn.modules.linear.Identity", bias=False, use_residual=True)]
    path = make_embedding_model(tmp_path, pooling=("cls", "mean"), dense=layers, normalize=True, layout=layout)
    assert spec_of(path) == EmbeddingSpec(
        pooling=("cls", "mean"),
        normalize=True,
        dimensions=8,
        max_length=512,
        dense=(
            Dense(path / "2_Dense", 32, 24),
            Dense(path / "3_Dense", 24, 8, has_bias=False, activation="identity", is_residual=True),
        ),
    )


def test_a_dropout_does_nothing(tmp_path: Path) -> None:
    path = make_embedding_model(tmp_path, normalize=True)
    modules = json.loads((path / "modules.json").read_text())
    dropout = {"idx": 9, "name": "9", "path": "9_Dropout", "type": "sentence_transformers.models.Dropout"}
    write_json(path / "modules.json", [*modules[:2], dropout, *modules[2:]])
    assert spec_of(path) == replace(PLAIN, normalize=True)


def test_prompts_and_the_similarity_are_read(tmp_path: Path) -> None:
    settings = {
        "__version__": {"sentence_transformers": "6.2.0"},
        "prompts": {"query": "query: ", "passage": "passage: ", "none": None},
        "default_prompt_name": "query",
        "similarity_fn_name": "dot",
    }
    spec = spec_of(make_embedding_model(tmp_path, settings=settings))
    assert spec.prompts == {"query": "query: ", "passage": "passage: ", "none": ""}
    assert (spec.default_prompt_name, spec.default_prompt, spec.similarity) == ("query", "query: ", "dot")


def test_the_built_in_prompts_may_be_the_default_without_a_text(tmp_path: Path) -> None:
    spec = spec_of(make_embedding_model(tmp_path, settings={"default_prompt_name": "document"}))
    assert (spec.prompts, spec.default_prompt) == ({}, "")


@pytest.mark.parametrize(
    ("similarity", "normalize", "has_cosine"),
    [("cosine", False, True), ("dot", True, True), ("dot", False, False), ("euclidean", True, False)],
)
def test_the_dot_product_is_the_cosine_of_normalized_vectors_only(
    similarity: Any, normalize: bool, has_cosine: bool
) -> None:
    assert replace(PLAIN, similarity=similarity, normalize=normalize).has_cosine is has_cosine


@pytest.mark.parametrize(
    ("transformer", "tokenizer", "max_length"),
    [
        (None, None, 512),
        ({"max_seq_length": 128, "do_lower_case": False}, None, 128),
        ({"max_seq_length": 128}, {"model_max_length": 64}, 128),
        ({"max_seq_length": 9999}, None, 512),
        ({"max_seq_length": None}, {"model_max_length": 64}, 64),
        ({"transformer_task": "feature-extraction"}, {"model_max_length": 1e30}, 512),
        (None, {"model_max_length": 1_000_000_000_000_000_019_884_624_838_656}, 512),
    ],
)
def test_the_longest_text_is_read(tmp_path: Path, transformer: Any, tokenizer: Any, max_length: int) -> None:
    path = make_embedding_model(tmp_path, transformer=transformer)
    if tokenizer:
        write_json(path / "tokenizer_config.json", tokenizer)
    assert spec_of(path).max_length == max_length


def test_the_file_of_the_transformer_may_have_the_name_of_its_family(tmp_path: Path) -> None:
    path = make_embedding_model(tmp_path)
    write_json(path / "sentence_xlm-roberta_config.json", {"max_seq_length": 77, "do_lower_case": True})
    assert spec_of(path) == replace(PLAIN, max_length=77, lower_case=True)


@pytest.mark.parametrize("file_format", ["safetensors", "bin"])
def test_the_encoder_may_have_a_folder_of_its_own(tmp_path: Path, file_format: str) -> None:
    """As sentence-transformers wrote it before version 2."""
    path = make_embedding_model(
        tmp_path, subfolder="0_Transformer", file_format=file_format, transformer={"max_seq_length": 33}, layout="2.0"
    )
    checkpoint = describe(path, "m")
    assert (checkpoint.path, checkpoint.folder) == (path / "0_Transformer", path)
    assert (checkpoint.source, checkpoint.origin) == (str(path), str(path))
    assert checkpoint.embedding == replace(PLAIN, max_length=33)


def test_the_commit_is_that_of_the_snapshot_around_the_encoder(tmp_path: Path) -> None:
    snapshot = tmp_path / "models--a--b" / "snapshots" / ("0" * 40)
    checkpoint = describe(make_embedding_model(snapshot, subfolder="0_Transformer"), "m")
    assert checkpoint.commit == "0" * 40


def test_a_prompt_may_be_left_out_of_the_pooling(tmp_path: Path) -> None:
    assert spec_of(make_embedding_model(tmp_path, include_prompt=False)) == replace(PLAIN, include_prompt=False)


def test_a_cross_encoder_is_no_embedding_model(tmp_path: Path) -> None:
    """Since version 6 it has modules, too."""
    path = make_embedding_model(tmp_path, settings={"model_type": "CrossEncoder"}, kind="sequence-classification")
    checkpoint = describe(path, "m")
    assert (checkpoint.embedding, checkpoint.kind) == (None, "sequence-classification")


# what is refused


@pytest.mark.parametrize(
    "class_path",
    [
        "sentence_transformers.models.LSTM",
        "sentence_transformers.sentence_transformer.modules.layer_norm.LayerNorm",
        "sentence_transformers.sparse_encoder.modules.splade_pooling.SpladePooling",
        "sentence_transformers.base.modules.router.Router",
        "custom_st.Pooling",
    ],
)
def test_an_unknown_module_is_refused(tmp_path: Path, class_path: str) -> None:
    path = make_embedding_model(tmp_path)
    modules = json.loads((path / "modules.json").read_text())
    write_json(path / "modules.json", [*modules, {"idx": 2, "name": "2", "path": "2_X", "type": class_path}])
    wanted = "a class of sentence-transformers: Transformer, Pooling, Dense, Normalize, Dropout"
    assert refusal(path) == f"FOLDER/modules.json: [2].type is {class_path!r}; wanted {wanted}"


@pytest.mark.parametrize(
    ("order", "listed"),
    [
        ((0,), "Transformer"),
        ((0, 2, 1), "Transformer, Dense, Pooling"),
        ((0, 1, 3, 2), "Transformer, Pooling, Normalize, Dense"),
        ((0, 1, 1), "Transformer, Pooling, Pooling"),
        ((), "none"),
    ],
)
def test_modules_in_another_order_are_refused(tmp_path: Path, order: tuple[int, ...], listed: str) -> None:
    path = make_embedding_model(tmp_path, dense=[DenseOf(8)], normalize=True)
    modules = json.loads((path / "modules.json").read_text())
    write_json(path / "modules.json", [modules[index] for index in order])
    wanted = "Transformer, Pooling, any Dense, then Normalize"
    assert refusal(path) == f"FOLDER/modules.json: the modules are {listed}; wanted {wanted}"


@pytest.mark.parametrize("path_of_module", ["../1_Pooling", "/etc", "a\\b", 1, None, "a/../../b", "a\0"])
def test_a_path_out_of_the_folder_is_refused(tmp_path: Path, path_of_module: object) -> None:
    path = make_embedding_model(tmp_path)
    modules = json.loads((path / "modules.json").read_text())
    write_json(path / "modules.json", [modules[0], modules[1] | {"path": path_of_module}])
    assert "FOLDER/modules.json: [1].path i" in refusal(path)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("{}", "wanted a JSON list, found dict"),
        ("[1]", "[0].path is missing; wanted a path inside of the folder"),
        ("[", "cannot be read as JSON"),
    ],
)
def test_a_file_that_lists_no_modules_is_refused(tmp_path: Path, content: str, words: str) -> None:
    path = make_embedding_model(tmp_path)
    (path / "modules.json").write_text(content)
    assert words in refusal(path)


@pytest.mark.parametrize(
    ("file", "changes", "words"),
    [
        ("1_Pooling/config.json", {"pooling_mode": "median"}, "pooling_mode is 'median'; wanted one or a list of cls"),
        ("1_Pooling/config.json", {"pooling_mode": ["mean", "x"]}, "pooling_mode is \"['mean', 'x']\"; wanted one or"),
        ("1_Pooling/config.json", {"pooling_mode": []}, "pooling_mode is '[]'; wanted one or a list"),
        (
            "1_Pooling/config.json",
            {"pooling_mode": None, "pooling_mode_median_tokens": True},
            "pooling_mode_median_tokens is 'True'; wanted one of pooling_mode_cls_token, ",
        ),
        (
            "1_Pooling/config.json",
            {"pooling_mode": None, "pooling_mode_cls_token": "yes"},
            "pooling_mode_cls_token is 'yes'; wanted true or false",
        ),
        (
            "1_Pooling/config.json",
            {"embedding_dimension": 768},
            "embedding_dimension is '768'; wanted the hidden_size of the encoder, 16",
        ),
        (
            "1_Pooling/config.json",
            {"embedding_dimension": None},
            "word_embedding_dimension is missing; wanted the hidden_size of the encoder, 16",
        ),
        ("1_Pooling/config.json", {"include_prompt": 0}, "include_prompt is '0'; wanted true or false"),
        ("2_Dense/config.json", {"in_features": 8}, "in_features is '8'; wanted the size of what comes before it, 16"),
        ("2_Dense/config.json", {"out_features": 0}, "out_features is '0'; wanted a whole number from 1 to 65536"),
        ("2_Dense/config.json", {"bias": "no"}, "bias is 'no'; wanted true or false"),
        (
            "2_Dense/config.json",
            {"activation_function": "torch.nn.modules.activation.PReLU"},
            "activation_function is 'torch.nn.modules.activation.PReLU'; wanted one of ",
        ),
        (
            "2_Dense/config.json",
            {"activation_function": "os.Tanh"},
            "activation_function is 'os.Tanh'; wanted one of torch.nn.Identity",
        ),
        (
            "2_Dense/config.json",
            {"module_input_name": "token_embeddings"},
            "module_input_name is 'token_embeddings'; wanted sentence_embedding",
        ),
        (
            "3_Normalize/config.json",
            {"module_output_name": "other"},
            "module_output_name is 'other'; wanted sentence_embedding",
        ),
        ("sentence_bert_config.json", {"max_seq_length": 2}, "max_seq_length is '2'; wanted a whole number from 3"),
        ("sentence_bert_config.json", {"do_lower_case": "x"}, "do_lower_case is 'x'; wanted true or false"),
        (
            "sentence_bert_config.json",
            {"transformer_task": "fill-mask"},
            "transformer_task is 'fill-mask'; wanted feature-extraction",
        ),
        (
            "sentence_bert_config.json",
            {"modality_config": {"text": {"method": "forward", "method_output_name": "pooler_output"}}},
            "modality_config is \"{'text': {'method': 'forward', 'method_output_name': 'pooler_output'}}\"; wanted",
        ),
        ("config_sentence_transformers.json", {"prompts": ["a"]}, "prompts is \"['a']\"; wanted an object of name"),
        ("config_sentence_transformers.json", {"prompts": {"a": 1}}, "prompts is \"{'a': 1}\"; wanted an object"),
        (
            "config_sentence_transformers.json",
            {"default_prompt_name": "x"},
            "default_prompt_name is 'x'; wanted one of the prompts: q",
        ),
        (
            "config_sentence_transformers.json",
            {"similarity_fn_name": "jaccard"},
            "similarity_fn_name is 'jaccard'; wanted one of cosine, dot, euclidean, manhattan",
        ),
        (
            "config_sentence_transformers.json",
            {"model_type": "SparseEncoder"},
            "model_type is 'SparseEncoder'; wanted SentenceTransformer or CrossEncoder",
        ),
    ],
)
def test_what_cannot_be_honoured_is_refused_by_name(
    tmp_path: Path, file: str, changes: dict[str, Any], words: str
) -> None:
    path = make_embedding_model(
        tmp_path, dense=[DenseOf(8)], normalize=True, settings={"prompts": {"q": "q: "}}, transformer={}
    )
    if not (path / file).exists():
        write_json(path / file, {})
    edit_json(path / file, **changes)
    assert f"FOLDER/{file}: {words}" in refusal(path)


def test_a_pooling_without_its_file_is_refused(tmp_path: Path) -> None:
    path = make_embedding_model(tmp_path)
    (path / "1_Pooling" / "config.json").unlink()
    assert refusal(path) == "FOLDER/1_Pooling/config.json: no such file"
