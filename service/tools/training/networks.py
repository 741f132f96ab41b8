"""The networks of fine-tuning: one module each whose forward returns loss and logits, as transformers' Trainer, DDP and
torch.compile take it."""

from __future__ import annotations

import json
from collections import OrderedDict
from typing import Any

import torch
from torch import Tensor, nn
from transformers import (
    AutoModelForMaskedLM,
    AutoModelForSequenceClassification,
    BertConfig,
    MegatronBertConfig,
    PreTrainedModel,
)

from service.checkpoints.checkpoint import Checkpoint
from service.checkpoints.files import config_file, weight_files
from service.engine.tensor_files import TensorFiles
from service.tools.training.losses import Loss
from service.tools.training.run import FUSED_GELU
from service.tools.training.samples import Batch, Problem

ABSENT = -1e4
"""The logit of an option that a row does not have."""
ALONE_WEIGHT = 0.5
"""Weight of the loss of each option by itself, which teaches what yes and no mean."""
MEAN_GAIN = 100.0
"""The mean of the tokens against the first token in `append_mean_layer`: a share of 1 in 100 is left of the latter."""


class _Network(nn.Module):
    """A checkpoint holds what is trained, once: no frozen and no tied tensor twice."""

    _keys_to_ignore_on_save = None
    """Trainer of transformers 5.23 reads it when it loads a checkpoint that lacks tensors."""

    def __init__(self, network: PreTrainedModel, loss: Loss) -> None:
        super().__init__()
        self.network = network
        self.loss = loss

    def state_dict(self, *args: Any, **kwargs: Any) -> Any:
        trained = {name for name, parameter in self.named_parameters() if parameter.requires_grad}
        whole = super().state_dict(*args, **kwargs)
        return OrderedDict((name, tensor) for name, tensor in whole.items() if name in trained)


class HeadNetwork(_Network):
    """A classifier: scores of the classes, or a grade, from the first token."""

    def forward(self, labels: Tensor | None = None, vectors: Tensor | None = None, **inputs: Tensor) -> Batch:
        """`vectors` [rows, hidden] replace the encoder where it is frozen; see `encode`."""
        if vectors is None:
            logits = self.network(**inputs).logits
        else:
            network: Any = self.network
            pooled = network.base_model.pooler(vectors[:, None])
            logits = network.classifier(network.dropout(pooled))
        found = {"logits": logits.float()}
        return found if labels is None else {"loss": self.loss(found["logits"], labels), **found}

    def encode(self, **inputs: Tensor) -> Tensor:
        """The output of the encoder for the first token, shape [rows, hidden]."""
        hidden: Tensor = self.network.base_model(**inputs).last_hidden_state
        return hidden[:, 0]


class ChoiceNetwork(_Network):
    """UniMC: scores of the options from the words yes and no, on top of a masked LM.

    `num_options` is the width of the logits, the same for all batches.
    """

    def __init__(self, network: PreTrainedModel, loss: Loss, yes: int, no: int, num_options: int) -> None:
        super().__init__(network, loss)
        self.num_options = num_options
        self.register_buffer("words", torch.tensor([yes, no]), persistent=False)

    def forward(
        self, option_positions: Tensor, option_counts: Tensor, labels: Tensor | None = None, **inputs: Tensor
    ) -> Batch:
        yes_no = self._yes_no(self.network.base_model(**inputs).last_hidden_state, option_positions)
        present = torch.arange(yes_no.shape[1], device=yes_no.device) < option_counts[:, None]
        margins = yes_no[..., 0] - yes_no[..., 1]
        scores = margins if self.loss.target == "several" else yes_no[..., 0]
        logits = scores.masked_fill(~present, ABSENT)
        found = {"logits": nn.functional.pad(logits, (0, self.num_options - logits.shape[1]), value=ABSENT)}
        if labels is None:
            return found
        loss = self.loss(logits, labels, present)
        if self.loss.target == "one":
            loss = loss + ALONE_WEIGHT * _alone(margins, labels, present)
        return {"loss": loss, **found}

    def _yes_no(self, hidden: Tensor, positions: Tensor) -> Tensor:
        """Logits [rows, options, 2] of yes and no; the decoder is computed for these two tokens only."""
        rows = torch.arange(len(hidden), device=hidden.device)[:, None]
        network: Any = self.network
        head = network.cls.predictions
        states = head.transform(hidden[rows, positions])
        words = self.get_buffer("words")
        return nn.functional.linear(states, head.decoder.weight[words], head.decoder.bias[words]).float()


def _alone(margins: Tensor, labels: Tensor, present: Tensor) -> Tensor:
    """The loss of yes against no of each option by itself: the mean over the options of a row, then over the rows."""
    is_answer = (torch.arange(margins.shape[1], device=margins.device) == labels[:, None]).float()
    each = nn.functional.binary_cross_entropy_with_logits(margins, is_answer, reduction="none")
    return ((each * present).sum(-1) / present.sum(-1)).mean()


def load_network(start: Checkpoint, problem: Problem, dropout: float) -> PreTrainedModel:
    """The weights of the start in float32, with a new head for the head form.

    An embedding model whose vectors are means of its tokens gets a last layer that computes them.
    """
    settings: dict[str, Any] = {"hidden_dropout_prob": dropout, "attention_probs_dropout_prob": dropout}
    if start.shape.activation == "gelu_new":
        settings["hidden_act"] = FUSED_GELU
    if problem.form == "head":
        settings |= _head_settings(problem)
    kind = AutoModelForMaskedLM if problem.form == "choice" else AutoModelForSequenceClassification
    if start.are_packed:
        network = _load_packed(start, kind, settings)
    else:
        network = kind.from_pretrained(start.path, dtype=torch.float32, attn_implementation="eager", **settings)
    if problem.form == "head" and start.embedding is not None and start.embedding.pooling == ("mean",):
        network = append_mean_layer(network)
    return network


def _head_settings(problem: Problem) -> dict[str, Any]:
    if problem.target == "number":
        return {"num_labels": 1, "problem_type": "regression", "id2label": {0: "grade"}, "label2id": {"grade": 0}}
    several = {"problem_type": "multi_label_classification"} if problem.target == "several" else {}
    return {
        "num_labels": len(problem.labels),
        "id2label": dict(enumerate(problem.labels)),
        "label2id": {label: index for index, label in enumerate(problem.labels)},
        **several,
    }


def _load_packed(start: Checkpoint, kind: Any, settings: dict[str, Any]) -> PreTrainedModel:
    """A model whose weights are 4-bit blocks, as floats."""
    config = json.loads(config_file(start.path).read_text(encoding="utf-8"))
    del config["quantization_config"]
    classes: dict[str, Any] = {"bert": BertConfig, "megatron-bert": MegatronBertConfig}
    network: PreTrainedModel = kind.from_config(
        classes[start.family](**config | settings), dtype=torch.float32, attn_implementation="eager"
    )
    with TensorFiles.open(weight_files(start.path), are_packed=True) as files, torch.no_grad():
        for name, parameter in network.base_model.named_parameters():
            if name in files:
                files.copy_into(name, parameter)
    return network


def append_mean_layer(network: PreTrainedModel) -> PreTrainedModel:
    """The same classifier with one layer more, whose output for the first token is the mean of all tokens, normalized.

    Queries and keys of 0 attend to all tokens equally; values and outputs are the identity; the rest of the layer adds
    nothing. So a head reads the mean, which is what the vectors of an embedding model are made of, and the result is an
    ordinary model of its family.
    """
    config = network.config
    config.num_hidden_layers += 1
    larger: PreTrainedModel = type(network)(config)
    # The new layer is the only one that the old weights lack.
    larger.load_state_dict(network.state_dict(), strict=False)
    encoder: Any = larger.base_model.get_submodule("encoder")
    layer = encoder.layer[-1]
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter.zero_()
        layer.attention.self.value.weight.copy_(torch.eye(config.hidden_size) * MEAN_GAIN)
        layer.attention.output.dense.weight.copy_(torch.eye(config.hidden_size))
        for module in layer.modules():
            if isinstance(module, nn.LayerNorm):
                module.weight.fill_(1.0)
    return larger


def freeze(network: PreTrainedModel, layers: int | None) -> None:
    """Freezes the embeddings and the first `layers` layers; None freezes the whole encoder below the pooler."""
    base: Any = network.base_model
    frozen = [base.embeddings, base.encoder] if layers is None else [base.embeddings, *base.encoder.layer[:layers]]
    for module in frozen:
        for parameter in module.parameters():
            parameter.requires_grad = False


def start_grade(network: PreTrainedModel, mean: float) -> None:
    """Starts a regression at the mean of the grades."""
    classifier: Any = network.classifier
    with torch.no_grad():
        classifier.bias.fill_(mean)


def trained_parameters(network: nn.Module) -> int:
    return sum(parameter.numel() for parameter in network.parameters() if parameter.requires_grad)
