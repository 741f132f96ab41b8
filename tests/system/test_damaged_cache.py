"""Cached weights that are damaged before a start, and while real worker processes use them: answers stay right."""

from __future__ import annotations

import asyncio
import json
import os
import signal
from collections.abc import Callable, Iterable
from functools import partial
from pathlib import Path

import httpx
import numpy as np
import pytest

from service.batching.batcher import Batcher
from service.checkpoints.checkpoint import Checkpoint, describe
from service.domain import Encoding, FloatArray, Mean
from tests.checkpoints import make_checkpoint
from tests.fakes import value
from tests.support.engines import load_watched
from tests.system.replicas import compose, running, without_back_off
from tests.system.test_serve import ANSWER_S, serving

pytestmark = [pytest.mark.anyio, pytest.mark.system]


@pytest.fixture(scope="module")
def anyio_backend() -> tuple[str, dict[str, bool]]:
    """The loop that the service runs on."""
    return "asyncio", {"use_uvloop": True}


# the whole server


def cached_file(cache: Path) -> Path:
    (file,) = cache.glob("*.safetensors")
    return file


def change(file: Path, place: int, content: bytes | bytearray) -> None:
    with file.open("r+b") as stream:  # the same file: it may be mapped
        stream.seek(place)
        stream.write(content)


def flip_a_bit(file: Path) -> None:
    place = file.stat().st_size * 3 // 4
    change(file, place, bytes([file.read_bytes()[place] ^ 0x40]))


def flip_a_bit_of_a_layout(file: Path) -> None:
    content = file.read_bytes()
    place = 8 + int.from_bytes(content[:8], "little") + 100
    change(file, place, bytes([content[place] ^ 0x40]))


def fill_a_page(file: Path) -> None:
    change(file, file.stat().st_size // 2, b"\xff" * 4096)


def put_a_folder_in_its_place(file: Path) -> None:
    file.unlink()
    file.mkdir()
    (file / "kept").touch()


DAMAGES: dict[Callable[[Path], None], str] = {
    flip_a_bit: "cached weights are damaged",
    flip_a_bit_of_a_layout: "cached weights are damaged",
    fill_a_page: "cached weights are damaged",
    put_a_folder_in_its_place: "weights are not cached",
}
"""And the one warning that follows."""


def test_a_server_starts_from_a_damaged_cache_and_answers_as_before(tmp_path: Path) -> None:
    model = make_checkpoint(tmp_path / "pickled", file_format="bin", num_layers=1)
    cache = tmp_path / "cache"
    flags = ("--model", str(model), "--weight-cache-dir", str(cache), "--log-format", "json")
    flags += ("--runtime", "torch")  # each runtime has a form of its own, and both are as fast for so small a model

    def start() -> tuple[object, list[str]]:
        """An answer, and the warnings of the start."""
        with serving(*flags) as server:
            reply = httpx.post(f"{server.url}/v1/embed", json={"inputs": "今天天气好"}, timeout=ANSWER_S)
        records = [json.loads(line) for line in server.lines if line.startswith("{")]
        assert reply.status_code == 200
        return reply.json()["results"], [each["message"] for each in records if each["level"] != "info"]

    known, warnings = start()
    assert warnings == []
    for damage, warning in DAMAGES.items():
        damage(cached_file(cache))
        assert start() == (known, [warning]), damage.__name__


# worker processes


async def first_checks(folder: Path, pids: Iterable[int]) -> None:
    """Waits until each process has checked the weights that it uses."""
    await until(lambda: all((folder / f"checked-{pid}").exists() for pid in pids))


async def until(condition: Callable[[], bool]) -> None:
    for _ in range(6000):
        if condition():
            return
        await asyncio.sleep(0.01)
    raise TimeoutError


@pytest.fixture
def model(tmp_path: Path) -> Checkpoint:
    return describe(make_checkpoint(tmp_path / "model", file_format="bin", num_layers=1), "m")


def question(token: int) -> Encoding:
    zeros = np.zeros(3, dtype=np.int32)
    return Encoding("m", np.full(3, token, dtype=np.int32), zeros, np.arange(3, dtype=np.int32), Mean())


async def answers(batcher: Batcher) -> FloatArray:
    results = await asyncio.gather(*(batcher.submit([question(token)]) for token in range(1, 60)))
    return np.stack([result.outputs[0].scores for result in results])


@pytest.mark.slow
async def test_damage_found_in_use_ends_the_replica_and_its_answers(tmp_path: Path, model: Checkpoint) -> None:
    cache = tmp_path / "cache"
    load = partial(load_watched, weight_cache=cache, is_large=True)
    (tmp_path / "one").mkdir()
    async with running(compose(tmp_path / "one", load=load, model=model)) as service:
        known = await answers(service.batcher)
    flip_many_words(cached_file(cache))
    distrusted = 0

    def distrust() -> None:
        nonlocal distrusted
        distrusted += 1

    (tmp_path / "two").mkdir()
    service = compose(tmp_path / "two", load=load, model=model, on_wrong_answer=distrust)
    async with running(service):
        await until(lambda: service.losses() == {"wrong": 1} and service.pool.is_ready())
        assert distrusted == 1
        assert np.array_equal(await answers(service.batcher), known)
    assert service.losses() == {"wrong": 1}


def flip_many_words(file: Path) -> None:
    """A bit of the exponent of many numbers of the word embeddings: finite, and wrong for most texts."""
    begin, end = place_of(file, "embeddings.word_embeddings.weight")
    words = bytearray(file.read_bytes()[begin:end])
    for place in range(3, len(words), 256):
        words[place] ^= 0x02
    change(file, begin, words)


def place_of(file: Path, name: str) -> tuple[int, int]:
    """The first and the last byte of a weight whose name starts like this."""
    content = file.read_bytes()
    start = 8 + int.from_bytes(content[:8], "little")
    entries = json.loads(content[8:start]).items()
    found = [entry for each, entry in entries if each.startswith(name) and each.endswith("weight")]
    begin, end = found[0]["data_offsets"]
    return start + begin, start + end


@pytest.mark.slow
async def test_what_one_replica_finds_is_checked_by_the_others(tmp_path: Path, model: Checkpoint) -> None:
    """The file changes while two replicas map it. One is killed, and its successor finds the damage."""
    cache = tmp_path / "cache"
    load = partial(load_watched, weight_cache=cache)
    service = compose(
        tmp_path, devices=("cpu", "cpu"), load=load, model=model, policy=without_back_off(canary_interval_s=0.0)
    )
    async with running(service):
        known = await answers(service.batcher)
        await first_checks(tmp_path, service.pool.pids().values())
        flip_many_words(cached_file(cache))
        assert not np.array_equal(await answers(service.batcher), known), "the file is mapped"
        os.kill(service.pid, signal.SIGKILL)
        await until(lambda: value(service.metrics, "replica_losses_total", replica="cpu#2", reason="wrong") == 1)
        await until(lambda: service.pool.num_ready() == 2)
        assert service.losses() == {"killed": 1}
        assert np.array_equal(await answers(service.batcher), known)


async def test_a_wrong_canary_has_the_weights_checked_before_they_are_used_again(
    tmp_path: Path, model: Checkpoint
) -> None:
    cache = tmp_path / "cache"
    load = partial(load_watched, weight_cache=cache, is_large=True)
    service = compose(tmp_path, load=load, model=model, policy=without_back_off(canary_interval_s=0.2))
    async with running(service):
        known = await answers(service.batcher)
        await first_checks(tmp_path, [service.pid])
        file = cached_file(cache)
        begin, end = place_of(file, "encoder.layer.0.attention.output.dense.")
        change(file, begin, b"\xff" * (end - begin))
        await until(lambda: service.losses() == {"wrong": 1} and service.pool.is_ready())
        assert np.array_equal(await answers(service.batcher), known)
        assert service.losses() == {"wrong": 1}
