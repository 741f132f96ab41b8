"""The section of the dashboard *Service* on the objectives: remaining error budgets and burn rates."""

from __future__ import annotations

from grafana_foundation_sdk.builders import stat, timeseries

from monitoring.board import Section
from monitoring.panels import GREEN, ORANGE, RED, Query, lines, number
from monitoring.promql import DEPLOYMENT
from monitoring.slo import BURNS, MONTH, OBJECTIVES, Objective, any_of, budget_of, quoted

CALLED = BURNS[0].rate


def burn(objective: Objective, window: str) -> str:
    """Burn rate of the error budget by model: 1 uses it up in exactly 30 days.

    Without a label `model` it is that of all models together."""
    chosen = ',model=~"$model|"' if objective.is_per_model else ""
    ratio = f"{objective.ratio(window)}{{{DEPLOYMENT}{chosen}"
    usual, own = f"{ratio}}}", []
    if objective.exceptions:
        usual = f"{ratio},model!~{any_of(objective.exceptions)}}}"
        own = [
            f"{ratio},model={quoted(model)}}} / {budget_of(target)}" for model, target in objective.exceptions.items()
        ]
    return " or ".join([f"{usual} / {objective.budget}", *own])


def left(objective: Objective) -> stat.Panel:
    return number(
        f"Error budget left: {objective.name}",
        f"Of the requests of 30 days {objective.budget:.1%} may be bad; this share of them is left, for the worst "
        f"model. {objective.about} Requests that reach no instance are not counted: see Reachable.",
        Query(f"1 - max({burn(objective, MONTH)})"),
        unit="percentunit",
        steps=((None, RED), (0, ORANGE), (0.25, GREEN)),
        width=8,
    )


def now(objective: Objective) -> stat.Panel:
    return number(
        f"Burn rate over 1 h: {objective.name}",
        f"1 uses up the budget in exactly 30 days; above {CALLED} a critical alert fires. The worst model.",
        Query(f"max({burn(objective, '1h')})"),
        steps=((None, GREEN), (1, ORANGE), (CALLED, RED)),
        width=8,
    )


def over_time(objective: Objective) -> timeseries.Panel:
    return lines(
        f"Burn rate: {objective.name}",
        "An alert fires when the burn rate is exceeded over a long window (it matters) and a short one (it continues).",
        *(Query(burn(objective, window), f"{window} {{{{model}}}}") for window in ("5m", "1h", "6h")),
        limit=CALLED,
        width=8,
    )


PROMISED = Section("Objectives", [panel(one) for panel in (left, now, over_time) for one in OBJECTIVES])
