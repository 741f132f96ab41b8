"""The committed dashboards and rules are what the code makes, and speak of metrics, labels and pages that exist."""

from __future__ import annotations

import json
import re
from typing import Any

import pytest
import yaml
from grafana_foundation_sdk.cog.encoder import JSONEncoder
from grafana_foundation_sdk.cog.plugins import register_default_plugins
from grafana_foundation_sdk.models.dashboard import Dashboard
from prometheus_client import CollectorRegistry

from docker.monitoring.alerts import alerts
from docker.monitoring.board import Board
from docker.monitoring.files import BOARDS, DASHBOARDS, KUBERNETES, ROOT, RULES, files
from docker.monitoring.rule import Alert
from docker.monitoring.slo import LATENCY_S, burn_alerts, recordings
from service.metric_labels import LONG_S, SCORES
from service.metrics import Metrics

ENTRIES = {entry.name: entry for entry in Metrics(CollectorRegistry()).entries()}
PROMETHEUS_OWN = {"job", "instance", "le"}
ALERTS = [rule for group in (*alerts(), burn_alerts()) for rule in group.rules if isinstance(rule, Alert)]
RECORDED = {rule.name: rule for group in recordings() for rule in group.rules}
UNSEEN = {
    "erlangshen_tokenize_duration_seconds",  # a stage of erlangshen_request_stage_seconds_total
    "erlangshen_queue_jobs",  # erlangshen_queue_tokens says more, as does ..._tokens_in_flight
    "erlangshen_batches_in_flight",
    "erlangshen_cache_evicted_total",
    "erlangshen_replica_model_info",
}
"""Metrics that no panel and no alert needs."""
SELECTOR = re.compile(r"(?<![\w:])(erlangshen[\w:]*)(?:\{([^}]*)\})?")


def dashboard(board: Board) -> dict[str, Any]:
    loaded: dict[str, Any] = json.loads(board.json())
    return loaded


def panels(board: Board) -> list[dict[str, Any]]:
    return [panel for panel in dashboard(board)["panels"] if panel["type"] != "row"]


def all_expressions() -> list[str]:
    shown = [target["expr"] for board in BOARDS for panel in panels(board) for target in panel["targets"]]
    return shown + [rule.expr for rule in ALERTS] + [rule.expr for rule in RECORDED.values()]


by_board = pytest.mark.parametrize("board", BOARDS, ids=lambda board: board.uid)


def test_what_is_committed_is_what_the_code_makes() -> None:
    made = files()
    assert [path for path, text in made.items() if (ROOT / path).read_text(encoding="utf-8") != text] == [], (
        "run: make dashboards"
    )
    folders = (DASHBOARDS, RULES, f"{KUBERNETES}/dashboards")
    there = {str(path.relative_to(ROOT)) for folder in folders for path in (ROOT / folder).iterdir()}
    assert there == {path for path in made if path.rsplit("/", 1)[0] in folders}


def test_every_metric_exists_with_the_labels_that_select() -> None:
    for expr in all_expressions():
        for name, labels in SELECTOR.findall(expr):
            if name in RECORDED or name == "erlangshen":
                continue
            entry = ENTRIES.get(name) or ENTRIES[re.sub(r"_(bucket|sum|count)$", "", name)]
            used = set(re.findall(r"(\w+)(?:=~|!~|!=|=)\"", labels))
            assert used <= {*entry.labels, *PROMETHEUS_OWN}, f"{name}: {used}"


def test_every_metric_is_shown_or_watched() -> None:
    shown = " ".join(all_expressions())
    chosen = " ".join(str(dashboard(board)["templating"]) for board in BOARDS)
    unseen = {name for name in ENTRIES if not re.search(rf"\b{name}(_bucket|_sum|_count)?\b", shown + chosen)}
    assert unseen == UNSEEN


def test_thresholds_are_bounds_of_buckets() -> None:
    """Others would select nothing, and look as if all were well."""
    assert LATENCY_S in LONG_S
    asked = {float(bound) for expr in all_expressions() for bound in re.findall(r'le="([\d.]+)"', expr)}
    low = next(one for one in dashboard(BOARDS[2])["templating"]["list"] if one["name"] == "low")
    assert asked | {float(one) for one in low["query"].split(",")} <= {*LONG_S, *SCORES}


@by_board
def test_grafanas_own_model_reads_it_and_writes_the_same(board: Board) -> None:
    register_default_plugins()
    again = JSONEncoder(sort_keys=True, indent=2).encode(Dashboard.from_json(json.loads(board.json())))
    assert json.loads(again) == json.loads(board.json())


@by_board
def test_every_panel_says_what_it_tells_and_has_a_place_of_its_own(board: Board) -> None:
    shown = dashboard(board)["panels"]
    assert len({panel["id"] for panel in shown}) == len(shown)
    assert len({panel["title"] for panel in panels(board)}) == len(panels(board))
    assert all(panel["description"].endswith(".") and panel["targets"] for panel in panels(board))
    taken: set[tuple[int, int]] = set()
    for panel in shown:
        place = panel["gridPos"]
        columns, rows = range(place["x"], place["x"] + place["w"]), range(place["y"], place["y"] + place["h"])
        cells = {(x, y) for x in columns for y in rows}
        assert max(columns) < 24
        assert not cells & taken, panel["title"]
        taken |= cells


@by_board
def test_variables_that_are_used_are_there(board: Board) -> None:
    own = {one["name"] for one in dashboard(board)["templating"]["list"]}
    used = set(re.findall(r"\$\{?(\w+)", board.json()))
    assert used <= own | {"__rate_interval", "__range", "__all"}


def test_every_alert_has_its_runbook_and_every_runbook_its_alert() -> None:
    page = (ROOT / "docs/runbooks.md").read_text(encoding="utf-8")
    sections = re.findall(r"^### (Erlangshen\w+)$", page, re.MULTILINE)
    assert sorted(sections) == sorted({one.name for one in ALERTS})


def test_metrics_and_panels_that_runbooks_name_exist() -> None:
    page = (ROOT / "docs/runbooks.md").read_text(encoding="utf-8")
    titles = {panel["title"] for board in BOARDS for panel in panels(board)}
    assert set(re.findall(r"\*([A-Z][^*\n]+)\*", page)) <= titles | {board.title.split(" / ")[1] for board in BOARDS}
    for name in set(re.findall(r"erlangshen_\w+", page)):
        assert name in ENTRIES, name


def test_kubernetes_has_the_same_rules() -> None:
    rule = yaml.safe_load((ROOT / KUBERNETES / "rules.yaml").read_text())
    committed = [
        yaml.safe_load((ROOT / RULES / name).read_text())["groups"] for name in ("recordings.yaml", "alerts.yaml")
    ]
    assert (rule["kind"], rule["spec"]["groups"]) == ("PrometheusRule", [*committed[0], *committed[1]])


def test_a_dashboard_fits_into_a_config_map_that_kubectl_applies() -> None:
    assert all(len(board.json().encode()) < 200 * 1024 for board in BOARDS)


def test_alertmanager_names_alerts_that_exist() -> None:
    text = (ROOT / "docker/alertmanager/alertmanager.yml").read_text(encoding="utf-8")
    named = set(re.findall(r"Erlangshen\w+", text))
    assert named
    assert named <= {one.name for one in ALERTS}
    assert {"critical", "info"} <= set(re.findall(r'severity="(\w+)"', text)) <= {one.severity for one in ALERTS}


def test_the_service_monitor_finds_the_service_and_its_metrics() -> None:
    monitor = yaml.safe_load((ROOT / KUBERNETES / "service-monitor.yaml").read_text())["spec"]
    service = yaml.safe_load((ROOT / "k8s/base/service.yaml").read_text())["spec"]
    assert monitor["selector"]["matchLabels"] == service["selector"]
    [endpoint] = monitor["endpoints"]
    assert endpoint["port"] in [port["name"] for port in service["ports"]]
    assert endpoint["path"] == "/metrics"
