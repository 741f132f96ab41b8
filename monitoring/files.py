"""The generated files and their paths: for Compose under docker/, and a copy for Kubernetes, because kustomize reads no
files outside its own folder.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from monitoring.alerts import alerts
from monitoring.batching_board import BATCHING
from monitoring.predictions_board import PREDICTIONS
from monitoring.rule import Group, as_yaml
from monitoring.service_board import SERVICE
from monitoring.slo import burn_alerts, recordings

ROOT = Path(__file__).parents[1]
BOARDS = (SERVICE, BATCHING, PREDICTIONS)
DASHBOARDS, RULES, KUBERNETES = "docker/grafana/dashboards", "docker/prometheus/rules", "k8s/components/monitoring"


def files() -> dict[str, str]:
    """Path from the root of the repository -> text."""
    groups = {"recordings": recordings(), "alerts": [*alerts(), burn_alerts()]}
    made = {
        f"{RULES}/{name}.yaml": as_yaml({"groups": [group.content() for group in part]})
        for name, part in groups.items()
    }
    made[f"{KUBERNETES}/rules.yaml"] = _prometheus_rule([group for part in groups.values() for group in part])
    for board in BOARDS:
        text = board.json()
        made[f"{DASHBOARDS}/{board.uid}.json"] = text
        made[f"{KUBERNETES}/dashboards/{board.uid}.json"] = text
    return made


def _prometheus_rule(groups: Sequence[Group]) -> str:
    return as_yaml(
        {
            "apiVersion": "monitoring.coreos.com/v1",
            "kind": "PrometheusRule",
            "metadata": {"name": "erlangshen"},
            "spec": {"groups": [group.content() for group in groups]},
        }
    )
