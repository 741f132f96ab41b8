"""`python -m benchmarks.monitoring` (`make check-monitoring`): the dashboards and alerts, tried for real.

A service with two models and API keys is scraped by a real Prometheus while it is loaded. A replica is killed and the
service is asked for too much; both alerts have to reach a real Alertmanager. Then every expression of every panel and
rule has to have an answer, and with --pictures the dashboards are drawn from what Prometheus has seen.
"""

from __future__ import annotations

import os
import shutil
import signal
import sys
import tempfile
import time
from argparse import ArgumentParser, Namespace
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from subprocess import Popen

import psutil

from benchmarks.monitoring.callers import write_keys
from benchmarks.monitoring.checks import num_expressions, unanswered
from benchmarks.monitoring.load import loading
from benchmarks.monitoring.panels import Variables, dashboards
from benchmarks.monitoring.picture import draw
from benchmarks.monitoring.series import Span
from benchmarks.monitoring.stack import TOOLS, Stack, running
from benchmarks.peers.checkpoint import make_checkpoint

CALM_S, BUSY_S, BACK_S, AFTER_S, PATIENCE_S = 75, 45, 20, 45, 240
WINDOWS = Variables(window="15s", whole="5m", over="45s", before="1m")
SERVER = ("--threads", "1", "--cache-entries", "500", "--max-queue-tokens", "8000", "--canary-interval-s", "5")


def main(argv: Sequence[str]) -> int:
    args = parse_args(argv)
    absent = [tool for tool in TOOLS if shutil.which(tool) is None]
    if absent:
        print(
            f"skipped: not installed: {', '.join(absent)} (on Debian: apt install prometheus prometheus-alertmanager)"
        )
        return 0
    with tempfile.TemporaryDirectory(prefix="monitoring-") as name:
        folder = Path(name)
        flags = ("--model", "mini=mini", "--model", f"news={make_checkpoint(folder / 'news')}")
        keys = write_keys(folder)
        with running(folder, *flags, *SERVER, "--keys-file", str(keys), key=folder / "prometheus.key") as stack:
            return tour(stack, folder, args)


def parse_args(argv: Sequence[str]) -> Namespace:
    parser = ArgumentParser(
        prog="python -m benchmarks.monitoring", description="Try the dashboards and alerts for real."
    )
    parser.add_argument("--texts", type=Path, help="real texts to send, as for the bench; made-up ones without")
    parser.add_argument("--pictures", type=Path, metavar="FOLDER", help="draw the dashboards there")
    return parser.parse_args(argv)


def tour(stack: Stack, folder: Path, args: Namespace) -> int:
    start, is_good = time.time(), True
    ask: Callable[..., AbstractContextManager[Popen[bytes]]] = partial(loading, stack.service, texts=args.texts)
    forever = ("--duration", "3600")
    with (
        ask("--rate", "6", *forever, key=folder / "web.key"),
        ask("--rate", "4", "--model", "news", *forever, key=folder / "batch.key", mix="classify=1"),
    ):
        _wait(CALM_S, "a calm hour")
        with ask("--rate", "10", *forever, key=folder / "web.key"):
            _wait(BUSY_S, "a busy hour")
            kill_replica(stack)
            is_good &= _fires(stack, "ErlangshenReplicaLost")
            _wait(BACK_S, "the replica comes back")
        with ask("--concurrency", "40", "--inputs", "8", *forever, key=folder / "nightly.key"):
            is_good &= _fires(stack, "ErlangshenOverloaded")
        _wait(AFTER_S, "calm again")
        is_good &= _answers(stack)
    if args.pictures:
        pictures(stack, Span(start, time.time(), f"{datetime.now(UTC):%Y-%m-%d %H:%M} UTC"), args.pictures)
    return 0 if is_good else 1


def kill_replica(stack: Stack) -> None:
    """SIGKILL to the child that computes: the one with the most memory."""
    children = psutil.Process(stack.pid).children(recursive=True)
    os.kill(max(children, key=lambda child: child.memory_info().rss).pid, signal.SIGKILL)


def _fires(stack: Stack, alert: str) -> bool:
    since = time.monotonic()
    while time.monotonic() < since + PATIENCE_S:
        if alert in stack.alerts():
            print(f"{alert} reached Alertmanager after {time.monotonic() - since:.0f} s: {stack.alerts()[alert]}")
            return True
        time.sleep(0.5)
    print(f"{alert} did not reach Alertmanager in {PATIENCE_S} s")
    return False


def _answers(stack: Stack) -> bool:
    missing = list(unanswered(stack, WINDOWS))
    print(f"{num_expressions()} expressions of panels, {len(stack.rules())} rules; without an answer: {len(missing)}")
    print("\n".join(missing))
    return not missing


def _wait(seconds: float, why: str) -> None:
    print(f"{why}: {seconds:g} s", flush=True)
    time.sleep(seconds)


def pictures(stack: Stack, span: Span, folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for name, dashboard in dashboards().items():
        draw(dashboard, stack, span, WINDOWS, folder / f"{name}.png")
        print(f"drawn: {folder / name}.png")


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
