"""Processes of the cloud that are killed, and what is looked for in the data folder afterwards."""

from __future__ import annotations

import contextlib
import json
import os
import random
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Self

from dekag.errors import NotFoundError
from services.cloud.repair import difference
from services.cloud.version_store import KnowledgeStore

ROOT = Path(__file__).resolve().parents[2]


class Zygote:
    """Starts processes, see ``tests.trust.zygote``; a context manager."""

    def __init__(self, profile: Path, folder: Path) -> None:
        self._profile, self._log = profile, folder / "processes.log"

    def __enter__(self) -> Self:
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.trust.zygote", str(self._profile)],
            cwd=ROOT,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        assert self._answer() == "ready"
        return self

    def __exit__(self, *raised: object) -> None:
        self._process.communicate("", timeout=30)

    def _answer(self) -> str:
        assert self._process.stdout is not None
        return self._process.stdout.readline().strip()

    def start(self, role: str, env: Mapping[str, str], arguments: Sequence[str] = ()) -> int:
        """Id of a new process in that role."""
        wanted = {"role": role, "env": dict(env), "arguments": list(arguments), "log": str(self._log)}
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps(wanted) + "\n")
        self._process.stdin.flush()
        return int(self._answer())


def kill(process: int, number: signal.Signals = signal.SIGKILL) -> bool:
    """Kills a process and waits for its end; returns whether it was still alive."""
    try:
        os.kill(process, number)
    except ProcessLookupError:
        return False
    while is_alive(process):
        time.sleep(0.002)
    return True


def is_alive(process: int) -> bool:
    """Whether the process exists."""
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    return True


class Reader:
    """Reads the data folder as the cloud does, all the while; a context manager.

    Attributes:
        seen: number of versions that were read.
        half_visible: what was seen of versions that were not whole.
    """

    def __init__(self, data: Path) -> None:
        self._store, self._stop = KnowledgeStore(data), threading.Event()
        self.seen, self.half_visible = 0, list[str]()
        self._thread = threading.Thread(target=self._run)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *raised: object) -> None:
        self._stop.set()
        self._thread.join()
        self.look()

    def _run(self) -> None:
        while not self._stop.wait(0.02):
            self.look()

    def look(self) -> None:
        """Reads the current version of each topic, and every folder that has the name of a version."""
        for topic, version, folder in self._store.folders():
            if not (folder / "manifest.json").exists() and folder.exists():
                self.half_visible.append(f"{topic} {version} has no manifest")
        for topic, manifest in self._store.topics().items():
            with contextlib.suppress(NotFoundError):  # deleted meanwhile
                self.seen += 1
                if reason := difference(self._store.files(manifest), manifest):
                    self.half_visible.append(f"{topic} {manifest.version}: {reason}")


_EXPECTED = re.compile(
    r"cloud\.lock|cloud\.id|jobs|ended(/[0-9a-f]{32}\.json)?"
    r"|(knowledge|aside)(/[a-z0-9-]+(/[0-9]+)?(/(manifest\.json|samples\.png|history\.json|files(/[a-z.]+)?))?)?"
    r"|transmission(/[0-9]+(/(manifest\.json|files(/[a-z.]+)?))?)?"
)


def residue(data: Path) -> list[str]:
    """What is in the data folder that no reader needs: paths relative to it.

    The folders of the stores may be empty, those of topics and versions may not.
    """
    paths = {path.relative_to(data).as_posix(): path for path in sorted(data.rglob("*"))}
    return [
        name
        for name, path in paths.items()
        if not _EXPECTED.fullmatch(name) or ("/" in name and _is_empty(path))
    ]


def _is_empty(path: Path) -> bool:
    return path.is_dir() and not any(path.iterdir())


class Moments:
    """Random moments, more of them where files are written.

    Args:
        seed: of the moments.
    """

    def __init__(self, seed: int) -> None:
        self.rng = random.Random(seed)

    def wait_for_change(self, folders: Sequence[Path], timeout_s: float) -> None:
        """Waits until something appears in or vanishes from one of the folders, and a moment longer."""
        before, end = [_names(folder) for folder in folders], time.monotonic() + timeout_s
        while time.monotonic() < end and [_names(folder) for folder in folders] == before:
            time.sleep(0.0005)
        time.sleep(self.rng.uniform(0, 0.02))


def _names(folder: Path) -> frozenset[str]:
    try:
        return frozenset(path.name for path in folder.iterdir())
    except FileNotFoundError:
        return frozenset()
