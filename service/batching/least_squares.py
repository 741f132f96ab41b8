"""Least squares over three columns with no coefficient below zero, from running sums: exact, and cheap at any length.

Knows not what the columns mean. With three columns there are seven sets of coefficients that may be above zero; the
best of their plain solutions that has none below zero is the answer (Lawson and Hanson, "Solving Least Squares
Problems", chapter 23).
"""

from __future__ import annotations

from dataclasses import dataclass, field

Vector = tuple[float, float, float]

_SUPPORTS = ((0, 1, 2), (0, 1), (1, 2), (0, 2), (1,), (0,), (2,))
"""Of sets that explain the data equally well the first is taken."""

_SINGULAR = 1e-9
"""A pivot of columns scaled to one; below it they are the same column, but for rounding."""

_BETTER = 1e-9
"""Of the whole, by which a later set must be better than an earlier one."""


@dataclass(slots=True)
class Sums:
    """Weighted sums of x * x, x * y and y * y over all rows (x, y) that were added."""

    gram: list[list[float]] = field(default_factory=lambda: [[0.0] * 3 for _ in range(3)])
    moment: list[float] = field(default_factory=lambda: [0.0] * 3)
    square: float = 0.0

    def add(self, x: Vector, y: float, weight: float) -> None:
        for i in range(3):
            self.moment[i] += weight * x[i] * y
            for j in range(3):
                self.gram[i][j] += weight * x[i] * x[j]
        self.square += weight * y * y

    def fade(self, factor: float) -> None:
        """All rows so far weigh `factor` times what they did."""
        self.gram = [[factor * each for each in row] for row in self.gram]
        self.moment = [factor * each for each in self.moment]
        self.square *= factor

    def plus(self, other: Sums, stretch: float) -> Sums:
        """With the rows of `other`, whose y are `stretch` times what they were."""
        return Sums(
            [[a + b for a, b in zip(*rows, strict=True)] for rows in zip(self.gram, other.gram, strict=True)],
            [a + stretch * b for a, b in zip(self.moment, other.moment, strict=True)],
            self.square + stretch * stretch * other.square,
        )

    def solve(self) -> Vector:
        """The coefficients; all zero when nothing was added."""
        best: Vector = (0.0, 0.0, 0.0)
        least = self.square
        for support in _SUPPORTS:
            found = self._on(support)
            if found is None or min(found) < 0:
                continue
            error = self._error(found)
            if error < least - _BETTER * self.square:
                best, least = found, error
            if len(support) == 3:
                break  # no constraint binds: nothing can be better
        return best

    def _on(self, support: tuple[int, ...]) -> Vector | None:
        """The plain solution with only these coefficients; None when the data do not determine it."""
        scales = [self.gram[i][i] ** 0.5 for i in support]
        if min(scales) == 0.0:
            return None
        rows = [
            [self.gram[i][j] / (a * b) for j, b in zip(support, scales, strict=True)] + [self.moment[i] / a]
            for i, a in zip(support, scales, strict=True)
        ]
        solved = _eliminate(rows)
        if solved is None:
            return None
        found = [0.0, 0.0, 0.0]
        for i, value, scale in zip(support, solved, scales, strict=True):
            found[i] = value / scale
        return (found[0], found[1], found[2])

    def _error(self, x: Vector) -> float:
        quadratic = sum(x[i] * self.gram[i][j] * x[j] for i in range(3) for j in range(3))
        return self.square - 2 * sum(a * b for a, b in zip(x, self.moment, strict=True)) + quadratic


def _eliminate(rows: list[list[float]]) -> list[float] | None:
    """Solves a positive definite system, its right side in the last column; None when it is singular."""
    size = len(rows)
    for i in range(size):
        if rows[i][i] < _SINGULAR:
            return None
        for k in range(i + 1, size):
            factor = rows[k][i] / rows[i][i]
            rows[k] = [a - factor * b for a, b in zip(rows[k], rows[i], strict=True)]
    out = [0.0] * size
    for i in reversed(range(size)):
        out[i] = (rows[i][size] - sum(rows[i][j] * out[j] for j in range(i + 1, size))) / rows[i][i]
    return out
