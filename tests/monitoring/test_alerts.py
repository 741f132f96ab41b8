"""Alerts: promtool evaluates the cases of tests/monitoring/cases.py, and the configuration files are valid."""

from __future__ import annotations

import re
import shutil
import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import yaml

from monitoring.alerts import alerts
from monitoring.files import ROOT, RULES
from monitoring.rule import Alert
from monitoring.slo import burn_alerts
from tests.monitoring.cases import CASES, Case

NAMES = {rule.name for group in (*alerts(), burn_alerts()) for rule in group.rules if isinstance(rule, Alert)}
LONG = 1000
RECORDED = re.compile(r"erlangshen:[\w:]+")
needs_promtool = pytest.mark.skipif(shutil.which("promtool") is None, reason="promtool is not installed")


def promtool(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(["promtool", *arguments], cwd=ROOT, capture_output=True, text=True, check=False, timeout=120)


def as_test(case: Case) -> dict[str, Any]:
    by = ", ".join(("severity", "window", *case.names))
    firing = f'group by ({by}) (ALERTS{{alertname="{case.alert}",alertstate="firing"}})'
    expected = []
    for window, severity in case.fires.items():
        labels = {"severity": severity, **({"window": window} if window else {}), **case.names}
        expected.append({"labels": "{" + ", ".join(f'{k}="{v}"' for k, v in labels.items()) + "}", "value": 1})
    return {
        "interval": case.step,
        "input_series": [{"series": name, "values": values} for name, values in case.series.items()],
        "promql_expr_test": [{"expr": firing, "eval_time": f"{case.minute}m", "exp_samples": expected}],
    }


def rules_of(name: str) -> list[dict[str, Any]]:
    """The committed rules of an alert, and before them the recordings that they use: promtool evaluates every rule that
    it is given at every step of every case."""
    files = sorted((ROOT / RULES).glob("*.yaml"), reverse=True)
    rules = [one for file in files for group in yaml.safe_load(file.read_text())["groups"] for one in group["rules"]]
    used = [one for one in rules if one.get("alert") == name]
    assert used, name
    known = 0
    while known < len(used):
        known, wanted = len(used), set(RECORDED.findall(" ".join(one["expr"] for one in used)))
        used = [one for one in rules if one in used or one.get("record") in wanted]
    return used


def run(tests: Mapping[str, list[dict[str, Any]]], folder: Path, every: str = "1m") -> subprocess.CompletedProcess[str]:
    """`tests` are by alert."""
    for name, cases in tests.items():
        rules = {"groups": [{"name": "all", "rules": rules_of(name)}]}
        (folder / f"{name}.rules.yaml").write_text(yaml.safe_dump(rules))
        content = {"rule_files": [f"{name}.rules.yaml"], "evaluation_interval": every, "tests": cases}
        (folder / f"{name}.test.yaml").write_text(yaml.safe_dump(content))
    return promtool("test", "rules", *(str(folder / f"{name}.test.yaml") for name in tests))


@needs_promtool
@pytest.mark.parametrize("every", ["1m", "30m"])
def test_alerts_fire_exactly_as_the_cases_expect(tmp_path: Path, every: str) -> None:
    """Cases of days and weeks are evaluated every 30 minutes, which saves minutes of test time."""
    chosen: dict[str, list[dict[str, Any]]] = {}
    for case in CASES:
        if (case.minute > LONG) == (every == "30m"):
            chosen.setdefault(case.alert, []).append(as_test(case))
    assert chosen
    completed = run(chosen, tmp_path, every)
    assert completed.returncode == 0, completed.stdout + completed.stderr


@needs_promtool
def test_a_wrong_expectation_fails(tmp_path: Path) -> None:
    wrong = Case("ErlangshenReplicaDown", {}, 12, {"": "warning"})
    assert run({wrong.alert: [as_test(wrong)]}, tmp_path).returncode == 1


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
    cases = [{"interval": "1m", "input_series": [series], "alert_rule_test": [test]}]
    completed = run({"ErlangshenReplicaDown": cases}, tmp_path)
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
