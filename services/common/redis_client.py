"""Clients of Redis whose password and certificates may change while they run."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from redis.asyncio import Redis
from redis.asyncio.connection import SSLConnection
from redis.credentials import CredentialProvider
from redis.exceptions import AuthenticationError

from services.common.errors import SettingError
from services.common.security import redis_options, secret

if TYPE_CHECKING:
    from services.common.settings import CommonSettings


class _PasswordFile(CredentialProvider):
    """The user and the password of Redis, read from the file at each connection."""

    def __init__(self, user: str | None, file: Path) -> None:
        self._user, self._file = user, file

    def get_credentials(self) -> tuple[str] | tuple[str, str]:
        try:
            password = secret(self._file, "DEKAG_REDIS_PASSWORD_FILE")
        except SettingError as error:  # while it is replaced: as if Redis had refused it
            raise AuthenticationError(str(error)) from error
        return (password,) if self._user is None else (self._user, password)


class _FreshSSLConnection(SSLConnection):
    """Reads the certificates at each connection; redis-py reads them once for each connection object."""

    def _connection_arguments(self) -> Mapping[str, Any]:
        self.ssl_context.context = None
        return super()._connection_arguments()


def open_redis(settings: CommonSettings, timeout_s: float, **options: Any) -> Redis:
    """A client of the settings' Redis, which uses new passwords and certificates from its next connection on.

    Args:
        settings: URL, password file and certificates.
        timeout_s: time limit for connecting and for each response, s.
        options: further ones of the client.
    """
    redis = Redis.from_url(
        settings.redis_url,
        socket_timeout=timeout_s,
        socket_connect_timeout=timeout_s,
        **options,
        **redis_options(settings),
    )
    pool = redis.connection_pool
    if pool.connection_class is SSLConnection:
        pool.connection_class = _FreshSSLConnection
    if (file := settings.redis_password_file) is not None:
        pool.connection_kwargs.pop("password")
        user = pool.connection_kwargs.pop("username", None)
        pool.connection_kwargs["credential_provider"] = _PasswordFile(user, file)
    return redis
