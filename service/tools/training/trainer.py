"""transformers' Trainer on the stream of batches: loss, evaluation, checkpoints, resuming, blending of weights."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import save_file
from torch import Tensor, distributed
from torch.nn import functional
from torch.utils.data import DataLoader, IterableDataset
from transformers import (
    PreTrainedModel,
    Trainer,
    TrainerCallback,
    TrainerControl,
    TrainerState,
    TrainingArguments,
)

from service.domain import Encoding, Labels, TokenScores
from service.errors import SettingError
from service.tasks.rows import encode_rows
from service.tasks.text_model import TextModel
from service.tasks.unimc import encode_choices
from service.tools.data.converters import Example
from service.tools.training.recipe import Recipe
from service.tools.training.stream import IGNORED, Row, Stream, by_length

Batch = dict[str, Tensor]
HIDDEN = -1e9


def collate(rows: Sequence[Row]) -> Batch:
    """Model inputs [rows, length], the 4-D additive attention mask, and targets for choice and masked tokens."""
    length = max(row.encoding.num_tokens for row in rows)
    num_options = max((len(row.encoding.blocks) for row in rows), default=0)
    batch: Batch = {
        "input_ids": pad([row.encoding.ids for row in rows], length),
        "token_type_ids": pad([row.encoding.segment_ids for row in rows], length),
        "position_ids": pad([row.encoding.positions for row in rows], length),
        "attention_mask": attention_mask([row.encoding for row in rows], length),
        "answers": torch.tensor([row.answer for row in rows]),
        "option_positions": torch.zeros(len(rows), max(num_options, 1), dtype=torch.long),
        "option_counts": torch.tensor([len(row.encoding.blocks) for row in rows]),
        "masked_rows": torch.tensor([index for index, row in enumerate(rows) for _ in row.masked], dtype=torch.long),
        "masked_positions": torch.tensor([position for row in rows for position, _ in row.masked], dtype=torch.long),
        "masked_ids": torch.tensor([token for row in rows for _, token in row.masked], dtype=torch.long),
    }
    for index, row in enumerate(rows):
        if isinstance(row.encoding.readout, TokenScores):
            positions = row.encoding.readout.positions
            batch["option_positions"][index, : len(positions)] = torch.tensor(positions)
    return batch


def attention_mask(encodings: Sequence[Encoding], length: int) -> Tensor:
    """[rows, 1, length, length]: 0 where a token may attend, a large negative number where not."""
    mask = np.full((len(encodings), 1, length, length), HIDDEN, dtype=np.float32)
    for index, encoding in enumerate(encodings):
        mask[index, 0, :, : encoding.num_tokens] = 0.0
        if encoding.blocks:
            first, last = encoding.blocks[0][0], encoding.blocks[-1][1]
            mask[index, 0, first:last, first:last] = HIDDEN
        for start, end in encoding.blocks:
            mask[index, 0, start:end, start:end] = 0.0
    return torch.from_numpy(mask)


def choice_loss(yes_no: Tensor, batch: Batch) -> Tensor:
    """Cross entropy over the options plus the binary cross entropy of yes against no of each option alone.

    Args:
        yes_no: [rows, options, 2], logits of yes and no at the mask tokens of the options.
    """
    options = torch.arange(yes_no.shape[1], device=yes_no.device)
    present = options < batch["option_counts"][:, None]
    yes = yes_no[..., 0].masked_fill(~present, HIDDEN)
    chosen = functional.cross_entropy(yes, batch["answers"], ignore_index=IGNORED)
    is_answer = (options == batch["answers"][:, None]).float()
    each = functional.binary_cross_entropy_with_logits(yes_no[..., 0] - yes_no[..., 1], is_answer, reduction="none")
    alone = (each * present).sum() / present.sum().clamp(min=1)
    return chosen + 0.5 * alone


def pad(arrays: Sequence[np.ndarray[tuple[int], np.dtype[np.int32]]], length: int) -> Tensor:
    padded = np.zeros((len(arrays), length), dtype=np.int64)
    for index, array in enumerate(arrays):
        padded[index, : len(array)] = array
    return torch.from_numpy(padded)


MASKED_WEIGHT = 0.3
"""Weight of the masked-token loss in the sum: the choice loss is several times smaller."""


class _Batches(IterableDataset[Batch]):
    def __init__(self, stream: Stream, rank: int, num_processes: int) -> None:
        self.stream = stream
        self.rank = rank
        self.num_processes = num_processes

    def __iter__(self) -> Iterator[Batch]:
        """Every process trains on its share of the batches."""
        mine = islice(self.stream, self.rank, None, self.num_processes)
        return (collate(rows) for rows in mine)


class RecipeTrainer(Trainer):
    """Trains `network` on the batches of the stream, and evaluates on `dev` as the service answers."""

    def __init__(
        self,
        network: PreTrainedModel,
        recipe: Recipe,
        model: TextModel,
        stream: Stream,
        dev: Mapping[str, Sequence[Example]],
        args: TrainingArguments,
    ) -> None:
        self.batches = _Batches(stream, args.process_index, args.world_size)
        super().__init__(model=network, args=args, train_dataset=self.batches, eval_dataset=self.batches)
        # The loss is a mean over the batch: Trainer must average accumulated batches.
        self.model_accepts_loss_kwargs = False
        self.recipe = recipe
        self.stream = stream
        self.yes_no = torch.tensor([model.yes or 0, model.no or 0])
        self.dev = {name: self._dev_batches(examples) for name, examples in dev.items()}

    def get_train_dataloader(self) -> DataLoader[Batch]:
        return DataLoader(self.batches, batch_size=None)

    def training_step(self, *args: Any, **kwargs: Any) -> Tensor:
        """Averages the gradients of all processes: the loss does not go through the network's forward, so
        DistributedDataParallel does not."""
        loss: Tensor = super().training_step(*args, **kwargs)
        if self.args.world_size > 1:
            for parameter in self._network().parameters():
                if parameter.grad is not None:
                    distributed.all_reduce(parameter.grad)
                    parameter.grad /= self.args.world_size
        return loss

    def compute_loss(
        self,
        model: Any,
        inputs: Batch,
        return_outputs: bool = False,
        num_items_in_batch: Tensor | int | None = None,
    ) -> Tensor:
        with self.accelerator.autocast():
            return self._head_loss(inputs) if self.recipe.form == "head" else self._choice_loss(inputs)

    def _head_loss(self, inputs: Batch) -> Tensor:
        return functional.cross_entropy(self._head_logits(inputs), inputs["answers"])

    def _choice_loss(self, inputs: Batch) -> Tensor:
        hidden = self._hidden(inputs)
        loss = torch.zeros((), device=hidden.device)
        if (inputs["option_counts"] > 0).any():
            loss = choice_loss(self._yes_no(hidden, inputs), inputs)
        if len(inputs["masked_ids"]):
            states = hidden[inputs["masked_rows"], inputs["masked_positions"]]
            logits = self._network().cls.predictions(states)
            loss = loss + MASKED_WEIGHT * functional.cross_entropy(logits.float(), inputs["masked_ids"])
        return loss

    def evaluate(self, *args: Any, **kwargs: Any) -> dict[str, float]:
        """Accuracy in percent on every dev set and their mean, by which the best checkpoint is chosen."""
        self._network().eval()
        with torch.inference_mode(), self.accelerator.autocast():
            metrics = {f"eval_{name}": self._accuracy(batches) for name, batches in self.dev.items()}
        metrics["eval_mean"] = sum(metrics.values()) / len(metrics)
        self.log(dict(metrics))
        self.control = self.callback_handler.on_evaluate(self.args, self.state, self.control, metrics)
        return metrics

    def _accuracy(self, batches: Sequence[list[Row]]) -> float:
        right = total = 0
        for rows in batches:
            inputs = self._prepare_inputs(collate(rows))
            right += int((self._predict(inputs) == inputs["answers"]).sum())
            total += len(rows)
        return round(100.0 * right / max(total, 1), 2)

    def _predict(self, inputs: Batch) -> Tensor:
        if self.recipe.form == "head":
            return self._head_logits(inputs).argmax(-1)
        yes = self._yes_no(self._hidden(inputs), inputs)[..., 0]
        present = torch.arange(yes.shape[1], device=yes.device) < inputs["option_counts"][:, None]
        return yes.masked_fill(~present, -torch.inf).argmax(-1)

    def _hidden(self, inputs: Batch) -> Tensor:
        hidden: Tensor = self._network().base_model(**_inputs(inputs)).last_hidden_state
        return hidden

    def _head_logits(self, inputs: Batch) -> Tensor:
        logits: Tensor = self._network()(**_inputs(inputs)).logits
        return logits.float()

    def _yes_no(self, hidden: Tensor, inputs: Batch) -> Tensor:
        """Logits [rows, options, 2] of yes and no; the decoder is evaluated for these two tokens only."""
        rows = torch.arange(len(hidden), device=hidden.device)[:, None]
        head = self._network().cls.predictions
        states = head.transform(hidden[rows, inputs["option_positions"]])
        words = self.yes_no.to(hidden.device)
        return functional.linear(states, head.decoder.weight[words], head.decoder.bias[words]).float()

    def _network(self) -> Any:
        return self.accelerator.unwrap_model(self.model)

    def _dev_batches(self, examples: Sequence[Example]) -> list[list[Row]]:
        if self.recipe.form == "head":
            encodings = encode_rows(self.stream.model, [example.texts for example in examples], Labels(), "right")
        else:
            encodings = encode_choices(self.stream.model, [example.as_choice() for example in examples], "right")
        rows = [Row(encoding, example.answer) for encoding, example in zip(encodings, examples, strict=True)]
        return list(by_length(rows, self.recipe.optimizer))


class KeepWeights(TrainerCallback):
    """Writes the weights to a file before training step `step`, where a run that resumes finds them."""

    def __init__(self, file: Path, step: int) -> None:
        self._file = file
        self._step = step

    def on_step_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        if state.global_step == self._step and state.is_world_process_zero:
            weights = kwargs["model"].named_parameters()
            save_file({name: each.detach().clone() for name, each in weights}, self._file)


def blend(network: PreTrainedModel, before: Mapping[str, Tensor], share: float) -> None:
    """Interpolates between earlier weights and the trained ones: keeps what the last data sets taught and loses less of
    the rest (Wortsman et al., "Robust Fine-Tuning of Zero-Shot Models", CVPR 2022)."""
    with torch.no_grad():
        for name, weights in network.named_parameters():
            weights.copy_(torch.lerp(before[name].to(weights), weights, share))


def training_arguments(recipe: Recipe, output: Path) -> TrainingArguments:
    """
    Raises:
        SettingError: batches_per_step is not a multiple of the number of processes.
    """
    optimizer = recipe.optimizer
    num_processes = int(os.environ.get("WORLD_SIZE", "1"))
    if optimizer.batches_per_step % num_processes:
        raise SettingError(
            f"optimizer.batches_per_step: {optimizer.batches_per_step} is not a multiple of {num_processes} processes"
        )
    decay = {"num_decay_steps": optimizer.decay_steps} if optimizer.decay_steps else None
    return TrainingArguments(
        output_dir=str(output),
        max_steps=recipe.num_steps,
        learning_rate=optimizer.learning_rate,
        gradient_accumulation_steps=optimizer.batches_per_step // num_processes,
        ddp_backend="gloo" if num_processes > 1 and not torch.cuda.is_available() else None,
        weight_decay=optimizer.weight_decay,
        warmup_steps=optimizer.warmup_steps,
        lr_scheduler_type="warmup_stable_decay" if decay else "linear",
        lr_scheduler_kwargs=decay,
        adam_beta2=0.98,
        bf16=optimizer.bf16,
        use_cpu=not torch.cuda.is_available(),
        seed=recipe.seed,
        logging_steps=min(50, recipe.evaluate_every),
        eval_strategy="steps",
        eval_steps=recipe.evaluate_every,
        save_strategy="steps",
        save_steps=recipe.evaluate_every,
        save_total_limit=2,
        load_best_model_at_end=recipe.keep == "best",
        metric_for_best_model="eval_mean",
        greater_is_better=True,
        report_to="none",
        dataloader_num_workers=0,
        remove_unused_columns=False,
    )


def _inputs(batch: Batch) -> Batch:
    return {name: batch[name] for name in ("input_ids", "token_type_ids", "position_ids", "attention_mask")}
