"""A training run from a recipe: reads the data, starts from a new model or a checkpoint, trains, writes the result."""

from __future__ import annotations

import json
import logging
import shutil
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from transformers import AutoModelForMaskedLM, AutoModelForSequenceClassification, PreTrainedModel, set_seed
from transformers.trainer_utils import get_last_checkpoint

from service.checkpoints.checkpoint import TASKS_KEY, Checkpoint, describe
from service.checkpoints.shape import ROBERTA
from service.errors import SettingError
from service.tasks.text_model import TextModel
from service.tasks.tokenizer import NO, YES
from service.tools.data.converters import Example
from service.tools.training.initialise import count_embeddings, fresh_config, fresh_model, learn_vocabulary
from service.tools.training.recipe import Recipe
from service.tools.training.stream import Corpus, Stream, read_corpus
from service.tools.training.trainer import KeepWeights, RecipeTrainer, blend, training_arguments

FUSED_GELU = "gelu_pytorch_tanh"
"""The same function as gelu_new in one kernel, which trains several times faster."""

TOKENIZER_FILES = (
    "vocab.txt",
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
)

logger = logging.getLogger(__name__)


def train(recipe: Recipe, data: Path, output: Path, start: Checkpoint | None = None) -> dict[str, float]:
    """Trains and writes the model to `output`; a run that was interrupted resumes from its last checkpoint there.

    Returns:
        The dev accuracies of that model, in percent.
    """
    if start is not None and start.family in ROBERTA:
        raise SettingError(f"model {start.name}: {start.family} is not trained here; wanted megatron-bert or bert")
    if start is not None and start.are_packed:
        raise SettingError(f"model {start.name}: its weights are 4-bit blocks, which are not trained; wanted floats")
    set_seed(recipe.seed)
    corpus = read_corpus(recipe, data)
    (output / "checkpoints").mkdir(parents=True, exist_ok=True)
    arguments = training_arguments(recipe, output / "checkpoints")
    with arguments.main_process_first():
        folder = _start_folder(recipe, corpus, output, start)
    model = TextModel.load(describe(folder, output.name))
    if recipe.form == "choice" and (model.yes is None or model.no is None):
        raise SettingError(f"form choice: the vocabulary of {folder} lacks {YES} or {NO}; use form head")
    stream = Stream(recipe, model, corpus.train, corpus.texts)
    network = _network(recipe, folder, corpus)
    trainer = RecipeTrainer(network, recipe, model, stream, corpus.dev, arguments)
    before = output / "checkpoints" / "last-stage.safetensors"
    if recipe.blend < 1:
        trainer.add_callback(KeepWeights(before, recipe.last_stage_from))
    trainer.train(resume_from_checkpoint=get_last_checkpoint(str(output / "checkpoints")))
    if recipe.blend < 1:
        blend(network, load_file(before), recipe.blend)
    metrics = trainer.evaluate()
    if trainer.is_world_process_zero():
        write_model(network, folder, output)
    return metrics


def write_model(network: PreTrainedModel, vocabulary: Path, output: Path) -> None:
    """Writes the upstream layout: config.json, the tokenizer's files and half-precision safetensors."""
    if network.config.hidden_act == FUSED_GELU:
        network.config.hidden_act = "gelu_new"
    network.half().save_pretrained(output)
    for name in TOKENIZER_FILES:
        if (vocabulary / name).is_file() and vocabulary != output:
            shutil.copyfile(vocabulary / name, output / name)


def _start_folder(recipe: Recipe, corpus: Corpus, output: Path, start: Checkpoint | None) -> Path:
    """The folder of the checkpoint to start from; a new model is written to `output`/fresh first."""
    if start is not None:
        return start.path
    folder = output / "fresh"
    if recipe.fresh is not None and not (folder / "config.json").is_file():
        _write_fresh(recipe, corpus, folder)
    return folder


def _write_fresh(recipe: Recipe, corpus: Corpus, folder: Path) -> None:
    assert recipe.fresh is not None
    texts = list(dict.fromkeys([*corpus.texts, *_example_texts(corpus.train.values())]))
    options = {option for examples in corpus.train.values() for item in examples[:2000] for option in item.options}
    always = "".join([*options, *(word for rows in recipe.wordings.values() for row in rows for word in row)])
    vocab = learn_vocabulary(texts, recipe.fresh.vocab_size, always.lower())
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "vocab.txt").write_text("\n".join(vocab) + "\n", encoding="utf-8")
    config = fresh_config(recipe.fresh, len(vocab), recipe.dropout)
    (folder / "config.json").write_text(json.dumps(config.to_dict()), encoding="utf-8")
    rows = TextModel.load(describe(folder, folder.name)).tokenize(texts)
    embeddings = count_embeddings(rows, len(vocab), recipe.fresh.hidden_size, recipe.seed)
    fresh_model(recipe.fresh, len(vocab), embeddings, recipe.dropout).save_pretrained(folder)
    logger.info("new model written", extra={"vocabulary": len(vocab), "texts": len(texts)})


def _network(recipe: Recipe, folder: Path, corpus: Corpus) -> PreTrainedModel:
    settings: dict[str, Any] = {
        "dtype": torch.float32,
        "attn_implementation": "eager",
        "hidden_dropout_prob": recipe.dropout,
        "attention_probs_dropout_prob": recipe.dropout,
    }
    if describe(folder, folder.name).shape.activation == "gelu_new":
        settings["hidden_act"] = FUSED_GELU
    if recipe.form == "choice":
        masked_lm: PreTrainedModel = AutoModelForMaskedLM.from_pretrained(folder, **settings)
        return masked_lm
    task, labels = _classes(corpus)
    network: PreTrainedModel = AutoModelForSequenceClassification.from_pretrained(
        folder,
        num_labels=len(labels),
        id2label=dict(enumerate(labels)),
        label2id={label: index for index, label in enumerate(labels)},
        **settings,
    )
    if task != "classify":
        setattr(network.config, TASKS_KEY, [task])
    return network


def _classes(corpus: Corpus) -> tuple[str, tuple[str, ...]]:
    """The task and the classes that a head learns. Raises SettingError if the data has several."""
    found = {(item.task, item.options) for examples in corpus.train.values() for item in examples}
    if len(found) != 1:
        raise SettingError("form head: the data sets need one list of classes; use form choice where options differ")
    return found.pop()


def _example_texts(groups: Iterable[Sequence[Example]]) -> Iterable[str]:
    return (text for examples in groups for item in examples for text in (*item.texts, item.question or ""))
