"""The part of the dashboard *Service* on what was promised: what is left of the error budgets."""

from __future__ import annotations

from grafana_foundation_sdk.builders import stat, timeseries

from monitoring.board import Section
from monitoring.panels import GREEN, ORANGE, RED, Query, lines, number
from monitoring.slo import BURNS, MONTH, OBJECTIVES, Objective

CALLED = BURNS[0].rate


def burn(objective: Objective, window: str) -> str:
    """How many times quicker than allowed the error budget is used up."""
    return f'{objective.ratio(window)}{{job=~"$job"}} / {objective.budget}'


def left(objective: Objective) -> stat.Panel:
    return number(
        f"Error budget left: {objective.name}",
        f"Of the requests of 30 days {objective.budget:.1%} may be bad: what is left of them. {objective.about}",
        Query(f"1 - {burn(objective, MONTH)}"),
        unit="percentunit",
        steps=((None, RED), (0, ORANGE), (0.25, GREEN)),
        width=6,
    )


def now(objective: Objective) -> stat.Panel:
    return number(
        f"Burn rate of an hour: {objective.name}",
        f"1 uses up the budget in exactly 30 days; at {CALLED} somebody is called.",
        Query(burn(objective, "1h")),
        steps=((None, GREEN), (1, ORANGE), (CALLED, RED)),
        width=6,
    )


def over_time(objective: Objective) -> timeseries.Panel:
    return lines(
        f"Burn rate: {objective.name}",
        "An alert wants both a long time, which means that it matters, and a short one: that it goes on.",
        *(Query(burn(objective, window), window) for window in ("5m", "1h", "6h")),
        limit=CALLED,
    )


PROMISED = Section("Objectives", [panel(one) for panel in (left, now, over_time) for one in OBJECTIVES])
