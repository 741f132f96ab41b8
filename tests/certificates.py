"""Makes self-signed certificates for 127.0.0.1 with openssl."""

from __future__ import annotations

import subprocess
from pathlib import Path


def make_certificate(folder: Path, days: int = 1) -> tuple[Path, Path]:
    """Writes a self-signed certificate, valid for `days`, and its key; returns both files."""
    cert, key = folder / "cert.pem", folder / "key.pem"
    kind = ["-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-days", str(days)]
    name = ["-subj", "/CN=127.0.0.1", "-addext", "subjectAltName=IP:127.0.0.1"]
    command = ["openssl", "req", *kind, *name, "-keyout", str(key), "-out", str(cert)]
    subprocess.run(command, check=True, capture_output=True)
    return cert, key
