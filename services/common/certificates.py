"""Certificates that are replaced while their service runs: new connections use the new ones within seconds.

What has been read stays in use until the replacement is whole and valid, so that it does not matter in which
order the files are written.
"""

from __future__ import annotations

import functools
import ssl
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import grpc
import structlog
from cryptography import x509

from services.common import metrics, security
from services.common.errors import SettingError
from services.common.settings import CommonSettings
from services.common.watched_file import CHECK_INTERVAL_S

TLS_DIR, HTTPS_DIR = "DEKAG_TLS_DIR", "DEKAG_HTTPS_DIR"
WARN_DAYS = 30.0
"""Days before the end of a certificate from which on the log warns."""
_WARN_EVERY_S = 86_400.0
_log = structlog.get_logger()
_Signature = tuple[tuple[int, int, int] | None, ...]


@dataclass(frozen=True)
class _Files:
    """Contents of ca.crt (empty without an authority), tls.crt and tls.key; ``ends`` in Unix time, s."""

    authority: bytes
    certificate: bytes
    key: bytes
    ends: float


class Certificates:
    """The certificate, key and authority in a folder, as they are now.

    Args:
        folder: with tls.crt, tls.key and, if ``authority``, ca.crt.
        setting: variable that names the folder, for messages.
        authority: whether there is an authority.

    Raises:
        SettingError: a file is missing or invalid.
    """

    def __init__(self, folder: Path, setting: str, *, authority: bool = True) -> None:
        self._folder, self._setting, self._authority = folder, setting, authority
        self._names = (*((security.CA,) if authority else ()), security.CERTIFICATE, security.KEY)
        self._lock = threading.Lock()
        self._on_change: list[Callable[[], None]] = []
        self._watched = False
        self._warned = -_WARN_EVERY_S
        self._signature = self._refused = self._stat()
        self._files, self._checked = self._read(), time.monotonic()
        self._note()

    def current(self) -> _Files:
        """The files; read again if they have changed and are valid together."""
        with self._lock:
            if time.monotonic() - self._checked < CHECK_INTERVAL_S:
                return self._files
            self._checked = time.monotonic()
            if (signature := self._stat()) != self._signature:
                try:
                    files = self._read()
                    for notify in self._on_change:
                        notify()
                except (SettingError, OSError, ValueError) as error:  # perhaps only half is replaced
                    if signature != self._refused:  # they are tried again, but told once
                        _log.warning("changed certificates are not used yet", error=str(error))
                    self._refused = signature
                else:
                    self._files, self._signature = files, signature
                    _log.info("certificates read again", folder=str(self._folder))
            self._note()
            return self._files

    @property
    def problem(self) -> str:
        """Why connections fail now: the certificate has expired; empty if it has not."""
        days = (time.time() - self.current().ends) / 86_400
        file = self._folder / security.CERTIFICATE
        return "" if days < 0 else f"the certificate {file} expired {days:.1f} days ago; renew it"

    def keep_current(self, context: ssl.SSLContext) -> None:
        """Makes a server's context use the files as they are at each handshake.

        Loading new files into a context in use would fail handshakes that are in progress, and keep the last
        authority; so each change makes another context, to which handshakes are handed over.
        """
        latest = [context]

        def renew() -> None:
            new = security.server_context(self._folder, self._setting, authority=self._authority)
            new.options = context.options
            latest[0] = new

        def hand_over(connection: ssl.SSLObject, name: str | None, used: ssl.SSLContext) -> None:
            connection.context = latest[0]

        context.sni_callback = hand_over
        self._on_change.append(renew)

    def watch(self) -> None:
        """Looks at the files every second from now on, in a thread; warns of the end of the certificate."""
        if self._watched:
            return
        self._watched = True

        def look() -> None:
            while True:
                time.sleep(CHECK_INTERVAL_S)
                try:
                    self.current()
                except Exception:  # the thread must not end
                    _log.exception("cannot look at the certificates")

        threading.Thread(target=look, name="certificates", daemon=True).start()

    def _read(self) -> _Files:
        security.server_context(self._folder, self._setting, authority=self._authority)  # says what is wrong
        *authority, certificate, key = security.read(self._folder, *self._names, setting=self._setting)
        ends = x509.load_pem_x509_certificate(certificate).not_valid_after_utc
        return _Files(b"".join(authority), certificate, key, ends.timestamp())

    def _stat(self) -> _Signature:
        return tuple(security.file_signature(self._folder / name) for name in self._names)

    def _note(self) -> None:
        ends = self._files.ends
        metrics.CERTIFICATE_ENDS.labels(self._setting).set(ends)
        days = (ends - time.time()) / 86_400
        if days < WARN_DAYS and time.monotonic() - self._warned >= _WARN_EVERY_S:
            self._warned = time.monotonic()
            _log.warning(
                "the certificate has expired" if days < 0 else "the certificate expires soon",
                file=str(self._folder / security.CERTIFICATE),
                on=datetime.fromtimestamp(ends, UTC).date().isoformat(),
            )


@functools.cache
def certificates_in(folder: Path, setting: str) -> Certificates:
    """The certificates in a folder, the same object for all who use it; raises what `Certificates` raises.

    Args:
        folder: with tls.crt, tls.key and, for mutual TLS, ca.crt.
        setting: TLS_DIR for mutual TLS, or HTTPS_DIR.
    """
    return Certificates(folder, setting, authority=setting == TLS_DIR)


def serve_metrics(settings: CommonSettings) -> None:
    """`metrics.serve`, with certificates that are kept current."""
    context = metrics.serve(settings)
    if context is not None and settings.tls_dir is not None:
        certificates = certificates_in(settings.tls_dir, TLS_DIR)
        certificates.keep_current(context)
        certificates.watch()


def server_credentials(certificates: Certificates) -> grpc.ServerCredentials:
    """Credentials of a gRPC server, which requires client certificates; looked up at each connection."""
    used = certificates.current()

    def configuration(files: _Files) -> grpc.ServerCertificateConfiguration:
        return grpc.ssl_server_certificate_configuration([(files.key, files.certificate)], files.authority)

    def fetch() -> grpc.ServerCertificateConfiguration | None:
        nonlocal used
        files = certificates.current()
        if files is used:
            return None  # the last one remains in use
        used = files
        return configuration(files)

    return grpc.dynamic_ssl_server_credentials(
        configuration(used),
        fetch,  # type: ignore[arg-type]  # may return None, which the stubs do not know
        require_client_authentication=True,
    )
