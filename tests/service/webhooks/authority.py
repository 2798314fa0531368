"""A certificate authority for one test, made with the ``openssl`` command."""

from __future__ import annotations

import ssl
import subprocess
from pathlib import Path

KEY = ("-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-keyout")


class Authority:
    """``folder`` holds its key and all that it signs."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        folder.mkdir()
        self._openssl("req", "-x509", *KEY, "ca.key", "-out", "ca.pem", "-subj", "/CN=An authority for tests")

    def trusted(self) -> ssl.SSLContext:
        """For clients that trust this authority and no other."""
        return ssl.create_default_context(cafile=self.folder / "ca.pem")

    def server(self, subject: str, days: int = 1) -> ssl.SSLContext:
        """For a server that is who ``subject`` says: ``DNS:name`` or ``IP:address``. Below 0 ``days``: it was."""
        self._openssl(
            "req", *KEY, "its.key", "-out", "its.csr", "-subj", "/CN=x", "-addext", f"subjectAltName={subject}"
        )
        signing = ("-CA", "ca.pem", "-CAkey", "ca.key", "-days", str(days), "-copy_extensions", "copy")
        self._openssl("x509", "-req", "-in", "its.csr", *signing, "-out", "its.pem")
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(self.folder / "its.pem", self.folder / "its.key")
        return context

    def _openssl(self, *arguments: str) -> None:
        subprocess.run(["openssl", *arguments], cwd=self.folder, capture_output=True, check=True)
