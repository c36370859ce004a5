"""Knowledge is signed by its cloud and cached values are sealed; keys change without a restart."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from services.common import watched_file
from services.common.errors import SettingError
from services.common.knowledge import Manifest
from services.common.signing import Seal, Signer, TrustedKeys, new_signing_key
from services.common.transmission import TransmissionManifest

VERSION = {
    "version": 3,
    "content_hash": "a" * 64,
    "base_hash": "b" * 64,
    "size_bytes": 5,
    "scores": {"clip_after": 0.123456789012345, "clip_before": 1e-7},
    "created": 1.7e9 + 1 / 3,
}
MANIFEST = Manifest(topic="neon", triggers=("neon",), job="1" * 32, **VERSION)


@pytest.fixture(autouse=True)
def _notice_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(watched_file, "CHECK_INTERVAL_S", 0.0)


def write(file: Path, content: bytes) -> Path:
    """As `dekag credentials` does."""
    (new := file.with_suffix(".new")).write_bytes(content)
    new.replace(file)
    return file


def test_a_signature_covers_every_field_and_the_kind(tmp_path: Path) -> None:
    key, line = new_signing_key()
    signer = Signer(write(tmp_path / "key", key))
    trusted = TrustedKeys(write(tmp_path / "trusted", line.encode()))
    signed = signer.signed(MANIFEST)
    assert trusted.accepts(signed)
    assert trusted.accepts(Manifest.from_proto(signed.to_proto()))
    assert trusted.accepts(Manifest.model_validate_json(signed.model_dump_json()))
    assert signer.signed(signed) == signed
    changes = {
        "topic": "snail",
        "triggers": ("a",),
        "job": "",
        "version": 4,
        "content_hash": "c" * 64,
        "base_hash": "c" * 64,
        "size_bytes": 6,
        "scores": {},
        "created": 0.0,
        "signature": "",
        "owner": "alice",
    }
    assert changes.keys() == Manifest.model_fields.keys()
    for name, value in changes.items():
        assert not trusted.accepts(signed.model_copy(update={name: value})), name
    assert not trusted.accepts(signed.model_copy(update={"signature": "no base64"}))
    adapters = TransmissionManifest(**VERSION)
    assert trusted.accepts(signer.signed(adapters))
    assert not trusted.accepts(adapters.model_copy(update={"signature": signed.signature}))
    assert TrustedKeys(None).accepts(MANIFEST)
    assert Signer(None).signed(MANIFEST) is MANIFEST


def test_keys_rotate_without_a_restart(tmp_path: Path) -> None:
    (first, first_line), (second, second_line) = new_signing_key(), new_signing_key()
    signer = Signer(write(tmp_path / "key", first))
    trusted = TrustedKeys(write(tmp_path / "trusted", first_line.encode()))
    old = signer.signed(MANIFEST)
    write(tmp_path / "trusted", f"{second_line}\n{first_line}\n".encode())
    assert trusted.accepts(old)
    write(tmp_path / "key", second)
    new = signer.signed(MANIFEST)
    assert new != old
    assert trusted.accepts(new)
    write(tmp_path / "trusted", f"{second_line}\n".encode())
    assert trusted.accepts(new)
    assert not trusted.accepts(old), "its key was revoked"
    write(tmp_path / "trusted", b"garbage")
    assert trusted.accepts(new), "a broken file changes nothing"
    assert not trusted.accepts(old)
    os.unlink(tmp_path / "trusted")  # noqa: PTH108
    assert trusted.accepts(new)


@pytest.mark.parametrize("content", [b"", b"garbage", b"\xff", b"-----BEGIN " + b"PRIVATE KEY-----\n"])
@pytest.mark.parametrize("kind", [Signer, TrustedKeys, Seal])
def test_a_file_without_a_key_is_named(tmp_path: Path, kind: type, content: bytes) -> None:
    if kind is Seal:
        content = content[:9]
    with pytest.raises(SettingError, match=f"{tmp_path}/key must hold"):
        kind(write(tmp_path / "key", content))
    with pytest.raises(SettingError, match="missing"):
        kind(tmp_path / "missing")


def test_a_sealed_value_is_that_of_its_name(tmp_path: Path) -> None:
    seal = Seal(write(tmp_path / "key", b"s" * 32))
    value = seal.seal("latent:1", b"value")
    assert seal.open("latent:1", value) == b"value"
    assert seal.open("latent:2", value) is None, "swapped with another"
    assert seal.open("latent:1", value[:-1] + b"X") is None
    assert seal.open("latent:1", b"") is None
    assert Seal(write(tmp_path / "other", b"t" * 32)).open("latent:1", value) is None
    assert Seal(None).open("x", Seal(None).seal("x", b"value")) == b"value"
