"""The command line: finds the command, runs it, and turns what it cannot start with into one line.

Knows the commands by name only: each is imported when it is run, so that `--help` needs no torch.
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Sequence
from io import TextIOWrapper

from service.errors import StartupError
from service.settings import VERSION

COMMANDS = {
    "serve": "answer requests over HTTP (the default command)",
    "bench": "load a running server and measure its speed",
    "evaluate": "measure the accuracy of a running server on a data set",
    "fetch": "download the models, and end",
    "finetune": "train a model of your own",
    "health": "0 when the server with these settings is ready",
    "key": "make an API key",
    "plan": "how many replicas a load needs, from measured speeds",
    "settings": "print the settings in effect, or their documentation",
}
DEFAULT = "serve"


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command and return the exit code: 2 for what the user has to mend."""
    if isinstance(sys.stdout, TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")  # Chinese on a terminal that has none; \uXXXX is JSON, too
    words = list(sys.argv[1:] if argv is None else argv)
    if words[:1] in (["-h"], ["--help"]):
        print(usage())
        return 0
    if words[:1] == ["--version"]:
        print(f"erlangshen-service {VERSION}")
        return 0
    name = words.pop(0) if words and not words[0].startswith("-") else DEFAULT
    if name not in COMMANDS:
        print(f"error: {name} is no command\n\n{usage()}", file=sys.stderr)
        return 2
    return _run(name, words)


def usage() -> str:
    commands = "\n".join(f"  {name:<10} {line}" for name, line in COMMANDS.items())
    return (
        "usage: python -m service [command] [flags]\n\n"
        f"commands:\n{commands}\n\n"
        "`python -m service COMMAND --help` lists the flags of a command; --version tells the version."
    )


def _run(name: str, words: Sequence[str]) -> int:
    try:
        return int(importlib.import_module(f"service.commands.{name}").run(words))
    except StartupError as error:
        print(f"error: {error.detail}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        return 130
