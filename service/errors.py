"""All errors that a client can receive, with their HTTP status and stable code.

ServiceError
├── InvalidRequest            422 invalid_request: a field is wrong, too long or empty
│   ├── MalformedBody         400 malformed_body: not JSON or not UTF-8
│   └── UnsupportedRequest    400 unsupported_request: a chat whose answer is no choice
├── Unauthorized              401 unauthorized: no API key, or an unknown one
├── Forbidden                 403 forbidden: the key lacks the scope of this route
├── QuotaExceeded             403 quota_exceeded: the key owns as much as it may
├── HostNotAllowed            403 host_not_allowed: the Host header names another server
├── MalformedRequest          400 malformed_request: not HTTP/1.1
├── RequestTimeout            408 request_timeout: the request arrived too slowly
├── BatchHasEnded             409 batch_has_ended: it cannot be cancelled any more
├── PreconditionFailed        412 precondition_failed: the label set has another version
├── BodyTooLarge              413 body_too_large
├── UnsupportedEncoding       415 unsupported_encoding: a compressed body
├── HeadersTooLarge           431 headers_too_large
├── NotFound                  404 not_found: no such route
│   ├── ModelNotFound         404 model_not_found
│   ├── LabelSetNotFound      404 label_set_not_found
│   ├── StoredFileNotFound    404 file_not_found: not there, expired, or of another key
│   └── BatchNotFound         404 batch_not_found: not there, or of another key
├── MethodNotAllowed          405 method_not_allowed
├── RateLimited               429 rate_limited, retryable: the key is at one of its limits
├── QueueFull                 429 queue_full, retryable
├── DeadlineUnreachable       429 deadline_unreachable, retryable: the predicted wait exceeds the deadline
├── Unavailable               503 unavailable, retryable: starting, draining, no replica
│   ├── TooManyConnections    503 too_many_connections, retryable
│   ├── StorageUnavailable    503 storage_unavailable, retryable: what is stored cannot be read or written
│   ├── RepliesUnread         503 replies_unread, retryable: replies of a bulk request wait, and their file is full
│   ├── MemoryFull            503 memory_full, retryable: other requests in progress use all memory for requests
│   ├── ReplicaLost           503 replica_lost, retryable
│   └── OutOfMemory           503 out_of_memory, retryable: this row does not fit into the device's memory
├── DeadlineExceeded          504 deadline_exceeded
├── StorageFull               507 storage_full: the disk that keeps label sets and files is full
├── InferenceFailed           500 inference_failed: the forward pass failed on this row
└── StartupError              not sent to clients: the process cannot start
    ├── SettingError          a setting is invalid
    ├── DatasetError          a data set is missing or cannot be read
    └── CheckpointError       a checkpoint is missing, invalid or unsupported
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Self


@dataclass(frozen=True, slots=True)
class FieldError:
    """One problem of one field of a request; `field` is its path, as in `inputs[3].text`."""

    field: str
    message: str


class ServiceError(Exception):
    """Base of all errors that clients receive. `detail` is safe to show: it never contains a request's text.

    `row` is the row of the request that failed, where one did; the pipeline says of which input it is.
    """

    status: ClassVar[int] = 500
    code: ClassVar[str] = "internal_error"
    retryable: ClassVar[bool] = False

    def __init__(
        self,
        detail: str,
        *,
        errors: Sequence[FieldError] = (),
        retry_after_s: float | None = None,
        row: int | None = None,
    ) -> None:
        super().__init__(detail)
        self.detail = detail
        self.errors = tuple(errors)
        self.retry_after_s = retry_after_s
        self.row = row

    @classmethod
    def of(cls, field: str, message: str) -> Self:
        """An error with one problem of one field."""
        return cls(f"{field}: {message}", errors=[FieldError(field, message)])


class InvalidRequest(ServiceError):
    status = 422
    code = "invalid_request"


class MalformedBody(InvalidRequest):
    status = 400
    code = "malformed_body"


class UnsupportedRequest(InvalidRequest):
    status = 400
    code = "unsupported_request"


class Unauthorized(ServiceError):
    status = 401
    code = "unauthorized"


class Forbidden(ServiceError):
    status = 403
    code = "forbidden"


class QuotaExceeded(ServiceError):
    status = 403
    code = "quota_exceeded"


class HostNotAllowed(ServiceError):
    status = 403
    code = "host_not_allowed"


class MalformedRequest(ServiceError):
    status = 400
    code = "malformed_request"


class RequestTimeout(ServiceError):
    status = 408
    code = "request_timeout"


class BatchHasEnded(ServiceError):
    status = 409
    code = "batch_has_ended"


class PreconditionFailed(ServiceError):
    status = 412
    code = "precondition_failed"


class BodyTooLarge(ServiceError):
    status = 413
    code = "body_too_large"


class UnsupportedEncoding(ServiceError):
    status = 415
    code = "unsupported_encoding"


class HeadersTooLarge(ServiceError):
    status = 431
    code = "headers_too_large"


class NotFound(ServiceError):
    status = 404
    code = "not_found"


class ModelNotFound(NotFound):
    code = "model_not_found"


class LabelSetNotFound(NotFound):
    code = "label_set_not_found"


class StoredFileNotFound(NotFound):
    code = "file_not_found"


class BatchNotFound(NotFound):
    code = "batch_not_found"


class MethodNotAllowed(ServiceError):
    status = 405
    code = "method_not_allowed"


class RateLimited(ServiceError):
    status = 429
    code = "rate_limited"
    retryable = True


class QueueFull(ServiceError):
    status = 429
    code = "queue_full"
    retryable = True


class DeadlineUnreachable(ServiceError):
    status = 429
    code = "deadline_unreachable"
    retryable = True


class Unavailable(ServiceError):
    status = 503
    code = "unavailable"
    retryable = True


class TooManyConnections(Unavailable):
    code = "too_many_connections"


class StorageUnavailable(Unavailable):
    code = "storage_unavailable"


class RepliesUnread(Unavailable):
    code = "replies_unread"


class MemoryFull(Unavailable):
    code = "memory_full"


class ReplicaLost(Unavailable):
    code = "replica_lost"


class OutOfMemory(Unavailable):
    code = "out_of_memory"


class DeadlineExceeded(ServiceError):
    status = 504
    code = "deadline_exceeded"


class StorageFull(ServiceError):
    status = 507
    code = "storage_full"


class InferenceFailed(ServiceError):
    code = "inference_failed"


class StartupError(ServiceError):
    code = "startup_error"


class SettingError(StartupError):
    code = "setting_error"


class DatasetError(StartupError):
    code = "dataset_error"


class CheckpointError(StartupError):
    code = "checkpoint_error"


class DeviceFailure(Exception):
    """A worker process can no longer compute correctly and must be replaced. Never reaches a client."""
