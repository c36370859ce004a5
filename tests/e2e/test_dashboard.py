"""The dashboard in front of a real Prometheus and a running chain."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("prometheus") is None, reason="Prometheus is not here")
def test_every_panel_shows_something(dummy_profile: Path) -> None:
    done = subprocess.run(
        [sys.executable, "scripts/check_dashboard.py"],
        cwd=Path(__file__).resolve().parents[2],
        env=os.environ | {"DEKAG_PROFILE": str(dummy_profile)},
        capture_output=True,
        text=True,
        timeout=900,
    )
    assert done.returncode == 0, done.stdout + done.stderr
