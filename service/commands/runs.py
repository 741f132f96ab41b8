"""`python -m service runs`: compares the runs of `finetune` in a table."""

from __future__ import annotations

import json
import sys
from argparse import ArgumentParser
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from service.tools.training.run_file import find_runs

MEASURES = ("accuracy", "macro_f1", "spearman")
COLUMNS = ("run", "status", "data", "model", "form", "rate", "seed", "step", *MEASURES, "seconds")


def run(argv: Sequence[str]) -> int:
    parser = ArgumentParser(prog="python -m service runs", description="Compare the runs of finetune.")
    parser.add_argument(
        "folders", nargs="*", type=Path, default=[Path("runs")], metavar="DIR", help="folders of runs (default: runs)"
    )
    parser.add_argument("--sort", choices=COLUMNS, help="by this column, best or largest first; default: by name")
    parser.add_argument("--json", action="store_true", help="print JSON instead of a table")
    args = parser.parse_args(argv)
    rows = [row_of(folder, found) for folder, found in find_runs(args.folders)]
    if not rows:
        print(f"error: no run.json in {', '.join(map(str, args.folders))}", file=sys.stderr)
        return 2
    if args.sort:
        rows.sort(key=lambda row: (row[args.sort] is not None, row[args.sort]), reverse=True)
    print(json.dumps(rows, ensure_ascii=False, indent=2) if args.json else "\n".join(table(rows)))
    return 0


def row_of(folder: Path, found: dict[str, Any]) -> dict[str, Any]:
    """One run; the measures of one that is not finished are those of its last evaluation."""
    identity, result, history = found["identity"], found["result"], found["history"]
    last: dict[str, Any] = history[-1] if history else {"step": 0, "dev": {}}
    measures = result["dev"] if result else last["dev"]
    return {
        "run": str(folder),
        "status": "finished" if result else "running or interrupted",
        "data": Path(identity["data"]["source"]).name,
        "model": Path(identity["model"]["source"]).name,
        "form": identity["form"],
        "rate": result["learning_rate"] if result else identity["learning_rate"],
        "seed": identity["seed"],
        "step": result["best_step"] if result else last["step"],
        **{name: measures.get(name) for name in MEASURES},
        "seconds": result["seconds"] if result else None,
    }


def table(rows: Sequence[dict[str, Any]]) -> list[str]:
    """Tab-separated, so that terminals and spreadsheets align wide characters; without columns that are empty."""
    used = [column for column in COLUMNS if any(row[column] is not None for row in rows)]
    return ["\t".join(used), *("\t".join(_cell(row[column]) for column in used) for row in rows)]


def _cell(value: object) -> str:
    if value is None:
        return "-"
    return f"{value:.4g}" if isinstance(value, float) else str(value)
