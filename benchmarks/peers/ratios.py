"""What the rounds say: requests per second of each server, and ours over theirs with the spread of it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import median
from typing import Any

from benchmarks.peers.rounds import Measured

BEST = "best peer"
BEST_BATCHING = "best batching peer"
"""A server that computes one text at a time is no rival under load in general, but it is where padding costs most."""


@dataclass(frozen=True, slots=True)
class Kind:
    """Who is compared with whom: ours in float32 with those in float32, ours in fewer bits with all."""

    precision: str
    is_batching: bool = True

    def is_rival(self, peer: Kind) -> bool:
        return self.precision != "float32" or peer.precision == "float32"


def summarize(
    measured: Sequence[Measured], ours: Mapping[str, Kind], peers: Mapping[str, Kind]
) -> list[dict[str, Any]]:
    """One entry for each concurrency."""
    levels = dict.fromkeys(one.concurrency for one in measured)
    return [_level([one for one in measured if one.concurrency == level], ours, peers) for level in levels]


def _level(measured: Sequence[Measured], ours: Mapping[str, Kind], peers: Mapping[str, Kind]) -> dict[str, Any]:
    rounds = [
        {one.server: one.rate for one in measured if one.round == number}
        for number in sorted({one.round for one in measured})
    ]
    return {
        "concurrency": measured[0].concurrency,
        "requests_per_s": {server: spread([rates[server] for rates in rounds]) for server in (*ours, *peers)},
        "ours_over": {
            server: _over(server, rounds, {name: peer for name, peer in peers.items() if kind.is_rival(peer)})
            for server, kind in ours.items()
        },
    }


def _over(server: str, rounds: Sequence[Mapping[str, float]], peers: Mapping[str, Kind]) -> dict[str, dict[str, float]]:
    """Ratios of one round each: what slows the machine for a while slows both."""
    rivals = {BEST: list(peers), BEST_BATCHING: [name for name, peer in peers.items() if peer.is_batching]}
    rivals |= {name: [name] for name in peers}
    return {
        rival: spread([rates[server] / max(rates[name] for name in names) for rates in rounds])
        for rival, names in rivals.items()
        if names
    }


def spread(values: Sequence[float]) -> dict[str, float]:
    return {"min": round(min(values), 3), "median": round(median(values), 3), "max": round(max(values), 3)}


def table(levels: Sequence[dict[str, Any]]) -> str:
    """Median requests per second by server and concurrency, then ours over the best: median (least to most)."""
    head = ["requests/s", *(f"c={level['concurrency']}" for level in levels)]
    servers = levels[0]["requests_per_s"]
    lines = [head, *([name, *(f"{one['requests_per_s'][name]['median']:.1f}" for one in levels)] for name in servers)]
    for name, rivals in levels[0]["ours_over"].items():
        shown = [rival for rival in (BEST, BEST_BATCHING) if rival in rivals]
        lines += [[f"{name} / {rival}", *(_cell(one["ours_over"][name][rival]) for one in levels)] for rival in shown]
    widths = [max(len(line[column]) for line in lines) for column in range(len(head))]
    return "\n".join("  ".join(cell.rjust(width) for cell, width in zip(line, widths, strict=True)) for line in lines)


def _cell(ratio: Mapping[str, float]) -> str:
    return f"{ratio['median']:.2f} ({ratio['min']:.2f} to {ratio['max']:.2f})"
