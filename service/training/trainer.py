"""transformers' Trainer around the stream: progress, checkpoints, resuming, the best model by dev accuracy."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional
from torch.utils.data import DataLoader, IterableDataset
from transformers import PreTrainedModel, Trainer, TrainingArguments

from service.datasets.example import Example
from service.domain import Labels
from service.tasks.choice import encode_choices
from service.tasks.rows import encode_rows
from service.tasks.text_model import TextModel
from service.training.collate import Batch, choice_loss, collate
from service.training.recipe import Recipe
from service.training.stream import Row, Stream, by_length


class _Batches(IterableDataset[Batch]):
    def __init__(self, stream: Stream) -> None:
        self.stream = stream

    def __iter__(self) -> Iterator[Batch]:
        return (collate(rows) for rows in self.stream)


class RecipeTrainer(Trainer):
    """Trains `network` on the stream's batches and evaluates on `dev` as the service would answer."""

    def __init__(
        self,
        network: PreTrainedModel,
        recipe: Recipe,
        model: TextModel,
        stream: Stream,
        dev: Mapping[str, Sequence[Example]],
        output: Path,
    ) -> None:
        batches = _Batches(stream)
        super().__init__(
            model=network, args=training_arguments(recipe, output), train_dataset=batches, eval_dataset=batches
        )
        self.recipe = recipe
        self.stream = stream
        self.yes_no = torch.tensor([model.yes or 0, model.no or 0])
        self.dev = {name: self._dev_batches(examples) for name, examples in dev.items()}

    def get_train_dataloader(self) -> DataLoader[Batch]:
        return DataLoader(_Batches(self.stream), batch_size=None)

    def compute_loss(
        self,
        model: Any,
        inputs: Batch,
        return_outputs: bool = False,
        num_items_in_batch: Tensor | int | None = None,
    ) -> Tensor:
        if self.recipe.form == "head":
            return functional.cross_entropy(self._head_logits(inputs), inputs["answers"])
        hidden = self._hidden(inputs)
        loss = torch.zeros((), device=hidden.device)
        if (inputs["option_counts"] > 0).any():
            loss = loss + choice_loss(self._yes_no(hidden, inputs), inputs)
        if len(inputs["masked_ids"]):
            states = hidden[inputs["masked_rows"], inputs["masked_positions"]]
            logits = self._network().cls.predictions(states)
            loss = loss + functional.cross_entropy(logits.float(), inputs["masked_ids"])
        return loss

    def evaluate(self, *args: Any, **kwargs: Any) -> dict[str, float]:
        """Accuracy on every dev set and their mean, which picks the best checkpoint."""
        self._network().eval()
        with torch.inference_mode(), self.compute_loss_context_manager():
            metrics = {f"eval_{name}": self._accuracy(batches) for name, batches in self.dev.items()}
        metrics["eval_mean"] = sum(metrics.values()) / len(metrics)
        self.log(metrics)
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
        """Logits [rows, options, 2] of yes and no, computed for those two words only."""
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


def training_arguments(recipe: Recipe, output: Path) -> TrainingArguments:
    optimizer = recipe.optimizer
    decay = {"num_decay_steps": optimizer.decay_steps} if optimizer.decay_steps else None
    return TrainingArguments(
        output_dir=str(output),
        max_steps=recipe.num_steps,
        learning_rate=optimizer.learning_rate,
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
        load_best_model_at_end=True,
        metric_for_best_model="eval_mean",
        greater_is_better=True,
        report_to="none",
        dataloader_num_workers=0,
        remove_unused_columns=False,
    )


def _inputs(batch: Batch) -> Batch:
    return {name: batch[name] for name in ("input_ids", "token_type_ids", "position_ids", "attention_mask")}
