"""Signatures of knowledge, and seals of cached values: who can write to Redis can delay, but not replace.

The cloud signs the manifest of each version (Ed25519) with the key in ``DEKAG_SIGNING_KEY_FILE``. A manifest
contains the hash of the update's files, so its signature covers them. The edge uses only versions that are
signed by one of the keys in ``DEKAG_TRUSTED_KEYS_FILE``. To change the key, add the new one to that file
first, then replace the cloud's, then remove the old one; none of it needs a restart.

A seal is an HMAC-SHA256 over the name of a cached value and the value, with the secret in
``DEKAG_CACHE_KEY_FILE``, which only the services that share the value know.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TypeVar

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
    load_pem_private_key,
)

from dekag.errors import FileError
from dekag.files import read_bytes
from services.common.errors import SettingError
from services.common.knowledge import VersionManifest
from services.common.watched_file import WatchedFile

SIGNING_KEY, TRUSTED_KEYS, CACHE_KEY = "signing.key", "trusted-keys", "cache.key"
SIGNED = {
    "version", "content_hash", "base_hash", "size_bytes", "scores", "created",
    "topic", "triggers", "job", "owner",
}  # fmt: skip
"""The signed fields of a manifest. A constant, so that cloud and edge agree if one of them is newer and knows
more fields. A new field that must be signed needs a signature of its own."""
_SEAL_BYTES = hashlib.sha256().digest_size
_MIN_SECRET_BYTES = 16
_MAX_KEYS = 100
_Manifest = TypeVar("_Manifest", bound=VersionManifest)
_T = TypeVar("_T")


def _watched(file: Path | None, parse: Callable[[bytes], _T]) -> WatchedFile[_T] | None:
    """A file whose bytes `parse` reads, which raises ValueError with what follows the path in the message."""

    def read(path: Path) -> _T:
        try:
            return parse(read_bytes(path))
        except FileError as error:
            raise SettingError(str(error)) from error
        except ValueError as error:
            raise SettingError(f"{path} {error}") from error

    return None if file is None else WatchedFile(file, read)


def new_signing_key() -> tuple[bytes, str]:
    """A new key in PEM, and the line of its public key for the file of trusted keys."""
    key = Ed25519PrivateKey.generate()
    pem = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    return pem, _line(key.public_key())


class Signer:
    """Signs manifests.

    Args:
        file: key in PEM, read again when it changes; None to sign nothing.

    Raises:
        SettingError: the file does not hold a key.
    """

    def __init__(self, file: Path | None) -> None:
        self._file = _watched(file, _signing_key)

    def signed(self, manifest: _Manifest) -> _Manifest:
        """The manifest with its signature; the same one without a key."""
        if self._file is None:
            return manifest
        signature = self._file.get().sign(_content(manifest))
        return manifest.model_copy(update={"signature": base64.b64encode(signature).decode()})


class TrustedKeys:
    """The keys whose signatures the edge accepts.

    Args:
        file: lines as `new_signing_key` returns them, read again when it changes; None to accept everything.

    Raises:
        SettingError: the file does not hold keys.
    """

    def __init__(self, file: Path | None) -> None:
        self._file = _watched(file, _trusted_keys)

    @property
    def required(self) -> bool:
        """Whether manifests must be signed."""
        return self._file is not None

    def accepts(self, manifest: VersionManifest) -> bool:
        """Whether the manifest is signed by a trusted key, or none is required."""
        if self._file is None:
            return True
        try:
            signature = base64.b64decode(manifest.signature, validate=True)
        except ValueError:
            return False
        content = _content(manifest)
        return any(_is_by(key, signature, content) for key in self._file.get())


class Seal:
    """Seals values that are cached where others can write.

    Args:
        file: the secret, read again when it changes; None to seal nothing.

    Raises:
        SettingError: the file does not hold a secret.
    """

    def __init__(self, file: Path | None) -> None:
        self._file = _watched(file, _secret)

    def seal(self, name: str, value: bytes) -> bytes:
        """The value with its seal, to be stored under that name."""
        return value if self._file is None else _seal_of(self._file.get(), name, value) + value

    def open(self, name: str, sealed: bytes) -> bytes | None:
        """The value; None if it was not sealed under that name with this secret."""
        if self._file is None:
            return sealed
        seal, value = sealed[:_SEAL_BYTES], sealed[_SEAL_BYTES:]
        return value if hmac.compare_digest(seal, _seal_of(self._file.get(), name, value)) else None


def _seal_of(secret: bytes, name: str, value: bytes) -> bytes:
    digest = hmac.new(secret, name.encode() + b"\0", hashlib.sha256)
    digest.update(value)
    return digest.digest()


def _content(manifest: VersionManifest) -> bytes:
    """What is signed: the kind of the manifest, and its fields in SIGNED."""
    fields: Mapping[str, object] = manifest.model_dump(include=SIGNED)
    return f"{type(manifest).__name__} ".encode() + json.dumps(fields, sort_keys=True).encode()


def _is_by(key: Ed25519PublicKey, signature: bytes, content: bytes) -> bool:
    try:
        key.verify(signature, content)
    except InvalidSignature:
        return False
    return True


def _line(key: Ed25519PublicKey) -> str:
    return base64.b64encode(key.public_bytes(Encoding.Raw, PublicFormat.Raw)).decode()


def _signing_key(content: bytes) -> Ed25519PrivateKey:
    try:
        key = load_pem_private_key(content, None)
    except (ValueError, TypeError):
        key = None
    if not isinstance(key, Ed25519PrivateKey):
        raise ValueError("must hold an Ed25519 key in PEM, without a password; `dekag credentials` makes one")
    return key


def _trusted_keys(content: bytes) -> list[Ed25519PublicKey]:
    try:
        lines = content.decode("ascii").split()
        keys = [Ed25519PublicKey.from_public_bytes(base64.b64decode(line, validate=True)) for line in lines]
    except ValueError:
        keys = []
    if not 0 < len(keys) <= _MAX_KEYS:
        raise ValueError("must hold public keys, one in each line; `dekag credentials` writes them")
    return keys


def _secret(content: bytes) -> bytes:
    if len(content.strip()) < _MIN_SECRET_BYTES:
        raise ValueError(f"must hold a secret of at least {_MIN_SECRET_BYTES} bytes")
    return content.strip()
