"""The command line: finds the command, runs it, and prints a startup error as one line.

A command is imported when it is run, so that `--help` needs no torch.
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Sequence
from io import TextIOWrapper

from service.errors import StartupError
from service.settings import VERSION

COMMANDS = {
    "serve": "serve models over HTTP (the default command)",
    "blend": "fit how a choice model and an embedding model count together",
    "batch": "answer every row of a corpus, here, at servers or on Ray",
    "bench": "send load to a running server and measure its speed",
    "doctor": "check hardware, libraries and kernels, and say what to change",
    "evaluate": "measure a model on labelled data",
    "export": "write a model as a folder or as ONNX, or upload it to a hub",
    "fetch": "download the models and exit",
    "finetune": "train a model on labelled data",
    "health": "exit with 0 if the server with these settings is ready",
    "key": "create an API key",
    "predict": "label the texts of a file",
    "plan": "compute how many replicas a load needs",
    "runs": "compare the runs of finetune in a table",
    "settings": "print the effective settings, or their documentation",
}
DEFAULT = "serve"


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one command and returns its exit code: 2 for an error that the user can fix."""
    if isinstance(sys.stdout, TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")  # for a terminal without Chinese; \uXXXX is valid JSON
    words = list(sys.argv[1:] if argv is None else argv)
    if words[:1] in (["-h"], ["--help"]):
        print(usage())
        return 0
    if words[:1] == ["--version"]:
        print(f"erlangshen-service {VERSION}")
        return 0
    name = words.pop(0) if words and not words[0].startswith("-") else DEFAULT
    if name not in COMMANDS:
        print(f"error: unknown command {name!r}\n\n{usage()}", file=sys.stderr)
        return 2
    return _run(name, words)


def usage() -> str:
    commands = "\n".join(f"  {name:<10} {line}" for name, line in COMMANDS.items())
    return (
        "usage: python -m service [command] [flags]\n\n"
        f"commands:\n{commands}\n\n"
        "`python -m service COMMAND --help` lists the flags of a command; --version prints the version."
    )


def _run(name: str, words: Sequence[str]) -> int:
    try:
        return int(importlib.import_module(f"service.commands.{name}").run(words))
    except StartupError as error:
        print(f"error: {error.detail}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        return 130
