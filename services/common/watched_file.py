"""Files with keys that are read again when they change: they rotate without a restart."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Generic, TypeVar

import structlog

from services.common.errors import SettingError
from services.common.security import file_signature

CHECK_INTERVAL_S = 1.0
"""Longest time until a change is noticed by whoever asks for the content, s."""
_log = structlog.get_logger()
_T = TypeVar("_T")


class WatchedFile(Generic[_T]):
    """The content of a file. While a changed file is invalid, the last valid content remains in use.

    Args:
        path: the file.
        read: makes a value of the file; raises SettingError.

    Raises:
        SettingError: the file is invalid now.
    """

    def __init__(self, path: Path, read: Callable[[Path], _T]) -> None:
        self._path, self._read = path, read
        self._lock = threading.Lock()
        self._signature = self._refused = file_signature(path)
        self._value, self._checked = read(path), time.monotonic()

    def get(self) -> _T:
        """The current value."""
        with self._lock:
            if time.monotonic() - self._checked >= CHECK_INTERVAL_S:
                self._checked = time.monotonic()
                if (signature := file_signature(self._path)) != self._signature:
                    self._renew(signature)
            return self._value

    def _renew(self, signature: tuple[int, int, int] | None) -> None:
        try:
            self._value, self._signature = self._read(self._path), signature
        except SettingError as error:
            if signature != self._refused:  # it is tried again, but told once
                _log.error("a changed file is invalid; its last content remains in use", error=str(error))
            self._refused = signature
        else:
            _log.info("file read again", file=str(self._path))
