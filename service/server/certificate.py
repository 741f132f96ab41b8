"""The TLS certificate: checks it, takes up a renewed one, and knows when it expires."""

from __future__ import annotations

import logging
import ssl
from datetime import UTC, datetime
from pathlib import Path

import uvicorn

from service.api.auth import Stamp, read_stamp
from service.errors import SettingError
from service.metrics import Metrics
from service.settings import Security

logger = logging.getLogger(__name__)

END = "-----END CERTIFICATE-----"
VERSION, GENERALIZED_TIME = 0xA0, 0x18


class Certificate:
    """The TLS certificate of a running server. It is read again when its files change, and on request.

    A new pair that is invalid is logged, and the previous one stays in use: programs that replace the files one after
    the other leave a moment in which they do not belong together.
    """

    def __init__(self, settings: Security, config: uvicorn.Config, metrics: Metrics) -> None:
        self._settings = settings
        self._config = config
        self._metrics = metrics
        self._stamps = self._read_stamps()
        self._last_failure = ""
        self._record_expiry()

    def reload(self) -> None:
        """Reads both files again, for new connections."""
        self._last_failure = ""
        self._try_to_load()

    def reload_if_changed(self) -> None:
        """Reads both files again if one of them has been written or replaced, through links, too."""
        if self._read_stamps() != self._stamps:
            self._try_to_load()

    def _try_to_load(self) -> None:
        if self._config.ssl is None:  # uvicorn makes it when it starts, from the files as they are then
            return
        stamps = self._read_stamps()
        try:
            check_certificate(self._settings)
            _load(self._config.ssl, self._settings)
        except SettingError as error:
            if error.detail != self._last_failure:  # once, though it is tried every second
                logger.error("certificate not reloaded: the previous one stays in use", extra={"reason": error.detail})
            self._last_failure = error.detail
        else:
            self._stamps, self._last_failure = stamps, ""
            self._record_expiry()
            logger.info("certificate reloaded")

    def _record_expiry(self) -> None:
        """Of the files, which have just been loaded."""
        if self._settings.tls_cert is None:
            return
        try:
            expiry = expiry_of(self._settings.tls_cert.read_text(encoding="utf-8", errors="replace"))
        except (OSError, ValueError) as error:
            logger.warning("the end of the certificate is unknown", extra={"reason": str(error)})
            expiry = 0.0
        self._metrics.certificate_expiry.set(expiry)

    def _read_stamps(self) -> tuple[Stamp, Stamp] | None:
        cert, key = self._settings.tls_cert, self._settings.tls_key
        return None if cert is None or key is None else (read_stamp(cert), read_stamp(key))


def check_certificate(settings: Security) -> None:
    """Checks the TLS certificate and its private key, if configured.

    Raises:
        SettingError: one of them cannot be read, or they do not belong together.
    """
    _load(ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER), settings)


def _load(context: ssl.SSLContext, settings: Security) -> None:
    """Raises SettingError."""
    cert, key = settings.tls_cert, settings.tls_key
    if cert is None or key is None:
        return
    for file in (cert, key):
        _check_readable(file)
    try:
        # With an empty password, so that an encrypted key is an error: OpenSSL would prompt for it on the terminal.
        context.load_cert_chain(cert, key, password="")
    except (ssl.SSLError, OSError) as error:
        raise SettingError(f"security.tls_cert, tls_key: {cert} and {key} are not a certificate and its key") from error


def _check_readable(file: Path) -> None:
    try:
        file.read_bytes()
    except OSError as error:
        raise SettingError(f"security.tls_cert, tls_key: {file}: {error.strerror}") from None


# when it expires


def expiry_of(pem: str) -> float:
    """The time at which the first certificate of a PEM file, the server's own, expires, in seconds since 1970.

    The standard library tells it of a peer's certificate only. Source: RFC 5280, section 4.1: Certificate,
    TBSCertificate and Validity in DER.

    Raises:
        ValueError: the text has no certificate.
    """
    begin = pem.find("-----BEGIN CERTIFICATE-----")
    first = pem[begin : pem.find(END, begin) + len(END)] if begin >= 0 else ""
    certificate = ssl.PEM_cert_to_DER_cert(first)
    _, fields, _ = _read(_read(certificate)[1])
    tag, _, rest = _read(fields)
    if tag == VERSION:  # explicit and optional
        fields = rest
    for _ in ("serialNumber", "signature", "issuer"):
        _, _, fields = _read(fields)
    _, validity, _ = _read(fields)
    _, _, not_after = _read(validity)
    tag, text, _ = _read(not_after)
    return _time(tag, text.decode("ascii"))


def _read(data: bytes) -> tuple[int, bytes, bytes]:
    """Tag and content of the first value, and what follows it."""
    if len(data) < 2:
        raise ValueError("the certificate is cut off")
    tag, size, start = data[0], data[1], 2
    if size & 0x80:
        start += size & 0x7F
        size = int.from_bytes(data[2:start], "big")
    return tag, data[start : start + size], data[start + size :]


def _time(tag: int, text: str) -> float:
    """UTCTime has two digits of the year, which mean 1950 to 2049; GeneralizedTime has four."""
    if tag != GENERALIZED_TIME:
        text = ("19" if text[:2] >= "50" else "20") + text
    return datetime.strptime(text, "%Y%m%d%H%M%SZ").replace(tzinfo=UTC).timestamp()
