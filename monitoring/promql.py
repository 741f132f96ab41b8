"""PromQL helpers: rates, means, quantiles and shares of the series that the variables of a dashboard select."""

from __future__ import annotations

PREFIX = "erlangshen_"
WINDOW = "$__rate_interval"
DEPLOYMENT = 'cluster=~"$cluster",namespace=~"$namespace",job=~"$job"'
HERE = f'{DEPLOYMENT},pod=~"$pod",instance=~"$instance"'
"""Part of every selector of a dashboard, so that all panels show the same instances."""


def select(metric: str, match: str = "") -> str:
    """Selects the series of a metric; `metric` is its name without the prefix."""
    return f"{PREFIX}{metric}{{{HERE}{',' if match else ''}{match}}}"


def total(selected: str, by: str = "") -> str:
    return f"sum by ({by}) ({selected})" if by else f"sum({selected})"


def rate(metric: str, match: str = "", by: str = "", window: str = WINDOW) -> str:
    """Growth of a counter per second."""
    return total(f"rate({select(metric, match)}[{window}])", by)


def increase(metric: str, match: str = "", by: str = "", window: str = "$__range") -> str:
    """Growth of a counter over the window."""
    return total(f"increase({select(metric, match)}[{window}])", by)


def number(expr: str) -> str:
    """Without NaN, which a panel would show as a value: a quotient of zeros is no data. NaN is not at least 0."""
    return f"({expr} >= 0)"


def or_zero(expr: str) -> str:
    """0 in place of no data, for a single number without labels."""
    return f"({expr} or vector(0))"


def share(part: str, whole: str) -> str:
    return number(f"{part} / {whole}")


def mean(histogram: str, match: str = "", by: str = "") -> str:
    return share(rate(f"{histogram}_sum", match, by), rate(f"{histogram}_count", match, by))


def quantile(q: float, histogram: str, match: str = "", by: str = "", window: str = WINDOW) -> str:
    return number(f"histogram_quantile({q}, {buckets(histogram, match, by, window)})")


def buckets(histogram: str, match: str = "", by: str = "", window: str = WINDOW) -> str:
    """Bucket rates of a histogram, for a heat map or a quantile."""
    return rate(f"{histogram}_bucket", match, f"le, {by}" if by else "le", window)
