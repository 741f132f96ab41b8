"""`python -m service key NAME`: a new API key. Its secret is shown this once and kept nowhere."""

from __future__ import annotations

from argparse import ArgumentParser
from collections.abc import Sequence
from typing import get_args

import orjson

from service.api.accounts import Key, KeyScope, hash_of, new_secret, parse_keys


def run(argv: Sequence[str]) -> int:
    parser = ArgumentParser(prog="python -m service key", description=__doc__)
    parser.add_argument("name", help="the caller's name, for the log and the metrics")
    parser.add_argument(
        "--scopes",
        default="infer",
        metavar="A,B",
        help=f"what it is for, of {', '.join(get_args(KeyScope))} (default: %(default)s)",
    )
    arguments = parser.parse_args(argv)
    secret = new_secret()
    hash = hash_of(secret)
    keys = parse_keys({arguments.name: (hash, *arguments.scopes.split(","))})
    print(_told(arguments.name, secret, keys[arguments.name]), end="")
    return 0


def _told(name: str, secret: str, key: Key) -> str:
    scopes = sorted(key.scopes)
    return (
        f"The secret, for its bearer, shown this once:\n\n  {secret}\n\n"
        "What the server is to know of it, in the keys file (security.keys_file):\n\n"
        f'  [keys."{name}"]\n  hash = "{key.hash}"\n  scopes = {orjson.dumps(scopes).decode()}\n\n'
        f"or in the environment:\n\n  ERLANGSHEN_SECURITY__KEYS='{name}={key.hash},{','.join(scopes)}'\n"
    )
