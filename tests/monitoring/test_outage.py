"""Outages, restarts and refusals of two instances in two namespaces, seen by a real Prometheus and Alertmanager.

All durations of the committed rules pass ten times as fast. Notifications go through the receiver to a stand-in of
DingTalk's robot.
"""

from __future__ import annotations

import json
import re
import shutil
import sys
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.support.monitoring import (
    ROOT,
    TOOLS,
    Stack,
    Variables,
    dashboards,
    get,
    loading,
    run_process,
    until_answers,
    write_rules,
)
from tests.support.robots import SECRET, Robots, robots
from tests.support.servers import Server, free_port
from tests.system.test_serve import until

absent = [tool for tool in TOOLS if shutil.which(tool) is None]
pytestmark = [
    pytest.mark.system,
    pytest.mark.slow,
    pytest.mark.skipif(bool(absent), reason=f"not installed: {', '.join(absent)}"),
]

SPEED = 10
ALERT_S, RESOLVED_S = 180, 420
FLAGS = ("--model", "mini=mini", "--threads", "1", "--max-queue-tokens", "400", "--canary-interval-s", "5")
RED, GREEN = "red", "green"


@dataclass(frozen=True, slots=True)
class Pair:
    """An instance in `prod` and one in `staging`, and what watches them."""

    servers: dict[str, Server]
    stack: Stack
    robots: Robots

    def scrape(self, *namespaces: str) -> None:
        """Prometheus has these targets from now on, as with pods that are created and deleted."""
        targets = [
            {
                "targets": [self.servers[name].url.removeprefix("http://")],
                "labels": {"namespace": name, "pod": f"{name}-1"},
            }
            for name in namespaces
        ]
        file = self.stack.folder / "targets.json"
        file.with_suffix(".new").write_text(json.dumps(targets))
        file.with_suffix(".new").rename(file)

    def firing(self, alert: str, **labels: str) -> int:
        """The number of these alerts that Alertmanager has and does not take for resolved."""
        wanted = {"alertname": alert, **labels}.items()
        return sum(wanted <= one["labels"].items() for one in get(f"{self.stack.alertmanager}/api/v2/alerts"))

    def shown(self, title: str, namespace: str = ".*") -> tuple[float | None, str]:
        """The number and the colour of a panel of *Service*; None for no data."""
        [panel] = [one for one in dashboards()["erlangshen-service"]["panels"] if one["title"] == title]
        variables = replace(Variables(window="12s", whole="2m"), namespace=namespace)
        found = self.stack.query(variables.fill(panel["targets"][0]["expr"]))
        value = float(found[0]["value"][1]) if found else None
        steps = panel["fieldConfig"]["defaults"]["thresholds"]["steps"]
        colours = [one["color"] for one in steps if value is not None and value >= (one["value"] or float("-inf"))]
        return value, colours[-1] if colours else ""

    def was_notified(self, *parts: str) -> bool:
        return any(all(part in text for part in parts) for text in self.robots.texts())


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Pair]:
    folder = tmp_path_factory.mktemp("outage")
    ports = {name: free_port() for name in ("prometheus", "alertmanager", "receiver")}
    with ExitStack() as stack:
        servers = {name: Server(folder / f"{name}.log", FLAGS) for name in ("prod", "staging")}
        for server in servers.values():
            stack.callback(server.stop)
            server.spawn()
        for server in servers.values():
            server.await_ready()
        there = stack.enter_context(robots())
        addresses = {name: f"http://127.0.0.1:{port}" for name, port in ports.items()}
        watched = Stack(servers["prod"], addresses["prometheus"], addresses["alertmanager"], folder)
        running = Pair(servers, watched, there)
        running.scrape("prod", "staging")
        write_rules(folder / "rules", SPEED)
        for name, command in commands(folder, ports, there).items():
            stack.enter_context(run_process(folder / f"{name}.log", command))
            path = "/-/healthy" if name == "receiver" else "/-/ready"
            until_answers(addresses[name] + path, folder / f"{name}.log")
        yield running


def commands(folder: Path, ports: dict[str, int], there: Robots) -> dict[str, list[str]]:
    """Writes the configurations, of which that of Alertmanager is the committed one with a receiver."""
    (folder / "url").write_text(there.address("dingtalk"))
    (folder / "secret").write_text(SECRET)
    receiver = '[receivers.oncall]\nkind = "dingtalk"\nurl_file = "url"\nsecret_file = "secret"\n'
    (folder / "receiver.toml").write_text(receiver)
    config: dict[str, Any] = yaml.safe_load((ROOT / "docker/alertmanager/alertmanager.yml").read_text())
    config["route"] |= {"group_wait": "1s", "group_interval": "2s"}
    for one in config["receivers"]:
        one["webhook_configs"] = [{"url": f"http://127.0.0.1:{ports['receiver']}/oncall"}]
    (folder / "alertmanager.yml").write_text(yaml.safe_dump(config))
    scraped = {"job_name": "erlangshen", "file_sd_configs": [{"files": [f"{folder}/targets.json"]}]}
    alertmanagers = [{"static_configs": [{"targets": [f"127.0.0.1:{ports['alertmanager']}"]}]}]
    prometheus = {
        "global": {"scrape_interval": "2s", "scrape_timeout": "2s", "evaluation_interval": "1s"},
        "rule_files": [f"{folder}/rules/*.yaml"],
        "alerting": {"alertmanagers": alertmanagers},
        "scrape_configs": [scraped],
    }
    (folder / "prometheus.yml").write_text(yaml.safe_dump(prometheus))
    return {
        "receiver": [
            *(sys.executable, "-m", "monitoring.receiver", "--config", str(folder / "receiver.toml")),
            *("--port", str(ports["receiver"])),
        ],
        "alertmanager": [
            "prometheus-alertmanager",
            f"--config.file={folder}/alertmanager.yml",
            f"--storage.path={folder}/alertmanager",
            f"--web.listen-address=127.0.0.1:{ports['alertmanager']}",
            "--cluster.listen-address=",
        ],
        "prometheus": [
            "prometheus",
            f"--config.file={folder}/prometheus.yml",
            f"--storage.tsdb.path={folder}/prometheus",
            f"--web.listen-address=127.0.0.1:{ports['prometheus']}",
            "--rules.alert.resend-delay=1s",
        ],
    }


@pytest.fixture(autouse=True)
def everything_is_up(pair: Pair) -> None:
    """Before each test: the board is green and no outage is reported."""
    until(lambda: pair.shown("Instances up") == (2, GREEN), within_s=ALERT_S)
    until(lambda: pair.shown("Wanted instances up") == (1, GREEN), within_s=ALERT_S)
    until(lambda: pair.shown("Replicas ready") == (1, GREEN), within_s=ALERT_S)
    until(lambda: pair.firing("ErlangshenDown") == 0, within_s=RESOLVED_S)


def test_production_that_is_down_is_reported_while_staging_is_up(pair: Pair) -> None:
    pair.servers["prod"].stop()
    until(lambda: pair.shown("Instances up", "prod") == (0, RED), within_s=ALERT_S)
    assert pair.shown("Instances up") == (1, GREEN)
    assert pair.shown("Wanted instances up")[1] == "orange"
    until(lambda: pair.shown("Requests per second", "prod") == (None, ""), within_s=ALERT_S)
    until(lambda: pair.firing("ErlangshenDown", namespace="prod") == 1, within_s=ALERT_S)
    until(lambda: pair.was_notified("【严重】ErlangshenDown", "namespace：prod"), within_s=ALERT_S)
    assert pair.firing("ErlangshenDown") == 1
    pair.servers["prod"].start()
    until(lambda: pair.firing("ErlangshenDown") == 0, within_s=RESOLVED_S)
    until(lambda: pair.was_notified("【已恢复】ErlangshenDown", "namespace：prod"), within_s=ALERT_S)


def test_targets_that_disappear_are_an_outage(pair: Pair) -> None:
    """As pods do: their `up` is then absent and not 0."""
    pair.scrape("staging")
    until(lambda: pair.firing("ErlangshenDown", namespace="prod") == 1, within_s=ALERT_S)
    assert pair.shown("Instances up", "prod") == (0, RED)
    pair.scrape("prod", "staging")
    until(lambda: pair.firing("ErlangshenDown") == 0, within_s=RESOLVED_S)


def test_nothing_is_green_when_everything_is_down(pair: Pair) -> None:
    for server in pair.servers.values():
        server.stop()
    until(lambda: pair.firing("ErlangshenDown") == 2, within_s=ALERT_S)
    numbers = [one for one in dashboards()["erlangshen-service"]["panels"] if one["type"] == "stat"]
    recorded = {one["title"] for one in numbers if re.match("Error budget|Burn rate|Black-box", one["title"])}
    titles = {one["title"] for one in numbers} - recorded - {"Reachable"}

    def green() -> set[str]:
        return {title for title in titles if pair.shown(title)[1] not in ("", RED)}

    until(lambda: green() == set(), within_s=ALERT_S)
    for title in ("Instances up", "Wanted instances up", "Replicas ready", "Firing alerts"):
        assert pair.shown(title)[1] == RED, title
    until(lambda: (pair.shown("Reachable")[0] or 0) < 1, within_s=ALERT_S)  # it looks once a minute
    for server in pair.servers.values():
        server.start()
    until(lambda: pair.firing("ErlangshenDown") == 0, within_s=RESOLVED_S)


def test_a_process_that_keeps_restarting_is_reported_with_its_pod(pair: Pair) -> None:
    server = pair.servers["prod"]
    for _ in range(4):
        server.kill()
        server.start()
        until(lambda: pair.shown("Instances up") == (2, GREEN), within_s=ALERT_S)
    until(lambda: pair.firing("ErlangshenRestarting", pod="prod-1", namespace="prod") == 1, within_s=ALERT_S)
    assert pair.firing("ErlangshenRestarting") == 1
    until(lambda: pair.firing("ErlangshenRestarting") == 0, within_s=RESOLVED_S)


def test_refusing_most_requests_is_critical_and_names_the_namespace(pair: Pair) -> None:
    key = pair.stack.folder / "none.key"
    key.write_text("none")
    load = ("--concurrency", "32", "--inputs", "8")
    with loading(pair.servers["staging"], *load, key=key, mix="similarity=1"):
        until(
            lambda: pair.firing("ErlangshenRefusing", namespace="staging", severity="critical") == 1, within_s=ALERT_S
        )
    assert pair.firing("ErlangshenRefusing") == 1
    until(lambda: pair.firing("ErlangshenRefusing") == 0, within_s=RESOLVED_S)
