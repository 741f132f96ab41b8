"""The input file of a batch: what is wrong with which line, and lines that are read one after the other."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from service.api.lines.batch_input import MAX_ERRORS, Checked, InputFile, InputLimits

LIMITS = InputLimits(max_lines=200, max_body_bytes=1000, max_values=100)
ENDPOINT = "/v1/embeddings"


def line(custom_id: Any = "1", **more: Any) -> bytes:
    value = {"custom_id": custom_id, "method": "POST", "url": ENDPOINT, "body": {"input": "好", "model": "e5"}, **more}
    return json.dumps({name: each for name, each in value.items() if each is not ...}, ensure_ascii=False).encode()


def check(path: Path, *lines: bytes, end: bytes = b"\n") -> Checked:
    (path / "in.jsonl").write_bytes(b"\n".join(lines) + end)
    with InputFile(path / "in.jsonl", LIMITS) as file:
        return file.check(ENDPOINT)


@pytest.mark.parametrize("end", [b"", b"\n", b"\r\n"])
def test_a_good_file_has_its_lines_and_its_model(tmp_path: Path, end: bytes) -> None:
    other = line("2", body={"input": "x"})
    assert check(tmp_path, line("1"), other, end=end) == Checked(2, "e5", [])


@pytest.mark.parametrize(
    ("wrong", "code", "param", "message"),
    [
        (b"", "invalid_json_line", None, "blank"),
        (b"  ", "invalid_json_line", None, "blank"),
        (b"nope", "invalid_json_line", None, "not JSON"),
        (b"[1]", "invalid_json_line", None, "no JSON object"),
        (line("2").replace("好".encode(), b"\xff"), "invalid_json_line", None, "not UTF-8"),
        (line("2", body={"input": "x" * 6000}), "invalid_json_line", None, "more than 5096 bytes"),
        (line("2", body={"input": [1] * 200}), "invalid_json_line", None, "more than 100 JSON values"),
        (line(...), "missing_required_parameter", "custom_id", "'custom_id'"),
        (line("2", body=...), "missing_required_parameter", "body", "'body'"),
        (line(2), "invalid_request", "custom_id", "must be a string"),
        (line(""), "invalid_request", "custom_id", "1 to 512"),
        (line("2", body=[]), "invalid_request", "body", "must be an object"),
        (line("2", method="GET"), "invalid_request", "method", "must be POST"),
        (line("2", url="/v1/moderations"), "url_mismatch", "url", ENDPOINT),
        (line("2", body={"input": "x", "model": "mini"}), "model_mismatch", "body.model", "one model"),
        (line("2", body={"messages": [], "stream": True}), "invalid_request", "body.stream", "cannot stream"),
        (line("1"), "duplicate_custom_id", "custom_id", "unique"),
    ],
)
def test_a_wrong_line_is_named(tmp_path: Path, wrong: bytes, code: str, param: str | None, message: str) -> None:
    checked = check(tmp_path, line("1"), wrong, line("3"))
    [error] = checked.errors
    assert (error["code"], error["param"], error["line"]) == (code, param, 2)
    assert message in error["message"]
    assert checked.num_lines == 3


def test_an_empty_file_and_one_of_too_many_lines(tmp_path: Path) -> None:
    assert [error["code"] for error in check(tmp_path, end=b"").errors] == ["empty_file"]
    [error] = check(tmp_path, *(line(str(number)) for number in range(201))).errors
    assert (error["code"], error["line"]) == ("too_many_tasks", None)


def test_so_many_errors_are_enough(tmp_path: Path) -> None:
    assert len(check(tmp_path, *[b"nope"] * (MAX_ERRORS + 50)).errors) == MAX_ERRORS


def test_no_text_of_a_line_is_in_an_error(tmp_path: Path) -> None:
    checked = check(tmp_path, b"secret", line("secret"), line("secret", url="/v1/moderations"))
    assert "secret" not in json.dumps(checked.errors)


def test_lines_are_taken_one_after_the_other_and_skipped(tmp_path: Path) -> None:
    check(tmp_path, *(line(str(number)) for number in range(5)))
    with InputFile(tmp_path / "in.jsonl", LIMITS) as file:
        file.skip(1)
        taken = [file.take(2, 10**6), file.take(9, 1), file.take(9, 10**6), file.take(9, 10**6)]
        file.rewind()
        assert file.take(1, 10**6) == [line("0")]
    assert [[json.loads(each)["custom_id"] for each in lines] for lines in taken] == [["1", "2"], ["3"], ["4"], []]
