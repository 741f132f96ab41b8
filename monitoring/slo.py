"""Service level objectives and their rules: the share of bad requests over several windows, and alerts on the burn rate
of the error budget.

Source: Beyer et al., "The Site Reliability Workbook", chapter 5, Alerting on SLOs (multi-window, multi-burn-rate).

Raw series are read once, as rates over five minutes. All longer windows are sums of these recorded rates, so the cost
of a long window grows with the number of models and not with the number of pods, tasks and status codes.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field

from monitoring.rule import Alert, Group, Recording, Severity
from monitoring.settings import SETTINGS, Promise, Settings

BY = "cluster, namespace, job"
"""A deployment. Two of them may have the same job in different namespaces or clusters."""
REQUESTS = "erlangshen:requests:rate5m"
"""Requests per second by deployment, model and code."""
SECONDS = {"m": 60, "h": 3600, "d": 86400}
WINDOWS = ("5m", "30m", "1h", "2h", "6h")
LONG_WINDOWS = ("1d", "3d", "30d")
MONTH = "30d"
INTERVAL, LONG_INTERVAL = "1m", "2m"
"""Evaluation intervals of both kinds of windows. Prometheus takes a value as current for five minutes."""
MIN_BAD = 10
"""Fewer bad requests than this in the long window fire no alert: one failure in a quiet night is a large share."""
LATENCY_S = SETTINGS.objectives["latency"].seconds


@dataclass(frozen=True, slots=True)
class Objective:
    """`target` is the required share of good requests. `bad` and `valid` are requests per second by deployment, or by
    deployment and model if it holds for each model; `exceptions` are targets of single models. If it is also `overall`,
    the requests of all models together fire alerts, too."""

    name: str
    target: float
    about: str
    bad: str
    valid: str
    is_per_model: bool = True
    is_overall: bool = True
    exceptions: Mapping[str, float] = field(default_factory=dict)

    @property
    def budget(self) -> float:
        return budget_of(self.target)

    def ratio(self, window: str) -> str:
        """The name of the recorded share of bad requests."""
        return f"erlangshen:{self.name}_bad:ratio_rate{window}"

    def rate(self, kind: str) -> str:
        """The name of the recorded rate of `bad` or `valid` requests."""
        return f"erlangshen:{self.name}_{kind}:rate5m"


def budget_of(target: float) -> float:
    return round(1.0 - target, 6)


def objectives(settings: Settings = SETTINGS) -> tuple[Objective, ...]:
    targets = {name: promise.target for name, promise in settings.objectives.items()}
    availability = Objective(
        name="availability",
        target=targets["availability"],
        about="2xx counts as good and 5xx as bad; client errors (4xx, including 429) are not counted.",
        bad=f'sum by ({BY}, model) ({REQUESTS}{{code=~"5.."}})',
        valid=f'sum by ({BY}, model) ({REQUESTS}{{code=~"2..|5.."}})',
        exceptions={model: one.target for model, one in settings.exceptions("availability").items()},
    )
    acceptance = Objective(
        name="acceptance",
        target=targets["acceptance"],
        about="429 counts as bad, 2xx and 5xx as good: the service has accepted the request.",
        bad=f'sum by ({BY}) ({REQUESTS}{{code="429"}})',
        valid=f'sum by ({BY}) ({REQUESTS}{{code=~"2..|429|5.."}})',
        is_per_model=False,
    )
    latency = settings.exceptions("latency")
    limit = settings.objectives["latency"].seconds
    limits = "".join(f", {model} within {one.seconds:g} s" for model, one in latency.items())
    valid = f'sum by ({BY}, model) (rate(erlangshen_request_duration_seconds_count{{model!="none"}}[5m]))'
    return (
        availability,
        acceptance,
        Objective(
            name="latency",
            target=targets["latency"],
            about=f"A request that reached a model is good when it is answered within {limit:g} s{limits}.",
            bad=f"erlangshen:latency_valid:rate5m - ({_within(limit, latency)})",
            valid=valid,
            is_overall=False,
            exceptions={model: one.target for model, one in latency.items()},
        ),
    )


def _within(usual: float, exceptions: Mapping[str, Promise]) -> str:
    """Requests per second that were answered within the limit of their model."""
    chosen = [(f"model!~{any_of(['none', *exceptions])}", usual)]
    chosen += [(f"model={quoted(model)}", promise.seconds) for model, promise in exceptions.items()]
    name = "erlangshen_request_duration_seconds_bucket"
    rates = [f'sum by ({BY}, model) (rate({name}{{{match},le="{limit}"}}[5m]))' for match, limit in chosen]
    return " or ".join(rates)


def quoted(text: str) -> str:
    """A string of PromQL."""
    return '"' + text.replace("\\", "\\\\").replace('"', '\\"') + '"'


def any_of(names: Collection[str]) -> str:
    """A string of PromQL that matches these names and no others."""
    return quoted("|".join(re.escape(name) for name in names))


OBJECTIVES = objectives()
AVAILABILITY, ACCEPTANCE, LATENCY = OBJECTIVES


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


def recordings(chosen: tuple[Objective, ...] = OBJECTIVES) -> list[Group]:
    counted = Recording(REQUESTS, f"sum by ({BY}, model, code) (rate(erlangshen_requests_total[5m]))")
    rates = [rate for one in chosen for rate in _rates(one)]
    ratios = [_ratio(one, window) for one in chosen for window in WINDOWS]
    long = [_ratio(one, window) for one in chosen for window in LONG_WINDOWS]
    return [
        Group("erlangshen-rates", [counted, *rates, *ratios], INTERVAL),
        Group("erlangshen-long-windows", long, LONG_INTERVAL),
    ]


def _rates(objective: Objective) -> list[Recording]:
    """`valid` comes first because `bad` may use it. The series of all models together have no label `model`."""
    rates = [Recording(objective.rate(kind), getattr(objective, kind)) for kind in ("valid", "bad")]
    if objective.is_per_model:
        names = [rate.name for rate in rates]
        rates += [Recording(name, f'sum by ({BY}) ({name}{{model!=""}})') for name in names]
    return rates


def _ratio(objective: Objective, window: str) -> Recording:
    """Without the requests that were refused before a model was chosen: most of them are bad, and there are few."""
    match = '{model!="none"}' if objective.is_per_model else ""
    bad, valid = (f"sum_over_time({objective.rate(kind)}{match}[{window}])" for kind in ("bad", "valid"))
    return Recording(objective.ratio(window), f"{bad} / ({valid} > 0)")


def burn_alerts(chosen: tuple[Objective, ...] = OBJECTIVES) -> Group:
    return Group("erlangshen-objectives", [_alert(one, burn) for one in chosen for burn in BURNS], INTERVAL)


def _alert(objective: Objective, burn: Burn) -> Alert:
    exceeded = " and ".join(_exceeded(objective, window, burn.rate) for window in (burn.long, burn.short))
    step = _seconds(INTERVAL)
    # The name of the model follows the job; a series of all models together has no such label.
    model = " {{ with $labels.model }}{{ . }}{{ else }}all models{{ end }}:" if objective.is_per_model else ""
    return Alert(
        name=f"Erlangshen{objective.name.capitalize()}Burn",
        expr=f"{exceeded} and sum_over_time({objective.rate('bad')}[{burn.long}]) * {step} >= {MIN_BAD}",
        severity=burn.severity,
        summary=f"{{{{ $labels.job }}}}:{model} the {objective.name} error budget burns {burn.rate:g} times too fast",
        about=f"{{{{ $value | humanizePercentage }}}} of the requests of the last {burn.long} were bad, and still are. "
        f"This rate uses {burn.gone}. The objective is {objective.target:.1%} over 30 days. {objective.about}",
        labels={"objective": objective.name, "window": burn.long},
    )


def _exceeded(objective: Objective, window: str, rate: float) -> str:
    """The shares above the rate times the error budget, which single models may have of their own."""
    usual = ["", *objective.exceptions] if not objective.is_overall else [*objective.exceptions]
    rest = f"{{model!~{any_of(usual)}}}" if usual else ""
    parts = [f"{objective.ratio(window)}{rest} > {rate:g} * {objective.budget:g}"]
    for model, target in objective.exceptions.items():
        parts.append(f"{objective.ratio(window)}{{model={quoted(model)}}} > {rate:g} * {budget_of(target):g}")
    return f"({' or '.join(parts)})"


def _seconds(duration: str) -> int:
    return int(duration[:-1]) * SECONDS[duration[-1]]
