"""Access to services: mutual TLS, and no unprotected port that is exposed beyond this machine."""

from __future__ import annotations

import ipaddress
import ssl
from pathlib import Path
from typing import TYPE_CHECKING, Any

import grpc

from dekag.errors import FileError
from dekag.files import decoded, read_bytes
from services.common.errors import SettingError

if TYPE_CHECKING:
    from services.common.settings import CommonSettings

CA, CERTIFICATE, KEY = "ca.crt", "tls.crt", "tls.key"
NOWHERE = "nowhere"
_TLS_DIR = "DEKAG_TLS_DIR"
MAX_METADATA_BYTES = 16 * 1024
METADATA_OPTIONS = [
    ("grpc.max_metadata_size", MAX_METADATA_BYTES),
    ("grpc.absolute_max_metadata_size", MAX_METADATA_BYTES),  # between the two, gRPC rejects at random
]
"""Limits on headers for both gRPC servers and channels."""


def is_loopback(host: str) -> bool:
    """Whether only this machine can connect to ``host``; the only such host name is localhost."""
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return host == "localhost"


def exposed_on(settings: CommonSettings, host: str) -> str | None:
    """The address at which untrusted machines can reach a port of ``host``; None if they cannot."""
    if settings.published_on == NOWHERE or is_loopback(host):
        return None
    address = settings.published_on or host
    return None if is_loopback(address) else address or "all addresses"


def check_exposure(settings: CommonSettings, host: str, what: str, *, safe: bool, fix: str) -> None:
    """Raises SettingError if ``what`` is exposed beyond loopback and is not ``safe``.

    Args:
        settings: settings of the service.
        host: address that it listens on.
        what: what is exposed, for the message.
        safe: whether clients have to authenticate.
        fix: how to make it safe, for the message.
    """
    if not safe and (address := exposed_on(settings, host)) is not None:
        raise SettingError(
            f"{what} would be open to everyone who can reach {address}: {fix}, or restrict it to this "
            "machine. See docs/security.md"
        )


def read(folder: Path, *names: str, setting: str, made_by: str = "dekag credentials") -> list[bytes]:
    """Contents of files in a folder.

    Args:
        folder: folder of the files.
        names: names of the files.
        setting: variable that names the folder or the file, for the message.
        made_by: command that creates them, for the message.

    Raises:
        SettingError: a file cannot be read.
    """
    try:
        return [read_bytes(folder / name) for name in names]
    except FileError as error:
        raise SettingError(f"{setting}: {error}; `{made_by}` creates it") from error


def secret(file: Path, setting: str) -> str:
    """The single line of text in a file, without byte order mark and line end.

    Raises:
        SettingError: the file cannot be read, is empty, or is not one line of UTF-8; names ``setting``.
    """
    (content,) = read(file.parent, file.name, setting=setting)
    try:
        text = decoded(content, str(file)).rstrip("\n")
    except FileError as error:
        raise SettingError(f"{setting}: {error}") from None
    if not text or text.isspace():
        raise SettingError(f"{setting}: {file} is empty")
    if len(text.splitlines()) > 1:
        raise SettingError(f"{setting}: {file} must contain exactly one line, the secret")
    return text


def server_context(folder: Path, setting: str, *, authority: bool = True) -> ssl.SSLContext:
    """TLS of a server with the certificate and key in a folder.

    Args:
        folder: folder with tls.crt and tls.key.
        setting: variable that names the folder, for the message.
        authority: whether clients must show a certificate of ca.crt.

    Raises:
        SettingError: a file cannot be read or is invalid, or certificate and key do not match.
    """
    names = (CA, CERTIFICATE, KEY) if authority else (CERTIFICATE, KEY)
    read(folder, *names, setting=setting)
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    try:
        # with an empty password, as an encrypted key would otherwise prompt for one at the terminal
        context.load_cert_chain(folder / CERTIFICATE, folder / KEY, password="")
    except (OSError, ValueError) as error:
        raise SettingError(
            f"{setting}: {folder / CERTIFICATE} and {folder / KEY} must be a certificate and its key in PEM, "
            f"without a password ({error})"
        ) from None
    if authority:
        try:
            context.load_verify_locations(folder / CA)
        except OSError as error:
            raise SettingError(f"{setting}: {folder / CA} must be a certificate in PEM ({error})") from None
        context.verify_mode = ssl.CERT_REQUIRED
    return context


def channel_credentials(folder: Path | None) -> grpc.ChannelCredentials | None:
    """Credentials of a gRPC client for one use; None without TLS."""
    if folder is None:
        return None
    server_context(folder, _TLS_DIR)  # says what is wrong
    authority, certificate, key = read(folder, CA, CERTIFICATE, KEY, setting=_TLS_DIR)
    return grpc.ssl_channel_credentials(authority, key, certificate)


def file_signature(file: Path) -> tuple[int, int, int] | None:
    """What changes when a file is replaced or written; None if it does not exist."""
    try:
        stat = file.stat()
    except OSError:
        return None
    return stat.st_mtime_ns, stat.st_size, stat.st_ino


def redis_options(settings: CommonSettings) -> dict[str, Any]:
    """Arguments for ``Redis.from_url`` besides the URL: password, and certificates for ``rediss://``."""
    options: dict[str, Any] = {}
    if (file := settings.redis_password_file) is not None:
        options["password"] = secret(file, "DEKAG_REDIS_PASSWORD_FILE")
    if (folder := settings.tls_dir) is not None and settings.redis_url.startswith("rediss://"):
        server_context(folder, _TLS_DIR)  # says what is wrong
        options |= {
            "ssl_ca_certs": str(folder / CA),
            "ssl_certfile": str(folder / CERTIFICATE),
            "ssl_keyfile": str(folder / KEY),
        }
    return options
