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

from monitoring.panels import DATASOURCE, RED
from monitoring.rule import GENERATED

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
        built.annotation(_alerts())
        number = 0
        for section in self.sections:
            number += 1
            built.with_row(Row(section.title).id(number))
            for panel in section.panels:
                number += 1
                built.with_panel(panel.id(number))
        return built.build()


def _servers() -> tuple[DatasourceVariable | QueryVariable, ...]:
    """Selectors for Prometheus, job, instance, model and task."""
    source = DatasourceVariable("datasource").label("Prometheus").type("prometheus")
    return (
        source,
        _from_labels("job", "Job", "erlangshen_build_info"),
        _from_labels("instance", "Instance", 'erlangshen_build_info{job=~"$job"}'),
        # All models includes requests that were refused before a model was chosen.
        _from_labels("model", "Model", 'erlangshen_model_info{job=~"$job"}').all_value(".*"),
        _from_labels("task", "Task", 'erlangshen_requests_in_progress{job=~"$job"}').all_value(".*"),
    )


def _from_labels(label: str, title: str, metric: str) -> QueryVariable:
    return (
        QueryVariable(label)
        .label(title)
        .datasource(DATASOURCE)
        .query(f"label_values({metric}, {label})")
        .refresh(model.VariableRefresh.ON_TIME_RANGE_CHANGED)
        .sort(model.VariableSort.ALPHABETICAL_ASC)
        .multi(True)
        .include_all(True)
        .current(ALL)
    )


def _choice(choice: Choice) -> CustomVariable:
    first = model.VariableOption(text=choice.values[0], value=choice.values[0], selected=True)
    return CustomVariable(choice.name).label(choice.label).values(",".join(choice.values)).current(first)


def _alerts() -> AnnotationQuery:
    """Marks on every graph while an alert fires."""
    firing = 'ALERTS{alertname=~"Erlangshen.*",alertstate="firing",severity!="info"}'
    return AnnotationQuery().name("Alerts").datasource(DATASOURCE).enable(True).icon_color(RED).expr(firing)
