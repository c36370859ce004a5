"""Starts processes of the cloud quickly, each a fork of this one, which has imported everything already.

Reads one JSON object per line from standard input, with ``role``, ``arguments``, ``env`` and ``log``, and
answers each with the id of the process.
"""

from __future__ import annotations

import json
import os
import signal
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import dekag.training.distill
from dekag.generation.models import Generator
from dekag.profile import load_profile
from services.cloud import distiller, publish


def _distil(arguments: list[str]) -> int:
    distiller.main()
    return 0


ROLES: Mapping[str, Callable[[list[str]], int]] = {"distiller": _distil, "publish": publish.main}


def run(wanted: Mapping[str, Any]) -> None:
    """Becomes the process that is wanted; never returns."""
    status = 1
    try:
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        os.environ |= wanted["env"]
        log = os.open(wanted["log"], os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
        for stream in (0, 1, 2):
            os.dup2(os.open(os.devnull, os.O_RDONLY) if stream == 0 else log, stream)
        status = ROLES[wanted["role"]](wanted["arguments"])
    finally:
        os._exit(status)


def main() -> None:
    """Loads the models once, so that all libraries are imported, and then starts what is wanted."""
    profile = load_profile(Path(sys.argv[1]))
    for name in ("cloud", "edge"):
        Generator.from_profile(profile, name)
    assert dekag.training.distill
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # no zombies
    print("ready", flush=True)  # noqa: T201
    for line in sys.stdin:
        if (process := os.fork()) == 0:
            run(json.loads(line))
        print(process, flush=True)  # noqa: T201


if __name__ == "__main__":
    main()
