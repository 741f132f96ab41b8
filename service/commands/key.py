"""`python -m service key NAME`: creates an API key; its secret is printed once and not stored."""

from __future__ import annotations

from argparse import ArgumentParser
from collections.abc import Sequence
from typing import get_args

import orjson

from service.api.accounts import Key, KeyScope, hash_of, new_secret, parse_keys


def run(argv: Sequence[str]) -> int:
    parser = ArgumentParser(
        prog="python -m service key", description="Create an API key. Its secret is printed once and not stored."
    )
    parser.add_argument("name", help="name of the key, used in the log and the metrics")
    parser.add_argument(
        "--scopes",
        default="infer",
        metavar="A,B",
        help=f"scopes of the key: {', '.join(get_args(KeyScope))} (default: %(default)s)",
    )
    arguments = parser.parse_args(argv)
    secret = new_secret()
    hash = hash_of(secret)
    keys = parse_keys({arguments.name: (hash, *arguments.scopes.split(","))})
    print(_format(arguments.name, secret, keys[arguments.name]), end="")
    return 0


def _format(name: str, secret: str, key: Key) -> str:
    scopes = sorted(key.scopes)
    return (
        f"The secret, for the client (it is not shown again):\n\n  {secret}\n\n"
        "The key, for the server: add it to the keys file (security.keys_file):\n\n"
        f'  [keys."{name}"]\n  hash = "{key.hash}"\n  scopes = {orjson.dumps(scopes).decode()}\n\n'
        f"or to the environment:\n\n  ERLANGSHEN_SECURITY__KEYS='{name}={key.hash},{','.join(scopes)}'\n"
    )
