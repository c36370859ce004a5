"""Who may reach a service: mutual TLS, and no port that is open to everyone beyond this machine."""

from __future__ import annotations

import ipaddress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import grpc

from dekag.errors import DekagError, FileError
from dekag.files import read_bytes, read_text

if TYPE_CHECKING:
    from services.common.settings import CommonSettings

CA, CERTIFICATE, KEY = "ca.crt", "tls.crt", "tls.key"
NOWHERE = "nowhere"
MAX_METADATA_BYTES = 16 * 1024
METADATA_OPTIONS = [
    ("grpc.max_metadata_size", MAX_METADATA_BYTES),
    ("grpc.absolute_max_metadata_size", MAX_METADATA_BYTES),  # between the two gRPC refuses at random
]
"""What gRPC servers and channels alike accept of headers."""


class SettingError(DekagError):
    """A setting does not go with what is there; the message says what mends it."""


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


def check_exposure(settings: CommonSettings, host: str, what: str, *, safe: bool, mend: str) -> None:
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
            f"{what} would be open to everyone who reaches {address}: {mend}, or let nobody but this machine "
            "reach it. See docs/security.md"
        )


def read(folder: Path, *names: str, made_by: str = "dekag credentials") -> list[bytes]:
    """Contents of the files of those names in a folder; SettingError with the command that makes them."""
    try:
        return [read_bytes(folder / name) for name in names]
    except FileError as error:
        raise SettingError(f"{error}. `{made_by}` makes such files") from error


def _password(file: Path) -> str:
    """The one line of the file; SettingError if it holds none, or more."""
    try:
        password, *more = read_text(file).strip().split("\n")
    except FileError as error:
        raise SettingError(f"DEKAG_REDIS_PASSWORD_FILE: {error}") from error
    if more or not password:
        found = f"{1 + len(more)} lines" if more else "nothing"
        raise SettingError(f"DEKAG_REDIS_PASSWORD_FILE: {file} must hold one line, the password, not {found}")
    return password


def server_credentials(settings: CommonSettings) -> grpc.ServerCredentials | None:
    """What a gRPC server shows and whose certificates its clients must show; None without TLS."""
    if settings.tls_dir is None:
        return None
    authority, certificate, key = read(settings.tls_dir, CA, CERTIFICATE, KEY)
    return grpc.ssl_server_credentials([(key, certificate)], authority, require_client_auth=True)


def channel_credentials(folder: Path | None) -> grpc.ChannelCredentials | None:
    """What a gRPC client shows and whose certificate the server must show; None without TLS."""
    if folder is None:
        return None
    authority, certificate, key = read(folder, CA, CERTIFICATE, KEY)
    return grpc.ssl_channel_credentials(authority, key, certificate)


def redis_options(settings: CommonSettings) -> dict[str, Any]:
    """Arguments for ``Redis.from_url`` beside the URL: the password, and the certificates of ``rediss://``."""
    options: dict[str, Any] = {}
    if (file := settings.redis_password_file) is not None:
        options["password"] = _password(file)
    if (folder := settings.tls_dir) is not None and settings.redis_url.startswith("rediss://"):
        options |= {
            "ssl_ca_certs": str(folder / CA),
            "ssl_certfile": str(folder / CERTIFICATE),
            "ssl_keyfile": str(folder / KEY),
        }
    return options
