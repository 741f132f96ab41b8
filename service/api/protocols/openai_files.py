"""OpenAI's Files, as the input and the results of batches: upload, list, read, delete.

An upload is written to the disk while it is received. A file belongs to the account that uploaded it, and is not found
by another one.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from functools import partial
from typing import Any, TypeVar

from starlette.responses import FileResponse, Response

from service.api.calls import Call
from service.api.exchange import Exchange, json_response
from service.api.lines.reader import LineReader, stream_of
from service.api.multipart import FormReader
from service.domain import RequestOptions
from service.errors import BodyTooLarge, InvalidRequest, StoredFileNotFound, UnsupportedEncoding
from service.stores.batches import BatchStore
from service.stores.files import StoredFile

T = TypeVar("T")

DISABLED = "this server keeps no files and batches; start it with --data-dir DIR, a directory that it can write"
PURPOSE = "batch"
FORM_BYTES = 64 * 2**10
"""Of an upload besides its file."""
WRITE_BYTES = 2**20
MIN_EXPIRY_S, MAX_EXPIRY_S = 3600, 30 * 24 * 3600
MAX_LISTED = 10_000


def enabled(exchange: Exchange) -> BatchStore:
    """Raises StoredFileNotFound."""
    if exchange.state.batches is None:
        raise StoredFileNotFound(DISABLED)
    return exchange.state.batches


async def stored(exchange: Exchange, call: Callable[[], T]) -> T:
    """Reads or writes what is stored, in a thread. Without the deadline of the request: an upload takes its time."""
    account = exchange.context.account
    options = RequestOptions(account=account.name, weight=account.permissions.weight)
    return await exchange.state.pipeline.threads.run(options, call)


async def create_file(exchange: Exchange, body: None) -> Response:
    """`POST /v1/files`."""
    files = enabled(exchange).files
    if exchange.headers.content_encoding != "identity":
        raise UnsupportedEncoding("the body is compressed; send it as it is")
    if exchange.headers.content_length > files.quotas.max_file_bytes + FORM_BYTES:
        raise BodyTooLarge(f"the file is larger than {files.quotas.max_file_bytes} bytes (max_file_bytes)")
    form = FormReader(exchange.request.headers.get("content-type", ""))
    upload = await stored(exchange, partial(files.upload, exchange.context.account.name))
    try:
        pending = bytearray()
        async for piece in _pieces(exchange):
            pending += form.feed(piece)
            if len(pending) >= WRITE_BYTES:
                await stored(exchange, partial(upload.write, bytes(pending)))
                pending.clear()
        filename = form.finish()
        expiry_s = _checked(form.fields)

        def keep() -> StoredFile:
            upload.write(bytes(pending))
            return upload.keep(filename, PURPOSE, expiry_s)

        return json_response(_shown(await stored(exchange, keep)))
    finally:
        await stored(exchange, upload.drop)


async def _pieces(exchange: Exchange) -> AsyncIterator[bytes]:
    """The body as it comes, of any size. Raises RequestTimeout, MalformedRequest, ClientDisconnect, MemoryFull."""
    reader = LineReader(exchange.request, WRITE_BYTES, exchange.limits.body_timeout_s)
    connection = stream_of(exchange.request)
    if connection is not None:
        connection.begin_stream()
    try:
        with exchange.state.memory.reserved(2 * WRITE_BYTES):
            async for piece in reader.pieces():
                yield piece
    finally:
        if connection is not None and not reader.is_complete:
            connection.end_stream()


def _checked(fields: Mapping[str, str]) -> int | None:
    """Seconds until the file expires, or None. Raises InvalidRequest for a field that is missing or wrong."""
    if "purpose" not in fields:
        raise InvalidRequest.of("purpose", "is required")
    if fields["purpose"] != PURPOSE:
        raise InvalidRequest.of("purpose", f"must be {PURPOSE}; this server keeps files for batches alone")
    known = ("purpose", "expires_after[anchor]", "expires_after[seconds]")
    if unknown := [name for name in fields if name not in known]:
        raise InvalidRequest.of(unknown[0][:64], "unknown field")
    if not any(name in fields for name in known[1:]):
        return None
    if fields.get(known[1]) != "created_at":
        raise InvalidRequest.of("expires_after.anchor", "must be created_at")
    seconds = fields.get(known[2], "")
    if not (seconds.isascii() and seconds.isdecimal() and MIN_EXPIRY_S <= int(seconds[:9]) <= MAX_EXPIRY_S):
        message = f"must be a whole number from {MIN_EXPIRY_S} to {MAX_EXPIRY_S}"
        raise InvalidRequest.of("expires_after.seconds", message)
    return int(seconds)


async def list_files(exchange: Exchange, body: None) -> Response:
    """`GET /v1/files`."""
    query = exchange.request.query_params
    order, purpose = query.get("order", "desc"), query.get("purpose")
    if order not in ("asc", "desc"):
        raise InvalidRequest.of("order", "must be asc or desc")
    found = await stored(exchange, partial(enabled(exchange).files.all, exchange.context.account.name))
    found = [file for file in found if purpose in (None, file.purpose)]
    return json_response(page(found[:: 1 if order == "desc" else -1], query, _shown, MAX_LISTED, MAX_LISTED))


def page(
    found: Sequence[Any],
    query: Mapping[str, str],
    shown: Callable[[Any], dict[str, Any]],
    default: int,
    most: int,
) -> dict[str, Any]:
    """A page of a list, after the entry whose id the query names. Raises InvalidRequest."""
    limit = query.get("limit", str(default))
    if not (limit.isascii() and limit.isdecimal() and 1 <= int(limit[:9]) <= most):
        raise InvalidRequest.of("limit", f"must be a whole number from 1 to {most}")
    first = 0
    if after := query.get("after"):
        first = next((index for index, each in enumerate(found, 1) if each.id == after), -1)
        if first < 0:
            raise InvalidRequest.of("after", "is the id of no entry of this list")
    last = first + int(limit)
    data = [shown(each) for each in found[first:last]]
    return {
        "object": "list",
        "data": data,
        "first_id": data[0]["id"] if data else None,
        "last_id": data[-1]["id"] if data else None,
        "has_more": len(found) > last,
    }


async def read_file(exchange: Exchange, body: None) -> Response:
    """`GET /v1/files/{file_id}`."""
    return json_response(_shown(await _find(exchange)))


async def read_content(exchange: Exchange, body: None) -> Response:
    """`GET /v1/files/{file_id}/content`."""
    file = await _find(exchange)
    return FileResponse(enabled(exchange).files.path(file), media_type="application/octet-stream")


async def delete_file(exchange: Exchange, body: None) -> Response:
    """`DELETE /v1/files/{file_id}`."""
    id = exchange.request.path_params["file_id"]
    await stored(exchange, partial(enabled(exchange).files.delete, exchange.context.account.name, id))
    return json_response({"id": id, "object": "file", "deleted": True})


async def _find(exchange: Exchange) -> StoredFile:
    """Raises StoredFileNotFound."""
    id = exchange.request.path_params["file_id"]
    return await stored(exchange, partial(enabled(exchange).files.get, exchange.context.account.name, id))


def _shown(file: StoredFile) -> dict[str, Any]:
    return {
        "id": file.id,
        "object": "file",
        "bytes": file.num_bytes,
        "created_at": file.created_at,
        "expires_at": file.expires_at,
        "filename": file.filename,
        "purpose": file.purpose,
        "status": "processed",
        "status_details": None,
    }


_FILES, _ONE, _CONTENT = "/v1/files", "/v1/files/{file_id}", "/v1/files/{file_id}/content"

_FORM = {
    "type": "object",
    "required": ["file", "purpose"],
    "properties": {
        "file": {"type": "string", "format": "binary"},
        "purpose": {"type": "string", "enum": [PURPOSE]},
        "expires_after[anchor]": {"type": "string", "enum": ["created_at"]},
        "expires_after[seconds]": {"type": "integer", "minimum": MIN_EXPIRY_S, "maximum": MAX_EXPIRY_S},
    },
}

CALLS: tuple[Call, ...] = (
    Call(
        "POST",
        _FILES,
        create_file,
        roots=(_FILES,),
        summary="Upload the input of a batch",
        content={"multipart/form-data": {"schema": _FORM}},
    ),
    Call("GET", _FILES, list_files, roots=(_FILES,), summary="Files of this key"),
    Call("GET", _ONE, read_file, roots=(_ONE,), summary="A file, without its content"),
    Call("GET", _CONTENT, read_content, roots=(_CONTENT,), summary="Content of a file"),
    Call("DELETE", _ONE, delete_file, roots=(_ONE,), is_limited=False, summary="Delete a file"),
)
