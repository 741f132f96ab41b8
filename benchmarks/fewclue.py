"""What does training on a few examples add to a model that has not seen them? FewCLUE over its five folds.

    python -m benchmarks.fewclue --data DATA --output runs/fewclue --json benchmarks/results/fewclue.json
    python -m benchmarks.fewclue --data DATA --output runs/choice --model mini --form choice -- --max-steps 10

Few-shot is `finetune --suite fewclue TASK --fold each --test held-out`, zero-shot `evaluate --suite fewclue TASK --fold
each --held-out`, both of the same model. A fold trains on its train_F and chooses the checkpoint by its dev_F; both
sides are measured on the same examples, dev_few_all without the texts of train_F and dev_F. The default model is
`e5-small`, which was trained on none of FewCLUE, with a classifier on the frozen encoder (--form head); it reads a pair
as one row. Words after `--` go to `finetune`. The reports of both sides stay in the output, and what is there is not
repeated. A side that the model cannot do has the reason instead of numbers, and such a task counts for neither side.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from statistics import mean, stdev
from typing import Any

from benchmarks.common import about, auto_precision, parser_of, save
from service.tools.bench.provenance import redact_path
from service.tools.data.registry import base_name
from service.tools.suites import suites

Values = dict[str, tuple[float, int]]
"""The accuracy in percent and the number of examples, by fold."""


def main(argv: Sequence[str]) -> int:
    own, extra = _divide(argv)
    parser = parser_of("fewclue", __doc__)
    parser.add_argument("tasks", nargs="*", metavar="TASK", help="of FewCLUE (default: all nine)")
    parser.add_argument("--data", type=Path, required=True, metavar="DIR", help="the folder that has fewclue/")
    parser.add_argument(
        "--output", type=Path, required=True, metavar="DIR", help="the runs and the answers of each task"
    )
    parser.add_argument("--model", default="e5-small", metavar="SOURCE", help="default: %(default)s")
    parser.add_argument("--form", choices=("head", "choice"), default="head", help="default: %(default)s")
    arguments = parser.parse_args(own)
    arguments.output.mkdir(parents=True, exist_ok=True)
    words = ["--model", arguments.model, "--data", str(arguments.data), "--fold", "each"]
    frozen = ["--freeze", "all"] if arguments.form == "head" else []
    train = [*words, "--form", arguments.form, *frozen, "--test", "held-out", "--output", str(arguments.output), *extra]
    found = {}
    for task in suites()["fewclue"].choose(arguments.tasks or None):
        zero = _zero_shot(task, [*words, "--held-out"], arguments.output)
        found[task] = compare(zero, _few_shot(task, train, arguments.output))
        print(f"{task}: {json.dumps({k: v for k, v in found[task].items() if k != 'folds'})}", flush=True)
    better = [task for task, one in found.items() if one.get("difference", 0) > 0]
    report = {
        "what": f"FewCLUE over the five folds: {arguments.model} before and after training on a fold",
        **about(arguments, argv, "torch", "transformers", "numpy", precision=auto_precision()),
        "few_shot_command": _shown(["finetune", "--suite", "fewclue", "TASK", *train]),
        "zero_shot_command": _shown(["evaluate", "--suite", "fewclue", "TASK", *words, "--held-out"]),
        "few_shot_is_better": better,
        "tasks": found,
    }
    save(report, arguments.json)
    print(f"few-shot is better on {len(better)} of {len(found)}: {', '.join(better)}")
    return 0


def _divide(argv: Sequence[str]) -> tuple[list[str], list[str]]:
    """The words before and after `--`."""
    at = list(argv).index("--") if "--" in argv else len(argv)
    return list(argv[:at]), list(argv[at + 1 :])


def _shown(words: Sequence[str]) -> str:
    return " ".join(["python -m service", *map(redact_path, words)])


def _few_shot(task: str, words: Sequence[str], output: Path) -> Values | str:
    """By fold, or why the model cannot be trained."""
    found = _report(output / f"few-shot-{base_name(task)}.json", "finetune", "--suite", "fewclue", task, *words)
    if isinstance(found, str):
        return found
    return {
        run["fold"]: (round(100 * run["test"]["accuracy"], 2), run["examples"]["test"])
        for run in found["runs"]
        if run["task"] == task
    }


def _zero_shot(task: str, words: Sequence[str], output: Path) -> Values | str:
    """By fold, or why the model cannot do the task."""
    found = _report(output / f"zero-shot-{base_name(task)}.json", "evaluate", "--suite", "fewclue", task, *words)
    return found if isinstance(found, str) else {run["fold"]: (run["value"], run["examples"]) for run in found["runs"]}


def _report(file: Path, *words: str) -> dict[str, Any] | str:
    """What `python -m service` prints, which is kept in the file; the last line that it says on stderr, if it fails."""
    if not file.is_file():
        done = subprocess.run([sys.executable, "-m", "service", *words], capture_output=True, text=True, check=False)
        if done.returncode:
            return (done.stderr.strip().splitlines() or [f"exit code {done.returncode}"])[-1].removeprefix("error: ")
        file.write_text(done.stdout, encoding="utf-8")
    report: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
    return report


def compare(zero: Values | str, few: Values | str) -> dict[str, Any]:
    """The table row of a task: means, standard deviation of the folds, difference in points, and each fold.

    Raises:
        ValueError: the two sides were not measured on the same number of examples.
    """
    row: dict[str, Any] = {}
    for name, side in (("zero_shot", zero), ("few_shot", few)):
        if isinstance(side, str):
            row[name] = f"not done: {side}"
            continue
        values = [value for value, _ in side.values()]
        row |= {f"{name}_mean": round(mean(values), 2), f"{name}_sd": round(stdev(values), 2)}
    if isinstance(zero, str) or isinstance(few, str):
        return row
    if {fold: count for fold, (_, count) in zero.items()} != {fold: count for fold, (_, count) in few.items()}:
        raise ValueError("the two sides were measured on different examples")
    folds = [
        {"fold": fold, "examples": count, "zero_shot": value, "few_shot": few[fold][0]}
        for fold, (value, count) in zero.items()
    ]
    return row | {
        "difference": round(row["few_shot_mean"] - row["zero_shot_mean"], 2),
        "folds_better": sum(one["few_shot"] > one["zero_shot"] for one in folds),
        "folds": folds,
    }


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
