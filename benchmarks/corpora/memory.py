"""Whether the memory of a batch job depends on the size of its input.

    python -m benchmarks.corpora memory --json benchmarks/results/corpora_memory.json

`python -m service batch` reads a corpus of 0.1 GB and one of 1 GB, in JSON lines. A row has a text of 30 characters,
which is asked about, and a page of 100,000 characters, which is read over. The memory is the largest resident set of
the process, and of its worker process, of those that were seen every 0.1 s.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import psutil

from benchmarks.common import about, auto_precision, parser_of, save
from benchmarks.corpora.corpus import CHARACTERS, MODEL, command, watch

PAGE = (CHARACTERS * (100_000 // len(CHARACTERS) + 1))[:100_000]
ROWS = (333, 3333)


def main(argv: Sequence[str]) -> int:
    arguments = parser_of("corpora memory", __doc__).parse_args(argv)
    document = {
        "what": "largest resident memory of a batch job, by the size of its corpus",
        **about(arguments, argv, "torch", precision=auto_precision()),
        "model": MODEL,
        "runs": [measure(num_rows) for num_rows in ROWS],
    }
    save(document, arguments.json)
    return 0


def measure(num_rows: int) -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as name:
        source = Path(name) / "in.jsonl"
        with source.open("w", encoding="utf-8") as file:
            for row in range(num_rows):
                line = {"id": row, "text": CHARACTERS[row % 20 :][:30], "page": PAGE}
                file.write(json.dumps(line, ensure_ascii=False) + "\n")
        words = command(source, Path(name) / "out.jsonl", "--keep", "id")
        peaks = peaks_of(subprocess.Popen(words, stdout=subprocess.DEVNULL))
        found = {"rows": num_rows, "gigabytes": round(source.stat().st_size / 1e9, 3), **peaks}
    print(json.dumps(found), file=sys.stderr)
    return found


def peaks_of(process: subprocess.Popen[bytes]) -> dict[str, float]:
    """The largest memory of the process and of its largest child, in MiB."""
    parent, peaks = psutil.Process(process.pid), {"process_mib": 0.0, "worker_mib": 0.0}

    def look() -> None:
        with suppress(psutil.Error):
            peaks["process_mib"] = max(peaks["process_mib"], parent.memory_info().rss / 2**20)
            of_children = [child.memory_info().rss / 2**20 for child in parent.children()]
            peaks["worker_mib"] = max(peaks["worker_mib"], *of_children, 0.0)

    watch(process, look, every_s=0.1)
    return {name: round(value, 1) for name, value in peaks.items()}
