"""Metrics of a running server: the samples of its /metrics page, and its work between two readings."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping

from prometheus_client.parser import text_string_to_metric_families
from prometheus_client.samples import Sample

BATCH_TOTALS = {
    "erlangshen_batch_rows_count": "batches",
    "erlangshen_batch_rows_sum": "rows",
    "erlangshen_batch_tokens_sum": "tokens",
    "erlangshen_compute_duration_seconds_sum": "compute_s",
}
SAVED_TOTALS = {"erlangshen_shared_rows_total": "shared_rows", "erlangshen_cache_hits_total": "cache_hit_rows"}
"""Rows that were answered without being computed."""

SECONDS = "seconds"
"""The key under which a caller adds the time at which it read the totals."""


def parse_samples(page: str) -> list[Sample]:
    """
    Raises:
        ValueError: the page is not in Prometheus' text format.
    """
    try:
        return [sample for family in text_string_to_metric_families(page) for sample in family.samples]
    except ValueError as error:
        raise ValueError(f"/metrics is not in Prometheus' text format: {error}") from None


def sum_totals(page: str) -> dict[str, float]:
    """The totals over all models, without those that the page lacks. Raises ValueError as `parse_samples` does."""
    names = BATCH_TOTALS | SAVED_TOTALS
    sums: defaultdict[str, float] = defaultdict(float)
    for sample in parse_samples(page):
        if sample.name in names:
            sums[names[sample.name]] += sample.value
    return dict(sums)


def per_batch(before: Mapping[str, float], after: Mapping[str, float]) -> dict[str, float] | None:
    """Mean rows, tokens and compute seconds of the batches computed between two readings; None if there were none."""
    keys = {*BATCH_TOTALS.values(), SECONDS}
    grown = {key: after[key] - before[key] for key in after if key in before and key in keys}
    if not grown.get("batches"):
        return None
    num, seconds = grown.pop("batches"), grown.pop(SECONDS)
    means = {f"mean_{key}": round(value / num, 6) for key, value in grown.items()}
    return {"batches": num, SECONDS: round(seconds, 3)} | means


def not_computed(before: Mapping[str, float], after: Mapping[str, float]) -> dict[str, float] | None:
    """Rows answered between two readings without being computed; None if the server shows no metrics."""
    if not (before and after):
        return None
    return {key: after.get(key, 0.0) - before.get(key, 0.0) for key in SAVED_TOTALS.values()}
