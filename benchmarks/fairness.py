"""What a caller of small requests notices of one with thousands of rows on the same server.

    python -m benchmarks.fairness --json benchmarks/results/fairness.json             # two minutes

Starts the real server with the model that ships, one compute thread and three API keys, and loads it from this process.
`live` sends one text at a time at random moments; `bulk` keeps 32 requests of 16 texts each waiting, all the time. In
turn: live alone; both under keys of their own; both under the same key; bulk with low priority. Then `bulk` and
`heavy`, a key with three times its weight, both keep that many requests waiting: what each gets.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import random
import sys
import tempfile
from collections.abc import Iterator
from itertools import cycle
from pathlib import Path
from typing import Any

import numpy as np
import uvloop

from benchmarks.about import about, auto_precision, save
from benchmarks.loaded_server import Server, message, parser_of, serving, source_of, texts
from benchmarks.open_loop import Reply, Sender
from service.api.accounts import hash_of, new_secret
from service.tools.bench.load import NEWS

WEIGHTS = {"live": 1, "bulk": 1, "heavy": 3}
CLIENTS, BULK_ROWS = 32, 16
NUM_TEXTS = 20_000
SEED = 1


def main() -> int:
    arguments = _parse()
    secrets = {name: new_secret() for name in WEIGHTS}
    with tempfile.TemporaryDirectory() as folder:
        keys = Path(folder) / "keys.toml"
        keys.write_text("".join(_table(name, secret) for name, secret in secrets.items()), encoding="utf-8")
        with serving(source_of("mini", Path(folder)), arguments.port, "--keys-file", str(keys)) as server:
            found = uvloop.run(measure(server, secrets, arguments))
    print(json.dumps(found, indent=2))
    made = about("fairness", __doc__, arguments.machine, "torch", precision=auto_precision())
    save(made | found, arguments.json)
    return 0


def _table(name: str, secret: str) -> str:
    return f'[keys.{name}]\nhash = "{hash_of(secret)}"\nscopes = ["infer"]\nweight = {WEIGHTS[name]}\n'


async def measure(server: Server, secrets: dict[str, str], arguments: argparse.Namespace) -> dict[str, Any]:
    async def both(live_as: str | None, *bulk: str, priority: str = "interactive") -> dict[str, Any]:
        senders = {name: Sender(server.port, _bulk(secrets[name], priority, name)) for name in bulk}
        seconds = arguments.seconds
        loads = [sender.closed(CLIENTS, seconds) for sender in senders.values()]
        if live_as is not None:
            senders["live"] = Sender(server.port, _live(secrets[live_as]))
            loads.append(senders["live"].open(arguments.rate, seconds, random.Random(SEED)))
        replies = dict(zip(senders, await asyncio.gather(*loads), strict=True))
        for sender in senders.values():
            sender.close()
        return {name: _shown(name, found, seconds) for name, found in replies.items()}

    await both("live", "bulk")  # the server measures its model while it serves
    return {
        "live alone": await both("live"),
        "keys of their own": await both("live", "bulk"),
        "the same key": await both("bulk", "bulk"),
        "bulk with low priority": await both("live", "bulk", priority="bulk"),
        "weights 1 and 3": await both(None, "bulk", "heavy"),
    }


def _live(secret: str) -> Iterator[bytes]:
    bodies = ({"inputs": text, "labels": NEWS} for text in texts(NUM_TEXTS, SEED))
    return cycle([message(body, X_API_Key=secret) for body in bodies])


def _bulk(secret: str, priority: str, name: str) -> Iterator[bytes]:
    """Texts of its own: two equal rows in flight would be computed once."""
    found = texts(NUM_TEXTS, _seed_of(name))
    groups = (found[start : start + BULK_ROWS] for start in range(0, NUM_TEXTS, BULK_ROWS))
    bodies = ({"inputs": group, "labels": NEWS} for group in groups)
    return cycle([message(body, X_API_Key=secret, X_Request_Priority=priority) for body in bodies])


def _seed_of(name: str) -> int:
    return SEED + 1 + list(WEIGHTS).index(name)


def _shown(name: str, replies: list[Reply], seconds: float) -> dict[str, float]:
    answered = [1000 * reply.seconds for reply in replies if reply.status == 200]
    rows = len(answered) * (1 if name == "live" else BULK_ROWS)
    found = {"rows_per_s": round(rows / seconds, 1), "not_answered": len(replies) - len(answered)}
    if answered:
        p50, p99 = np.percentile(answered, (50, 99))
        found |= {"p50_ms": round(float(p50), 1), "p99_ms": round(float(p99), 1)}
    return found


def _parse() -> argparse.Namespace:
    parser = parser_of("fairness", __doc__)
    parser.add_argument("--seconds", type=float, default=20.0, help="of each part")
    parser.add_argument("--rate", type=float, default=5.0, help="live's requests a second")
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
