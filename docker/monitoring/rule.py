"""Rules of Prometheus as values: recordings and alerts, in groups, as the file that Prometheus reads.

Knows no metric.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import yaml

RUNBOOKS = "docs/runbooks.md"
"""Where the runbooks are. Put the address of your copy of the repository before it to make the links work anywhere."""

GENERATED = "# Made by `make dashboards` from docker/monitoring: change it there.\n"

Severity = Literal["critical", "warning", "info"]
"""Call somebody now; look at it today; know of it."""


@dataclass(frozen=True, slots=True)
class Recording:
    name: str
    expr: str

    def rule(self) -> dict[str, Any]:
        return {"record": self.name, "expr": self.expr}


@dataclass(frozen=True, slots=True)
class Alert:
    """`lasting` is how long it must hold before it fires. `about` may use the alert's labels and value."""

    name: str
    expr: str
    severity: Severity
    summary: str
    about: str
    lasting: str = "0m"
    labels: Mapping[str, str] = field(default_factory=dict)

    def rule(self) -> dict[str, Any]:
        annotations = {
            "summary": self.summary,
            "description": self.about,
            "runbook_url": f"{RUNBOOKS}#{self.name.lower()}",
        }
        labels = {"severity": self.severity, **self.labels}
        return {
            "alert": self.name,
            "expr": self.expr,
            "for": self.lasting,
            "labels": labels,
            "annotations": annotations,
        }


@dataclass(frozen=True, slots=True)
class Group:
    name: str
    rules: Sequence[Recording | Alert]

    def content(self) -> dict[str, Any]:
        return {"name": self.name, "rules": [rule.rule() for rule in self.rules]}


def as_yaml(value: Mapping[str, Any]) -> str:
    dumped: str = yaml.safe_dump(value, sort_keys=False, allow_unicode=True, width=110)
    return GENERATED + dumped
