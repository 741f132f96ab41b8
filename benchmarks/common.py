"""What all benchmarks share: sub-commands, flags, and the provenance of a report.

A report names command, day, commit, versions, machine class and, where something is computed, the precision. It is
written only where `--json` says so.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from argparse import ArgumentParser, Namespace
from collections.abc import Sequence
from importlib import import_module
from pathlib import Path
from statistics import median
from typing import Any, NoReturn

from service.cli_args import file_to_write
from service.replicas.process import environment
from service.tools.bench.provenance import machine_class, provenance

ROOT = Path(__file__).parent.parent
RESULTS = ROOT / "benchmarks" / "results"

PATIENT = ("--default-timeout-ms", "600000", "--max-wait-ms", "600000", "--max-queue-tokens", "4194304")
"""Flags of a server that refuses nothing: throughput is measured, not admission."""


def dispatch(package: str, doc: str | None, commands: Sequence[str], default: str = "") -> NoReturn:
    """Ends with `main` of the module of `package` that the first argument names; `default` where that is a flag."""
    words = sys.argv[1:]
    if default and (not words or (words[0].startswith("-") and words[0] not in ("-h", "--help"))):
        words.insert(0, default)
    parser = ArgumentParser(prog=f"python -m {package}", description=(doc or "").partition("\n")[0])
    parser.add_argument("command", choices=commands, help="each has its own --help")
    module = import_module(f"{package}.{parser.parse_args(words[:1]).command}")
    sys.exit(module.main(words[1:]))


def parser_of(name: str, doc: str | None) -> ArgumentParser:
    """`name` is what follows `python -m benchmarks.`; `doc` is the module's docstring."""
    parser = ArgumentParser(prog=f"python -m benchmarks.{name}", description=(doc or "").partition("\n")[0])
    parser.set_defaults(name=name, doc=doc)
    parser.add_argument("--machine", default=machine_class(), help="words for the report (default: %(default)s)")
    parser.add_argument("--json", type=file_to_write, metavar="FILE", help="write the report there")
    return parser


def about(
    arguments: Namespace, argv: Sequence[str], *packages: str, method: str | None = None, precision: str | None = None
) -> dict[str, Any]:
    """`arguments` come from `parser_of`. `method` defaults to the docstring after its title and its commands."""
    made = provenance(f"benchmarks.{arguments.name}", argv, *packages)
    computed = {} if precision is None else {"precision": precision}
    text = arguments.doc.split("\n\n", 2)[2].strip() if method is None else method
    return {**made, "machine": arguments.machine, **computed, "method": text}


def auto_precision() -> str:
    """What a server on this CPU computes in by default."""
    import torch  # most benchmarks do without: torch is in their servers

    from service.engine.device import resolve_precision

    return resolve_precision("auto", torch.device("cpu"))


def as_worker(threads: int) -> None:
    """Starts this program again in the environment of a worker process, unless it is in it.

    torch reads it when it is imported: its threads would wait busily for longer, and take the cores from ONNX
    Runtime's. The search path stays this program's own: the environments of peers are not to find its packages.
    """
    wanted = environment(threads) | {"PYTHONPATH": os.environ.get("PYTHONPATH", "")}
    if any(os.environ.get(name) != wanted[name] for name in ("OMP_NUM_THREADS", "OMP_WAIT_POLICY", "GOMP_SPINCOUNT")):
        os.execve(sys.executable, [sys.executable, *sys.orig_argv[1:]], wanted)


def spread(values: Sequence[float]) -> dict[str, float]:
    return {"min": round(min(values), 3), "median": round(median(values), 3), "max": round(max(values), 3)}


def save(report: dict[str, Any], file: Path | None) -> None:
    if file:
        file.write_text(json.dumps(report, ensure_ascii=False, indent=2) + "\n", encoding="utf-8")


def service_report(*words: str) -> dict[str, Any]:
    """The report of `python -m service` with these words, which has `--json`."""
    with tempfile.NamedTemporaryFile(suffix=".json") as file:
        command = [sys.executable, "-m", "service", *words, "--json", file.name]
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
        report: dict[str, Any] = json.loads(Path(file.name).read_text(encoding="utf-8"))
    return report
