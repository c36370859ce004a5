"""`dekag credentials`: certificates for mutual TLS and Redis users, in one folder per service.

=======================  ==========================================================================
``ca/ca.key``            key of the authority, needed for renewals; no service needs it
``NAME/ca.crt``          certificate of the authority that a service trusts
``NAME/tls.crt``         the service's certificate, for its compose host name and localhost
``NAME/tls.key``         key of that certificate
``cloud/signing.key``    signs knowledge; the distiller has it, too
``edge/trusted-keys``    public keys whose signatures the edge accepts, the latest first
``NAME/cache.key``       seals what edge, cloud and gateway keep in Redis
``NAME/redis.password``  password of the service's Redis user; Redis's own is for its health check
``redis/users.acl``      Redis users with their permissions and password hashes
=======================  ==========================================================================
"""

from __future__ import annotations

import hashlib
import ipaddress
import os
import secrets
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path

from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from dekag.errors import InvalidInputError
from services.common.security import CA, CERTIFICATE, KEY, secret
from services.common.signing import CACHE_KEY, SIGNING_KEY, TRUSTED_KEYS, new_signing_key

OPERATOR = "operator"  # for people, and for Prometheus
PROXY = "proxy"  # in front of the gateway
NAMES = (PROXY, "gateway", "user", "channel", "edge", "cloud", "distiller", "redis", OPERATOR)
PASSWORD, USERS = "redis.password", "users.acl"
_CA_DAYS, _RENEW_DAYS = 3650, 30
_HERE = ("localhost", "127.0.0.1", "::1")

_KNOWLEDGE = "~dekag:knowledge ~dekag:transmission ~dekag:update:*"
_READS = "+get +hgetall +del"  # a damaged copy is deleted
_JOBS = (
    f"{_KNOWLEDGE} ~dekag:lock:* ~saq:* &saq:* "
    "+@read +@write +@scripting +@pubsub +@transaction -@dangerous -@admin +info"
)
# Redis permissions of each service, besides those that every connection needs. The keys are documented in
# services.common.cache and, in services.cloud, redis_mirror, jobs, drift and demand.
_MAY = {
    "gateway": "~dekag:report:* +get +set",
    "user": f"~dekag:transmission ~dekag:update:* {_READS}",
    "edge": f"~dekag:latent:* {_KNOWLEDGE} {_READS} +set",
    "cloud": f"~dekag:image:* ~dekag:consistency ~dekag:demand ~dekag:budget {_JOBS}",
    "distiller": _JOBS,
}
_CONNECTS = "+ping +select"
_HEALTH = "~dekag:health +set"  # for Redis's health check, with the password in Redis's folder


def make_credentials(
    folder: Path, *, names: Sequence[str] = (), days: int = 365, new_signing: bool = False
) -> list[str]:
    """Creates missing credentials in ``folder`` and renews certificates with less than 30 days left.

    Valid credentials are kept, so that a second call changes nothing.

    Args:
        folder: created if missing, readable by its owner only.
        names: further host names and addresses of gateway and proxy, besides its own name and localhost.
        days: validity of a new certificate, days.
        new_signing: replace the key that signs knowledge; the edge trusts the last key, too, until the next
            replacement.

    Returns:
        The services with a new certificate.

    Raises:
        InvalidInputError: a name is not valid in a certificate.
    """
    authority, authority_key = _authority(folder / "ca", days)
    made = []
    for service in NAMES:
        home = _private(folder / service)
        wanted = _alternative_names([service, *_HERE, *(names if service in ("gateway", PROXY) else ())])
        if _is_good(home, authority, wanted):
            continue
        key = ec.generate_private_key(ec.SECP256R1())
        certificate = _certificate(service, wanted, key, authority, authority_key, days)
        _write(home / CA, authority.public_bytes(serialization.Encoding.PEM))
        _write(home / KEY, _key_bytes(key))
        _write(home / CERTIFICATE, certificate.public_bytes(serialization.Encoding.PEM))
        made.append(service)
    _make_keys(folder, new_signing=new_signing)
    users = ["user default off"]
    for user, owner, may in [
        ("health", "redis", _HEALTH),
        *((name, name, may) for name, may in _MAY.items()),
    ]:
        file = folder / owner / PASSWORD
        if not file.exists():
            _write(file, secrets.token_urlsafe(32).encode())
        password = hashlib.sha256(secret(file, str(file)).encode()).hexdigest()
        users.append(f"user {user} on #{password} resetkeys resetchannels -@all {may} {_CONNECTS}")
    _write(folder / "redis" / USERS, "".join(f"{user}\n" for user in users).encode())
    return made


def _make_keys(folder: Path, *, new_signing: bool) -> None:
    """The key that signs knowledge, the edge's trusted keys, and the secrets that seal cached values."""
    trusted, signing = folder / "edge" / TRUSTED_KEYS, folder / "cloud" / SIGNING_KEY
    if new_signing or not signing.exists() or not trusted.exists():
        key, line = new_signing_key()
        known = trusted.read_text().split() if trusted.exists() else []
        _write(trusted, "".join(f"{each}\n" for each in (line, *known[:1])).encode())  # before it signs
        for service in ("distiller", "cloud"):
            _write(folder / service / SIGNING_KEY, key)
    elif not (folder / "distiller" / SIGNING_KEY).exists():
        _write(folder / "distiller" / SIGNING_KEY, signing.read_bytes())
    for service in ("edge", "cloud", "gateway"):
        if not (folder / service / CACHE_KEY).exists():
            _write(folder / service / CACHE_KEY, secrets.token_urlsafe(32).encode())


def _authority(home: Path, days: int) -> tuple[x509.Certificate, ec.EllipticCurvePrivateKey]:
    _private(home)
    if (home / CA).exists() and (home / "ca.key").exists():
        key = serialization.load_pem_private_key((home / "ca.key").read_bytes(), None)
        certificate = x509.load_pem_x509_certificate((home / CA).read_bytes())
        if isinstance(key, ec.EllipticCurvePrivateKey) and _days_left(certificate) > days:
            return certificate, key
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "DeKA-g authority")])
    certificate = (
        _builder(name, name, key, _CA_DAYS + days)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(_usage(signs=True), critical=True)
        .sign(key, hashes.SHA256())
    )
    _write(home / "ca.key", _key_bytes(key))
    _write(home / CA, certificate.public_bytes(serialization.Encoding.PEM))
    return certificate, key


def _certificate(
    service: str,
    names: x509.SubjectAlternativeName,
    key: ec.EllipticCurvePrivateKey,
    authority: x509.Certificate,
    authority_key: ec.EllipticCurvePrivateKey,
    days: int,
) -> x509.Certificate:
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, service)])
    uses = [ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.CLIENT_AUTH]
    issuer = x509.AuthorityKeyIdentifier.from_issuer_public_key(authority_key.public_key())
    return (
        _builder(name, authority.subject, key, days)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(_usage(signs=False), critical=True)
        .add_extension(x509.ExtendedKeyUsage(uses), critical=False)
        .add_extension(names, critical=False)
        .add_extension(issuer, critical=False)
        .sign(authority_key, hashes.SHA256())
    )


def _builder(
    subject: x509.Name, issuer: x509.Name, key: ec.EllipticCurvePrivateKey, days: int
) -> x509.CertificateBuilder:
    now = datetime.now(UTC)
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - timedelta(hours=1))  # clocks differ
        .not_valid_after(now + timedelta(days=days))
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
    )


def _usage(*, signs: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=not signs,
        key_cert_sign=signs,
        crl_sign=signs,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        encipher_only=False,
        decipher_only=False,
    )


def _alternative_names(names: Sequence[str]) -> x509.SubjectAlternativeName:
    return x509.SubjectAlternativeName([_general_name(name) for name in dict.fromkeys(names)])


def _general_name(name: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ipaddress.ip_address(name))
    except ValueError:
        pass
    if not name.isascii() or not name.replace("-", "").replace(".", "").isalnum():
        raise InvalidInputError("name", "a host name or an IP address", name)
    return x509.DNSName(name)


def _is_good(home: Path, authority: x509.Certificate, names: x509.SubjectAlternativeName) -> bool:
    """Whether a folder holds a key and a certificate by this authority for these names, not expiring soon."""
    if not all((home / name).exists() for name in (CA, CERTIFICATE, KEY)):
        return False
    certificate = x509.load_pem_x509_certificate((home / CERTIFICATE).read_bytes())
    try:
        certificate.verify_directly_issued_by(authority)
    except (ValueError, TypeError, InvalidSignature):
        return False
    known = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    return known == names and _days_left(certificate) > _RENEW_DAYS


def _days_left(certificate: x509.Certificate) -> float:
    return (certificate.not_valid_after_utc - datetime.now(UTC)) / timedelta(days=1)


def _key_bytes(key: ec.EllipticCurvePrivateKey) -> bytes:
    return key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )


def _private(folder: Path) -> Path:
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    return folder


def _write(file: Path, content: bytes) -> None:
    """Writes a file atomically, readable by its owner only."""
    new = file.with_name(f".{file.name}.new")
    new.unlink(missing_ok=True)
    with open(os.open(new, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as out:  # noqa: PTH123
        out.write(content)
    new.replace(file)
