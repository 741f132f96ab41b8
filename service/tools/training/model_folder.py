"""Writes the result of fine-tuning as a folder of the hub: weights, config, tokenizer, model card, calibration."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from transformers import PreTrainedModel

from service.checkpoints.checkpoint import CHOICE_KEY, TASKS_KEY
from service.checkpoints.files import ADAPTER_CONFIG, ADAPTER_WEIGHTS, SAFETENSORS_FILES
from service.tools.training.run import FUSED_GELU, TOKENIZER_FILES
from service.tools.training.run_file import write_text
from service.tools.training.samples import Problem

DRAFT = ".writing"


@dataclass(frozen=True, slots=True)
class Described:
    """What the folder says about the model beyond its weights. `question` is that of all examples, if they share it."""

    problem: Problem
    max_length: int
    question: str | None = None


def write_model_folder(
    network: PreTrainedModel,
    vocabulary: Path,
    output: Path,
    described: Described,
    save: Callable[[Path], None] | None = None,
) -> None:
    """Writes the upstream layout in half precision, or with `save` what that writes instead of the weights. Each file
    is replaced at once: an interruption leaves no half one, and config.json comes last."""
    draft = output / DRAFT
    shutil.rmtree(draft, ignore_errors=True)
    draft.mkdir(parents=True)
    _describe(network, described)
    if save is None:
        network.half().save_pretrained(draft)
    else:
        save(draft)
    for name in TOKENIZER_FILES:
        if (vocabulary / name).is_file():
            shutil.copyfile(vocabulary / name, draft / name)
    _write_tokenizer_config(draft / "tokenizer_config.json", described.max_length)
    files = sorted(draft.iterdir(), key=lambda file: file.name == "config.json")
    for file in files:
        file.chmod(0o644)
        file.replace(output / file.name)
    draft.rmdir()
    for name in (ADAPTER_CONFIG, ADAPTER_WEIGHTS) if save is None else SAFETENSORS_FILES:  # of an earlier run
        (output / name).unlink(missing_ok=True)


def _describe(network: PreTrainedModel, described: Described) -> None:
    problem, config = described.problem, network.config
    if config.hidden_act == FUSED_GELU:
        config.hidden_act = "gelu_new"
    if problem.form == "choice" and problem.labels and problem.task == "classify":
        choice: dict[str, Any] = {
            "labels": list(problem.labels),
            "options": list(problem.wording.options_of(problem.labels)),
            "question": described.question,
            "multi_label": problem.target == "several",
        }
        setattr(config, CHOICE_KEY, choice)
    if problem.form == "head" and problem.target == "one" and problem.task in ("similarity", "nli"):
        setattr(config, TASKS_KEY, [problem.task])


def _write_tokenizer_config(file: Path, max_length: int) -> None:
    """Names the longest row that was trained, where transformers' pipelines truncate. Upstream's folders have no
    tokenizer_config.json: theirs is a lower-case BERT tokenizer."""
    found: dict[str, Any] = {"tokenizer_class": "BertTokenizer", "do_lower_case": True}
    if file.is_file():
        found = json.loads(file.read_text(encoding="utf-8-sig"))
    elif (file.parent / "tokenizer.json").is_file():
        found = {"tokenizer_class": "PreTrainedTokenizerFast"}
    write_text(file, json.dumps(found | {"model_max_length": max_length}, ensure_ascii=False, indent=2) + "\n")


def probabilities_of(logits: np.ndarray[Any, Any], *, is_multi_label: bool) -> np.ndarray[Any, Any]:
    """Softmax of each row, or the sigmoid of each number, in float64."""
    exact = logits.astype(np.float64)
    if is_multi_label:
        return np.asarray(1.0 / (1.0 + np.exp(-np.clip(exact, -500, 500))))
    powers = np.exp(exact - exact.max(-1, keepdims=True))
    return np.asarray(powers / powers.sum(-1, keepdims=True))
