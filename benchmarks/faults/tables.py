"""The counts of a run as tables: for the terminal, and for docs/reliability.md.

    python -m benchmarks.faults.tables

writes what the committed results say into that page. Injects nothing.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from textwrap import fill
from typing import Any

RESULTS = Path(__file__).parents[1] / "results"
PAGE = Path(__file__).parents[2] / "docs" / "reliability.md"
MARKED = re.compile(r"(<!-- (\w+): python -m benchmarks\.faults\.tables -->\n).*?(<!-- end -->)", re.DOTALL)

LINE = 120

WRONG_UNTIL_SEEN = {"wrong for good"}
"""What a device got wrong before the canary looked again has been answered: it is counted, and is no failure."""


def num_lost(report: dict[str, Any]) -> int:
    """Requests that were lost as none may be."""
    return sum(each["lost"] for each in _rows(report) if each["fault"] not in WRONG_UNTIL_SEEN)


def as_text(report: dict[str, Any]) -> str:
    lines = [
        f"{'fault':34}{'with':>12}{'asked':>8}{'200':>8}{'lost':>6}{'recovery s':>12}{'silence s':>11}  other answers"
    ]
    for each in _rows(report):
        numbers = f"{each['asked']:8}{each['outcomes'].get('200', 0):8}{each['lost']:6}"
        times = f"{each.get('recovery_s', '-'):>12}{each['silence_s']:>11}"
        lines.append(f"{each['fault']:34}{_with(each):>12}{numbers}{times}  {_others(each)}")
    return "\n".join(lines)


def faults(report: dict[str, Any]) -> str:
    lines = [
        "| fault | with | asked | 200 | other answers | lost | silence s | recovery s |",
        "|---|---|" + "---:|" * 6,
    ]
    for each in _rows(report):
        name = f"{each['fault']}: {each['what']}" if "what" in each else each["fault"]
        numbers = (each["asked"], each["outcomes"].get("200", 0), _others(each) or "none", each["lost"])
        lines.append(_line(name, _with(each), *numbers, each["silence_s"], each.get("recovery_s", "")))
    return "\n".join(lines)


def soak(report: dict[str, Any]) -> str:
    taken = report["taken"]
    lines = ["| of the soak | early | late |", "|---|---:|---:|"]
    for name, of in taken["growth"].items():
        values = [f"{value / 1e6:.0f} MB" if name.endswith("bytes") else f"{value:g}" for value in of.values()]
        lines.append(_line(name.removesuffix("_bytes").replace("_", " "), *values))
    num_strangers, num_odd = sum(report["strangers"].values()), sum(report["odd"].values())
    words = (
        f"{report['minutes']:g} minutes, {len(report['faults'])} faults. {report['asked']} requests of known answer: "
        f"{report['lost']} lost. {num_strangers} requests of strangers: {num_odd} answered as they should not be. The "
        f"parent's memory grew by {taken['rss_slope_mb_per_hour']:g} MB an hour."
    )
    return "\n".join((fill(words, LINE), "", *lines))


TABLES = {"faults": faults, "soak": soak}


def page(text: str) -> str:
    """The page with the tables that the committed results make."""

    def replaced(found: re.Match[str]) -> str:
        report = json.loads((RESULTS / f"{found[2]}.json").read_text(encoding="utf-8"))
        return f"{found[1]}\n{TABLES[found[2]](report)}\n\n{found[3]}"

    return MARKED.sub(replaced, text)


def _rows(report: dict[str, Any]) -> Iterator[dict[str, Any]]:
    yield from report["faults"]
    yield from report["proxied"]


def _with(row: dict[str, Any]) -> str:
    return str(row.get("proxy") or f"{row['replicas']} replica{'s' if row['replicas'] > 1 else ''}")


def _others(row: dict[str, Any]) -> str:
    return ", ".join(f"{count} x {name}" for name, count in row["outcomes"].items() if name != "200")


def _line(*cells: object) -> str:
    return "| " + " | ".join(map(str, cells)) + " |"


if __name__ == "__main__":
    PAGE.write_text(page(PAGE.read_text(encoding="utf-8")), encoding="utf-8")
