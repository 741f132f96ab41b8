"""API keys: secrets and hashes, parsing of keys files and settings, rate limits, and errors that show no secret."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from service.api.accounts import (
    CONCURRENCY_RETRY_S,
    Account,
    Bucket,
    Key,
    KeyPermissions,
    Refusal,
    hash_of,
    new_secret,
    parse_keys,
    read_keys,
)
from service.errors import SettingError
from tests.fakes import FakeClock

SECRET = "erl_mistaken-for-its-hash"
HASH = hash_of("a")


def write(folder: Path, text: str) -> Path:
    file = folder / "keys.toml"
    file.write_text(text, encoding="utf-8")
    return file


def test_a_secret_is_256_random_bits_and_its_hash_is_sha256() -> None:
    first, second = new_secret(), new_secret()
    assert first != second
    assert re.fullmatch(r"erl_[A-Za-z0-9_-]{43}", first)
    assert HASH == "sha256:ca978112ca1bbdcafac231b39a23dc4da786eff8147c4e72b9807785afee48bb"


def test_read_keys_reads_every_field_of_a_key(tmp_path: Path) -> None:
    text = (
        f'[keys.app]\nhash = "{HASH}"\n'
        f'[keys."batch.job"]\nhash = "{hash_of("b")}"\nscopes = ["infer", "metrics"]\nrequests_per_s = 5\n'
        'tokens_per_s = 2000.5\nconcurrency = 4\npriority = "bulk"\nweight = 0.5\n'
    )
    keys = read_keys(write(tmp_path, text))
    assert keys["app"] == Key(hash=HASH)
    assert keys["app"].model_dump(exclude={"hash"}) == KeyPermissions().model_dump()
    assert KeyPermissions() == KeyPermissions(scopes=frozenset({"infer"}), priority="interactive", weight=1.0)
    assert keys["batch.job"] == Key(
        hash=hash_of("b"),
        scopes=frozenset({"infer", "metrics"}),
        requests_per_s=5,
        tokens_per_s=2000.5,
        concurrency=4,
        priority="bulk",
        weight=0.5,
    )


def test_parse_keys_reads_hash_and_scopes_of_a_setting() -> None:
    keys = parse_keys({"a": (HASH,), "b": (hash_of("b"), "metrics", "admin")})
    assert keys == {"a": Key(hash=HASH), "b": Key(hash=hash_of("b"), scopes=frozenset({"metrics", "admin"}))}


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "wanted a table [keys.NAME]"),
        ("[keys]", "wanted a table [keys.NAME]"),
        (f'[app]\nhash = "{HASH}"', "wanted a table [keys.NAME]"),
        ("[keys", "not valid TOML"),
        ("[keys.app]\n", "keys.app.hash: Field required"),
        (f'[keys.app]\nhash = "{SECRET}"', "keys.app.hash: wanted sha256: and 64 hexadecimal digits"),
        (f'[keys.app]\nhash = "{HASH}"\nscopes = ["{SECRET}"]', "keys.app.scopes.0: should be 'infer', 'metrics' or"),
        (f'[keys.app]\nhash = "{HASH}"\nsecret = "{SECRET}"', "keys.app.secret: Extra inputs are not permitted"),
        (f'[keys.app]\nhash = "{HASH}"\nrequests_per_s = -1', "keys.app.requests_per_s: should be greater than"),
        (f'[keys.app]\nhash = "{HASH}"\ntokens_per_s = inf', "keys.app.tokens_per_s: should be a finite number"),
        (f'[keys.app]\nhash = "{HASH}"\nweight = 0', "keys.app.weight: should be greater than 0"),
        (f'[keys.none]\nhash = "{HASH}"', "keys.none: wanted a name"),
        (f'[keys."a b"]\nhash = "{HASH}"', "keys.a b: wanted a name"),
        (f'keys = "{SECRET}"', "keys: should be a valid dictionary"),
    ],
)
def test_the_error_of_an_invalid_keys_file_names_the_field_and_not_the_value(
    tmp_path: Path, text: str, words: str
) -> None:
    file = write(tmp_path, text)
    with pytest.raises(SettingError) as caught:
        read_keys(file)
    assert caught.value.detail.startswith(f"keys file {file}: ")
    assert words in caught.value.detail
    assert SECRET not in caught.value.detail


def test_the_error_of_a_missing_keys_file_names_it(tmp_path: Path) -> None:
    with pytest.raises(SettingError, match=r"none\.toml: No such file"):
        read_keys(tmp_path / "none.toml")


@pytest.mark.parametrize("words", [(SECRET,), (HASH, SECRET), (HASH[:-1],), (HASH.upper(),)])
def test_the_error_of_an_invalid_key_setting_shows_no_value(words: tuple[str, ...]) -> None:
    with pytest.raises(SettingError, match=r"security\.keys\.app") as caught:
        parse_keys({"app": words})
    assert SECRET not in caught.value.detail


def bucket(rate: float) -> tuple[Bucket, FakeClock]:
    clock = FakeClock()
    made = Bucket(clock)
    made.set_rate(rate)
    return made, clock


def drawn(made: Bucket, at_most: int = 100) -> int:
    """How many times 1 can be drawn without waiting."""
    for count in range(at_most):
        if made.wait_s():
            return count
        made.draw(1)
    return at_most


def test_a_bucket_holds_one_second_of_its_rate() -> None:
    made, clock = bucket(4)
    assert drawn(made) == 4
    clock.now += 0.5
    assert drawn(made) == 2
    clock.now += 60
    assert drawn(made) == 4


def test_a_bucket_below_one_per_second_holds_one() -> None:
    made, clock = bucket(0.5)
    assert drawn(made) == 1
    clock.now += 60
    assert drawn(made) == 1


def test_wait_s_is_the_time_until_the_next_draw() -> None:
    made, clock = bucket(4)
    drawn(made)
    clock.now += 0.125
    assert made.wait_s() == pytest.approx(0.125, abs=1e-5)
    clock.now += made.wait_s()
    assert made.wait_s() == 0.0


def test_a_bucket_in_debt_is_closed_until_it_has_refilled() -> None:
    made, clock = bucket(100)
    made.draw(1000)
    assert made.wait_s() == pytest.approx(9.01, abs=1e-5)
    clock.now += 9
    assert made.wait_s() > 0
    clock.now += 0.01
    assert made.wait_s() == 0.0


def test_a_bucket_without_a_rate_never_closes() -> None:
    made, _ = bucket(0)
    made.draw(1e9)
    assert made.wait_s() == 0.0


def test_a_new_rate_keeps_the_level_of_the_bucket() -> None:
    made, clock = bucket(4)
    drawn(made)
    made.set_rate(100)
    assert drawn(made) == 0
    clock.now += 0.05
    assert drawn(made) == 5
    clock.now += 60
    made.set_rate(2)
    assert drawn(made) == 2


def test_a_bucket_whose_limit_is_new_starts_full() -> None:
    made, _ = bucket(0)
    made.set_rate(3)
    assert drawn(made) == 3


def test_an_account_is_refused_at_each_of_its_limits() -> None:
    clock = FakeClock()
    account = Account("a", KeyPermissions(requests_per_s=2, tokens_per_s=100, concurrency=2), clock)
    account.enter()
    account.enter()
    assert account.refusal() == Refusal("concurrency", "the concurrency limit of this key is 2", CONCURRENCY_RETRY_S)
    account.leave()
    refusal = account.refusal()
    assert refusal is not None
    assert (refusal.reason, refusal.detail) == ("requests", "this key may send 2 requests a second")
    assert refusal.wait_s == pytest.approx(0.5, abs=1e-5)
    account.spend(150)
    clock.now += 0.5
    refusal = account.refusal()
    assert refusal is not None
    assert (refusal.reason, refusal.detail) == ("tokens", "this key may use 100 tokens a second")
    assert refusal.wait_s == pytest.approx(0.01, abs=1e-5)
    clock.now += 0.01
    assert account.refusal() is None


def test_new_permissions_keep_running_requests_and_debt() -> None:
    clock = FakeClock()
    account = Account("a", KeyPermissions(tokens_per_s=100), clock)
    account.enter()
    account.spend(300)
    account.grant(KeyPermissions(tokens_per_s=200, concurrency=1))
    assert account.refusal() == Refusal("concurrency", "the concurrency limit of this key is 1", CONCURRENCY_RETRY_S)
    account.leave()
    refusal = account.refusal()
    assert refusal is not None
    assert refusal.wait_s == pytest.approx(201 / 200, abs=1e-5)


@pytest.mark.parametrize(
    ("cap", "requested", "granted"),
    [("interactive", "bulk", "bulk"), ("interactive", "interactive", "interactive"), ("bulk", "interactive", "bulk")],
)
def test_the_priority_of_a_request_is_capped_by_its_key(cap: str, requested: str, granted: str) -> None:
    assert Account("a", KeyPermissions(priority=cap)).priority(requested) == granted  # type: ignore[arg-type]
