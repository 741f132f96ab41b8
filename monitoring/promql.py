"""PromQL in few words: rates, means, quantiles and shares of what the variables of a dashboard choose.

Knows no dashboard and no metric.
"""

from __future__ import annotations

PREFIX = "erlangshen_"
WINDOW = "$__rate_interval"
HERE = 'job=~"$job",instance=~"$instance"'
"""Every selector of a dashboard holds it, so that all panels show the same servers."""


def select(metric: str, match: str = "") -> str:
    """The series of a metric, whose prefix is left out."""
    return f"{PREFIX}{metric}{{{HERE}{',' if match else ''}{match}}}"


def total(selected: str, by: str = "") -> str:
    return f"sum by ({by}) ({selected})" if by else f"sum({selected})"


def rate(metric: str, match: str = "", by: str = "", window: str = WINDOW) -> str:
    """How much a counter grows a second."""
    return total(f"rate({select(metric, match)}[{window}])", by)


def increase(metric: str, match: str = "", by: str = "", window: str = "$__range") -> str:
    """How much a counter has grown."""
    return total(f"increase({select(metric, match)}[{window}])", by)


def share(part: str, whole: str) -> str:
    return f"{part} / {whole}"


def mean(histogram: str, match: str = "", by: str = "") -> str:
    return share(rate(f"{histogram}_sum", match, by), rate(f"{histogram}_count", match, by))


def quantile(q: float, histogram: str, match: str = "", by: str = "", window: str = WINDOW) -> str:
    return f"histogram_quantile({q}, {buckets(histogram, match, by, window)})"


def buckets(histogram: str, match: str = "", by: str = "", window: str = WINDOW) -> str:
    """What a heat map shows, and a quantile is computed from."""
    return rate(f"{histogram}_bucket", match, f"le, {by}" if by else "le", window)
