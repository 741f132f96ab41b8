"""Reads the end of a certificate's validity. The standard library offers it only for certificates of a peer.

Source: RFC 5280, section 4.1: Certificate, TBSCertificate and Validity in DER.
"""

from __future__ import annotations

import ssl
from datetime import UTC, datetime

END = "-----END CERTIFICATE-----"
VERSION, GENERALIZED_TIME = 0xA0, 0x18


def expiry_of(pem: str) -> float:
    """The time at which the first certificate of a PEM file, the server's own, expires, in seconds since 1970.

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
