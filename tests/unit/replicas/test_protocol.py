"""The protocol between parent and worker process: messages survive encoding and any split of the bytes."""

from __future__ import annotations

import socket
from collections.abc import Iterator

import numpy as np
import pytest

from service.domain import Cls, Encoding, Labels, Mean, Output, Pooled, Readout, Spans, TokenScores, TopTokens
from service.replicas.protocol import ComputeRequest, ComputeResponse, Frames, Loading, Pipe, Stop, frame

READOUTS: tuple[Readout, ...] = (
    Cls(),
    Mean(),
    Pooled(("max", "lasttoken"), 3, True),
    Labels(),
    Spans(),
    TokenScores((1, 3), (7, 8)),
    TopTokens((2,), 5),
)


def encoding(length: int, readout: Readout, blocks: tuple[tuple[int, int], ...] = ()) -> Encoding:
    ids = np.arange(length, dtype=np.int32)
    return Encoding("m", ids, ids + 100, ids + 200, readout, blocks)


def array(*shape: int) -> np.ndarray:
    return np.arange(np.prod(shape), dtype=np.float32).reshape(shape)


def round_trip(message: object) -> object:
    [found] = Frames().feed(frame(message))
    return found


def test_a_request_keeps_every_field_of_its_rows() -> None:
    rows = [encoding(length, readout, ((1, 3), (3, 4))) for length, readout in enumerate(READOUTS, start=4)]
    found = round_trip(ComputeRequest(7, [*rows, encoding(1, Cls())]))
    assert isinstance(found, ComputeRequest)
    assert found.number == 7
    for row, wanted in zip(found.encodings, [*rows, encoding(1, Cls())], strict=True):
        assert (row.model, row.readout, row.blocks) == (wanted.model, wanted.readout, wanted.blocks)
        for name in ("ids", "segment_ids", "positions"):
            assert getattr(row, name).dtype == np.int32
            assert getattr(row, name).tolist() == getattr(wanted, name).tolist()


def test_an_inconsistent_row_does_not_change_the_others() -> None:
    """The engine refuses such a row, so its arrays must arrive unchanged."""
    ids = np.arange(3, dtype=np.int32)
    found = round_trip(ComputeRequest(0, [Encoding("m", ids, ids[:1], ids[:2], Cls()), encoding(2, Cls())]))
    assert isinstance(found, ComputeRequest)
    assert [len(found.encodings[0].segment_ids), len(found.encodings[0].positions)] == [1, 2]
    assert found.encodings[1].positions.tolist() == [200, 201]


def test_a_response_keeps_shapes_and_failed_rows() -> None:
    top = Output(array(2, 3), np.arange(6, dtype=np.int32).reshape(2, 3))
    found = round_trip(ComputeResponse(3, [Output(array(1, 4)), "failed", top, Output(array(2, 2))], 0.25, 64))
    assert isinstance(found, ComputeResponse)
    assert (found.number, found.compute_s, found.fitting_tokens) == (3, 0.25, 64)
    first, gap, second, third = found.outputs
    assert gap == "failed"
    assert isinstance(first, Output)
    assert isinstance(second, Output)
    assert isinstance(third, Output)
    assert first.ids is None
    assert second.ids is not None
    assert [one.scores.tolist() for one in (first, second, third)] == [
        array(1, 4).tolist(),
        array(2, 3).tolist(),
        array(2, 2).tolist(),
    ]
    assert second.ids.tolist() == [[0, 1, 2], [3, 4, 5]]


def test_a_response_of_failures_only_survives_the_round_trip() -> None:
    result = ComputeResponse(0, ["failed", "out_of_memory"], 0.5)
    assert round_trip(result) == result


@pytest.mark.parametrize("size", [1, 7, 8, 9, 1000])
def test_frames_are_found_in_pieces_of_any_size(size: int) -> None:
    messages = [Loading("m", 1, 2), Stop(), Loading("n", 3, 4)]
    stream = b"".join(map(frame, messages))
    frames = Frames()
    found = [message for start in range(0, len(stream), size) for message in frames.feed(stream[start : start + size])]
    assert found == messages


@pytest.fixture
def ends() -> Iterator[tuple[Pipe, socket.socket]]:
    ours, theirs = socket.socketpair()
    with ours:
        yield Pipe(theirs.detach()), ours


def test_recv_returns_one_whole_message_at_a_time(ends: tuple[Pipe, socket.socket]) -> None:
    pipe, other = ends
    other.sendall(frame(Stop()) + frame(Loading("m", 1, 2)))
    assert [pipe.recv(), pipe.recv()] == [Stop(), Loading("m", 1, 2)]
    pipe.send(Stop())
    assert list(Frames().feed(other.recv(1000))) == [Stop()]


@pytest.mark.parametrize("last", [b"", frame(Stop())[:5], frame(Stop())[:-1]])
def test_recv_raises_eof_when_the_pipe_is_closed(ends: tuple[Pipe, socket.socket], last: bytes) -> None:
    pipe, other = ends
    other.sendall(last)
    other.close()
    with pytest.raises(EOFError):
        pipe.recv()
