"""API keys for a run: who asks, and Prometheus, each with a secret in a file of its own."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from service.api.accounts import hash_of, new_secret

CALLERS = {
    "web": "",
    "nightly": 'priority = "bulk"\nweight = 0.5\n',
    "batch": "requests_per_s = 3\n",
    "prometheus": 'scopes = ["metrics"]\n',
}
"""By name, with what their key may do."""


def write_keys(folder: Path, callers: Mapping[str, str] = CALLERS) -> Path:
    """Writes NAME.key for each and `keys.toml`, which the service reads; returns that."""
    tables = []
    for name, permissions in callers.items():
        secret = new_secret()
        (folder / f"{name}.key").write_text(secret)
        tables.append(f'[keys.{name}]\nhash = "{hash_of(secret)}"\n{permissions}')
    keys = folder / "keys.toml"
    keys.write_text("\n".join(tables))
    return keys
