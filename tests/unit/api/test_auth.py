"""The key store: lookup of secrets, and reloading of a changed keys file."""

from __future__ import annotations

import logging
import os
from pathlib import Path
from typing import Any

import pytest
from prometheus_client import CollectorRegistry

from service.api import auth
from service.api.accounts import Key, hash_of, new_secret
from service.api.auth import CHECK_INTERVAL_S, KeyStore
from service.errors import SettingError
from service.metrics import Metrics
from tests.fakes import FakeClock, make_metrics


def table(name: str, secret: str, more: str = "") -> str:
    return f'[keys.{name}]\nhash = "{hash_of(secret)}"\n{more}\n'


class StoreBench:
    """A key store with its file, clock and metrics."""

    def __init__(self, folder: Path, text: str, fixed: dict[str, Key] | None = None) -> None:
        self.file = folder / "keys.toml"
        self.file.write_text(text)
        self.clock = FakeClock()
        self.metrics = Metrics(CollectorRegistry())
        self.key_store = KeyStore(fixed or {}, self.file, self.metrics, self.clock)

    def name(self, secret: str) -> str | None:
        account = self.key_store.find(secret.encode())
        return account and account.name

    def put(self, text: str) -> None:
        """Replaces the file by another one, as editors and Kubernetes do."""
        new = self.file.with_suffix(".new")
        new.write_text(text)
        new.replace(self.file)


def test_find_returns_the_account_of_a_secret_or_none(tmp_path: Path) -> None:
    bench = StoreBench(tmp_path, table("a", "x") + table("b", "y"), {"c": Key(hash=hash_of("z"))})
    assert [bench.name(secret) for secret in ("x", "y", "z", "", "X", hash_of("x"))] == [
        "a",
        "b",
        "c",
        None,
        None,
        None,
    ]


def test_a_changed_file_is_reloaded_after_the_check_interval(tmp_path: Path) -> None:
    bench = StoreBench(tmp_path, table("a", "x"))
    bench.put(table("b", "y"))
    bench.clock.now += CHECK_INTERVAL_S - 0.01
    assert (bench.name("x"), bench.name("y")) == ("a", None)
    bench.clock.now += 0.01
    assert (bench.name("x"), bench.name("y")) == (None, "b")


def test_reload_reads_the_file_immediately(tmp_path: Path) -> None:
    bench = StoreBench(tmp_path, table("a", "x"))
    bench.put(table("b", "y"))
    bench.key_store.reload()
    assert (bench.name("x"), bench.name("y")) == (None, "b")


def test_an_unchanged_file_is_not_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    bench = StoreBench(tmp_path, table("a", "x"))
    monkeypatch.setattr(Path, "read_text", None)
    bench.clock.now += 10
    assert bench.name("x") == "a"


@pytest.mark.parametrize("broken", ["[keys.a", "", table("a", "x") + table("b", "x"), '[keys.a]\nhash = "x"', None])
def test_a_broken_file_keeps_the_keys_and_is_logged_once(
    tmp_path: Path, broken: str | None, caplog: pytest.LogCaptureFixture
) -> None:
    bench = StoreBench(tmp_path, table("a", "x"))
    bench.file.unlink() if broken is None else bench.put(broken)
    for _ in range(3):
        bench.clock.now += CHECK_INTERVAL_S
        assert bench.name("x") == "a"
    assert [(one.levelname, one.getMessage()) for one in caplog.records] == [
        ("ERROR", "keys not reloaded: the previous keys stay in use")
    ]
    bench.put(table("b", "y"))
    bench.clock.now += CHECK_INTERVAL_S
    assert bench.name("y") == "b"


def test_a_reload_logs_the_names_of_the_keys(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    bench = StoreBench(tmp_path, table("a", "x"))
    bench.put(table("b", "y") + table("c", "z"))
    with caplog.at_level(logging.INFO):
        bench.key_store.reload()
    (record,) = caplog.records
    assert (record.getMessage(), record.keys) == ("keys reloaded", "b, c")  # type: ignore[attr-defined]
    assert hash_of("y") not in str(vars(record))


def test_an_account_keeps_its_debt_under_new_permissions(tmp_path: Path) -> None:
    bench = StoreBench(tmp_path, table("a", "x", "tokens_per_s = 10"))
    account = bench.key_store.find(b"x")
    assert account is not None
    account.spend(100)
    bench.put(table("a", "new", "tokens_per_s = 20"))
    bench.key_store.reload()
    assert bench.key_store.find(b"new") is account
    refusal = account.refusal()
    assert refusal is not None
    assert refusal.detail == "this key may use 20 tokens a second"


def test_every_key_has_metric_series_before_its_first_request(tmp_path: Path) -> None:
    bench = StoreBench(tmp_path, table("a", "x"))
    bench.put(table("b", "y"))
    bench.key_store.reload()
    value = bench.metrics.registry.get_sample_value
    for name in ("a", "b"):
        assert value("erlangshen_key_requests_total", {"key": name, "code": "403"}) == 0
        assert value("erlangshen_key_tokens_total", {"key": name}) == 0
        assert value("erlangshen_key_refused_total", {"key": name, "reason": "tokens"}) == 0
    assert value("erlangshen_key_refused_total", {"key": "none", "reason": "unauthorized"}) == 0


def test_a_name_in_both_file_and_settings_is_refused(tmp_path: Path) -> None:
    with pytest.raises(SettingError, match=r"a is in security\.keys as well; rename one"):
        StoreBench(tmp_path, table("a", "x"), {"a": Key(hash=hash_of("y"))})


def test_two_keys_with_one_secret_are_refused(tmp_path: Path) -> None:
    with pytest.raises(SettingError, match="two API keys have the same hash"):
        StoreBench(tmp_path, table("a", "x"), {"b": Key(hash=hash_of("x"))})


def test_the_error_of_an_unreadable_keys_file_names_it(tmp_path: Path) -> None:
    (tmp_path / "keys.toml").mkdir()
    with pytest.raises(SettingError, match=r"keys\.toml: Is a directory"):
        KeyStore({}, tmp_path / "keys.toml", Metrics(CollectorRegistry()))


def test_a_file_written_in_place_is_reloaded_by_its_time(tmp_path: Path) -> None:
    bench = StoreBench(tmp_path, table("a", "x"))
    bench.file.write_text(table("a", "y"))
    os.utime(bench.file, ns=(1, 1))
    bench.clock.now += CHECK_INTERVAL_S
    assert bench.name("y") == "a"


def test_every_requested_reload_logs_its_failure(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    bench = StoreBench(tmp_path, table("a", "x"))
    bench.put("[keys.a")
    for _ in range(2):
        bench.key_store.reload()
    assert [one.levelname for one in caplog.records] == ["ERROR", "ERROR"]


def test_a_file_that_could_not_be_read_is_retried(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """A revocation takes effect even if the changed file is unreadable at first."""
    file, clock = tmp_path / "keys.toml", FakeClock()
    secrets = {name: new_secret() for name in ("kept", "revoked")}
    write_keys(file, secrets)
    store = KeyStore({}, file, make_metrics(), clock)
    assert store.find(secrets["revoked"].encode())
    write_keys(file, {"kept": secrets["kept"]})
    read = auth.read_keys
    monkeypatch.setattr(auth, "read_keys", _refuse)
    for _ in range(3):
        clock.now += 1.0
        assert store.find(secrets["revoked"].encode())
    assert [record.message for record in caplog.records] == ["keys not reloaded: the previous keys stay in use"]
    monkeypatch.setattr(auth, "read_keys", read)
    clock.now += 1.0
    assert store.find(secrets["revoked"].encode()) is None
    assert store.find(secrets["kept"].encode())


def _refuse(path: Path) -> Any:
    raise SettingError(f"keys file {path}: Permission denied")


def write_keys(file: Path, secrets: dict[str, str]) -> None:
    file.write_text("".join(f'[keys.{name}]\nhash = "{hash_of(secret)}"\n' for name, secret in secrets.items()))
