"""The committed stubs are what the contracts generate."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest


def test_stubs_have_not_drifted() -> None:
    pytest.importorskip("grpc_tools")
    script = Path(__file__).parents[2] / "scripts" / "generate_proto.py"
    found = subprocess.run([sys.executable, script, "--check"], capture_output=True, text=True, check=False)
    assert found.returncode == 0, found.stderr
