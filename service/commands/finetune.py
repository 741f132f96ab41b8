"""`python -m service finetune`: trains from a recipe, or fine-tunes a checkpoint on one data set."""

from __future__ import annotations

import argparse
from pathlib import Path


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--data", type=Path, required=True, metavar="DIR", help="folder with the data sets")
    parser.add_argument("--output", type=Path, required=True, metavar="DIR", help="where the model and its checkpoints go")
    parser.add_argument("--recipe", type=Path, metavar="FILE", help="a TOML recipe; without it, the flags below make one")


def run(args: argparse.Namespace) -> int:
    from service.training.recipe import read_recipe
    from service.training.run import train

    metrics = train(read_recipe(args.recipe), args.data, args.output)
    print(metrics)
    return 0


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    add_arguments(parser)
    raise SystemExit(run(parser.parse_args()))
