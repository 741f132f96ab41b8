"""A dashboard: sections of panels that share variables, with links to the other dashboards."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from grafana_foundation_sdk.builders import bargauge, heatmap, stat, statetimeline, table, timeseries
from grafana_foundation_sdk.builders.dashboard import (
    AnnotationQuery,
    CustomVariable,
    Dashboard,
    DashboardLink,
    DatasourceVariable,
    QueryVariable,
    Row,
)
from grafana_foundation_sdk.cog.encoder import JSONEncoder
from grafana_foundation_sdk.models import dashboard as model

from monitoring.panels import BLUE, DATASOURCE, ORANGE, RED
from monitoring.promql import DEPLOYMENT, HERE
from monitoring.rule import GENERATED
from monitoring.settings import SETTINGS

TAG = "erlangshen"
ALL = model.VariableOption(text="All", value="$__all", selected=True)

AnyPanel = timeseries.Panel | stat.Panel | heatmap.Panel | bargauge.Panel | statetimeline.Panel | table.Panel


@dataclass(frozen=True, slots=True)
class Section:
    title: str
    panels: Sequence[AnyPanel]


@dataclass(frozen=True, slots=True)
class Choice:
    """A variable of one dashboard; the first value is the default."""

    name: str
    label: str
    values: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Board:
    """`uid` is part of its URL, so links from alerts and runbooks stay valid."""

    uid: str
    title: str
    about: str
    sections: Sequence[Section]
    choices: Sequence[Choice] = field(default=())

    def json(self) -> str:
        return JSONEncoder(sort_keys=True, indent=2).encode(self._build()) + "\n"

    def _build(self) -> model.Dashboard:
        built = Dashboard(self.title).uid(self.uid).description(f"{self.about} {GENERATED}").tags([TAG])
        built.time("now-1h", "now").refresh("30s").timezone("browser").tooltip(model.DashboardCursorSync.CROSSHAIR)
        for variable in (*_servers(), *map(_choice, self.choices)):
            built.with_variable(variable)
        built.link(
            DashboardLink("Erlangshen")
            .type(model.DashboardLinkType.DASHBOARDS)
            .tags([TAG])
            .keep_time(True)
            .include_vars(True)
        )
        for annotation in _annotations():
            built.annotation(annotation)
        number = 0
        for section in self.sections:
            number += 1
            built.with_row(Row(section.title).id(number))
            for panel in section.panels:
                number += 1
                built.with_panel(panel.id(number))
        return built.build()


def _servers() -> tuple[DatasourceVariable | QueryVariable, ...]:
    """Selectors for Prometheus, cluster, namespace, job, pod, instance, model and task.

    They are read from `up`, which there is for an instance that is down, too. "All" is a regular expression that also
    matches series without the label: outside of Kubernetes there are no namespaces and pods."""
    source = DatasourceVariable("datasource").label("Prometheus").type("prometheus")
    place = 'cluster=~"$cluster",namespace=~"$namespace"'
    up = f'up{{{place},job=~"$job"}}'
    return (
        source,
        _from_labels("cluster", "Cluster", f'up{{job=~"{SETTINGS.job}"}}'),
        _from_labels("namespace", "Namespace", f'up{{cluster=~"$cluster",job=~"{SETTINGS.job}"}}'),
        _from_labels("job", "Job", f'up{{{place},job=~"{SETTINGS.job}"}}', SETTINGS.job),
        _from_labels("pod", "Pod", up),
        _from_labels("instance", "Instance", f'up{{{place},job=~"$job",pod=~"$pod"}}'),
        # All models includes requests that were refused before a model was chosen.
        _from_labels("model", "Model", f'erlangshen_model_info{{{place},job=~"$job"}}'),
        _from_labels("task", "Task", f'erlangshen_requests_in_progress{{{place},job=~"$job"}}'),
    )


def _from_labels(label: str, title: str, metric: str, everything: str = ".*") -> QueryVariable:
    return (
        QueryVariable(label)
        .label(title)
        .datasource(DATASOURCE)
        .query(f"label_values({metric}, {label})")
        .refresh(model.VariableRefresh.ON_TIME_RANGE_CHANGED)
        .sort(model.VariableSort.ALPHABETICAL_ASC)
        .multi(True)
        .include_all(True)
        .all_value(everything)
        .current(ALL)
    )


def _choice(choice: Choice) -> CustomVariable:
    first = model.VariableOption(text=choice.values[0], value=choice.values[0], selected=True)
    return CustomVariable(choice.name).label(choice.label).values(",".join(choice.values)).current(first)


def _annotations() -> tuple[AnnotationQuery, ...]:
    """Marks on every graph: while an alert fires, when a version appears, and when a process starts.

    Prometheus answers annotations once a minute, so what happens has to be true for longer than that."""
    place = 'cluster=~"$cluster|",namespace=~"$namespace|"'
    firing = f'ALERTS{{{place},alertname=~"Erlangshen.*",alertstate="firing",severity!="info"}}'
    version = "group by (cluster, namespace, job, version) (erlangshen_build_info"
    return (
        _annotation("Alerts", RED, firing),
        _annotation("Deploys", BLUE, f"{version}{{{DEPLOYMENT}}}) unless {version}{{{DEPLOYMENT}}} offset 2m)"),
        _annotation("Restarts", ORANGE, f"time() - process_start_time_seconds{{{HERE}}} < 120"),
    )


def _annotation(name: str, color: str, expr: str) -> AnnotationQuery:
    return AnnotationQuery().name(name).datasource(DATASOURCE).enable(True).icon_color(color).expr(expr)
