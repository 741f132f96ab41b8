"""What every benchmark has around its measurement: its flags, what its report says of its making, the file.

A report names the command, day, commit, versions, machine class and, where something is computed, the precision. Files
are written where `--json` asks for it: a quick trial changes no result.
"""

from __future__ import annotations

import json
import sys
from argparse import ArgumentParser
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from service.cli_args import file_to_write
from service.tools.bench.provenance import machine_class, provenance


def parser_of(name: str, doc: str | None) -> ArgumentParser:
    """Of the module `name`, whose docstring begins with what it does; knows `--machine` and `--json`."""
    parser = ArgumentParser(prog=f"python -m benchmarks.{name}", description=(doc or "").partition("\n")[0])
    parser.add_argument("--machine", default=machine_class(), help="words for the report (default: %(default)s)")
    parser.add_argument("--json", type=file_to_write, metavar="FILE", help="write the report there")
    return parser


def about(
    name: str,
    doc: str | None,
    machine: str,
    *packages: str,
    method: str | None = None,
    precision: str | None = None,
    argv: Sequence[str] | None = None,
) -> dict[str, Any]:
    """Of the module `name`. `method` is what its docstring tells behind its title and its commands, unless it is given;
    `precision` is None where nothing is computed, or where the results themselves name it; `argv` is that of the
    process, unless the benchmark was called with one."""
    made = provenance(f"benchmarks.{name}", sys.argv[1:] if argv is None else argv, *packages)
    computed = {} if precision is None else {"precision": precision}
    told = (doc or "").split("\n\n", 2)[2].strip() if method is None else method
    return {**made, "machine": machine, **computed, "method": told}


def auto_precision() -> str:
    """What a server on this CPU computes in when nobody says."""
    import torch  # here, as most benchmarks do without: torch is in their servers

    from service.engine.device import resolve_precision

    return resolve_precision("auto", torch.device("cpu"))


def save(report: dict[str, Any], file: Path | None) -> None:
    if file:
        file.write_text(json.dumps(report, ensure_ascii=False, indent=2) + "\n", encoding="utf-8")
