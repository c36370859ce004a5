"""What all artifacts share: a hash of everything in them."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from typing import Any


def content_hash(files: Mapping[str, bytes], info: Mapping[str, Any]) -> str:
    """SHA-256 (hex) over the artifact's files by name and over what its knowledge.json says."""
    digest = hashlib.sha256(json.dumps(dict(info), sort_keys=True, separators=(",", ":")).encode())
    for name in sorted(files):
        digest.update(f"\0{name}\0{len(files[name])}\0".encode())
        digest.update(files[name])
    return digest.hexdigest()
