"""Files with keys and certificates that are read again when they change: they rotate without a restart."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Generic, TypeVar

import structlog

from dekag.errors import FileError
from dekag.files import read_bytes
from services.common.errors import SettingError
from services.common.security import file_signature

CHECK_INTERVAL_S = 1.0
"""Longest time until a change is noticed, s."""
_log = structlog.get_logger()
_T = TypeVar("_T")


class WatchedFile(Generic[_T]):
    """The content of a file. While a changed file is invalid, the last valid content remains in use.

    Args:
        path: the file.
        parse: makes a value of its bytes; raises ValueError, whose message follows the path.
    """

    def __init__(self, path: Path, parse: Callable[[bytes], _T]) -> None:
        self._path, self._parse = path, parse
        self._lock = threading.Lock()
        self._values: list[_T] = []  # the valid one, if any
        self._signature: tuple[int, int, int] | None = None
        self._checked = 0.0

    def get(self) -> _T:
        """The current value; SettingError if the file has never been valid."""
        with self._lock:
            if not self._values or time.monotonic() - self._checked >= CHECK_INTERVAL_S:
                self._checked = time.monotonic()
                self._read_if_changed()
            return self._values[0]

    def _read_if_changed(self) -> None:
        signature = file_signature(self._path)
        if self._values and signature == self._signature:
            return
        self._signature = signature
        try:
            value = self._parse(read_bytes(self._path))
        except (FileError, ValueError) as error:
            text = str(error) if isinstance(error, FileError) else f"{self._path} {error}"
            if not self._values:
                raise SettingError(text) from error
            _log.error("a changed file is invalid; its last content remains in use", error=text)
            return
        if self._values:
            _log.info("file read again", file=str(self._path))
        self._values = [value]
