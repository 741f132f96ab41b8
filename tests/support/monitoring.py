"""The service under load, scraped by a real Prometheus with a real Alertmanager, all as processes on this machine.

It uses the committed configurations with other addresses and a shorter interval. `unanswered` queries Prometheus for
every expression of the committed dashboards and rules.
"""

from __future__ import annotations

import json
import math
import os
import re
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from itertools import count
from pathlib import Path
from threading import Thread
from typing import Any

import yaml

from service.api.accounts import hash_of, new_secret
from tests.support.servers import Server, free_port

ROOT = Path(__file__).parents[2]
TOOLS = ("prometheus", "prometheus-alertmanager")
DASHBOARDS = ROOT / "docker/grafana/dashboards"
RULES = ROOT / "docker/prometheus/rules"
DURATION = re.compile(r"(?<![\w.$])(\d+)(ms|[smhdw])(?![\w.])")
SECONDS = {"ms": 0.001, "s": 1, "m": 60, "h": 3600, "d": 86400, "w": 604800}
EVENTS = re.compile(r"\* (\d+) >= ")
"""A rate per second times the seconds of its window."""
SELECTOR = re.compile(r"(?<![\w:?\"])(?:erlangshen[\w:]*|process_\w+|up)(?:\{[^}]*\})?")
"""A metric with its labels, in an expression."""

POD = 'namespace="default",pod="erlangshen-0",container="erlangshen"'
DCGM = f'gpu="0",Hostname="node-0",{POD}'
NEIGHBOURS = "\n".join(
    (
        f"container_cpu_usage_seconds_total{{{POD}}} COUNT",
        f"container_cpu_cfs_periods_total{{{POD}}} COUNT",
        f"container_cpu_cfs_throttled_periods_total{{{POD}}} COUNT",
        f"container_memory_working_set_bytes{{{POD}}} 3e8",
        f'kube_pod_container_resource_limits{{{POD},resource="cpu"}} 2',
        f'kube_pod_container_resource_limits{{{POD},resource="memory"}} 4e9',
        f"kube_pod_container_status_restarts_total{{{POD}}} 0",
        f'kube_pod_container_status_waiting_reason{{{POD},reason="ImagePullBackOff"}} 1',
        'kube_deployment_spec_replicas{namespace="default",deployment="erlangshen"} 1',
        'probe_success{job="erlangshen-probe",instance="https://nlp.example.com/readyz"} 1',
        *(f"DCGM_FI_DEV_{name}{{{DCGM}}} 40" for name in ("GPU_UTIL", "FB_USED", "FB_FREE", "GPU_TEMP", "SM_CLOCK")),
        f"DCGM_FI_DEV_POWER_USAGE{{{DCGM}}} 200",
        f"DCGM_FI_DEV_XID_ERRORS{{{DCGM}}} 0",
        f"DCGM_FI_PROF_PIPE_TENSOR_ACTIVE{{{DCGM}}} 0.4",
        "",
    )
)
"""What cAdvisor, kube-state-metrics, the black-box exporter and NVIDIA's dcgm-exporter would say of the service."""

SERVICE = ("--threads", "1", "--cache-entries", "500", "--max-queue-tokens", "8000", "--canary-interval-s", "5")
CALLERS = {
    "web": "",
    "nightly": 'priority = "bulk"\nweight = 0.5\n',
    "batch": "requests_per_s = 3\n",
    "owner": 'scopes = ["admin", "infer"]\n',
    "prometheus": 'scopes = ["metrics"]\n',
}
"""API keys by name, with their permissions."""

MIX = "zero-shot=4,similarity=3,nli=2,fill-mask=1,embed=1"
READING = ",mrc=1"
"""Needs texts with reading comprehension."""
START_S = 120.0
POLL_S = 0.1
SCRAPE_S = 2


@dataclass(frozen=True, slots=True)
class Stack:
    """The addresses of service, Prometheus and Alertmanager, and queries of the latter two. `folder` has the keys."""

    service: Server
    prometheus: str
    alertmanager: str
    folder: Path

    def query(self, expr: str) -> list[dict[str, Any]]:
        """The current series of an expression. Raises ValueError when Prometheus cannot parse it."""
        return self._ask("query", {"query": expr})

    def query_range(self, expr: str, start: float, end: float, step: float) -> list[dict[str, Any]]:
        bounds = {"start": f"{start:.3f}", "end": f"{end:.3f}", "step": f"{step:.3f}"}
        return self._ask("query_range", {"query": expr} | bounds)

    def rules(self) -> list[dict[str, Any]]:
        """Every rule with its health."""
        groups = get(f"{self.prometheus}/api/v1/rules")["data"]["groups"]
        return [rule for group in groups for rule in group["rules"]]

    def alerts(self) -> dict[str, dict[str, str]]:
        """The alerts in the Alertmanager: labels by name."""
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
def monitored(folder: Path, *flags: str) -> Iterator[Stack]:
    """Starts all three and waits until they are ready.

    `folder` receives files, logs and a key NAME.key of each caller; `flags` are passed to the service.
    """
    keys = write_keys(folder)
    stored = ("--keys-file", str(keys), "--data-dir", str(folder / "data"))
    server = Server(folder / "service.log", (*SERVICE, *stored, *flags))
    ports = {name: free_port() for name in ("prometheus", "alertmanager")}
    with ExitStack() as stack:
        neighbours = stack.enter_context(exporting(NEIGHBOURS))
        write_rules(folder / "rules")
        write_configuration(folder, ports | {"service": server.port, "neighbours": neighbours})
        stack.callback(server.stop)
        server.start(START_S)
        for name, command in _commands(folder, ports).items():
            stack.enter_context(run_process(folder / f"{name}.log", command))
            until_answers(f"http://127.0.0.1:{ports[name]}/-/ready", folder / f"{name}.log")
        yield Stack(server, *(f"http://127.0.0.1:{port}" for port in ports.values()), folder)


def write_keys(folder: Path) -> Path:
    """Writes NAME.key for each caller and `keys.toml`, which the service reads; returns that."""
    tables = []
    for name, permissions in CALLERS.items():
        secret = new_secret()
        (folder / f"{name}.key").write_text(secret)
        tables.append(f'[keys.{name}]\nhash = "{hash_of(secret)}"\n{permissions}')
    (folder / "keys.toml").write_text("\n".join(tables))
    return folder / "keys.toml"


def write_configuration(folder: Path, ports: Mapping[str, int]) -> None:
    """The committed files, with the addresses of this machine."""
    text = (ROOT / "docker/prometheus/prometheus.yml").read_text()
    for written, here in (
        ("erlangshen:8000", f"127.0.0.1:{ports['service']}"),
        ("alertmanager:9093", f"127.0.0.1:{ports['alertmanager']}"),
        ("localhost:9090", f"127.0.0.1:{ports['prometheus']}"),
        ("interval: 15s", f"interval: {SCRAPE_S}s"),
        ("rules/*.yaml", f"{folder}/rules/*.yaml"),
        ("# authorization:", "authorization:"),
        ("/etc/prometheus/erlangshen.key", f"{folder}/prometheus.key"),
    ):
        assert written in text, f"prometheus.yml has no {written} any more"
        text = text.replace(written, here)
    job = {"job_name": "neighbours", "honor_labels": True}
    config = yaml.safe_load(text)
    config["scrape_configs"].append(job | {"static_configs": [{"targets": [f"127.0.0.1:{ports['neighbours']}"]}]})
    (folder / "prometheus.yml").write_text(yaml.safe_dump(config))


def write_rules(folder: Path, speed: float = 1) -> None:
    """The committed rules, evaluated as often as the others. With a `speed`, all their durations pass that much faster:
    an alert on 30 minutes is one on three minutes with 10."""
    folder.mkdir()
    for path in RULES.glob("*.yaml"):
        content = yaml.safe_load(path.read_text())
        for group in content["groups"]:
            interval = group.pop("interval", "")
            if speed != 1 and interval:
                group["interval"] = _faster(interval, speed)
            for rule in group["rules"]:
                rule["expr"] = EVENTS.sub(lambda found: f"* {float(found[1]) / speed:g} >= ", rule["expr"])
                for name in {"expr", "for"} & set(rule):
                    rule[name] = _faster(rule[name], speed)
        (folder / path.name).write_text(yaml.safe_dump(content, sort_keys=False))


def _faster(text: str, speed: float) -> str:
    return DURATION.sub(lambda found: f"{int(found[1]) * SECONDS[found[2]] * 1000 / speed:.0f}ms", text)


@contextmanager
def exporting(text: str) -> Iterator[int]:
    """Serves these metrics, with the number of scrapes for COUNT; yields the port."""
    scrapes = count()

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200)
            self.send_header("Content-Type", "text/plain; version=0.0.4")
            self.end_headers()
            self.wfile.write(text.replace("COUNT", str(next(scrapes))).encode())

        def log_message(self, *_: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        Thread(target=server.serve_forever, daemon=True).start()
        try:
            yield server.server_port
        finally:
            server.shutdown()


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
def run_process(log: Path, command: Sequence[str]) -> Iterator[subprocess.Popen[bytes]]:
    with log.open("wb") as out, subprocess.Popen(command, stdout=out, stderr=out, cwd=ROOT) as process:
        try:
            yield process
        finally:
            process.terminate()
            process.wait()


def until_answers(url: str, log: Path) -> None:
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


def use_label_set(server: Server, key: Path, turn: int) -> None:
    """Stores a label set with a label that no other turn has, whose vectors are computed then, and classifies by it;
    and by one of its labels in a request, whose vector the cache of the queue has."""
    headers = {"Authorization": f"Bearer {key.read_text()}"}
    labels = ["体育", f"财经{turn}"]
    for method, path, body in (
        ("PUT", "/v1/label-sets/news", {"labels": labels}),
        ("POST", "/v1/classify", {"inputs": "国足获胜", "label_set": "news"}),
        ("POST", "/v1/classify", {"inputs": "国足获胜", "labels": [*labels, f"房产{turn}"]}),
    ):
        request = urllib.request.Request(server.url + path, json.dumps(body).encode(), headers, method=method)
        with urllib.request.urlopen(request, timeout=30) as response:
            response.read()


@contextmanager
def loading(
    server: Server, *flags: str, key: Path, texts: Path | None = None, mix: str = MIX
) -> Iterator[subprocess.Popen[bytes]]:
    """Runs `python -m service bench` as a process inside the block."""
    source = ["--texts", str(texts), "--mix", mix + READING] if texts and mix == MIX else ["--mix", mix]
    sent = ("--warm-up", "0", "--duration", "3600", "--key-file", str(key), *source, *flags)
    command = [sys.executable, "-m", "service", "bench", "--url", server.url, *sent]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
        try:
            yield process
        finally:
            process.terminate()


def kill_replica(server: Server) -> None:
    """SIGKILL to the worker process: the child with the most memory."""
    children = server.process.children(recursive=True)
    os.kill(max(children, key=lambda child: child.memory_info().rss).pid, signal.SIGKILL)


@dataclass(frozen=True, slots=True)
class Variables:
    """Values of Grafana's variables for a run of a few minutes."""

    window: str = "20s"
    whole: str = "2m"
    over: str = "10s"
    before: str = "10s"
    low: str = "0.6"
    namespace: str = ".*"

    def fill(self, expr: str) -> str:
        named = {
            "job": "erlangshen",
            "__rate_interval": self.window,
            "__range": self.whole,
            "over": self.over,
            "before": self.before,
            "low": self.low,
            "namespace": self.namespace,
        }
        return re.sub(r"\$(\w+)", lambda found: named.get(found[1], ".*"), expr)


def dashboards() -> dict[str, dict[str, Any]]:
    """The committed dashboards by file name."""
    return {path.stem: json.loads(path.read_text()) for path in sorted(DASHBOARDS.glob("*.json"))}


def expressions(dashboard: dict[str, Any]) -> Iterator[tuple[str, str]]:
    """The title of a panel with each of its expressions."""
    for panel in dashboard["panels"]:
        for target in panel.get("targets", []):
            yield panel["title"], target["expr"]


def selectors(expr: str) -> set[str]:
    return set(SELECTOR.findall(expr))


def unanswered(stack: Stack, variables: Variables) -> Iterator[str]:
    """Panels whose expression has no number, and rules that fail or select no series."""
    for name, dashboard in dashboards().items():
        for title, expr in expressions(dashboard):
            if not _has_numbers(stack, variables.fill(expr)):
                yield f"{name}, {title}: {variables.fill(expr)}"
    for rule in stack.rules():
        if rule["health"] != "ok":
            yield f"{rule['name']}: {rule['health']} {rule.get('lastError', '')}"
        yield from (f"{rule['name']}: {one}" for one in sorted(selectors(rule["query"])) if not stack.query(one))


def not_a_number(stack: Stack, variables: Variables) -> Iterator[str]:
    """Panels whose expression is NaN, which Grafana would show as a value."""
    for name, dashboard in dashboards().items():
        for title, expr in expressions(dashboard):
            if any(math.isnan(float(one["value"][1])) for one in stack.query(variables.fill(expr))):
                yield f"{name}, {title}: {variables.fill(expr)}"


def _has_numbers(stack: Stack, expr: str) -> bool:
    return any(not math.isnan(float(one["value"][1])) for one in stack.query(expr))
