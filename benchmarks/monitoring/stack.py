"""The service, a Prometheus that scrapes it and an Alertmanager, as processes on this machine; and what they answer.

The committed configurations are used, with other addresses and a shorter interval. Knows no dashboard.
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.local_server import becomes_ready, free_port

ROOT = Path(__file__).parents[2]
TOOLS = ("prometheus", "prometheus-alertmanager")
START_S = 120.0
POLL_S = 0.1
SCRAPE_S = 2


@dataclass(frozen=True, slots=True)
class Stack:
    """Addresses, and questions that may be asked there."""

    service: str
    prometheus: str
    alertmanager: str
    pid: int
    """Of the service."""

    def query(self, expr: str) -> list[dict[str, Any]]:
        """The series that an expression answers with now. ValueError where Prometheus does not understand it."""
        return self._ask("query", {"query": expr})

    def query_range(self, expr: str, start: float, end: float, step: float) -> list[dict[str, Any]]:
        bounds = {"start": f"{start:.3f}", "end": f"{end:.3f}", "step": f"{step:.3f}"}
        return self._ask("query_range", {"query": expr} | bounds)

    def rules(self) -> list[dict[str, Any]]:
        """Every rule with its health."""
        groups = get(f"{self.prometheus}/api/v1/rules")["data"]["groups"]
        return [rule for group in groups for rule in group["rules"]]

    def alerts(self) -> dict[str, dict[str, str]]:
        """What has reached the Alertmanager: the labels by the alert's name."""
        return {one["labels"]["alertname"]: one["labels"] for one in get(f"{self.alertmanager}/api/v2/alerts")}

    def _ask(self, kind: str, parameters: Mapping[str, str]) -> list[dict[str, Any]]:
        form = urllib.parse.urlencode(parameters).encode()
        try:
            answer = get(f"{self.prometheus}/api/v1/{kind}", form)
        except urllib.error.HTTPError as error:
            raise ValueError(f"{parameters['query']}: {error.read().decode()}") from None
        result: list[dict[str, Any]] = answer["data"]["result"]
        return result


def get(url: str, form: bytes | None = None) -> Any:
    with urllib.request.urlopen(url, form, timeout=30) as response:
        return json.loads(response.read())


@contextmanager
def running(folder: Path, *flags: str, key: Path | None = None) -> Iterator[Stack]:
    """All three, up and ready. `folder` takes their files and logs, `flags` go to the service, `key` is the file with
    the API key of Prometheus, where the service has keys."""
    ports = {name: free_port() for name in ("service", "prometheus", "alertmanager")}
    write_configuration(folder, ports, key)
    with ExitStack() as life:
        command = [sys.executable, "-m", "service", "serve", "--port", str(ports["service"]), *flags]
        service = life.enter_context(_process(folder / "service.log", command))
        if not becomes_ready(ports["service"], service, timeout_s=START_S):
            raise RuntimeError(f"the service did not start: {(folder / 'service.log').read_text()[-2000:]}")
        for name, tool in _commands(folder, ports).items():
            life.enter_context(_process(folder / f"{name}.log", tool))
            _until_answers(f"http://127.0.0.1:{ports[name]}/-/ready", folder / f"{name}.log")
        urls = {name: f"http://127.0.0.1:{port}" for name, port in ports.items()}
        yield Stack(**urls, pid=service.pid)


def write_configuration(folder: Path, ports: Mapping[str, int], key: Path | None) -> None:
    """The committed files, with the addresses of this machine."""
    text = (ROOT / "docker/prometheus/prometheus.yml").read_text()
    for written, here in (
        ("erlangshen:8000", f"127.0.0.1:{ports['service']}"),
        ("alertmanager:9093", f"127.0.0.1:{ports['alertmanager']}"),
        ("localhost:9090", f"127.0.0.1:{ports['prometheus']}"),
        ("interval: 15s", f"interval: {SCRAPE_S}s"),
        ("rules/*.yaml", str(ROOT / "docker/prometheus/rules/*.yaml")),
        *([("# authorization:", "authorization:"), ("/etc/prometheus/erlangshen.key", str(key))] if key else []),
    ):
        assert written in text, f"prometheus.yml has no {written} any more"
        text = text.replace(written, here)
    (folder / "prometheus.yml").write_text(text)


def _commands(folder: Path, ports: Mapping[str, int]) -> dict[str, Sequence[str]]:
    return {
        "alertmanager": [
            "prometheus-alertmanager",
            f"--config.file={ROOT}/docker/alertmanager/alertmanager.yml",
            f"--storage.path={folder}/alertmanager",
            f"--web.listen-address=127.0.0.1:{ports['alertmanager']}",
            "--cluster.listen-address=",
        ],
        "prometheus": [
            "prometheus",
            f"--config.file={folder}/prometheus.yml",
            f"--storage.tsdb.path={folder}/prometheus",
            f"--web.listen-address=127.0.0.1:{ports['prometheus']}",
        ],
    }


@contextmanager
def _process(log: Path, command: Sequence[str]) -> Iterator[subprocess.Popen[bytes]]:
    with log.open("wb") as out, subprocess.Popen(command, stdout=out, stderr=out, cwd=ROOT) as process:
        try:
            yield process
        finally:
            process.terminate()
            process.wait()


def _until_answers(url: str, log: Path) -> None:
    until = time.monotonic() + START_S
    while True:
        try:
            urllib.request.urlopen(url, timeout=5).close()
        except OSError as error:
            if time.monotonic() > until:
                raise RuntimeError(f"{url}: {error}; {log.read_text()[-2000:]}") from None
            time.sleep(POLL_S)
        else:
            return
