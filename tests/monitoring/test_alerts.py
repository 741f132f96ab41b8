"""Alerts: promtool evaluates the cases of tests/monitoring/cases.py, and the configuration files are valid."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

from monitoring.alerts import alerts
from monitoring.files import ROOT, RULES
from monitoring.slo import burn_alerts
from tests.monitoring.cases import CASES, Case

NAMES = {rule.name for group in (*alerts(), burn_alerts()) for rule in group.rules}
LONG = 1000
needs_promtool = pytest.mark.skipif(shutil.which("promtool") is None, reason="promtool is not installed")


def promtool(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(["promtool", *arguments], cwd=ROOT, capture_output=True, text=True, check=False, timeout=120)


def as_test(case: Case) -> dict[str, Any]:
    firing = f'group by (severity, window) (ALERTS{{alertname="{case.alert}",alertstate="firing"}})'
    expected = [
        {"labels": f'{{severity="{severity}"' + (f', window="{window}"}}' if window else "}"), "value": 1}
        for window, severity in case.fires.items()
    ]
    return {
        "interval": "1m",
        "input_series": [{"series": name, "values": values} for name, values in case.series.items()],
        "promql_expr_test": [{"expr": firing, "eval_time": f"{case.minute}m", "exp_samples": expected}],
    }


def run(tests: list[dict[str, Any]], folder: Path, every: str = "1m") -> subprocess.CompletedProcess[str]:
    file = folder / "alerts.test.yaml"
    rules = [str(path) for path in sorted((ROOT / RULES).glob("*.yaml"))]
    file.write_text(yaml.safe_dump({"rule_files": rules, "evaluation_interval": every, "tests": tests}))
    return promtool("test", "rules", str(file))


@needs_promtool
@pytest.mark.parametrize("every", ["1m", "30m"])
def test_alerts_fire_exactly_as_the_cases_expect(tmp_path: Path, every: str) -> None:
    """Cases of days and weeks are evaluated every 30 minutes, which saves minutes of test time."""
    chosen = [case for case in CASES if (case.minute > LONG) == (every == "30m")]
    assert chosen
    completed = run([as_test(case) for case in chosen], tmp_path, every)
    assert completed.returncode == 0, completed.stdout + completed.stderr


@needs_promtool
def test_a_wrong_expectation_fails(tmp_path: Path) -> None:
    wrong = Case("ErlangshenReplicaDown", {}, 12, {"": "warning"})
    assert run([as_test(wrong)], tmp_path).returncode == 1


def test_every_alert_has_a_firing_and_a_silent_case() -> None:
    assert {case.alert for case in CASES if case.fires} == NAMES
    assert {case.alert for case in CASES if not case.fires} == NAMES


@needs_promtool
def test_an_alert_has_labels_texts_and_runbook(tmp_path: Path) -> None:
    series = {"series": 'erlangshen_replica_up{job="erlangshen",instance="a",replica="cuda:0"}', "values": "0x15"}
    expected = {
        "exp_labels": {"severity": "warning", "job": "erlangshen", "instance": "a", "replica": "cuda:0"},
        "exp_annotations": {
            "summary": "Replica cuda:0 of a is not ready",
            "description": "It has not been ready for ten minutes: it fails to start, or loads very slowly. "
            "Other replicas take its load.",
            "runbook_url": "docs/runbooks.md#erlangshenreplicadown",
        },
    }
    test = {"alertname": "ErlangshenReplicaDown", "eval_time": "12m", "exp_alerts": [expected]}
    completed = run([{"interval": "1m", "input_series": [series], "alert_rule_test": [test]}], tmp_path)
    assert completed.returncode == 0, completed.stdout + completed.stderr


@needs_promtool
@pytest.mark.parametrize(
    "arguments", [("config", "docker/prometheus/prometheus.yml"), ("rules", f"{RULES}/alerts.yaml")]
)
def test_prometheus_accepts_the_files(arguments: tuple[str, str]) -> None:
    completed = promtool("check", *arguments)
    assert completed.returncode == 0, completed.stdout + completed.stderr


@pytest.mark.skipif(shutil.which("amtool") is None, reason="amtool is not installed")
def test_alertmanager_accepts_its_configuration() -> None:
    file = "docker/alertmanager/alertmanager.yml"
    completed = subprocess.run(
        ["amtool", "check-config", file], cwd=ROOT, capture_output=True, text=True, check=False, timeout=60
    )
    assert completed.returncode == 0, completed.stdout + completed.stderr
