"""The store of results: each is a file named by the hash of everything that it depends on.

What was measured once is read, never measured again, and an interrupted run goes on where it was. A result is
either complete or not there: it is written beside its place and then moved.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from dekag.documents import read_json


def content_key(*parts: object, data: bytes = b"", sort_keys: bool = False) -> str:
    """Hash of what a result depends on, 24 hex digits.

    Results on disk are found by it: what a kind of result passes, and in which order, must stay as it is.
    """
    known = json.dumps(list(parts), default=str, sort_keys=sort_keys).encode()
    return hashlib.sha256(known + data).hexdigest()[:24]


@dataclass(frozen=True)
class ResultStore:
    """Results of several kinds, each kind in a folder of its own.

    Attributes:
        root: the folder.
    """

    root: Path

    def path(self, kind: str, key: str, suffix: str = ".json") -> Path:
        """Where the result of that key is, or will be."""
        return self.root / kind / f"{key}{suffix}"

    def folder(self, *parts: str) -> Path:
        """A folder for what a result is made of, such as checkpoints or images."""
        return self.root.joinpath(*parts)

    def json(self, kind: str, key: str, measure: Callable[[], Any]) -> Any:
        """The result of that key, measured if it is not there; what JSON can say."""
        path = self.path(kind, key)
        if not path.exists():
            write_whole(path, json.dumps(measure()).encode())
        return read_json(path)

    def array(
        self, kind: str, key: str, measure: Callable[[], npt.NDArray[np.float64]]
    ) -> npt.NDArray[np.float64]:
        """The same for an array."""
        path = self.path(kind, key, ".npy")
        if not path.exists():
            found = measure()
            path.parent.mkdir(parents=True, exist_ok=True)
            unfinished = path.with_suffix(f".{os.getpid()}.npy")
            np.save(unfinished, found)
            unfinished.replace(path)
        result: npt.NDArray[np.float64] = np.load(path)
        return result


def write_whole(path: Path, content: bytes) -> None:
    """Write a file so that it is either complete or not there, whoever else writes it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_suffix(f".{os.getpid()}")
    unfinished.write_bytes(content)
    unfinished.replace(path)
