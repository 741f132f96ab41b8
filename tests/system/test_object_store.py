"""`python -m service batch` from a bucket to a bucket of an S3 server, with s3fs; a run is killed on the way."""

from __future__ import annotations

import json
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.support.servers import until
from tests.system.test_corpora import BAD, NUM_ROWS, WAIT_S, command, corpus, started

moto = pytest.importorskip("moto.server", reason="moto is not installed: pip install 's3fs' 'moto[server]'")
s3fs = pytest.importorskip("s3fs", reason="s3fs is not installed: pip install 's3fs' 'moto[server]'")

pytestmark = [pytest.mark.system, pytest.mark.slow]

__all__ = ["corpus"]
"""A fixture."""


@pytest.fixture
def account() -> Iterator[dict[str, str]]:
    """The environment of a client of an S3 server."""
    server = moto.ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    try:
        yield {
            "AWS_ENDPOINT_URL": f"http://{host}:{port}",
            "AWS_ACCESS_KEY_ID": "reader",
            "AWS_SECRET_ACCESS_KEY": "secret",
            "AWS_DEFAULT_REGION": "us-east-1",
        }
    finally:
        server.stop()


@pytest.fixture
def store(account: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> Any:
    for name, value in account.items():
        monkeypatch.setenv(name, value)
    found = s3fs.S3FileSystem(skip_instance_cache=True, use_listings_cache=False)
    for bucket in ("corpora", "answers"):
        found.makedirs(bucket, exist_ok=True)
    return found


def names(store: Any, folder: str) -> list[str]:
    """The parts that are there."""
    found = store.ls(folder, detail=False) if store.exists(folder) else []
    return sorted(path for path in found if "/part-" in path)


@pytest.mark.parametrize("out", ["answers/reviews", "answers/reviews.jsonl"], ids=["folder", "file"])
async def test_a_corpus_in_a_bucket_is_answered_into_a_bucket_through_a_kill(
    out: str, store: Any, corpus: Path
) -> None:
    store.put_file(str(corpus), "corpora/in.jsonl")
    folder = f"{out}.parts" if out.endswith(".jsonl") else out
    words = command("s3://corpora/in.jsonl", f"s3://{out}", "--model", "mini")
    with started(words) as process:
        await until(lambda: bool(names(store, folder)) or process.poll() is not None, WAIT_S)
        process.send_signal(signal.SIGKILL)
        assert process.wait() == -signal.SIGKILL, process.communicate()[1]
    with started(words) as process:
        _, errors = process.communicate(timeout=WAIT_S)
    assert process.returncode == 0, errors
    assert "going on" in errors
    written = [out] if out.endswith(".jsonl") else names(store, out)
    rows = [json.loads(line) for path in written for line in store.cat_file(path).splitlines()]
    assert [row["row"] for row in rows] == list(range(1, NUM_ROWS + 1))
    assert {row["row"] - 1 for row in rows if "error" in row} == BAD
    assert store.exists(folder) != (folder != out)  # the parts of a file are removed at the end
