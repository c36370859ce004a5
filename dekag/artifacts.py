"""What all artifacts share: files, what knowledge.json says of them, and a hash of everything."""

from __future__ import annotations

import hashlib
import json
import os
import re
import zlib
from abc import ABC, abstractmethod
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar, Self

from safetensors import SafetensorError

from dekag.documents import DocumentError, parse_json
from dekag.errors import InvalidInputError, MismatchError
from dekag.files import read_bytes

INFO = "knowledge.json"
MAX_FILE_BYTES = 2**30
UNREADABLE = (
    ValueError,
    LookupError,
    TypeError,
    AttributeError,
    ArithmeticError,
    RecursionError,
    RuntimeError,
    re.error,
    zlib.error,
    SafetensorError,
    InvalidInputError,
)
"""What reading damaged files may raise."""


def content_hash(files: Mapping[str, bytes], info: Mapping[str, Any]) -> str:
    """SHA-256 (hex) over the artifact's files by name and over what its knowledge.json says."""
    digest = hashlib.sha256(json.dumps(dict(info), sort_keys=True, separators=(",", ":")).encode())
    for name in sorted(files):
        digest.update(f"\0{name}\0{len(files[name])}\0".encode())
        digest.update(files[name])
    return digest.hexdigest()


class Artifact(ABC):
    """Knowledge as files. It never changes.

    Attributes:
        info: what knowledge.json says beside the hash.
        content_hash: SHA-256 (hex) over everything in it.
        what: what errors call it.
        parts: names of the files that it may have beside knowledge.json.
    """

    what: ClassVar[str]
    parts: ClassVar[tuple[str, ...]]

    def __init__(self, info: Mapping[str, Any], files: Mapping[str, bytes]) -> None:
        self.info = dict(info)
        self._files = dict(files)
        self.content_hash = content_hash(self._files, self.info)

    @property
    def base_hash(self) -> str:
        """Hash of the model that it was trained on and fits."""
        return str(self.info["base_hash"])

    @property
    def size_bytes(self) -> int:
        """Bytes of all files."""
        return sum(map(len, self.to_files().values()))

    def to_files(self) -> dict[str, bytes]:
        """The files by name, knowledge.json first."""
        info = {**self.info, "content_hash": self.content_hash}
        return {INFO: json.dumps(info, indent=1, sort_keys=True).encode(), **self._files}

    @classmethod
    def from_files(cls, files: Mapping[str, bytes]) -> Self:
        """What `to_files` wrote.

        Raises:
            MismatchError: a file is missing, damaged, too large or not what the hash in knowledge.json was
                taken over.
        """
        parts = {name: files[name] for name in cls.parts if name in files}
        if INFO not in files or any(len(data) > MAX_FILE_BYTES for data in files.values()):
            raise MismatchError(f"{cls.what} has {INFO} and files of at most {MAX_FILE_BYTES} bytes")
        try:
            info = parse_json(files[INFO], INFO)
            claimed = info.pop("content_hash")
            if not cls.known_format(info):
                raise MismatchError(f"{cls.what}: a format that is not known here")
            if claimed != content_hash(parts, info):
                raise MismatchError(f"{cls.what} is damaged: its content does not fit its hash")
            found = cls(info, parts)
            found.check()
        except DocumentError as error:
            raise MismatchError(f"{cls.what} is damaged: {error}") from error
        except UNREADABLE as error:
            raise MismatchError(f"{cls.what} is damaged: it cannot be read") from error
        return found

    @classmethod
    @abstractmethod
    def known_format(cls, info: Mapping[str, Any]) -> bool:
        """Whether knowledge.json says that it is of this kind and format."""

    @abstractmethod
    def check(self) -> None:
        """One of UNREADABLE unless every part has the type and shape that its user counts on."""

    def save(self, folder: Path) -> None:
        """Write the files into `folder`, which is made if missing."""
        folder.mkdir(parents=True, exist_ok=True)
        for name, data in self.to_files().items():
            (folder / name).write_bytes(data)

    @classmethod
    def load(cls, folder: Path | str) -> Self:
        """Read it from its folder; MismatchError as from_files says, FileError if a file cannot be read."""
        place = Path(folder)
        return cls.from_files(
            {
                name: read_bytes(place / name, max_bytes=MAX_FILE_BYTES)
                for name in (INFO, *cls.parts)
                if os.path.lexists(place / name)
            }
        )
