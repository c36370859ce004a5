"""What a file imports of a user's own code."""

from __future__ import annotations

from pathlib import Path

import pytest

from dekag.sources import imported_sources


def test_imports_are_followed_and_installed_ones_are_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(tmp_path)
    texts = {
        "plug.py": "import os, torch, nowhere\nfrom dekag import plugins\n"
        "def load():\n    from fetched_net.network import Net\n    from fetched_one import *\n",
        "fetched_net/network.py": "from .parts import block\nfrom . import losses",  # no __init__.py
        "fetched_net/parts/__init__.py": "from ..tools import helper",
        "fetched_net/parts/block.py": "",
        "fetched_net/losses.py": "import fetched_one",
        "fetched_net/tools.py": "",
        "fetched_net/unused.py": "",
        "fetched_one.py": "import plug\nthis is no Python",
    }
    for name, text in texts.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    found = [
        path.relative_to(tmp_path.resolve()).as_posix() for path in imported_sources(tmp_path / "plug.py")
    ]
    assert found == sorted(set(texts) - {"plug.py", "fetched_net/unused.py"})
