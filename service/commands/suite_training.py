"""`finetune --suite`: a run for each task, fold and seed of a suite, and their summary."""

from __future__ import annotations

import json
import sys
from argparse import Namespace
from collections.abc import Callable, Iterator
from copy import copy
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from service.errors import DatasetError, SettingError, StartupError
from service.tools.data.registry import FOLDS, base_name
from service.tools.suites import SUITE_FILE, Score, Suite, suites, summarize, table_lines


@dataclass(frozen=True, slots=True)
class PlannedRun:
    """`folder` is relative to the output of the suite."""

    task: str
    fold: str | None
    seed: int
    folder: str


TrainOne = Callable[[Namespace], dict[str, Any]]
"""Trains one run by its flags, and returns its result with the form; with --dry-run only its plan."""


def train_suite(args: Namespace, train_one: TrainOne) -> int:
    """Trains what is not finished: the same command goes on where it was interrupted.

    Raises:
        SettingError: a flag is missing, or the suite is not trained.
    """
    suite = suites()[args.suite]
    _check(args, suite)
    wanted = args.source or args.named_source
    tasks = tuple(suite.choose([wanted] if wanted else None))
    done: list[dict[str, Any]] = []
    problems: dict[str, str] = {}
    for run in planned_runs(args, tasks):
        if run.task in problems:
            continue
        print(f"{run.folder}:", file=sys.stderr, flush=True)
        try:
            found = train_one(_flags_of(args, run))
        except (DatasetError, SettingError) as error:
            problems[run.task] = error.detail
            print(f"{run.task}: not trained: {error.detail}", file=sys.stderr, flush=True)
            continue
        done.append(asdict(run) | found)
        if not args.dry_run:
            _write(args.output, args.suite, args.model, done)
    if not done:
        raise StartupError("; ".join(f"{task}: {problem}" for task, problem in problems.items()))
    scores = [score_of(suite, run) for run in done if "plan" not in run]
    rows = summarize(suite, scores, against_card=args.against is not None)
    if rows:
        print("\n".join(table_lines(rows)), file=sys.stderr)
    if args.against and rows:
        print(f"published: {suite.source}", file=sys.stderr)
    print(
        json.dumps(
            {"output": str(args.output), "suite": args.suite, "table": rows, "runs": done, "not_trained": problems},
            ensure_ascii=False,
            indent=2,
        )
    )
    return 2 if problems else 0


def _check(args: Namespace, suite: Suite) -> None:
    if args.data is None or args.model is None or args.output is None:
        raise SettingError("--suite: wanted --data DIR, --model SOURCE and --output DIR")
    if not suite.is_trained:
        raise SettingError(f"--suite {args.suite}: is measured without training; use evaluate --suite {args.suite}")
    if args.devices > 1:
        raise SettingError("--suite, --devices: choose one; train the tasks one by one on several devices")


def planned_runs(args: Namespace, tasks: tuple[str, ...]) -> Iterator[PlannedRun]:
    """Every fold and seed of every task; only FewCLUE's have folds."""
    for task in tasks:
        folds: list[str | None] = [None]
        if task.startswith("fewclue/"):
            folds = [*FOLDS[:-1]] if args.fold == "each" else [args.fold]
        for fold in folds:
            for seed in args.seeds or (args.seed,):
                parts = [
                    base_name(task),
                    *([f"fold-{fold}"] if fold else []),
                    *([f"seed-{seed}"] if args.seeds else []),
                ]
                yield PlannedRun(task, fold, seed, "/".join(parts))


def _flags_of(args: Namespace, run: PlannedRun) -> Namespace:
    one = copy(args)
    one.suite, one.source, one.named_source = None, run.task, None
    one.fold, one.seed, one.seeds = run.fold, run.seed, None
    one.output = args.output / run.folder
    return one


def _write(output: Path, suite: str, model: str, runs: list[dict[str, Any]]) -> None:
    """Keeps the runs of other commands with the same suite and model: tasks may be trained one by one."""
    file = output / SUITE_FILE
    before = json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}
    if (before.get("suite"), before.get("model")) == (suite, model):
        folders = {run["folder"] for run in runs}
        runs = [*(run for run in before["runs"] if run["folder"] not in folders), *runs]
    content = {"suite": suite, "model": model, "runs": runs}
    file.write_text(json.dumps(content, ensure_ascii=False, indent=1) + "\n", encoding="utf-8")


def score_of(suite: Suite, run: dict[str, Any]) -> Score:
    """By the test set, where it was measured; the dev set has chosen the checkpoint."""
    part = "test" if "test" in run else "dev"
    value = round(100 * run[part][suite.tasks[run["task"]].metric], 2)
    return Score(run["task"], value, run["examples"][part], run["form"], run["fold"], run["seed"])
