"""One runtime as an engine: `python runtime_engine.py RUNTIME FOLDER PRECISION THREADS`.

Reads lines from stdin and answers each with one line of JSON: `run FILE` computes the batches of FILE and answers
seconds and cpu_seconds; `save FILE OUTPUT` writes the outputs of the first batch of FILE to OUTPUT, as .npy. The first
line comes unasked, when the model is loaded.
"""

from __future__ import annotations

import functools
import json
import os
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
from runtimes import load, read_batches

read = functools.cache(lambda file: list(read_batches(Path(file))))


def main() -> None:
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)  # what the runtimes print is no answer
    runtime, folder, precision, threads = sys.argv[1:]

    def answer(**values: Any) -> None:
        print(json.dumps(values), file=answers)

    try:
        forward = load(runtime, Path(folder), precision, int(threads))
    except RuntimeError as error:
        answer(error=str(error))
        return
    answer(loaded=True)
    for line in sys.stdin:
        command, file, *output = line.rstrip("\n").split("\t")
        batches = read(file)
        if command == "save":
            np.save(output[0], forward(batches[0]))
            answer(saved=True)
            continue
        wall, cpu = time.perf_counter(), time.process_time()
        for batch in batches:
            forward(batch)
        answer(seconds=time.perf_counter() - wall, cpu_seconds=time.process_time() - cpu)


if __name__ == "__main__":
    main()
