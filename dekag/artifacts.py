"""The base class of artifacts: files, their description in knowledge.json, and a hash of the content."""

from __future__ import annotations

import hashlib
import json
import os
import re
import zlib
from abc import ABC, abstractmethod
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Self

from safetensors import SafetensorError

from dekag.documents import DocumentError, parse_json
from dekag.errors import InvalidInputError, MismatchError
from dekag.files import read_bytes

if TYPE_CHECKING:
    import torch

INFO, HISTORY = "knowledge.json", "history.json"
MAX_FILE_BYTES = 2**30
MAX_DOCUMENT_BYTES = MAX_HEADER_BYTES = 2**20
"""Of a part in JSON, and of the header of a part in safetensors, which names its tensors. Those that ship
have at most 20 KiB; parsed, they may take fifty times their bytes."""
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
"""Errors that reading damaged files may raise."""


def content_hash(files: Mapping[str, bytes], info: Mapping[str, Any]) -> str:
    """SHA-256 (hex) of the artifact's files, by name, and of the content of its knowledge.json."""
    digest = hashlib.sha256(json.dumps(dict(info), sort_keys=True, separators=(",", ":")).encode())
    for name in sorted(files):
        digest.update(f"\0{name}\0{len(files[name])}\0".encode())
        digest.update(files[name])
    return digest.hexdigest()


def load_tensors(data: bytes) -> dict[str, torch.Tensor]:
    """The tensors by name in a safetensors file.

    Raises:
        ValueError, SafetensorError: it is damaged, or its header is larger than MAX_HEADER_BYTES: many empty
            tensors would take much more memory than their names.
    """
    from safetensors.torch import load  # not with the module, which the cloud imports before torch

    if int.from_bytes(data[:8], "little") > MAX_HEADER_BYTES:
        raise ValueError("header of the tensors")
    return load(data)


class Artifact(ABC):
    """Immutable knowledge, stored as files.

    Attributes:
        info: content of knowledge.json, without the hash.
        content_hash: SHA-256 (hex) of its content.
        label: name of the kind of artifact in error messages.
        base: what kind of model it fits, in error messages.
        parts: names of its possible files besides knowledge.json.
        beside: names of files that may be saved beside it and are no part of its content.
    """

    label: ClassVar[str]
    base: ClassVar[str] = "model"
    parts: ClassVar[tuple[str, ...]]
    beside: ClassVar[tuple[str, ...]] = ()

    def __init__(self, info: Mapping[str, Any], files: Mapping[str, bytes]) -> None:
        self.info = dict(info)
        self._files = dict(files)
        self.content_hash = content_hash(self._files, self.info)

    @property
    def base_hash(self) -> str:
        """Hash of the model that it was trained for."""
        return str(self.info["base_hash"])

    @property
    def size_bytes(self) -> int:
        """Total size of all files, bytes."""
        return sum(map(len, self.to_files().values()))

    def to_files(self) -> dict[str, bytes]:
        """The files by name, knowledge.json first."""
        info = {**self.info, "content_hash": self.content_hash}
        text = json.dumps(info, separators=(",", ":"), sort_keys=True)
        return {INFO: text.encode(), **self._files}

    def saved_files(self) -> dict[str, bytes]:
        """The files of `save`: those of `to_files`, and what is kept beside them."""
        return self.to_files()

    @classmethod
    def from_files(cls, files: Mapping[str, bytes], *, announced: str = "", base_hash: str = "") -> Self:
        """The artifact in the files; the inverse of `to_files` and of `saved_files`.

        Args:
            files: by name.
            announced: hash that its content must have; any if left out.
            base_hash: hash of the model that it must fit; any if left out. Both are compared before tensors
                are unpacked, so that nothing but what was expected takes memory.

        Raises:
            MismatchError: a file is missing, damaged or too large, the content does not match the hash in
                knowledge.json, or one of both hashes is another.
        """
        parts = {name: files[name] for name in cls.parts if name in files}
        if INFO not in files or any(len(data) > MAX_FILE_BYTES for data in files.values()):
            raise MismatchError(f"{cls.label} must have {INFO} and files of at most {MAX_FILE_BYTES} bytes")
        documents = {INFO: files[INFO]} | {name: parts[name] for name in parts if name.endswith(".json")}
        for name, data in documents.items():
            if len(data) > MAX_DOCUMENT_BYTES:
                raise MismatchError(f"{cls.label}: {name} must have at most {MAX_DOCUMENT_BYTES} bytes")
        try:
            info = parse_json(files[INFO], INFO)
            claimed = info.pop("content_hash")
            if not cls.known_format(info):
                raise MismatchError(f"{cls.label}: unknown format{cls.advice(info)}")
            if claimed != content_hash(parts, info):
                raise MismatchError(f"{cls.label} is damaged: its content does not match its hash")
            if announced and claimed != announced:
                raise MismatchError(f"{cls.label} has the content {claimed[:12]}, not {announced[:12]}")
            cls.check_info(info)
            if base_hash and info["base_hash"] != base_hash:
                fitted = info["base_hash"][:12]
                raise MismatchError(f"{cls.label} fits the {cls.base} {fitted}, not {base_hash[:12]}")
            artifact = cls(info, parts)
            artifact.check()
        except DocumentError as error:
            raise MismatchError(f"{cls.label} is damaged: {error}") from error
        except UNREADABLE as error:
            raise MismatchError(f"{cls.label} is damaged: it cannot be read") from error
        return artifact

    @classmethod
    def advice(cls, info: Mapping[str, Any]) -> str:
        """What to do about an unknown format, as the end of a sentence; empty if nothing is known."""
        return ""

    @classmethod
    @abstractmethod
    def known_format(cls, info: Mapping[str, Any]) -> bool:
        """Whether knowledge.json states this kind and format."""

    @classmethod
    @abstractmethod
    def check_info(cls, info: Mapping[str, Any]) -> None:
        """Raises one of UNREADABLE unless knowledge.json says what it must; no other part is read before."""

    @abstractmethod
    def check(self) -> None:
        """Raises one of UNREADABLE unless every part has the expected type and shape."""

    def save(self, folder: Path) -> None:
        """Write the files into `folder`, which is created if missing."""
        folder.mkdir(parents=True, exist_ok=True)
        for name, data in self.saved_files().items():
            (folder / name).write_bytes(data)

    @classmethod
    def load(cls, folder: Path | str) -> Self:
        """Read it from a folder; MismatchError as in from_files, FileError if a file cannot be read."""
        path = Path(folder)
        return cls.from_files(
            {
                name: read_bytes(path / name, max_bytes=MAX_FILE_BYTES)
                for name in (INFO, *cls.parts, *cls.beside)
                if os.path.lexists(path / name)
            }
        )
