"""Corpora: the rate of a batch job, here and on Ray, and its memory.

    python -m benchmarks.corpora rate            # against the engine alone
    python -m benchmarks.corpora ray             # two actors on Ray against two jobs
    python -m benchmarks.corpora memory          # of a corpus of 1 GB against one of 0.1 GB

Each command has its own --help, and its module's docstring is its method.
"""

from __future__ import annotations

from benchmarks.common import dispatch

if __name__ == "__main__":
    dispatch("benchmarks.corpora", __doc__, ("rate", "ray", "memory"))
