"""Fine-tuning with transformers' Trainer: one run on one data set, from the encoded rows to the measured model."""

from __future__ import annotations

import logging
import math
import os
import sys
import time
import warnings
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Sampler
from transformers import (
    EarlyStoppingCallback,
    EvalPrediction,
    PrinterCallback,
    Trainer,
    TrainerCallback,
    TrainingArguments,
    set_seed,
)
from transformers.utils import logging as transformers_logging

from service.checkpoints.checkpoint import Checkpoint
from service.checkpoints.shape import ROBERTA
from service.domain import FloatArray
from service.errors import SettingError
from service.tasks.text_model import TextModel
from service.tasks.tokenizer import NO, YES
from service.tools.data.converters import Example
from service.tools.training import adapters, resuming
from service.tools.training.callbacks import KeepCheckpoints, Report
from service.tools.training.frozen import FrozenVectors
from service.tools.training.hyperparameters import ALL_LAYERS, Hyperparameters
from service.tools.training.losses import IMBALANCED, Loss, class_weights, imbalance, positive_weights
from service.tools.training.measures import measure
from service.tools.training.networks import ChoiceNetwork, HeadNetwork, freeze, load_network, start_grade
from service.tools.training.run_file import RunFile
from service.tools.training.samples import Collator, GroupedByLength, Problem, Samples, choose_max_length

NUM_EVALUATIONS = 10
"""Of a run, unless --evaluate-every says otherwise."""
MAX_INTERVAL = 500
MAX_DEV = 2000
"""Examples of the dev set in an evaluation during training; all of them count at the end."""
DEFAULT_MAX_LENGTH = 128


@dataclass(frozen=True, slots=True)
class Run:
    """What is trained on what. `micro_batch` are the rows of one forward, which must divide those of a step."""

    start: Checkpoint
    problem: Problem
    train: Sequence[Example]
    dev: Sequence[Example]
    values: Hyperparameters
    micro_batch: int
    use_checkpointing: bool = False
    log_dir: Path | None = None
    """Where TensorBoard's files go; None without it."""
    test: Sequence[Example] = ()
    """What the finished network is measured on besides the dev set."""
    vectors: FrozenVectors = field(default_factory=FrozenVectors)
    """Those of earlier runs, where the encoder is frozen."""


@dataclass(slots=True)
class Trained:
    """The network with its best weights, and its predictions on the dev set."""

    network: HeadNetwork | ChoiceNetwork
    logits: FloatArray
    targets: np.ndarray[Any, Any]
    max_length: int
    num_steps: int
    best_step: int
    seconds: float
    resumed_from: int
    values: Hyperparameters
    test: tuple[FloatArray, np.ndarray[Any, Any]] | None = None
    """Logits and targets of the test examples."""


def check_start(start: Checkpoint, problem: Problem) -> None:
    """
    Raises:
        SettingError: this checkpoint cannot be trained in this form.
    """
    if start.family in ROBERTA:
        raise SettingError(f"model {start.name}: {start.family} is not trained here; wanted megatron-bert or bert")
    if problem.form == "choice" and start.kind != "masked-lm":
        raise SettingError(f"--form choice: {start.name} is no masked LM ({start.kind}); use --form head")


def step_count(values: Hyperparameters, num_examples: int) -> int:
    return values.max_steps or max(1, math.ceil(values.epochs * math.ceil(num_examples / values.batch_size)))


def interval(values: Hyperparameters, num_steps: int) -> int:
    """Steps between two evaluations, which are the checkpoints, too."""
    return min(num_steps, values.evaluate_every or max(1, min(MAX_INTERVAL, num_steps // NUM_EVALUATIONS)))


def default_metric(problem: Problem, values: Hyperparameters, counts: Sequence[int]) -> str:
    """By which the best checkpoint is chosen: macro-F1 where classes are rare, so that they count."""
    if values.metric:
        return values.metric.replace("-", "_")
    if problem.target == "number":
        return "spearman"
    is_rare = problem.target == "several" or (not problem.has_own_options and imbalance(counts) >= IMBALANCED)
    return "macro_f1" if is_rare else "accuracy"


def count_classes(problem: Problem, examples: Sequence[Example]) -> list[int]:
    counts = [0] * len(problem.labels)
    if problem.labels:
        for example in examples:
            for answer in example.answers if example.answers is not None else (example.answer,):
                counts[answer] += 1
    return counts


def make_loss(problem: Problem, values: Hyperparameters, examples: Sequence[Example]) -> Loss:
    """The loss that the hyper-parameters name; `auto` weights the classes where one is IMBALANCED times another."""
    if problem.target == "number":
        grades = np.array([example.grade for example in examples], dtype=np.float64)
        return Loss("number", variance=float(grades.var()) or 1.0)
    counts = count_classes(problem, examples)
    is_auto = values.loss == "auto" and problem.target == "one" and bool(counts) and imbalance(counts) >= IMBALANCED
    weights: Tensor | None = None
    if (values.loss == "balanced" or is_auto) and problem.labels:
        held = np.array([_held(problem, example) for example in examples]) if problem.target == "several" else None
        weights = class_weights(counts) if held is None else positive_weights(held)
    return Loss(
        problem.target,
        smoothing=values.smoothing if values.loss == "smooth" else 0.0,
        gamma=values.gamma if values.loss == "focal" else 0.0,
        weights=weights,
    )


def _held(problem: Problem, example: Example) -> FloatArray:
    held = np.zeros(len(problem.labels), dtype=np.float32)
    held[list(example.answers or ())] = 1.0
    return held


class FinetuneTrainer(Trainer):
    """Trainer with batches of similar length that do not depend on the number of processes."""

    def __init__(self, *args: Any, sampler: GroupedByLength, **kwargs: Any) -> None:
        self.sampler = sampler
        super().__init__(*args, **kwargs)
        # The loss is a mean over the batch: Trainer must average accumulated batches.
        self.model_accepts_loss_kwargs = False

    def _get_train_sampler(self, train_dataset: Any = None) -> Sampler[int]:
        return self.sampler


@dataclass(slots=True)
class Prepared:
    """A run with its data encoded and its network loaded."""

    run: Run
    network: HeadNetwork | ChoiceNetwork
    train: Samples
    dev: Samples
    test: Samples
    max_length: int
    num_steps: int
    metric: str


def prepare(run: Run) -> Prepared:
    """Encodes the data and loads the start.

    Raises:
        SettingError: the model or the data does not fit the form.
    """
    problem, values = run.problem, run.values
    check_start(run.start, problem)
    set_seed(values.seed)
    model = TextModel.load(run.start)
    if problem.form == "choice" and (model.yes is None or model.no is None):
        raise SettingError(f"--form choice: the vocabulary of {run.start.name} lacks {YES} or {NO}; use --form head")
    max_length = resolve_max_length(run, model)
    train = Samples(model, problem, run.train, max_length)
    dev = Samples(model, problem, run.dev, max_length)
    test = Samples(model, problem, run.test, max_length)
    loss = make_loss(problem, values, run.train)
    network = load_network(run.start, problem, values.dropout)
    if run.use_checkpointing:
        network.gradient_checkpointing_enable({"use_reentrant": False})
    if problem.target == "number":
        start_grade(network, float(np.mean([example.grade for example in run.train])))
    if values.lora:
        adapters.add(network, values.lora)
    elif values.freeze is not None:
        freeze(network, None if values.freeze == ALL_LAYERS else values.freeze)
    whole: HeadNetwork | ChoiceNetwork
    if problem.form == "head":
        whole = HeadNetwork(network, loss)
        if values.freeze == ALL_LAYERS:
            splits = [split for split in (train, dev, test) if len(split)]
            run.vectors.replace_rows(whole, problem, splits, run.start.path)
    else:
        width = max(train.num_options, dev.num_options, test.num_options)
        whole = ChoiceNetwork(network, loss, model.yes or 0, model.no or 0, width)
    metric = default_metric(problem, values, count_classes(problem, run.train))
    return Prepared(run, whole, train, dev, test, max_length, step_count(values, len(train)), metric)


def resolve_max_length(run: Run, model: TextModel) -> int:
    longest = run.values.max_length
    if longest > model.max_length:
        raise SettingError(f"--max-length {longest}: {run.start.name} reads at most {model.max_length} tokens")
    return longest or choose_max_length(model, run.problem, run.train, DEFAULT_MAX_LENGTH)


def arguments_of(prepared: Prepared, output: Path, *, is_search: bool = False) -> TrainingArguments:
    """
    Raises:
        SettingError: a step cannot be divided among the processes.
    """
    run, values = prepared.run, prepared.run.values
    every = interval(values, prepared.num_steps)
    num_processes = int(os.environ.get("WORLD_SIZE", "1"))
    schedules = {"linear": "linear", "cosine": "cosine", "constant": "constant_with_warmup"}
    is_cuda = torch.cuda.is_available()
    return TrainingArguments(
        output_dir=str(output),
        max_steps=prepared.num_steps,
        per_device_train_batch_size=run.micro_batch,
        per_device_eval_batch_size=max(8, run.micro_batch),
        gradient_accumulation_steps=accumulation(values.batch_size, run.micro_batch, num_processes),
        learning_rate=values.learning_rate,
        weight_decay=values.weight_decay,
        warmup_steps=round(values.warmup * prepared.num_steps),
        lr_scheduler_type=schedules[values.scheduler],
        adam_beta2=values.beta2,
        max_grad_norm=values.max_grad_norm,
        bf16=values.precision == "bfloat16",
        use_cpu=not is_cuda,
        seed=values.seed,
        data_seed=values.seed,
        logging_steps=every,
        eval_strategy="steps",
        eval_steps=every,
        save_strategy="no" if is_search else "steps",
        save_steps=every,
        load_best_model_at_end=not is_search,
        metric_for_best_model=f"eval_{prepared.metric}",
        greater_is_better=prepared.metric != "loss",
        report_to="none",
        disable_tqdm=True,
        log_level="error",
        log_level_replica="error",
        remove_unused_columns=False,
        label_names=["labels"],
        dataloader_num_workers=0,
        dataloader_pin_memory=is_cuda,
        accelerator_config={"even_batches": True, "use_seedable_sampler": False, "dispatch_batches": False},
        average_tokens_across_devices=False,
        ddp_backend=None if is_cuda or num_processes == 1 else "gloo",
        ddp_find_unused_parameters=False,
        ddp_broadcast_buffers=False,
        restore_callback_states_from_checkpoint=True,
    )


def accumulation(batch_size: int, micro_batch: int, num_processes: int) -> int:
    """Batches of a process that are accumulated to one step.

    Raises:
        SettingError: the rows of a step are no multiple of the rows that all processes compute at once.
    """
    if batch_size % (micro_batch * num_processes):
        raise SettingError(
            f"--batch-size {batch_size}: is no multiple of {num_processes} processes x {micro_batch} rows; "
            "choose another --batch-size, --micro-batch or --devices"
        )
    return batch_size // (micro_batch * num_processes)


def make_trainer(
    prepared: Prepared, output: Path, run_file: RunFile | None, *, is_search: bool = False, label: str = ""
) -> FinetuneTrainer:
    run, values, problem = prepared.run, prepared.run.values, prepared.run.problem
    width = len(problem.labels)

    def compute(predictions: EvalPrediction) -> dict[str, float]:
        return measure(problem.target, np.asarray(predictions.predictions), np.asarray(predictions.label_ids), width)

    callbacks: list[TrainerCallback] = [Report(run_file, prepared.num_steps, label)]
    if not is_search:
        callbacks.append(KeepCheckpoints())
        if values.patience:
            callbacks.append(EarlyStoppingCallback(values.patience))
        if run.log_dir is not None and is_first_process():
            callbacks.append(_tensorboard(run.log_dir))
    sampled = draw_dev(prepared.dev)
    trainer = FinetuneTrainer(
        model=prepared.network,
        args=arguments_of(prepared, output, is_search=is_search),
        train_dataset=prepared.train,
        eval_dataset=sampled,
        data_collator=Collator(problem),
        compute_metrics=compute,
        callbacks=callbacks,
        sampler=GroupedByLength(prepared.train.lengths, values.batch_size, values.seed),
    )
    trainer.remove_callback(PrinterCallback)
    return trainer


def _tensorboard(folder: Path) -> TrainerCallback:
    from torch.utils.tensorboard import SummaryWriter
    from transformers.integrations.integration_utils import TensorBoardCallback

    callback: TrainerCallback = TensorBoardCallback(SummaryWriter(str(folder)))
    return callback


def draw_dev(dev: Samples) -> Any:
    """At most MAX_DEV samples, sorted by length: less is padded."""
    chosen = np.sort(np.random.default_rng(0).permutation(len(dev))[:MAX_DEV])
    lengths = np.asarray(dev.lengths)[chosen]
    return torch.utils.data.Subset(dev, chosen[np.argsort(lengths, kind="stable")].tolist())


def train(run: Run, output: Path, run_file: RunFile | None) -> Trained:
    """Trains, or goes on where an interrupted run left its last checkpoint, and predicts the dev set.

    Raises:
        SettingError: see `prepare` and `arguments_of`.
    """
    prepared = prepare(run)
    folder = (output / "checkpoints").resolve()
    if is_first_process():  # it has checked that the output is free; the other ones may be here before
        folder.mkdir(parents=True, exist_ok=True)
    messages: list[str] = []
    trainer = make_trainer(prepared, folder, run_file)
    with trainer.args.main_process_first():
        start, broken = resuming.find_start(folder)
        messages += [f"checkpoint {path.name}: is not whole, set aside" for path in broken]
        if start is not None and trainer.args.process_index == 0:
            resuming.locate_best(start)
    if start is not None:
        messages.append(f"resumes from step {resuming.step_of(start)} of {prepared.num_steps}")
    for message in messages if trainer.is_world_process_zero() else ():
        print(message, file=sys.stderr, flush=True)
    started = time.monotonic()
    trainer.train(resume_from_checkpoint=str(start) if start else None)
    seconds = time.monotonic() - started
    predicted = trainer.predict(prepared.dev)
    tested = trainer.predict(prepared.test) if len(prepared.test) else None
    return Trained(
        network=prepared.network,
        logits=np.asarray(predicted.predictions, dtype=np.float32),
        targets=np.asarray(predicted.label_ids),
        max_length=prepared.max_length,
        num_steps=trainer.state.global_step,
        best_step=trainer.state.best_global_step or trainer.state.global_step,
        seconds=seconds,
        resumed_from=resuming.step_of(start) if start else 0,
        values=run.values,
        test=None if tested is None else (np.asarray(tested.predictions), np.asarray(tested.label_ids)),
    )


def is_first_process() -> bool:
    return int(os.environ.get("RANK", "0")) == 0


def quieten() -> None:
    """Leaves transformers' notes about new heads and missing tensors out: they are expected here."""
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    logging.getLogger("accelerate").setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", category=UserWarning, module=r"(torch|transformers|accelerate)\b.*")
