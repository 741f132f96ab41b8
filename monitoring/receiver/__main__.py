"""`python -m monitoring.receiver --config FILE`: see docs/dashboards.md."""

from __future__ import annotations

import logging
import signal
import sys
import threading
import tomllib
import urllib.parse
from argparse import ArgumentParser
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from monitoring.receiver.message import LANGUAGES
from monitoring.receiver.robots import FORMATS, Robot
from monitoring.receiver.server import Config, make_server


class ConfigError(Exception):
    """The configuration names a file that cannot be read, or a value that cannot be."""


def read_config(file: Path) -> Config:
    """Secrets are in files of their own, relative to the folder of the configuration."""
    try:
        content = tomllib.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ConfigError(f"{file}: {error}") from None
    receivers = content.pop("receivers", {})
    if not receivers:
        raise ConfigError(f"{file}: no [receivers.NAME]")
    robots = {name: _robot(name, dict(values), file.parent) for name, values in receivers.items()}
    token = _secret(file.parent, "token_file", content.pop("token_file", ""))
    if content.get("language", "zh") not in LANGUAGES:
        raise ConfigError(f"{file}: language is one of {', '.join(LANGUAGES)}")
    if unknown := set(content) - {"language", "utc_offset_h", "timeout_s"}:
        raise ConfigError(f"{file}: unknown {', '.join(sorted(unknown))}")
    return Config(robots, token, **content)


def _robot(name: str, values: dict[str, Any], folder: Path) -> Robot:
    kind = values.pop("kind", "")
    if kind not in FORMATS:
        raise ConfigError(f"receivers.{name}.kind is one of {', '.join(FORMATS)}")
    url = _secret(folder, f"receivers.{name}.url_file", values.pop("url_file", ""))
    if urllib.parse.urlsplit(url).scheme not in ("http", "https"):
        raise ConfigError(f"receivers.{name}.url_file: its file has to hold the address of the robot")
    secret = _secret(folder, f"receivers.{name}.secret_file", values.pop("secret_file", ""))
    if secret and kind == "wecom":
        raise ConfigError(f"receivers.{name}.secret_file: WeCom's robots have no signature")
    mentions = values.pop("mentions", [])
    if values:
        raise ConfigError(f"receivers.{name}: unknown {', '.join(sorted(values))}")
    return Robot(kind, url, secret, tuple(map(str, mentions)))


def _secret(folder: Path, setting: str, name: str) -> str:
    try:
        return (folder / name).read_text(encoding="utf-8").strip() if name else ""
    except OSError as error:
        raise ConfigError(f"{setting}: {folder / name}: {error.strerror}") from None


def main(argv: Sequence[str]) -> int:
    parser = ArgumentParser(
        prog="python -m monitoring.receiver",
        description="Passes Alertmanager's alerts on to DingTalk, Feishu and WeCom.",
    )
    parser.add_argument("--config", type=Path, required=True, metavar="FILE", help="TOML with the receivers")
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, default=9095)
    arguments = parser.parse_args(argv)
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(message)s")
    try:
        config = read_config(arguments.config)
        server = make_server(arguments.host, arguments.port, config)
    except (ConfigError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    # `shutdown` waits for `serve_forever`, which runs in this thread.
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: threading.Thread(target=server.shutdown).start())
    logging.info("listening on %s:%d for %s", *server.server_address[:2], ", ".join(config.robots))
    with server:
        server.serve_forever()
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
