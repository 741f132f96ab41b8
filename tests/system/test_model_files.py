"""A real server with broken models: it exits with status 2 and one line, or recovers when the file is repaired."""

from __future__ import annotations

import json
import os
import pickle
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import httpx
import pytest
import torch
from safetensors.torch import load_file

from tests.checkpoints import make_checkpoint, write_weights
from tests.sentence_folders import DenseOf, add_modules, edit_json, make_embedding_model
from tests.system.test_serve import ANSWER_S, START_S, Running, serving, until

pytestmark = pytest.mark.system

SAFE, BIN = "model.safetensors", "pytorch_model.bin"
BIAS = "bert.encoder.layer.0.output.dense.bias"


def truncated(model: Path) -> None:
    os.truncate(model / SAFE, 100_000)


def without_a_tensor(model: Path) -> None:
    tensors = load_file(model / SAFE)
    del tensors[BIAS]
    write_weights(model, tensors, "safetensors")


class Malicious:
    """An object whose unpickling makes a folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def __reduce__(self) -> tuple[Callable[[str], None], tuple[str]]:
        return os.mkdir, (str(self.folder),)


def malicious(model: Path) -> None:
    (model / SAFE).unlink()
    (model / BIN).write_bytes(pickle.dumps({"a": Malicious(model / "made")}))


def with_huge_sizes(model: Path) -> None:
    config = json.loads((model / "config.json").read_text(encoding="utf-8")) | {"hidden_size": 10**12}
    (model / "config.json").write_text(json.dumps(config), encoding="utf-8")


def with_an_unknown_pooling(model: Path) -> None:
    add_modules(model, hidden_size=64)
    edit_json(model / "1_Pooling" / "config.json", pooling_mode="median")


def with_a_dense_layer_of_another_size(model: Path) -> None:
    """Its configuration fits, so that a worker process finds it."""
    add_modules(model, hidden_size=64, dense=[DenseOf(8)])
    write_weights(model / "2_Dense", {"linear.weight": torch.ones(8, 32), "linear.bias": torch.ones(8)}, "safetensors")


BROKEN: dict[Callable[[Path], None], tuple[str, ...]] = {
    truncated: (SAFE, "it has 100000 bytes; wanted", "by its header"),
    without_a_tensor: (f"tensor {BIAS.removeprefix('bert.')} is missing from {SAFE}; wanted shape [64]",),
    malicious: (BIN, "refused", "running a pickle is not safe"),
    with_huge_sizes: ("config.json: hidden_size is '1000000000000'; wanted a whole number from 1 to 65536",),
    with_an_unknown_pooling: (
        "1_Pooling/config.json: pooling_mode is 'median'; wanted one or a list of cls, max, mean",
    ),
    with_a_dense_layer_of_another_size: ("2_Dense/model.safetensors: tensor linear.weight has shape [8, 32]; wanted",),
}


def test_a_broken_model_prints_one_line_and_exits_with_2(tmp_path: Path) -> None:
    """All servers start concurrently: most of the time is spent on importing torch."""
    models = {damage: make_checkpoint(tmp_path / damage.__name__, num_layers=1) for damage in BROKEN}
    starts = {}
    for damage, model in models.items():
        damage(model)
        command = [sys.executable, "-m", "service", "serve", "--port", "0", "--threads", "1", "--model", str(model)]
        starts[damage] = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    for damage, start in starts.items():
        _, errors = start.communicate(timeout=START_S)
        (line,) = [line for line in errors.splitlines() if line.startswith("error: ")]
        assert (start.returncode, "Traceback" in errors) == (2, False), errors
        assert str(models[damage]) in line
        assert [words for words in BROKEN[damage] if words not in line] == []
    assert not (models[malicious] / "made").exists()


def as_handed_out(model: Path) -> None:
    """Google's config, a vocabulary from a Windows editor, and weights from training in data parallel."""
    config = json.loads((model / "config.json").read_text(encoding="utf-8"))
    (model / "config.json").unlink()
    plain = {key: value for key, value in config.items() if key not in ("architectures", "model_type")}
    (model / "bert_config.json").write_text(json.dumps(plain), encoding="utf-8")
    (model / "vocab.txt").write_bytes(b"\xef\xbb\xbf" + (model / "vocab.txt").read_bytes())
    tensors = load_file(model / SAFE)
    (model / SAFE).unlink()
    write_weights(model, {f"module.{name}": tensor for name, tensor in tensors.items()}, "bin")


def test_a_link_with_a_chinese_name_to_a_folder_as_handed_out_is_served_under_its_own_name(tmp_path: Path) -> None:
    folder = tmp_path / "模型 库" / "v2026-11-28"
    model = make_checkpoint(folder, family="bert", kind="sequence-classification", num_layers=1)
    (tmp_path / "情感 分类").symlink_to(folder)
    flags = ("--labels", "情感 分类=负面,正面", "--weight-cache-dir", str(tmp_path / "cache"))
    with serving("--model", str(model)) as server:
        plain = httpx.post(f"{server.url}/v1/classify", json={"inputs": "好"}, timeout=ANSWER_S).json()["results"]
    as_handed_out(model)
    with serving("--model", str(tmp_path / "情感 分类"), *flags) as server:
        (served,) = httpx.get(f"{server.url}/v1/models").json()["models"]
        assert (served["name"], served["family"], served["labels"]) == ("情感 分类", "bert", ["负面", "正面"])
        body = {"model": "情感 分类", "inputs": "好"}
        answer = httpx.post(f"{server.url}/v1/classify", json=body, timeout=ANSWER_S)
        assert (answer.status_code, answer.json()["model"]) == (200, "情感 分类")
        scores = {each["label"]: each["score"] for each in answer.json()["results"][0]["scores"]}
        wanted = {each["label"]: each["score"] for each in plain[0]["scores"]}
        assert scores == {"负面": wanted["LABEL_0"], "正面": wanted["LABEL_1"]}
        counted = server.metrics()
        assert counted['erlangshen_requests_total{code="200",model="情感 分类",task="classify"}'] == 1


def test_an_embedding_model_answers_as_its_folder_declares(tmp_path: Path) -> None:
    settings = {"prompts": {"query": "查", "passage": ""}, "default_prompt_name": "query"}
    folder = make_embedding_model(
        tmp_path / "bge-像",
        pooling=("cls", "max"),
        dense=[DenseOf(4)],
        normalize=True,
        settings=settings,
        subfolder="0_Transformer",
    )
    with serving("--model", str(folder), "--weight-cache-dir", str(tmp_path / "cache")) as server:
        (served,) = httpx.get(f"{server.url}/v1/models").json()["models"]
        assert served["tasks"] == ["classify", "similarity", "embed"]
        assert served["embedding"] == {
            "pooling": ["cls", "max"],
            "normalize": True,
            "dimensions": 4,
            "max_length": 512,
            "prompts": {"query": "查", "passage": ""},
            "default_prompt_name": "query",
            "similarity": "cosine",
        }

        def embed(**fields: object) -> list[list[float]]:
            answer = httpx.post(f"{server.url}/v1/embed", json={"inputs": ["好", "不好"], **fields}, timeout=ANSWER_S)
            assert answer.status_code == 200, answer.text
            return [each["embedding"] for each in answer.json()["results"]]

        first, second = embed()
        assert sum(number**2 for number in first) == pytest.approx(1, abs=1e-5)
        assert embed(prompt_name="query") == embed(prompt="查") == [first, second]
        assert embed(prompt_name="passage") == embed(prompt="") != [first, second]
        pairs = {"inputs": [["好", "不好"], ["好", "好"]]}
        answer = httpx.post(f"{server.url}/v1/similarity", json=pairs, timeout=ANSWER_S).json()["results"]
        cosine = sum(a * b for a, b in zip(first, second, strict=True))
        assert [each["score"] for each in answer] == pytest.approx([max(0.0, cosine), 1.0], abs=1e-5)


def restart_failures(server: Running) -> list[str]:
    records = [json.loads(line) for line in server.lines if line.startswith("{")]
    return [record["detail"] for record in records if record["message"] == "replica could not start again"]


def test_a_model_damaged_while_it_is_served_is_reloaded_after_repair(tmp_path: Path) -> None:
    model = make_checkpoint(tmp_path / "model", num_layers=1)
    whole = (model / SAFE).read_bytes()
    with serving("--model", str(model), "--log-format", "json") as server:
        (model / SAFE).write_bytes(whole[:-1])
        answer = httpx.post(f"{server.url}/v1/embed", json={"inputs": "好"}, timeout=ANSWER_S)
        assert answer.status_code == 200, "the served weights are a copy"
        (child,) = server.children()
        child.kill()
        until(lambda: bool(restart_failures(server)))
        (reason,) = set(restart_failures(server))
        assert f"{SAFE}: not a safetensors file (it has {len(whole) - 1} bytes; wanted {len(whole)}, by its" in reason
        assert httpx.get(f"{server.url}/readyz").status_code == 503
        (model / SAFE).write_bytes(whole)
        until(lambda: httpx.get(f"{server.url}/readyz").status_code == 200)
        again = httpx.post(f"{server.url}/v1/embed", json={"inputs": "好"}, timeout=ANSWER_S)
        assert again.json() == answer.json()
