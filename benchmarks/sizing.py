"""Writes the sizing table into docs/operations.md, from every `results/speed_*.json`.

    python -m benchmarks.sizing

Rows of texts of lognormal length, one a request; how many replicas keep 95 % of them within the target.
"""

from __future__ import annotations

import json
import random
from argparse import ArgumentParser
from collections.abc import Iterator
from pathlib import Path
from textwrap import fill

from service.tools.bench.texts import Lengths
from service.tools.capacity import Speed, Traffic, find_fewest, read_speeds

ROOT = Path(__file__).parent.parent
RESULTS = ROOT / "benchmarks" / "results"
OVER_HTTP = "load_mini_closed.json"
DOCUMENT = ROOT / "docs" / "operations.md"
BEGIN, END = "<!-- sizing: python -m benchmarks.sizing -->\n", "<!-- /sizing -->\n"
LINE = 120
SHAPE = "lognormal:31:152"
RATES = (10, 100, 1000)
P95_S = 0.5
HEAD = (
    "| machine | model | arithmetic | tokens/s of one replica | requests/s | replicas for "
    + " | for ".join(f"{rate}/s" for rate in RATES)
    + " |\n|---|---|---|---:|---:|"
    + "---:|" * len(RATES)
    + "\n"
)


def table(results: Path) -> str:
    lengths = Lengths.parse(SHAPE).draw(1024, random.Random(1))
    return HEAD + "".join(
        _line(machine, speed, lengths) for file in sorted(results.glob("speed_*.json")) for machine, speed in _of(file)
    )


def words(results: Path) -> str:
    """What the speeds are not: those of a whole service."""
    points = json.loads((results / OVER_HTTP).read_text(encoding="utf-8"))["points"]
    best = max(points, key=lambda point: point["results"]["all"]["tokens_per_s"])
    served = f"{best['results']['all']['tokens_per_s']:,.0f} tokens/s to {best['concurrency']:g} clients"
    text = (
        "Tokens/s are those of the bare engine that has all cores to itself. Where HTTP, tokens and the clients share "
        f"these cores, less is left: `mini` answered {served} on two cores (`benchmarks/results/{OVER_HTTP}`)."
    )
    return f"\n{fill(text, LINE)}\n"


def _of(file: Path) -> Iterator[tuple[str, Speed]]:
    machine = json.loads(file.read_text(encoding="utf-8"))["machine"]
    return ((machine, speed) for speed in read_speeds(file))


def _line(machine: str, speed: Speed, lengths: list[int]) -> str:
    one = Traffic(1.0, 1, lengths)
    rate = speed.tokens_per_s(one.row_tokens)
    cells = " | ".join(_replicas(speed, Traffic(wanted, 1, lengths)) for wanted in RATES)
    start = f"| {machine} | {speed.model} | {speed.precision} "
    return f"{start}| {rate:,.0f} | {rate / one.row_tokens:,.1f} | {cells} |\n"


def _replicas(speed: Speed, traffic: Traffic) -> str:
    best = find_fewest(speed, traffic, P95_S)
    return f"{best.replicas:,}" if best.meets(P95_S) else "-"


def main() -> None:
    ArgumentParser(prog="python -m benchmarks.sizing", description=(__doc__ or "").partition("\n")[0]).parse_args()
    before, _, rest = DOCUMENT.read_text(encoding="utf-8").partition(BEGIN)
    _, _, after = rest.partition(END)
    DOCUMENT.write_text(before + BEGIN + table(RESULTS) + words(RESULTS) + END + after, encoding="utf-8")


if __name__ == "__main__":
    main()
