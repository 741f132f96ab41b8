"""One training run from a recipe: read the data, start fresh or from a checkpoint, train, write the result."""

from __future__ import annotations

import json
import logging
import shutil
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from transformers import AutoModelForMaskedLM, AutoModelForSequenceClassification, PreTrainedModel, set_seed
from transformers.trainer_utils import get_last_checkpoint

from service.checkpoints.checkpoint import TASKS_KEY, Checkpoint, describe
from service.errors import DatasetError, SettingError
from service.tasks.text_model import NO, YES, TextModel
from service.tools.data.converters import Example
from service.tools.data.files import read_records
from service.tools.data.registry import load
from service.tools.training.initialise import count_embeddings, fresh_config, fresh_model, learn_vocabulary
from service.tools.training.recipe import Recipe, Taught
from service.tools.training.stream import SNIPPETS, KeepWeights, Stream, blend
from service.tools.training.teacher import Teacher
from service.tools.training.trainer import RecipeTrainer, training_arguments

FUSED_GELU = "gelu_pytorch_tanh"
"""The same function as gelu_new in one kernel, several times faster to train with."""

TOKENIZER_FILES = ("vocab.txt", "tokenizer.json", "tokenizer_config.json")

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Corpus:
    """All a recipe reads: examples by "name/split", and texts without labels."""

    train: dict[str, list[Example]]
    dev: dict[str, list[Example]]
    texts: list[str]


def read_corpus(recipe: Recipe, data: Path) -> Corpus:
    """Training examples whose texts stand in a dev split are dropped: some collections overlap."""
    dev = {source: _load(source, data) for source in recipe.dev}
    seen = {example.texts for examples in dev.values() for example in examples}
    train = {}
    for source in recipe.sources:
        if source == SNIPPETS:
            continue
        examples = _taught(recipe.taught[source], data) if source in recipe.taught else _load(source, data)
        train[source] = [item for item in examples if item.texts not in seen]
        if not train[source]:
            raise DatasetError(f"{source}: no example is left to train on once those of the dev splits are dropped")
    texts = [text for file in recipe.texts for text in _texts(data / file)]
    return Corpus(train, {name: examples[: recipe.evaluate_limit] for name, examples in dev.items()}, texts)


def train(recipe: Recipe, data: Path, output: Path, start: Checkpoint | None = None) -> dict[str, float]:
    """Trains, resuming where an earlier run with the same output stopped, and writes the model it keeps to `output`.

    Returns:
        The dev accuracies of the model written, in percent.
    """
    set_seed(recipe.seed)
    corpus = read_corpus(recipe, data)
    (output / "checkpoints").mkdir(parents=True, exist_ok=True)
    arguments = training_arguments(recipe, output / "checkpoints")
    with arguments.main_process_first():
        folder = _start_folder(recipe, corpus, output, start)
    model = TextModel.load(describe(folder, output.name))
    if recipe.form == "choice" and (model.yes is None or model.no is None):
        raise SettingError(f"form choice: the vocabulary of {folder} lacks {YES} or {NO}")
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
    """The upstream layout: config.json, the tokenizer's files and half-precision safetensors."""
    if network.config.hidden_act == FUSED_GELU:
        network.config.hidden_act = "gelu_new"
    network.half().save_pretrained(output)
    for name in TOKENIZER_FILES:
        if (vocabulary / name).is_file() and vocabulary != output:
            shutil.copyfile(vocabulary / name, output / name)


def _start_folder(recipe: Recipe, corpus: Corpus, output: Path, start: Checkpoint | None) -> Path:
    """The folder of the checkpoint to start from; a fresh model is written to one first."""
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
    logger.info("fresh model written", extra={"vocabulary": len(vocab), "texts": len(texts)})


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
    """The one task and the one list of classes that a head can learn; SettingError where there are several."""
    found = {(item.task, item.options) for examples in corpus.train.values() for item in examples}
    if len(found) != 1:
        raise SettingError("form head: wanted data with one list of classes; use form choice where options differ")
    return found.pop()


def _load(source: str, data: Path) -> list[Example]:
    name, _, split = source.partition("/")
    return load(name, data, split or "train")


def _taught(taught: Taught, data: Path) -> list[Example]:
    return Teacher(_load(taught.by, data)).label(_texts(data / taught.file), taught.keep)


def _texts(file: Path) -> list[str]:
    """Every string of a file that is long enough to be a text."""
    records = (record.values() if isinstance(record, Mapping) else record for record in read_records(file))
    return [value for values in records for value in values if isinstance(value, str) and len(value) > 4]


def _example_texts(groups: Iterable[Sequence[Example]]) -> Iterable[str]:
    return (text for examples in groups for item in examples for text in (*item.texts, item.question or ""))
