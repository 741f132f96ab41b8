"""Service level objectives and their rules: the share of bad requests over several windows, and alerts on the burn rate
of the error budget.

Source: Beyer et al., "The Site Reliability Workbook", chapter 5, Alerting on SLOs (multi-window, multi-burn-rate).
"""

from __future__ import annotations

from dataclasses import dataclass

from monitoring.rule import Alert, Group, Recording, Severity

WINDOWS = ("5m", "30m", "1h", "2h", "6h", "1d", "3d")
MONTH = "30d"
LATENCY_S = 1.0
"""Latency objective. It must be a bucket of `erlangshen_request_duration_seconds`."""


@dataclass(frozen=True, slots=True)
class Objective:
    """`target` is the required share of good requests. `bad` and `valid` are requests per second by job, in PromQL with
    [WINDOW]."""

    name: str
    target: float
    about: str
    bad: str
    valid: str

    @property
    def budget(self) -> float:
        return round(1.0 - self.target, 6)

    def ratio(self, window: str) -> str:
        """The name of the recorded share of bad requests."""
        return f"erlangshen:{self.name}_bad:ratio_rate{window}"


AVAILABILITY = Objective(
    name="availability",
    target=0.999,
    about="2xx counts as good and 5xx as bad; client errors (4xx, including 429) are not counted.",
    bad='sum by (job) (rate(erlangshen_requests_total{code=~"5.."}[WINDOW]))',
    valid='sum by (job) (rate(erlangshen_requests_total{code=~"2..|5.."}[WINDOW]))',
)
LATENCY = Objective(
    name="latency",
    target=0.99,
    about=f"A request that reached a model is good when it is answered within {LATENCY_S:g} s.",
    bad='sum by (job) (rate(erlangshen_request_duration_seconds_count{model!="none"}[WINDOW]))'
    f' - sum by (job) (rate(erlangshen_request_duration_seconds_bucket{{model!="none",le="{LATENCY_S}"}}[WINDOW]))',
    valid='sum by (job) (rate(erlangshen_request_duration_seconds_count{model!="none"}[WINDOW]))',
)
OBJECTIVES = (AVAILABILITY, LATENCY)


@dataclass(frozen=True, slots=True)
class Burn:
    """An alert fires when `rate` is exceeded over both windows; `gone` is the share of the budget that this uses."""

    rate: float
    long: str
    short: str
    severity: Severity
    gone: str


BURNS = (
    Burn(14.4, "1h", "5m", "critical", "2 % of the 30-day budget in an hour"),
    Burn(6, "6h", "30m", "critical", "5 % of the 30-day budget in six hours"),
    Burn(3, "1d", "2h", "warning", "10 % of the 30-day budget in a day"),
    Burn(1, "3d", "6h", "warning", "10 % of the 30-day budget in three days"),
)


def recordings() -> list[Group]:
    return [Group(f"erlangshen-{one.name}", _recordings(one)) for one in OBJECTIVES]


def _recordings(objective: Objective) -> list[Recording]:
    """The 30-day share is a mean of recorded rates: a rate over 30 days of raw samples would be expensive."""
    bad, valid = (f"erlangshen:{objective.name}_{kind}:rate5m" for kind in ("bad", "valid"))
    windows = [
        Recording(objective.ratio(window), f"({objective.bad}) / ({objective.valid})".replace("WINDOW", window))
        for window in WINDOWS
    ]
    month = Recording(objective.ratio(MONTH), f"avg_over_time({bad}[{MONTH}]) / avg_over_time({valid}[{MONTH}])")
    totals = [Recording(bad, objective.bad), Recording(valid, objective.valid)]
    return [*windows, *[Recording(one.name, one.expr.replace("WINDOW", "5m")) for one in totals], month]


def burn_alerts() -> Group:
    return Group("erlangshen-objectives", [_alert(one, burn) for one in OBJECTIVES for burn in BURNS])


def _alert(objective: Objective, burn: Burn) -> Alert:
    most = f"{burn.rate:g} * {objective.budget:g}"
    return Alert(
        name=f"Erlangshen{objective.name.capitalize()}Burn",
        expr=f"{objective.ratio(burn.long)} > {most} and {objective.ratio(burn.short)} > {most}",
        severity=burn.severity,
        summary=f"{{{{ $labels.job }}}}: the {objective.name} error budget burns {burn.rate:g} times too fast",
        about=f"{{{{ $value | humanizePercentage }}}} of the requests of the last {burn.long} were bad, and still are. "
        f"This rate uses {burn.gone}. The objective is {objective.target:.1%} over 30 days. {objective.about}",
        labels={"objective": objective.name, "window": burn.long},
    )
