"""Who may reach a service: mutual TLS, and no port that is open to everyone beyond this machine."""

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
    ("grpc.absolute_max_metadata_size", MAX_METADATA_BYTES),  # between the two gRPC refuses at random
]
"""What gRPC servers and channels alike accept of headers."""


def is_loopback(host: str) -> bool:
    """Whether only this machine reaches what listens on ``host``; of names, localhost alone says so."""
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return host == "localhost"


def exposed_on(settings: CommonSettings, host: str) -> str | None:
    """The address at which others than this machine or a trusted network reach what listens on ``host``."""
    if settings.published_on == NOWHERE or is_loopback(host):
        return None
    address = settings.published_on or host
    return None if is_loopback(address) else address or "all addresses"


def check_exposure(settings: CommonSettings, host: str, what: str, *, safe: bool, fix: str) -> None:
    """Raises SettingError if ``what`` can be reached from beyond loopback and is not ``safe``.

    Args:
        settings: of the service.
        host: address that it listens on.
        what: would be reached, for the message.
        safe: whether whoever reaches it has to say who they are.
        mend: what would make it safe.
    """
    if not safe and (address := exposed_on(settings, host)) is not None:
        raise SettingError(
            f"{what} would be open to everyone who reaches {address}: {fix}, or let nobody but this machine "
            "reach it. See docs/security.md"
        )


def read(folder: Path, *names: str, setting: str, made_by: str = "dekag credentials") -> list[bytes]:
    """Contents of the files of those names in a folder.

    Args:
        folder: where they are.
        names: of the files.
        setting: the variable that names the folder or the file, for the message.
        made_by: the command that makes them.

    Raises:
        SettingError: one cannot be read.
    """
    try:
        return [read_bytes(folder / name) for name in names]
    except FileError as error:
        raise SettingError(f"{setting}: {error}; `{made_by}` makes it") from error


def secret(file: Path, setting: str) -> str:
    """The one line of text in a file, without the mark and the line's end that editors add to it.

    Raises:
        SettingError: it cannot be read, is empty, or is not one line of UTF-8; names ``setting``.
    """
    (content,) = read(file.parent, file.name, setting=setting)
    try:
        text = decoded(content, str(file)).rstrip("\n")
    except FileError as error:
        raise SettingError(f"{setting}: {error}") from None
    if not text or text.isspace():
        raise SettingError(f"{setting}: {file} is empty")
    if len(text.splitlines()) > 1:
        raise SettingError(f"{setting}: {file} must hold one line of text, the secret")
    return text


def check_pair(folder: Path, setting: str, *, authority: bool = True) -> None:
    """Whether the files of a folder are certificates and a key that belong together.

    Args:
        folder: with tls.crt and tls.key.
        setting: the variable that names it, for the message.
        authority: whether ca.crt is there and counts, too.

    Raises:
        SettingError: one cannot be read, is none, or they do not belong together.
    """
    names = (CA, CERTIFICATE, KEY) if authority else (CERTIFICATE, KEY)
    read(folder, *names, setting=setting)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    try:
        # with a password, since a key that wants one would otherwise ask for it at the terminal
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


def server_credentials(settings: CommonSettings) -> grpc.ServerCredentials | None:
    """What a gRPC server shows and whose certificates its clients must show; None without TLS."""
    if settings.tls_dir is None:
        return None
    check_pair(settings.tls_dir, _TLS_DIR)
    authority, certificate, key = read(settings.tls_dir, CA, CERTIFICATE, KEY, setting=_TLS_DIR)
    return grpc.ssl_server_credentials([(key, certificate)], authority, require_client_auth=True)


def channel_credentials(folder: Path | None) -> grpc.ChannelCredentials | None:
    """What a gRPC client shows and whose certificate the server must show; None without TLS."""
    if folder is None:
        return None
    check_pair(folder, _TLS_DIR)
    authority, certificate, key = read(folder, CA, CERTIFICATE, KEY, setting=_TLS_DIR)
    return grpc.ssl_channel_credentials(authority, key, certificate)


def redis_options(settings: CommonSettings) -> dict[str, Any]:
    """Arguments for ``Redis.from_url`` beside the URL: the password, and the certificates of ``rediss://``."""
    options: dict[str, Any] = {}
    if (file := settings.redis_password_file) is not None:
        options["password"] = secret(file, "DEKAG_REDIS_PASSWORD_FILE")
    if (folder := settings.tls_dir) is not None and settings.redis_url.startswith("rediss://"):
        check_pair(folder, _TLS_DIR)
        options |= {
            "ssl_ca_certs": str(folder / CA),
            "ssl_certfile": str(folder / CERTIFICATE),
            "ssl_keyfile": str(folder / KEY),
        }
    return options
