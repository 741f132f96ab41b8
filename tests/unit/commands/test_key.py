"""`python -m service key`: the server accepts what it prints."""

from __future__ import annotations

import re
import tomllib

import pytest

from service.api.accounts import Key, hash_of, parse_keys
from service.cli import main
from service.settings_sources import load


def test_key_prints_a_table_and_a_variable_that_the_server_accepts(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["key", "search.team", "--scopes", "metrics,infer"]) == 0
    printed = capsys.readouterr().out
    (secret,) = re.findall(r"^  (erl_\S+)$", printed, re.MULTILINE)
    lines = re.search(r"(\[keys\..*?)\n\n", printed, re.DOTALL)
    variable = re.search(r"(ERLANGSHEN_\w+)='(.*)'", printed)
    assert lines is not None
    assert variable is not None
    by_file = tomllib.loads(lines[1])["keys"]
    by_variable = parse_keys(load(environ={variable[1]: variable[2]}).security.keys)
    wanted = Key(hash=hash_of(secret), scopes=frozenset({"infer", "metrics"}))
    assert by_variable == {"search.team": wanted}
    assert {name: Key.model_validate(table) for name, table in by_file.items()} == by_variable
    assert printed.count(secret) == 1


@pytest.mark.parametrize("words", [["a b"], ["none"], ["a", "--scopes", "all"]])
def test_an_invalid_name_or_scope_is_refused(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["key", *words]) == 2
    assert "error: security.keys." in capsys.readouterr().err
