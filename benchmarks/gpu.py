"""`python -m benchmarks.gpu`: everything that is measured on a GPU, in one command; see `benchmarks.engine.cuda`."""

from __future__ import annotations

import sys

from benchmarks.engine.cuda import main

if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
