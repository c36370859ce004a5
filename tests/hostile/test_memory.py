"""No file of the largest upload takes more memory than its bytes can say."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

from tests.hostile.memory import BYTES, CASES

ROOT = Path(__file__).parents[2]
MIB_REFUSED, MIB_READ = 128, 448
"""Of the peak: files that are refused, and the densest ones, of which a bit becomes four bytes."""


def test_no_upload_takes_much_memory(tmp_path: Path) -> None:
    for name, (_, make) in CASES.items():
        (tmp_path / name).mkdir()
        files = make()
        assert BYTES // 3 < sum(map(len, files.values())) <= BYTES or "layers" in name or "_names" in name, (
            name
        )
        for part, data in files.items():
            (tmp_path / name / part).write_bytes(data)
    done = subprocess.run(
        [sys.executable, "-m", "tests.hostile.memory", tmp_path],
        capture_output=True, text=True, check=False, timeout=280, cwd=ROOT,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    found = [json.loads(line) for line in done.stdout.splitlines()]
    assert [each["case"] for each in found] == list(CASES)
    for each in found:
        assert each["mib"] < (MIB_REFUSED if each["refused"] else MIB_READ), found
    read = [each["case"] for each in found if not each["refused"]]
    assert read == list(CASES)[-len(read) :], found
    assert len(read) == 6
