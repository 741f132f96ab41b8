"""The networks of fine-tuning: loss and logits of a forward, the layer of means, what is frozen and what is saved."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from transformers import BertConfig, BertForSequenceClassification

from service.checkpoints.checkpoint import describe
from service.engine.engine import Engine
from service.tasks.text_model import TextModel
from service.tasks.unimc import probabilities
from service.tools.data.converters import Example
from service.tools.training.losses import Loss
from service.tools.training.networks import ABSENT, ChoiceNetwork, HeadNetwork, append_mean_layer, freeze, load_network
from service.tools.training.samples import Collator, Problem, Samples
from tests.checkpoints import make_checkpoint

LABELS = ("好", "差", "都是")
EXAMPLES = [
    Example("classify", ("天气很好",), LABELS, 0),
    Example("classify", ("不好",), LABELS, 1),
]
CONFIG = BertConfig(vocab_size=30, hidden_size=8, num_hidden_layers=2, num_attention_heads=2, intermediate_size=16)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_checkpoint(tmp_path_factory.mktemp("networks") / "model")


def choice_network(folder: Path, problem: Problem) -> tuple[ChoiceNetwork, TextModel]:
    checkpoint = describe(folder, "model")
    model = TextModel.load(checkpoint)
    network = load_network(checkpoint, problem, dropout=0.0)
    return ChoiceNetwork(network, Loss(problem.target), model.yes or 0, model.no or 0, 4).eval(), model


def test_the_logits_of_a_choice_are_those_that_the_engine_serves(folder: Path) -> None:
    problem = Problem("choice", "one", "classify", LABELS)
    network, model = choice_network(folder, problem)
    samples = Samples(model, problem, EXAMPLES, 64)
    logits = network(**Collator(problem)(samples.samples))["logits"]
    outputs = Engine.load(describe(folder, "model"), precision="float32").run(
        [each.encoding for each in samples.samples]
    )
    for row, output in zip(logits, outputs, strict=True):
        torch.testing.assert_close(row[:3].softmax(-1), torch.tensor(probabilities(output)), atol=1e-4, rtol=0)


def test_the_width_of_the_logits_is_the_same_for_all_batches(folder: Path) -> None:
    problem = Problem("choice", "one", "classify", LABELS)
    network, model = choice_network(folder, problem)
    logits = network(**Collator(problem)(Samples(model, problem, EXAMPLES, 64).samples))["logits"]
    assert logits.shape == (2, 4)
    assert (logits[:, 3] == ABSENT).all()


def test_a_forward_returns_loss_and_logits_and_no_loss_without_labels(folder: Path) -> None:
    problem = Problem("head", "one", "classify", LABELS)
    network = HeadNetwork(load_network(describe(folder, "model"), problem, dropout=0.0), Loss()).eval()
    batch = Collator(problem)(Samples(TextModel.load(describe(folder, "model")), problem, EXAMPLES, 64).samples)
    found = network(**batch)
    torch.testing.assert_close(found["loss"], Loss()(found["logits"], batch["labels"]))
    assert set(network(**{name: each for name, each in batch.items() if name != "labels"})) == {"logits"}


def test_vectors_of_a_frozen_encoder_give_the_same_logits(folder: Path) -> None:
    problem = Problem("head", "one", "classify", LABELS)
    network = HeadNetwork(load_network(describe(folder, "model"), problem, dropout=0.0), Loss()).eval()
    batch = Collator(problem)(Samples(TextModel.load(describe(folder, "model")), problem, EXAMPLES, 64).samples)
    labels = batch.pop("labels")
    vectors = network.encode(**batch)
    torch.testing.assert_close(network(labels=labels, vectors=vectors)["logits"], network(**batch)["logits"])


def test_the_added_layer_gives_the_first_token_the_normalized_mean_of_all_tokens() -> None:
    torch.manual_seed(0)
    plain = BertForSequenceClassification(CONFIG).eval()
    ids, mask = torch.randint(5, 30, (2, 6)), torch.tensor([[1] * 6, [1] * 3 + [0] * 3])
    with torch.inference_mode():
        hidden = plain.bert(ids, attention_mask=mask).last_hidden_state
        first = append_mean_layer(plain).eval().base_model(ids, attention_mask=mask).last_hidden_state[:, 0]
    mean = (hidden * mask[..., None]).sum(1) / mask.sum(1, keepdim=True)
    wanted = nn.functional.layer_norm(mean, (8,))
    assert nn.functional.cosine_similarity(first, wanted).min() > 0.99
    torch.testing.assert_close(first.norm(dim=-1), wanted.norm(dim=-1), rtol=1e-3, atol=0)


def test_a_checkpoint_holds_trained_tensors_once(folder: Path) -> None:
    network, _ = choice_network(folder, Problem("choice", "one", "classify", LABELS))
    saved = network.state_dict()
    pointers = [tensor.data_ptr() for tensor in saved.values()]
    assert len(pointers) == len(set(pointers))
    freeze(network.network, 1)
    assert not any("embeddings" in name or "layer.0." in name for name in network.state_dict())


def test_freezing_the_encoder_leaves_the_head() -> None:
    network: Any = BertForSequenceClassification(CONFIG)
    freeze(network, None)
    trained = {
        name.split(".")[0 if name.startswith("classifier") else 1]
        for name, each in network.named_parameters()
        if each.requires_grad
    }
    assert trained == {"pooler", "classifier"}
