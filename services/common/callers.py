"""Which service may call what: a certificate's common name is the name of the service that shows it.

Health checks and reflection are open to every certificate of the authority. Without mutual TLS, nobody is
told apart, and nothing is refused.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from cryptography import x509
from cryptography.x509.oid import NameOID

from services.common import security
from services.common.errors import CallerError, SettingError

_READS = ("GetJob", "ListJobs", "WatchJob", "ListKnowledge", "ListDemand")
_DOWNLINK = ("Provide", "GetTransmissionKnowledge")
# caller -> called service -> methods
MAY_CALL: Mapping[str, Mapping[str, tuple[str, ...]]] = {
    "gateway": {
        "user": ("Receive", "ReceiveWithPreviews"),
        "cloud": (
            *_READS, "Distill", "CancelJob", "GetPreview", "GetKnowledge", "ShareKnowledge",
            "DeleteKnowledge", "PublishKnowledge", "GetTransmissionKnowledge",
            "PublishTransmissionKnowledge", "Compare",
        ),
    },
    "user": {"channel": _DOWNLINK},
    "channel": {"edge": _DOWNLINK},
    "edge": {"cloud": ("Generate", "ListKnowledge", "GetKnowledge", "GetTransmissionKnowledge", "Decide")},
    "operator": {"cloud": _READS},
}  # fmt: skip
"""The table; names are those of ``services.launcher.credentials``. Who is not in it may call nothing."""
_CHAIN = ("gateway", "user", "channel", "edge", "cloud")


def check_call(names: frozenset[str], service: str, method: str) -> None:
    """Raises CallerError unless a certificate may call a method.

    Args:
        names: common names in the caller's certificate.
        service: name of the called service.
        method: name of the method, without that of the gRPC service.
    """
    if any(method in MAY_CALL.get(name, {}).get(service, ()) for name in names):
        return
    shown = ", ".join(sorted(names))[:100] or "no name"
    may = ", ".join(name for name, services in MAY_CALL.items() if method in services.get(service, ()))
    raise CallerError(
        f"the {service} service refuses {method} with the certificate of {shown}; allowed: {may or 'nobody'}"
    )


def check_own(folder: Path | None, service: str) -> None:
    """Raises SettingError if a service has been given the certificate of another.

    Args:
        folder: with its credentials; None without mutual TLS.
        service: its name; others than those of the chain are not checked.
    """
    if folder is None or service not in _CHAIN:
        return
    security.server_context(folder, "DEKAG_TLS_DIR")  # says what is wrong
    (content,) = security.read(folder, security.CERTIFICATE, setting="DEKAG_TLS_DIR")
    names = x509.load_pem_x509_certificate(content).subject.get_attributes_for_oid(NameOID.COMMON_NAME)
    if service not in (shown := [str(name.value) for name in names]):
        raise SettingError(
            f"DEKAG_TLS_DIR: {folder / security.CERTIFICATE} is the certificate of "
            f"{', '.join(shown) or 'nobody'}; its common name must be {service}"
        )
