"""Measure `make demo` in a fresh clone, on each given Python: results/load/install.json and two figures.

From nothing is a fresh clone of the last commit, no .venv and an empty cache of pip. Sizes and times depend
on which build of PyTorch pip takes, so that is written down, and the load average beside the seconds.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from dekag.evaluation.registry import current_commit, record  # noqa: E402

COMMAND = "make install-times"
PATH = ROOT / "results/load/install.json"
# make target -> name of the measurement, in order
TARGETS = {"demo": ("need-run", "demo"), "everything": ("install",)}
_PROBE = """
import importlib.metadata as m, json, sys, torch
print(json.dumps({
    "torch": torch.__version__,
    "cuda": torch.version.cuda,
    "version": ".".join(map(str, sys.version_info[:3])),
    "packages": len(list(m.distributions())),
}))
"""


def measure(python: str, what: str) -> dict[str, Any]:
    """Install and run in a temporary clone; return a row."""
    with tempfile.TemporaryDirectory(prefix="dekag-install-") as name:
        clone = Path(name, "clone")
        subprocess.run(["git", "clone", "--quiet", ROOT, clone], check=True)
        env = {key: value for key, value in os.environ.items() if key not in ("PYTHONPATH", "VIRTUAL_ENV")}
        env |= {"PIP_CACHE_DIR": f"{name}/cache", "PYTHON": python, "no_proxy": "127.0.0.1"}
        steps: dict[str, float] = {}
        loads, began_cpu = [], _cpu_seconds()
        for target in TARGETS[what]:
            start = time.monotonic()
            make = subprocess.Popen(["make", "--no-print-directory", target], cwd=clone, env=env)
            while make.poll() is None:
                loads.append(os.getloadavg()[0])
                time.sleep(0.5)
            if make.returncode:
                raise SystemExit(f"make {target} failed on {python}")
            steps[target] = round(time.monotonic() - start, 1)
        probed = subprocess.run(
            [clone / ".venv/bin/python", "-c", _PROBE], capture_output=True, text=True, check=True, env=env
        )
        found = json.loads(probed.stdout)
        return {
            "what": what,
            "commit": current_commit(),
            "python": found["version"],
            "torch": found["torch"],
            "cuda": found["cuda"],
            "packages": found["packages"],
            "mib": round(_bytes(clone / ".venv") / 2**20),
            "seconds": round(sum(steps.values()), 1),
            "steps_s": steps,
            "cpu_seconds": round(_cpu_seconds() - began_cpu, 1),
            "load_average": round(sum(loads) / len(loads), 1),
        }


def _cpu_seconds() -> float:
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def _bytes(folder: Path) -> int:
    """Size of the files on disk."""
    return sum(each.lstat().st_blocks * 512 for each in folder.rglob("*"))


def main(pythons: Sequence[str], what: str) -> None:
    """Measure one Python after another; earlier rows are kept until they are measured again."""
    before = json.loads(PATH.read_text())["rows"] if PATH.exists() else []
    rows = {(row["what"], row["python"]): row for row in before}
    for python in pythons:
        row = measure(python, what)
        rows[row["what"], row["python"]] = row
        print(row)  # noqa: T201
        lines = ",\n".join("  " + json.dumps(each) for _, each in sorted(rows.items()))
        head = json.dumps({"command": COMMAND, "cpus": os.cpu_count()}, indent=1).removesuffix("\n}")
        PATH.write_text(f'{head},\n "rows": [\n{lines}\n ]\n}}\n')
    demos = [row for (kind, _), row in rows.items() if kind == "demo"]
    if demos:
        for key, field, unit in (("seconds", "seconds", "s"), ("mib", "mib", "MiB")):
            worst = max(row[field] for row in demos)
            record(
                f"install_demo_{key}",
                worst,
                unit,
                command=COMMAND,
                count=len(demos),
                results=ROOT / "results",
            )


if __name__ == "__main__":
    options = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    options.add_argument("python", nargs="+", help="interpreters, by path")
    options.add_argument("--what", choices=TARGETS, default="demo")
    given = options.parse_args()
    main(given.python, given.what)
