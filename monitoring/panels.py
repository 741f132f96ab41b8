"""Panel kinds in one style: each has a title, a description, and PromQL with a legend.

They are built with Grafana's own SDK, so that the output fits Grafana's schema.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar

from grafana_foundation_sdk.builders import bargauge, common, heatmap, stat, statetimeline, table, timeseries
from grafana_foundation_sdk.builders.dashboard import FieldColor, ThresholdsConfig
from grafana_foundation_sdk.builders.prometheus import Dataquery
from grafana_foundation_sdk.models import common as kinds
from grafana_foundation_sdk.models import dashboard as model
from grafana_foundation_sdk.models.heatmap import HeatmapColorMode, HeatmapColorScale
from grafana_foundation_sdk.models.prometheus import PromQueryFormat

DATASOURCE = model.DataSourceRef(type_val="prometheus", uid="${datasource}")
GREEN, YELLOW, ORANGE, RED, BLUE, PURPLE = "green", "yellow", "orange", "red", "blue", "purple"
GREY = "#8e8e8e"

P = TypeVar("P", timeseries.Panel, stat.Panel, heatmap.Panel, bargauge.Panel, statetimeline.Panel, table.Panel)
Steps = Sequence[tuple[float | None, str]]
"""Thresholds: a colour from each value upwards; the first value is None."""

PLAIN: Steps = ((None, BLUE),)


@dataclass(frozen=True, slots=True)
class Query:
    """An expression and the legend of its series, in which `{{label}}` is the value of a label."""

    expr: str
    legend: str = ""
    exemplars: bool = False
    """Whether to show exemplars: single requests as points, each with its trace, when Prometheus stores them."""


def number(
    title: str,
    about: str,
    query: Query,
    *,
    unit: str = "short",
    steps: Steps = PLAIN,
    width: int = 4,
    filled: bool = False,
) -> stat.Panel:
    """The value at the end of the time range, large; `filled` colours the panel instead of the number.

    It is asked for at that time only: of a range, the last value that there was would stay after everything is gone."""
    panel = _begin(stat.Panel(), title, about, [], width, 4)
    panel.with_target(_target(query, "A").instant())
    return (
        panel.unit(unit)
        .thresholds(_thresholds(steps))
        .color_scheme(FieldColor().mode(model.FieldColorModeId.THRESHOLDS))
        .reduce_options(common.ReduceDataOptions().calcs(["last"]))
        .graph_mode(kinds.BigValueGraphMode.NONE)
        .color_mode(kinds.BigValueColorMode.BACKGROUND if filled else kinds.BigValueColorMode.VALUE)
        .no_value("No data")
    )


def lines(
    title: str,
    about: str,
    *queries: Query,
    unit: str = "short",
    stacked: bool = False,
    width: int = 12,
    most: float | None = None,
    limit: float | None = None,
    colors: Mapping[str, str] | None = None,
    dashed: str = "",
) -> timeseries.Panel:
    """Series over time. `most` is the maximum of the axis and `limit` a red line. `colors` maps regular expressions for
    the whole legend to colours; the last match counts. Series that match `dashed` are bounds and drawn dashed."""
    panel = _begin(timeseries.Panel(), title, about, queries, width, 8)
    panel.unit(unit).min(0).line_width(1 if stacked else 2).fill_opacity(60 if stacked else 8)
    panel.show_points(kinds.VisibilityMode.NEVER).color_scheme(
        FieldColor().mode(model.FieldColorModeId.PALETTE_CLASSIC)
    )
    panel.legend(
        common.VizLegendOptions()
        .display_mode(kinds.LegendDisplayMode.TABLE)
        .placement(kinds.LegendPlacement.BOTTOM)
        .show_legend(True)
        .calcs(["mean", "max"])
    ).tooltip(common.VizTooltipOptions().mode(kinds.TooltipDisplayMode.MULTI).sort(kinds.SortOrder.DESCENDING))
    if stacked:
        panel.stacking(common.StackingConfig().mode(kinds.StackingMode.NORMAL).group("A"))
    if most is not None:
        panel.max(most)
    if limit is not None:
        panel.thresholds(_thresholds(((None, GREEN), (limit, RED))))
        panel.thresholds_style(common.GraphThresholdsStyleConfig().mode(kinds.GraphThresholdsStyleMode.DASHED))
    if dashed:
        dashes = {"fill": "dash", "dash": [8, 6]}
        panel.override_by_regexp(dashed, [model.DynamicConfigValue("custom.lineStyle", dashes)])
    for pattern, color in (colors or {}).items():
        panel.override_by_regexp(pattern, [model.DynamicConfigValue("color", {"mode": "fixed", "fixedColor": color})])
    return panel


def heat(title: str, about: str, expr: str, *, unit: str = "s", width: int = 12) -> heatmap.Panel:
    """Counts per bucket of a histogram over time; `expr` keeps `le`."""
    panel = _begin(heatmap.Panel(), title, about, [], width, 8)
    panel.with_target(_target(Query(expr, "{{le}}"), "A").format(PromQueryFormat.HEATMAP))
    return (
        panel.calculate(False)
        .color(
            heatmap.HeatmapColorOptions()
            .mode(HeatmapColorMode.SCHEME)
            .scheme("Turbo")
            .scale(HeatmapColorScale.EXPONENTIAL)
            .exponent(0.5)
            .steps(64)
        )
        .cell_gap(1)
        .y_axis(heatmap.YAxisConfig().unit(unit))
        .filter_values(heatmap.FilterValueRange().le(1e-9))
        .mode(kinds.TooltipDisplayMode.SINGLE)
    )


def bars(title: str, about: str, *queries: Query, unit: str = "percentunit", width: int = 8) -> bargauge.Panel:
    """The value of each series at the end of the time range, as a bar."""
    panel = _begin(bargauge.Panel(), title, about, [], width, 8)
    for letter, query in zip("ABCDEFGH", queries, strict=False):
        panel.with_target(_target(query, letter).instant())
    return (
        panel.unit(unit)
        .min(0)
        .orientation(kinds.VizOrientation.HORIZONTAL)
        .display_mode(kinds.BarGaugeDisplayMode.GRADIENT)
        .color_scheme(FieldColor().mode(model.FieldColorModeId.CONTINUOUS_BL_PU))
        .reduce_options(common.ReduceDataOptions().calcs(["last"]))
    )


def timeline(
    title: str, about: str, query: Query, names: Mapping[str, tuple[str, str]], *, width: int = 12
) -> statetimeline.Panel:
    """A band for each series, coloured by its value; `names` maps a value to its text and colour."""
    panel = _begin(statetimeline.Panel(), title, about, [query], width, 8)
    options = {
        value: model.ValueMappingResult(text=text, color=color, index=index)
        for index, (value, (text, color)) in enumerate(names.items())
    }
    return (
        panel.mappings([model.ValueMap(options=options)])
        .color_scheme(FieldColor().mode(model.FieldColorModeId.THRESHOLDS))
        .show_value(kinds.VisibilityMode.NEVER)
        .row_height(0.8)
        .line_width(0)
        .fill_opacity(80)
        .legend(common.VizLegendOptions().placement(kinds.LegendPlacement.BOTTOM).show_legend(True))
    )


def rows(
    title: str,
    about: str,
    columns: Mapping[str, tuple[str, str]],
    labels: Mapping[str, str],
    *,
    width: int = 24,
    steps: Mapping[str, Steps] | None = None,
) -> table.Panel:
    """A row for each combination of `labels` (label: heading), a column for each expression (heading: expr, unit).

    `steps` colour the cells of a column."""
    panel = _begin(table.Panel(), title, about, [], width, 8)
    headings = dict(labels)
    for letter, (heading, (expr, unit)) in zip("ABCDEFGH", columns.items(), strict=False):
        panel.with_target(_target(Query(expr), letter).format(PromQueryFormat.TABLE).instant())
        headings[f"Value #{letter}"] = heading
        looks = [model.DynamicConfigValue("unit", unit)]
        if steps and heading in steps:
            marks = [{"value": value, "color": color} for value, color in steps[heading]]
            looks.append(model.DynamicConfigValue("thresholds", {"mode": "absolute", "steps": marks}))
            looks.append(model.DynamicConfigValue("custom.cellOptions", {"type": "color-background"}))
        panel.override_by_name(heading, looks)
    panel.align(kinds.FieldTextAlignment.AUTO).inspect(False).cell_options(kinds.TableAutoCellOptions())
    panel.with_transformation(model.DataTransformerConfig(id_val="merge", options={}))
    organized = {"excludeByName": {"Time": True}, "renameByName": headings}
    panel.with_transformation(model.DataTransformerConfig(id_val="organize", options=organized))
    return panel.sort_by([common.TableSortByFieldState().display_name(next(iter(columns))).desc(True)])


def _begin(panel: P, title: str, about: str, queries: Sequence[Query], width: int, height: int) -> P:
    panel.title(title).description(about).datasource(DATASOURCE).span(width).height(height)
    for letter, query in zip("ABCDEFGH", queries, strict=False):
        panel.with_target(_target(query, letter))
    return panel


def _target(query: Query, letter: str) -> Dataquery:
    target = Dataquery().expr(query.expr).ref_id(letter).datasource(DATASOURCE)
    if query.exemplars:
        target.exemplar(True)
    return target.legend_format(query.legend) if query.legend else target


def _thresholds(steps: Steps) -> ThresholdsConfig:
    marks = [model.Threshold(value=value, color=color) for value, color in steps]
    return ThresholdsConfig().mode(model.ThresholdsMode.ABSOLUTE).steps(marks)
