"""What a key is, how a secret is made, and what is refused in a keys file, without showing it."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from service.api.keys import Key, Rights, hash_of, keys_of_file, keys_of_setting, new_secret
from service.errors import SettingError

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


def test_a_file_tells_everything_of_a_key(tmp_path: Path) -> None:
    text = (
        f'[keys.app]\nhash = "{HASH}"\n'
        f'[keys."batch.job"]\nhash = "{hash_of("b")}"\nscopes = ["infer", "metrics"]\nrequests_per_s = 5\n'
        'tokens_per_s = 2000.5\nconcurrency = 4\npriority = "bulk"\nweight = 0.5\n'
    )
    keys = keys_of_file(write(tmp_path, text))
    assert keys["app"] == Key(hash=HASH)
    assert keys["app"].model_dump(exclude={"hash"}) == Rights().model_dump()
    assert Rights() == Rights(scopes=frozenset({"infer"}), priority="interactive", weight=1.0)
    assert keys["batch.job"] == Key(
        hash=hash_of("b"),
        scopes=frozenset({"infer", "metrics"}),
        requests_per_s=5,
        tokens_per_s=2000.5,
        concurrency=4,
        priority="bulk",
        weight=0.5,
    )


def test_a_setting_tells_hash_and_scopes() -> None:
    keys = keys_of_setting({"a": (HASH,), "b": (hash_of("b"), "metrics", "admin")})
    assert keys == {"a": Key(hash=HASH), "b": Key(hash=hash_of("b"), scopes=frozenset({"metrics", "admin"}))}


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "wanted a table [keys.NAME]"),
        ("[keys]", "wanted a table [keys.NAME]"),
        (f'[app]\nhash = "{HASH}"', "wanted a table [keys.NAME]"),
        ("[keys", "it is not TOML"),
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
def test_what_is_wrong_with_a_file_is_told_without_what_it_says(tmp_path: Path, text: str, words: str) -> None:
    file = write(tmp_path, text)
    with pytest.raises(SettingError) as caught:
        keys_of_file(file)
    assert caught.value.detail.startswith(f"keys file {file}: ")
    assert words in caught.value.detail
    assert SECRET not in caught.value.detail


def test_a_file_that_is_not_there_is_told(tmp_path: Path) -> None:
    with pytest.raises(SettingError, match=r"none\.toml: No such file"):
        keys_of_file(tmp_path / "none.toml")


@pytest.mark.parametrize("words", [(SECRET,), (HASH, SECRET), (HASH[:-1],), (HASH.upper(),)])
def test_what_is_wrong_with_a_setting_is_told_without_what_it_says(words: tuple[str, ...]) -> None:
    with pytest.raises(SettingError, match=r"security\.keys\.app") as caught:
        keys_of_setting({"app": words})
    assert SECRET not in caught.value.detail
