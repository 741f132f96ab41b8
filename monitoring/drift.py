"""PromQL for drift of inputs and predictions; for the dashboard and the alerts.

`match` selects series by their labels; a share is taken over `window`.
"""

from __future__ import annotations

from monitoring.promql import number
from service.metric_labels import OTHER_LABEL

BOTH = "task, model"


def label_share(match: str, window: str, ago: str = "", by: str = BOTH) -> str:
    """The share of each label in the predictions of its task and model."""
    return _label_share(match, match, window, ago, by)


def own_label_share(match: str, window: str) -> str:
    """The same without labels sent in requests, which all count as one label."""
    return _label_share(f'{match},label!="{OTHER_LABEL}"', match, window, "", BOTH)


def _label_share(part: str, whole: str, window: str, ago: str, by: str) -> str:
    offset = f" offset {ago}" if ago else ""
    counted, out_of = (f"rate(erlangshen_predictions_total{{{match}}}[{window}]{offset})" for match in (part, whole))
    return number(f"sum by ({by}, label) ({counted}) / on ({by}) group_left sum by ({by}) ({out_of})")


def moved(match: str, window: str, ago: str, by: str = BOTH) -> str:
    """Total variation distance between the shares now and `ago`: 0 for equal shares, 1 for no label in common."""
    now, then = label_share(match, window, by=by), label_share(match, window, ago, by)
    return number(f"0.5 * sum by ({by}) (abs({now} - {then}))")


def low_confidence(match: str, score: str, window: str, by: str = "", ago: str = "") -> str:
    """The share of predictions with at most this score, which must be a bucket of `erlangshen_prediction_score`."""
    bucket, count = f'bucket{{{match}{"," if match else ""}le="{score}"}}', f"count{{{match}}}"
    return _share(f"erlangshen_prediction_score_{bucket}", f"erlangshen_prediction_score_{count}", window, by, ago)


def truncated(match: str, window: str, by: str = "") -> str:
    """The share of truncated inputs."""
    return _share(f"erlangshen_truncated_inputs_total{{{match}}}", f"erlangshen_inputs_total{{{match}}}", window, by)


def _share(part: str, whole: str, window: str, by: str, ago: str = "") -> str:
    offset = f" offset {ago}" if ago else ""
    sums = [f"sum by ({by}) (rate({one}[{window}]{offset}))" for one in (part, whole)]
    return number(" / ".join(sums))
