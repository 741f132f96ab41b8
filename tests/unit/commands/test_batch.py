"""The flags of `python -m service batch` as a job, and the settings of an actor."""

from __future__ import annotations

from argparse import ArgumentParser
from pathlib import Path

import pytest

from service.commands.batch import add_arguments, job_of, settings_for, settings_of
from service.errors import DatasetError
from service.settings import Settings
from service.tools.corpora.asking import Columns
from service.tools.corpora.job import Job
from service.tools.corpora.on_ray import Device


def job(*words: str) -> Job:
    parser = ArgumentParser()
    add_arguments(parser)
    return job_of(parser.parse_args(["in.jsonl", *words]))


def test_the_flags_say_what_is_asked() -> None:
    found = job("out.jsonl", "--task", "classify", "--labels", "a, b", "--body", '{"top_k": 1}', "--keep", "id")
    assert (found.ask.task, found.ask.body) == ("classify", {"labels": ["a", "b"], "top_k": 1})
    assert (found.keep, found.format, found.folder) == (("id",), "jsonl", "out.jsonl.parts")


@pytest.mark.parametrize(
    ("words", "columns"),
    [
        (("--task", "nli"), Columns(text_pair="text_pair")),
        (("--task", "similarity", "--text-pair", "b"), Columns(text_pair="b")),
        (("--task", "mrc", "--choices", "c"), Columns(question="question", choices="c")),
        (("--task", "embed", "--text", "body"), Columns(text="body")),
    ],
)
def test_a_task_has_the_columns_that_it_needs(words: tuple[str, ...], columns: Columns) -> None:
    assert job("out", *words).ask.columns == columns


def test_a_model_is_named_in_what_servers_are_sent() -> None:
    assert job("out", "--task", "embed", "--model", "mini").ask.body == {}
    assert job("out", "--task", "embed", "--model", "mini", "--url", "http://a").ask.body == {"model": "mini"}


@pytest.mark.parametrize(("out", "format_"), [("out/", "jsonl"), ("s3://bucket/out", "jsonl"), ("out.csv", "csv")])
def test_the_suffix_of_the_output_is_its_format(out: str, format_: str) -> None:
    assert job(out, "--task", "embed").format == format_


def test_two_formats_of_one_output_are_refused() -> None:
    with pytest.raises(DatasetError, match="--format csv"):
        job("out.jsonl", "--task", "embed", "--format", "csv")


@pytest.mark.parametrize("text", ["[]", "{", '{"inputs": []}'])
def test_a_body_that_is_no_object_of_fields_is_refused(text: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        job("out", "--task", "embed", "--body", text)
    assert "--body" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("device", "devices", "threads"), [(Device(1, 0), ("auto",), 0), (Device(0, 4), ("cpu",), 4)], ids=["gpu", "cpu"]
)
def test_an_actor_has_one_device(device: Device, devices: tuple[str, ...], threads: int) -> None:
    replicas = settings_of(Settings(), device).replicas
    assert (replicas.devices, replicas.threads) == (devices, threads)


def test_batches_of_a_corpus_are_larger_unless_the_environment_says_otherwise(monkeypatch: pytest.MonkeyPatch) -> None:
    assert settings_for(None).batching.batch_efficiency > Settings().batching.batch_efficiency
    monkeypatch.setenv("ERLANGSHEN_BATCHING__BATCH_EFFICIENCY", "0.9")
    assert settings_for(None).batching.batch_efficiency == 0.9


def test_a_job_names_its_files(tmp_path: Path) -> None:
    assert job(str(tmp_path / "out"), "--task", "embed").folder == str(tmp_path / "out")
