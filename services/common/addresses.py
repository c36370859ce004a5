"""Types for addresses in settings, which are validated at the start and not at the first request."""

from __future__ import annotations

import ipaddress
import os
import re
from typing import Annotated
from urllib.parse import urlsplit

from pydantic import AfterValidator, BeforeValidator
from redis import ConnectionPool
from redis.connection import parse_url

NO_REDIS = "none"
MAX_SOCKET_PATH_BYTES = 107
"""Longest path of a Unix socket: Linux has room for 108 bytes, including a terminating zero."""
_LABEL = re.compile(r"(?!-)[A-Za-z0-9_-]{1,63}(?<!-)")  # names in Docker may have underscores
_MAX_NAME = 253
_REDIS = "must be like redis://host:6379/0, rediss:// or unix://, or none"


def _host(text: str) -> str:
    """A host in the form that sockets accept: IPv6 addresses without brackets."""
    if "://" in text:
        raise ValueError("must be a host name or an IP address alone, without a scheme such as http://")
    host = text[1:-1] if text.startswith("[") and text.endswith("]") else text
    try:
        ipaddress.ip_address(host)
    except ValueError:
        if ":" in text:
            raise ValueError("must be a host name or an IP address alone, without a port") from None
        if not _is_name(text):
            raise ValueError("must be a host name or an IP address") from None
    return host


def _is_name(text: str) -> bool:
    labels = text.removesuffix(".").split(".")
    # a name that ends in a number is a malformed IPv4 address such as 10.0.0.256
    return len(text) <= _MAX_NAME and all(map(_LABEL.fullmatch, labels)) and not labels[-1].isdecimal()


def _address(text: str) -> str:
    """``host:port`` of another service."""
    example = "such as 127.0.0.1:50051"
    if "://" in text:
        raise ValueError(f"must be host:port without a scheme, {example}")
    if text.endswith("/"):
        raise ValueError(f"must be host:port without a slash, {example}")
    host, colon, port = text.rpartition(":")
    if not colon or (":" in host and not host.startswith("[")) or text.endswith("]"):
        raise ValueError(f"must be host:port, {example}; write IPv6 addresses in brackets: [::1]:50051")
    if not (port.isascii() and port.isdecimal() and len(port) <= 5 and 0 < int(port) <= 65535):
        raise ValueError("must be host:port with a port from 1 to 65535")
    _host(host)
    return f"{host}:{int(port)}"


def _addresses(text: str) -> str:
    """One ``host:port``, or several with IP addresses of one kind, separated by commas."""
    if "," not in text:
        return _address(text)
    each = [_address(name) for name in listed(text)]
    try:
        kinds = {ipaddress.ip_address(one.rpartition(":")[0].strip("[]")).version for one in each}
    except ValueError:
        kinds = set()
    if len(kinds) != 1:
        raise ValueError(
            "must be one host:port, or a list of IP addresses with ports, all IPv4 or all IPv6, such as "
            "10.0.0.1:50053,10.0.0.2:50053; a host name stands for all of its addresses"
        )
    return ",".join(each)


def _hosts(text: str) -> str:
    """Names and addresses separated by commas."""
    for name in filter(None, map(str.strip, text.split(","))):
        try:
            _host(name)
        except ValueError as error:
            raise ValueError(f"each name {error}; {name!r} is not") from None
    return text


def listed(text: str) -> list[str]:
    """The names in a setting that separates them by commas."""
    return [name for name in map(str.strip, text.split(",")) if name]


def _origins(text: str) -> str:
    """Origins of web pages separated by commas, or ``*``."""
    if (names := listed(text)) == ["*"]:
        return "*"
    for name in names:
        try:
            parts = urlsplit(name)
            if (
                parts.scheme not in ("http", "https")
                or parts.netloc != name.split("://")[1]
                or parts.port == 0
            ):
                raise ValueError
            _host(parts.hostname or "")
        except (ValueError, IndexError):
            allowed = "an origin such as https://example.org or http://localhost:3000, or * alone for all"
            raise ValueError(f"each entry must be {allowed}; {name!r} is not") from None
    return text


def _published(text: str) -> str:
    return _host(text) if text else text


def _redis_or_none(url: object) -> object:
    return "" if isinstance(url, str) and url.strip().lower() == NO_REDIS else url


def _redis_url(url: str) -> str:
    """A URL that redis-py accepts without silently ignoring parts of it. Messages hide the password."""
    if not url:
        return url
    try:
        options = parse_url(url)  # type: ignore[no-untyped-call]
        ConnectionPool.from_url(url).make_connection()
        parts = urlsplit(url)
        port = parts.port
    except (ValueError, TypeError, AttributeError):
        raise ValueError(_REDIS) from None
    if parts.scheme == "unix":
        if not options.get("path"):
            raise ValueError("must name a socket, like unix:///run/redis.sock")
        if len(os.fsencode(options["path"])) > MAX_SOCKET_PATH_BYTES:
            raise ValueError(f"names a socket whose path is longer than {MAX_SOCKET_PATH_BYTES} bytes")
        return url
    if port == 0 or not parts.hostname:
        raise ValueError(f"{_REDIS}; the port is from 1 to 65535")
    _host(parts.hostname)
    if not re.fullmatch(r"/?|/[0-9]{1,5}/?", parts.path):
        raise ValueError(f"{_REDIS}; only the number of a database may follow the port")
    return url


def _spans_to(text: str) -> str:
    if text.lower() == "console":
        return "console"
    if text.startswith(("http://", "https://")):
        try:
            parts = urlsplit(text)
            if parts.port == 0 or not parts.hostname:
                raise ValueError
            _host(parts.hostname)
        except ValueError:
            raise ValueError("must be a URL such as http://localhost:4318/v1/traces") from None
    elif "://" in text or re.fullmatch(r"[^/]+:\d+(/.*)?", text):
        raise ValueError("must be console, a URL with http:// or https://, or a file (such as ./spans.jsonl)")
    return text


Host = Annotated[str, AfterValidator(_host)]
"""Host name or IP address to listen on."""
Hosts = Annotated[str, AfterValidator(_hosts)]
"""Host names and IP addresses, separated by commas."""
Origins = Annotated[str, AfterValidator(_origins)]
"""Origins of web pages, separated by commas, or ``*``."""
Address = Annotated[str, AfterValidator(_addresses)]
"""host:port of another service, or those of its replicas, separated by commas."""
PublishedOn = Annotated[str, AfterValidator(_published)]
"""A host, `nowhere`, or empty."""
RedisUrl = Annotated[str, BeforeValidator(_redis_or_none), AfterValidator(_redis_url)]
"""URL of a Redis; `none` becomes empty."""
SpansTo = Annotated[str, AfterValidator(_spans_to)]
"""Destination of spans; empty for none."""


def join(host: str, port: int) -> str:
    """``host:port``, with brackets around an IPv6 address."""
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
