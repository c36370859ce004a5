"""SHA-256 of each file of a profile's models, stored in golden.json.

Weights load without an error if a bit of them has flipped. Imports no torch.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from dekag.documents import read_json
from dekag.errors import FileError, MismatchError

if TYPE_CHECKING:
    from hashlib import _Hash

GOLDEN = "golden.json"
_SUFFIXES = {".safetensors", ".json", ".model"}
_NAMES = {"merges.txt", "vocab.txt"}  # of tokenizers; a note in a folder changes nothing
RECORD = "training.json"
"""Of how a model of this project was trained; nothing is loaded from it."""
_PIECE = 2**20  # weights may be larger than memory
_NAMED = 3  # damaged files in an error message


def model_files(folder: Path) -> Iterator[Path]:
    """The files below a folder that a model is loaded from: weights, configurations and vocabularies."""
    for file in sorted(folder.rglob("*")):
        if (file.suffix in _SUFFIXES or file.name in _NAMES) and file.name != RECORD:
            yield file


def add_file(digest: _Hash, file: Path) -> None:
    """Adds the content of a file to a hash."""
    with file.open("rb") as content:
        while piece := content.read(_PIECE):
            digest.update(piece)


def checksums(folder: Path) -> dict[str, str]:
    """SHA-256 (hex) of the files of all models in a profile's folder, by their path in it.

    profile.json is not among them: it may be edited.
    """
    return {
        file.relative_to(folder).as_posix(): _sha256(file)
        for file in model_files(folder)
        if file.parent != folder
    }


def check_files(folder: Path) -> int:
    """Compares the models in a profile's folder with the hashes in its golden.json.

    Example:
        >>> from dekag.profile import profile_folder
        >>> check_files(profile_folder("stickers")) > 0
        True

    Args:
        folder: of the profile.

    Returns:
        The number of files that were compared; 0 if golden.json is missing or has no hashes.

    Raises:
        MismatchError: a file is damaged or missing; names up to three.
        FileError: golden.json or a file of a model cannot be read.
    """
    if not (folder / GOLDEN).exists():
        return 0
    document = read_json(folder / GOLDEN)
    stored = document.get("files", {}) if isinstance(document, Mapping) else None
    if not isinstance(stored, Mapping):
        raise FileError(folder / GOLDEN, "is damaged: `files` must hold the SHA-256 of each file")
    damaged = [name for name, sha256 in stored.items() if not _is_intact(folder / name, sha256)]
    if damaged:
        more = f" and {len(damaged) - _NAMED} more" if len(damaged) > _NAMED else ""
        raise MismatchError(
            f"models in {folder} are damaged or missing: {', '.join(damaged[:_NAMED])}{more}. Restore them, "
            f"or, if they were changed on purpose, run `dekag train golden --profile {folder.name}`"
        )
    return len(stored)


def _is_intact(file: Path, sha256: str) -> bool:
    try:
        return _sha256(file) == sha256
    except FileNotFoundError:
        return False
    except OSError as error:
        raise FileError(file, f"cannot be read: {error.strerror or error}") from None


def _sha256(file: Path) -> str:
    digest = hashlib.sha256()
    add_file(digest, file)
    return digest.hexdigest()
