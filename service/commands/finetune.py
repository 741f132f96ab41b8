"""`python -m service finetune`: trains a model by a recipe, or fine-tunes a checkpoint on one data set.

torch and the packages that only training needs are imported when a run starts.
"""

from __future__ import annotations

import json
import os
from argparse import ArgumentParser, Namespace
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

from service.cli_args import above_zero, whole_above_zero
from service.errors import SettingError, StartupError

if TYPE_CHECKING:
    from service.tools.training.recipe import Recipe

TRAINING_PACKAGES = ("transformers", "accelerate", "scipy")
"""Packages that only training needs."""


def add_arguments(parser: ArgumentParser) -> None:
    parser.add_argument("--data", type=Path, required=True, metavar="DIR", help="the folder with the data sets")
    parser.add_argument(
        "--output",
        type=Path,
        required=True,
        metavar="DIR",
        help="folder of the model and its checkpoints; an interrupted run resumes with the same DIR",
    )
    parser.add_argument("--model", metavar="SOURCE", help="start from this directory or hub id (optional @revision)")
    parser.add_argument("--recipe", type=Path, metavar="FILE", help="train by this recipe, a TOML file")
    one = parser.add_argument_group(
        "without a recipe", "Fine-tune --model on one data set; the defaults are upstream's for TNEWS."
    )
    one.add_argument("--task", metavar="TASK", help="a data set of those that `evaluate --help` lists")
    one.add_argument(
        "--form",
        choices=("choice", "head"),
        default="choice",
        help="choice: the model stays zero-shot (UniMC); head: a classifier with the data set's labels; "
        "default: %(default)s",
    )
    one.add_argument("--epochs", type=above_zero, default=7, metavar="N", help="default: %(default)s")
    one.add_argument(
        "--batch-size", type=whole_above_zero, default=32, metavar="N", help="examples per step; default: %(default)s"
    )
    one.add_argument(
        "--max-length", type=whole_above_zero, default=128, metavar="N", help="tokens per row; default: %(default)s"
    )
    one.add_argument("--learning-rate", type=above_zero, default=2e-5, metavar="R", help="default: %(default)s")
    one.add_argument("--weight-decay", type=float, default=0.1, metavar="R", help="default: %(default)s")
    one.add_argument("--seed", type=int, default=0, metavar="N", help="default: %(default)s")
    one.add_argument(
        "--precision",
        choices=("bfloat16", "float32"),
        default="bfloat16",
        help="precision of the forward and backward pass; weights stay in float32; default: %(default)s",
    )


def run(argv: Sequence[str]) -> int:
    parser = ArgumentParser(
        prog="python -m service finetune",
        description="Train a model by a recipe, or fine-tune a checkpoint on one data set.",
    )
    add_arguments(parser)
    args = parser.parse_args(argv)
    require_training_packages()
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    from service.checkpoints.checkpoint import parse_spec, resolve
    from service.tools.training.run import train

    recipe = make_recipe(args)
    start = resolve(parse_spec(args.model)) if args.model else None
    metrics = train(recipe, args.data, args.output, start)
    print(json.dumps({"output": str(args.output), **metrics}, ensure_ascii=False, indent=2))
    print(f"to serve it: python -m service --model {args.output}")
    return 0


def require_training_packages() -> None:
    """
    Raises:
        StartupError: a package is not installed; says how to install it.
    """
    missing = [package for package in TRAINING_PACKAGES if find_spec(package) is None]
    if missing:
        raise StartupError(f"finetune needs {', '.join(missing)}: pip install -r requirements/train.txt")


def make_recipe(args: Namespace) -> Recipe:
    """The recipe of the file, or one made from the flags.

    Raises:
        SettingError: neither a recipe nor a task with a model, or a bad recipe.
    """
    from service.tools.training.recipe import read_recipe

    if args.recipe:
        recipe = read_recipe(args.recipe)
        if (recipe.fresh is None) == (args.model is None):
            raise SettingError(f"{args.recipe}: needs either [fresh] or the flag --model, not both")
        return recipe
    if not (args.task and args.model):
        raise SettingError("finetune: wanted --recipe FILE, or --task TASK and --model SOURCE")
    return _make_from_flags(args)


def _make_from_flags(args: Namespace) -> Recipe:
    from service.tools.data.registry import load
    from service.tools.training.recipe import Optimizer, Recipe, Stage

    num_examples = len(load(args.task, args.data, "train"))
    steps = max(1, round(args.epochs * num_examples / args.batch_size))
    return Recipe(
        seed=args.seed,
        form=args.form,
        max_length=args.max_length,
        evaluate_every=max(1, min(500, steps // 7)),
        evaluate_limit=5000,
        optimizer=Optimizer(
            learning_rate=args.learning_rate,
            weight_decay=args.weight_decay,
            warmup_steps=steps // 10,
            tokens_per_batch=args.batch_size * args.max_length,
            rows_per_batch=args.batch_size,
            bf16=args.precision == "bfloat16",
        ),
        stages=(Stage(steps=steps, mixture={f"{args.task}/train": 1.0}),),
        dev=(f"{args.task}/dev",),
    )
