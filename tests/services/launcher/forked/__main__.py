"""A service for tests of the fork server: writes what it is to its log, and ends as its environment says."""

from __future__ import annotations

import json
import os
import random
import signal
import sys
import time
from pathlib import Path


def main() -> None:
    """Ends with the status in ENDS, by SIGKILL, or not at all."""
    import numpy as np

    about = {
        "env": dict(os.environ),
        "argv": sys.argv,
        "group": os.getpgid(0) == os.getpid(),
        "input": sys.stdin.read(),
        "files": sorted(str(file.readlink()) for file in Path("/proc/self/fd").iterdir() if file.exists()),
        "drawn": [random.random(), float(np.random.rand())],  # noqa: NPY002 - of the global generators
        "name": Path("/proc/self/comm").read_text().strip(),
        "on_sigterm": signal.getsignal(signal.SIGTERM) is signal.SIG_DFL,
    }
    print(json.dumps(about), flush=True)  # noqa: T201 - to the log
    print("an error", file=sys.stderr, flush=True)  # noqa: T201
    match os.environ["ENDS"]:
        case "killed":
            os.kill(os.getpid(), signal.SIGKILL)
        case "never":
            time.sleep(600)
        case status:
            raise SystemExit(int(status))
