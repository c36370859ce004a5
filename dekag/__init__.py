"""DeKA-g: a simulator of generative semantic communication.

The public Python interface, documented in docs/python.md. Its names are imported when they are first used, so
that a program that only needs `Client` loads neither PyTorch nor a model's libraries.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from dekag.client import Client
    from dekag.link.conditions import LinkConditions
    from dekag.pipeline import PixelLink, SemanticLink
    from dekag.profile import load_profile

__all__ = ["Client", "LinkConditions", "PixelLink", "SemanticLink", "load_profile"]

_MODULES = {
    "Client": "dekag.client",
    "LinkConditions": "dekag.link.conditions",
    "PixelLink": "dekag.pipeline",
    "SemanticLink": "dekag.pipeline",
    "load_profile": "dekag.profile",
}


def __getattr__(name: str) -> object:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_MODULES[name]), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
