"""The flags of `finetune`, checked while the command line is parsed."""

from __future__ import annotations

from argparse import ArgumentParser, Namespace
from pathlib import Path
from typing import Any

from service.cli_args import above_zero, checked, list_of, whole_above_zero
from service.commands.data_flags import add_field_flags
from service.tools.suites import suites

ALL_LAYERS = -1
VALUES = (
    "learning_rate",
    "weight_decay",
    "epochs",
    "max_steps",
    "batch_size",
    "max_length",
    "warmup",
    "scheduler",
    "dropout",
    "precision",
    "metric",
    "patience",
    "evaluate_every",
    "freeze",
    "lora",
)
"""The flags that are hyper-parameters of the same name."""


@checked
def at_least_zero(text: str) -> int:
    if not text.isdecimal():
        raise ValueError(f"{text}: wanted a whole number, at least 0")
    return int(text)


@checked
def share(text: str) -> float:
    if not 0 < (value := float(text)) < 1:
        raise ValueError(f"{text}: wanted a number between 0 and 1")
    return value


@checked
def rate(text: str) -> float | str:
    if text == "find":
        return text
    if not 0 < (value := float(text)) <= 1:
        raise ValueError(f"{text}: wanted a number above 0 and at most 1, or find")
    return value


@checked
def layers(text: str) -> int:
    if text == "all":
        return ALL_LAYERS
    if not text.isdecimal():
        raise ValueError(f"{text}: wanted a number of layers, or all")
    return int(text)


@checked
def loss(text: str) -> dict[str, Any]:
    name, _, number = text.partition(":")
    if name not in ("auto", "ce", "balanced", "focal", "smooth") or (number and name not in ("focal", "smooth")):
        raise ValueError(f"{text}: wanted auto, ce, balanced, focal[:GAMMA] or smooth[:SHARE]")
    field = "gamma" if name == "focal" else "smoothing"
    return {"loss": name} | ({field: float(number)} if number else {})


@checked
def micro_batch(text: str) -> int | None:
    return None if text == "auto" else int(whole_above_zero(text))


def add_arguments(parser: ArgumentParser) -> None:
    parser.add_argument("source", nargs="?", metavar="FILE|TASK", help="labelled data: your file, or a task")
    parser.add_argument("--task", dest="named_source", metavar="TASK", help="the same as TASK")
    parser.add_argument("--data", type=Path, metavar="DIR", help="the folder with the data sets of tasks")
    parser.add_argument(
        "--output",
        type=Path,
        metavar="DIR",
        help="folder of the model, its record run.json and its checkpoints; the same command resumes a run",
    )
    parser.add_argument(
        "--model",
        metavar="SOURCE",
        help="start from this directory or hub id (optional @revision; ms:// of ModelScope)",
    )
    parser.add_argument(
        "--hub",
        choices=("huggingface", "modelscope"),
        help="where a model ORG/NAME comes from (default: ERLANGSHEN_MODELS__HUB, else huggingface)",
    )
    parser.add_argument("--recipe", type=Path, metavar="FILE", help="train by this recipe, a TOML file, instead")
    parser.add_argument("--overwrite", action="store_true", help="replace the run that is in --output")
    parser.add_argument(
        "--dry-run", action="store_true", help="print memory, time, disk and steps, and exit before anything is loaded"
    )
    parser.add_argument(
        "--suite", choices=tuple(suites()), help="train the tasks of a suite, each into its own folder of --output"
    )
    parser.add_argument(
        "--against", choices=("card",), help="of a suite: print the numbers of the model cards, and the difference"
    )
    _add_selection(parser)
    _add_form(parser)
    _add_values(parser)
    _add_machine(parser)
    add_field_flags(parser)


def _add_selection(parser: ArgumentParser) -> None:
    group = parser.add_argument_group("which examples")
    group.add_argument("--dev", metavar="FILE|TASK", help="measure on these; default: the dev set of a task, or a part")
    group.add_argument(
        "--dev-share",
        type=share,
        metavar="S",
        help="that part, where there is no dev set; default: 0.1, of small data 0.2",
    )
    group.add_argument(
        "--fold", metavar="N", help="FewCLUE's fold of a task (0 to 4, all; each, of a suite); INDEX/COUNT of a file"
    )
    group.add_argument(
        "--test",
        choices=("test", "held-out"),
        help="of a task: measure the finished model on this, too; held-out: the dev examples of the other folds",
    )
    group.add_argument("--k-shot", type=whole_above_zero, metavar="K", help="train on K examples of each class")
    group.add_argument("--limit", type=whole_above_zero, metavar="N", help="train on at most N examples")


def _add_form(parser: ArgumentParser) -> None:
    group = parser.add_argument_group("form")
    group.add_argument(
        "--form",
        choices=("auto", "choice", "head"),
        default="auto",
        help="choice: the model stays zero-shot (UniMC); head: a classifier; auto says what it takes, and why "
        "(default: auto)",
    )
    group.add_argument(
        "--wording",
        choices=("auto", "mini", "upstream"),
        default="auto",
        help="of a task, for a choice: what mini was trained with, or the authors' (default: by the model)",
    )
    group.add_argument("--template", metavar="TEXT", help="an option of a choice, as in 这是一条{label}")
    group.add_argument(
        "--label-words", type=Path, metavar="FILE", help="the words of the classes: JSON, or lines of CLASS=WORD"
    )


def _add_values(parser: ArgumentParser) -> None:
    group = parser.add_argument_group(
        "hyper-parameters", "The defaults depend on task, form and size of the model; they are printed."
    )
    group.add_argument(
        "--learning-rate", "--lr", type=rate, metavar="R", help="a number, or find: try five around the default"
    )
    group.add_argument("--trials", type=whole_above_zero, metavar="N", help="try N rates in whole runs, keep the best")
    group.add_argument("--epochs", type=above_zero, metavar="N")
    group.add_argument("--max-steps", type=whole_above_zero, metavar="N", help="instead of --epochs")
    group.add_argument("--batch-size", type=whole_above_zero, metavar="N", help="examples of a step (default: 32)")
    group.add_argument(
        "--max-length", type=whole_above_zero, metavar="N", help="tokens of a row; default: by the data, up to 128"
    )
    group.add_argument("--weight-decay", type=float, metavar="R", help="default: 0.1")
    group.add_argument("--warmup", type=float, metavar="SHARE", help="of the steps (default: 0.1)")
    group.add_argument("--scheduler", choices=("linear", "cosine", "constant"), help="default: linear")
    group.add_argument("--dropout", type=float, metavar="R", help="default: 0.1")
    group.add_argument(
        "--loss",
        type=loss,
        default={},
        metavar="NAME",
        help="ce, balanced, focal[:GAMMA], smooth[:SHARE]; default: balanced if one class is 3 times another",
    )
    group.add_argument(
        "--metric",
        choices=("accuracy", "macro-f1", "spearman", "loss"),
        help="chooses the best checkpoint; default: accuracy, macro-f1 for imbalanced and several labels",
    )
    group.add_argument(
        "--patience", type=at_least_zero, metavar="N", help="stop after N evaluations without a better one (default: 5)"
    )
    group.add_argument("--evaluate-every", type=whole_above_zero, metavar="STEPS", help="default: a tenth of the run")
    group.add_argument(
        "--freeze", type=layers, metavar="N", help="do not train the first N layers; all: only a new head is trained"
    )
    group.add_argument("--lora", type=whole_above_zero, metavar="RANK", help="train low-rank adapters (needs peft)")
    group.add_argument(
        "--save-adapter",
        action="store_true",
        help="with --lora: write the adapter alone, which `serve` merges into its base; default: the merged model",
    )
    group.add_argument("--seed", type=at_least_zero, default=0, metavar="N", help="default: 0")
    group.add_argument(
        "--seeds", type=list_of(at_least_zero), metavar="A,B", help="a run for each, in OUTPUT/seed-A, and their mean"
    )


def _add_machine(parser: ArgumentParser) -> None:
    group = parser.add_argument_group("machine")
    group.add_argument(
        "--devices", type=whole_above_zero, default=1, metavar="N", help="processes, one for each GPU (default: 1)"
    )
    group.add_argument(
        "--micro-batch", type=micro_batch, metavar="N", help="rows of one forward; default: auto, as memory allows"
    )
    group.add_argument(
        "--gradient-checkpointing",
        choices=("auto", "on", "off"),
        default="auto",
        help="less memory, a third more time (default: auto, where memory is short)",
    )
    group.add_argument(
        "--precision",
        choices=("bfloat16", "float32"),
        help="of forward and backward; weights stay in float32; default: bfloat16 where the device has it",
    )


def values_from(args: Namespace) -> dict[str, Any]:
    values: dict[str, Any] = {name: getattr(args, name) for name in VALUES} | args.loss
    if args.learning_rate == "find":
        values["learning_rate"] = None
    return values
