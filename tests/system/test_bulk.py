"""`POST /v1/bulk` over real connections: clients that read while they send, and clients that send all first."""

from __future__ import annotations

import json
import re
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, BinaryIO

import httpx
import pytest

from tests.support.servers import Server, serving
from tests.system.test_serve import until

pytestmark = [pytest.mark.system, pytest.mark.slow]

KIB, MIB, GIB = 2**10, 2**20, 2**30
SPOOL_BYTES = 4 * MIB
WAIT_S = 120.0
PAGE = (Path(__file__).parents[2] / "docs" / "bulk.md").read_text(encoding="utf-8")
HEAD = b"POST /v1/bulk HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n"
TEXT = {"inputs": "这家餐厅的菜很好吃", "labels": ["好评", "差评"]}


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    with starting() as running:
        yield running


@contextmanager
def starting(*flags: str) -> Iterator[Server]:
    """A server that computes equal lines once."""
    spool = ("--bulk-spool-bytes", str(SPOOL_BYTES))
    with serving("--model", "mini", "--threads", "1", "--cache-entries", "1000", *spool, *flags) as running:
        yield running


def line(number: int = 0, **more: Any) -> bytes:
    return json.dumps({"custom_id": number, "url": "/v1/classify", "body": TEXT} | more).encode() + b"\n"


def padded(number: int, num_bytes: int) -> bytes:
    """A line whose reply is as long as it is, and cheap: an error with the same id."""
    return line(url="/v1/nothing", custom_id=f"{number}-" + "x" * num_bytes)


class Client:
    """One bulk request. Its buffer is small, so that little is on the way."""

    def __init__(self, server: Server, timeout_s: float = WAIT_S) -> None:
        self.socket = socket.socket()
        self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 64 * KIB)
        self.socket.settimeout(timeout_s)
        self.socket.connect(("127.0.0.1", server.port))
        self.socket.sendall(HEAD)
        self._file: BinaryIO = self.socket.makefile("rb")
        self._lines: Iterator[dict[str, Any]] | None = None

    def send(self, data: bytes) -> None:
        self.socket.sendall(b"%x\r\n%b\r\n" % (len(data), data))

    def end(self) -> None:
        self.socket.sendall(b"0\r\n\r\n")

    def send_in_thread(self, lines: Iterator[bytes]) -> threading.Thread:
        def send() -> None:
            for each in lines:
                self.send(each)
            self.end()

        thread = threading.Thread(target=send, daemon=True)
        thread.start()
        return thread

    def read(self) -> dict[str, Any]:
        """The next line of the response."""
        if self._lines is None:
            self._lines = self._read()
        return next(self._lines)

    def rest(self) -> list[dict[str, Any]]:
        """All further lines, up to the proper end of the response."""
        if self._lines is None:
            self._lines = self._read()
        return list(self._lines)

    def _read(self) -> Iterator[dict[str, Any]]:
        assert self._file.readline().startswith(b"HTTP/1.1 200")
        while self._file.readline() != b"\r\n":
            pass
        start = b""
        while size := int(self._file.readline(), 16):
            *complete, start = (start + self._file.read(size)).split(b"\n")
            yield from map(json.loads, complete)
            assert self._file.readline() == b"\r\n"
        assert (self._file.readline(), start) == (b"\r\n", b"")

    def close(self) -> None:
        self._file.close()
        self.socket.close()


@pytest.fixture
def client(server: Server) -> Iterator[Client]:
    found = Client(server)
    yield found
    found.close()


def test_a_reply_comes_while_the_request_goes_on(client: Client) -> None:
    for number in (1, 2, 3):
        client.send(line(number))
        reply = client.read()
        assert (reply["line"], reply["custom_id"], "response" in reply) == (number, number, True)
    client.end()
    assert client.rest() == []


def test_a_client_that_reads_while_it_sends_has_all_replies_in_order(client: Client) -> None:
    thread = client.send_in_thread(line(number) if number % 3 else b"\n" for number in range(1, 2001))
    replies = client.rest()
    thread.join(WAIT_S)
    assert [reply["line"] for reply in replies] == list(range(1, 2001))
    assert all(reply["custom_id"] == reply["line"] for reply in replies if reply["line"] % 3)
    assert all(reply["error"]["code"] == "malformed_body" for reply in replies if not reply["line"] % 3)


def test_a_client_that_sends_all_first_has_all_replies_and_goes_on_where_they_end(server: Server) -> None:
    """Far more than the buffers of the connection and the file of replies hold."""
    num_lines, found = 1600, list[dict[str, Any]]()
    starts = [1]
    while starts[-1] <= num_lines:
        response = httpx.post(
            f"{server.url}/v1/bulk",
            params={"start_line": starts[-1]},
            content=(padded(number, 16 * KIB) for number in range(1, num_lines + 1)),
            timeout=WAIT_S,
        )
        replies = [json.loads(each) for each in response.iter_lines()]
        last = replies.pop() if "start_line" in replies[-1] else {"start_line": num_lines + 1}
        found += replies
        starts.append(last["start_line"])
        assert last.get("error", {"code": "replies_unread"})["code"] == "replies_unread"
    assert [reply["line"] for reply in found] == list(range(1, num_lines + 1))
    assert len(starts) > 2, "its replies did not fit into one response"
    assert server.metric("bulk_ends_total", reason="replies_unread") >= 1


def test_a_server_without_a_file_stops_reading_while_its_replies_are_not_read() -> None:
    with starting("--bulk-spool-bytes", "0") as server:
        client, num_sent = Client(server, timeout_s=10.0), 0
        with suppress(TimeoutError):
            while num_sent < 10_000:
                client.send(padded(num_sent, 64 * KIB))
                num_sent += 1
        assert num_sent * 64 * KIB < 32 * MIB
        assert client.read()["line"] == 1
        client.close()


def test_a_disconnect_ends_the_request(server: Server) -> None:
    before = server.metric("bulk_ends_total", reason="disconnected")
    client = Client(server)
    client.send(b"".join(line(number, body=TEXT | {"inputs": f"菜{number}"}) for number in range(500)))
    client.read()
    client.close()
    until(lambda: server.metric("bulk_ends_total", reason="disconnected") == before + 1, WAIT_S)
    until(lambda: server.metric("queue_jobs") == 0 == server.metric("bulk_streams"), WAIT_S)


def test_a_worker_that_is_killed_costs_no_line(server: Server) -> None:
    num_lines = 60
    client = Client(server)
    client.send_in_thread(line(number, body=TEXT | {"inputs": f"很好吃{number}"}) for number in range(1, num_lines + 1))
    assert client.read()["line"] == 1
    server.replicas()[0].kill()
    replies = client.rest()
    assert [reply["line"] for reply in replies] == list(range(2, num_lines + 1))
    assert all("response" in reply for reply in replies)
    client.close()


@pytest.mark.parametrize("has_read", [True, False], ids=["reads while it sends", "sends all first"])
def test_a_stop_names_the_line_to_go_on_with(has_read: bool) -> None:
    with starting() as server:
        client = Client(server)
        client.send(b"".join(line(number) for number in range(1, 101)))
        first = [client.read()] if has_read else []
        until(lambda: server.metric("bulk_lines_total") >= 100, WAIT_S)
        stopping = threading.Thread(target=server.stop)
        stopping.start()
        if not has_read:
            client.send(b"".join(line(number) for number in range(101, 2001)))
            client.end()
        *replies, last = [*first, *client.rest()]
        assert [reply["line"] for reply in replies] == list(range(1, last["start_line"]))
        assert (last["error"]["code"], last["start_line"] > 100) == ("unavailable", True)
        client.close()
        stopping.join(WAIT_S)
        assert server.stop() == 0


def test_a_line_without_an_end_ends_the_request() -> None:
    with starting("--body-timeout-s", "2") as server:
        client = Client(server)
        client.send(line(1))
        assert client.read()["line"] == 1
        client.send(b"{")
        assert [reply["error"]["code"] for reply in client.rest()] == ["request_timeout"]
        client.close()


def rss_while(server: Server, run: Callable[[], None]) -> int:
    """The growth of the server's memory to its peak, in bytes; of the process that holds the connections."""
    process, is_done, peaks = server.process, threading.Event(), [0]
    before = process.memory_info().rss

    def watch() -> None:
        while not is_done.wait(0.05):
            peaks.append(process.memory_info().rss - before)

    watching = threading.Thread(target=watch)
    watching.start()
    run()
    is_done.set()
    watching.join()
    return max(peaks)


def test_a_gigabyte_takes_no_more_memory_than_a_megabyte(server: Server) -> None:
    def stream(num_lines: int) -> None:
        client = Client(server)
        thread = client.send_in_thread(padded(number, 256 * KIB) for number in range(1, num_lines + 1))
        for number in range(1, num_lines + 1):
            assert client.read()["line"] == number
        thread.join(WAIT_S)
        client.close()

    stream(64)
    growth = rss_while(server, lambda: stream(GIB // (256 * KIB)))
    print(f"growth of the resident memory with 1 GiB in and out: {growth / MIB:.0f} MiB", file=sys.stderr)
    assert growth < 64 * MIB


def blocks(kind: str) -> list[str]:
    return re.findall(rf"```{kind}\n(.*?)```\n", PAGE, re.DOTALL)


def test_the_code_of_the_page_runs(server: Server, tmp_path: Path) -> None:
    [code] = blocks("python")
    lines = blocks("json")[0]
    [command] = blocks("bash")
    (tmp_path / "requests.ndjson").write_text(lines, encoding="utf-8")
    ready = code.replace("http://127.0.0.1:8000", server.url)
    done = subprocess.run([sys.executable, "-c", ready], cwd=tmp_path, capture_output=True, text=True, timeout=WAIT_S)
    assert done.returncode == 0, done.stderr
    assert [row.split()[0] for row in done.stdout.splitlines()] == ["1", "2", "3"]
    subprocess.run(["bash", "-c", command.replace("http://127.0.0.1:8000", server.url)], cwd=tmp_path, check=True)
    replies = [json.loads(row) for row in (tmp_path / "replies.ndjson").read_text().splitlines()]
    assert [(reply["line"], reply.get("custom_id")) for reply in replies] == [(1, "1"), (2, "2"), (3, None)]
