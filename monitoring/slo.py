"""What is promised, and the rules that watch it: the share of bad requests over several windows, and alerts on how
quickly the error budget is used up.

Source: Beyer et al., "The Site Reliability Workbook", chapter 5, Alerting on SLOs (multi-window, multi-burn-rate).
"""

from __future__ import annotations

from dataclasses import dataclass

from monitoring.rule import Alert, Group, Recording, Severity

WINDOWS = ("5m", "30m", "1h", "2h", "6h", "1d", "3d")
MONTH = "30d"
LATENCY_S = 1.0
"""A request within it is quick enough. It has to be a bucket of `erlangshen_request_duration_seconds`."""


@dataclass(frozen=True, slots=True)
class Objective:
    """`target` is the share of requests that are to be good. `bad` and `valid` are requests a second by job, in PromQL
    with [WINDOW]."""

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
    about="Good is 2xx, bad is 5xx; mistakes of callers (4xx) and refusals for load (429) are neither.",
    bad='sum by (job) (rate(erlangshen_requests_total{code=~"5.."}[WINDOW]))',
    valid='sum by (job) (rate(erlangshen_requests_total{code=~"2..|5.."}[WINDOW]))',
)
LATENCY = Objective(
    name="latency",
    target=0.99,
    about=f"Good is a request that reached a model and was replied to within {LATENCY_S:g} s.",
    bad='sum by (job) (rate(erlangshen_request_duration_seconds_count{model!="none"}[WINDOW]))'
    f' - sum by (job) (rate(erlangshen_request_duration_seconds_bucket{{model!="none",le="{LATENCY_S}"}}[WINDOW]))',
    valid='sum by (job) (rate(erlangshen_request_duration_seconds_count{model!="none"}[WINDOW]))',
)
OBJECTIVES = (AVAILABILITY, LATENCY)


@dataclass(frozen=True, slots=True)
class Burn:
    """So many times quicker than allowed, over a long window and still so over a short one."""

    rate: float
    long: str
    short: str
    severity: Severity
    gone: str


BURNS = (
    Burn(14.4, "1h", "5m", "critical", "2 % of the month's budget in an hour"),
    Burn(6, "6h", "30m", "critical", "5 % of the month's budget in six hours"),
    Burn(3, "1d", "2h", "warning", "10 % of the month's budget in a day"),
    Burn(1, "3d", "6h", "warning", "10 % of the month's budget in three days"),
)


def recordings() -> list[Group]:
    return [Group(f"erlangshen-{one.name}", _recordings(one)) for one in OBJECTIVES]


def _recordings(objective: Objective) -> list[Recording]:
    """The month is the mean of what was recorded, not a rate: over 30 days of raw samples that would be dear."""
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
        summary=f"{{{{ $labels.job }}}}: the error budget for {objective.name} is used up {burn.rate:g} times too "
        "quickly",
        about=f"{{{{ $value | humanizePercentage }}}} of the requests of {burn.long} were bad, and it goes on: "
        f"{burn.gone}. "
        f"The objective is {objective.target:.1%} of 30 days. {objective.about}",
        labels={"objective": objective.name, "window": burn.long},
    )
