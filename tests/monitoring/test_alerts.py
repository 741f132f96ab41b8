"""Every alert fires in the cases where it should and only there, as computed by promtool."""

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
def test_alerts_fire_when_they_should_and_only_then(tmp_path: Path, every: str) -> None:
    """Cases of days and weeks are evaluated every 30 minutes only, which saves minutes."""
    chosen = [case for case in CASES if (case.minute > LONG) == (every == "30m")]
    assert chosen
    ended = run([as_test(case) for case in chosen], tmp_path, every)
    assert ended.returncode == 0, ended.stdout + ended.stderr


@needs_promtool
def test_a_wrong_expectation_fails(tmp_path: Path) -> None:
    wrong = Case("ErlangshenReplicaDown", {}, 12, {"": "warning"})
    assert run([as_test(wrong)], tmp_path).returncode == 1


def test_every_alert_has_a_case_in_which_it_fires_and_one_in_which_it_is_quiet() -> None:
    assert {case.alert for case in CASES if case.fires} == NAMES
    assert {case.alert for case in CASES if not case.fires} == NAMES


@needs_promtool
def test_the_texts_of_an_alert(tmp_path: Path) -> None:
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
    ended = run([{"interval": "1m", "input_series": [series], "alert_rule_test": [test]}], tmp_path)
    assert ended.returncode == 0, ended.stdout + ended.stderr


@needs_promtool
@pytest.mark.parametrize(
    "arguments", [("config", "docker/prometheus/prometheus.yml"), ("rules", f"{RULES}/alerts.yaml")]
)
def test_prometheus_accepts_the_files(arguments: tuple[str, str]) -> None:
    ended = promtool("check", *arguments)
    assert ended.returncode == 0, ended.stdout + ended.stderr


@pytest.mark.skipif(shutil.which("amtool") is None, reason="amtool is not installed")
def test_alertmanager_accepts_its_file() -> None:
    file = "docker/alertmanager/alertmanager.yml"
    ended = subprocess.run(
        ["amtool", "check-config", file], cwd=ROOT, capture_output=True, text=True, check=False, timeout=60
    )
    assert ended.returncode == 0, ended.stdout + ended.stderr
