"""Finds pictures: one file, a folder with its subfolders, or CIFAR-10. Imports no torch.

A folder may have a `metadata.jsonl` (the imagefolder layout), whose lines give a picture's prompt:
`{"file_name": "kodim01.png", "text": "a stone building"}`. CIFAR-10 is read in its binary version; the Python
version consists of pickles, which can run code when they are read.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath

import numpy as np
from PIL import Image

from dekag.api.limits import check_prompt
from dekag.documents import parse_json
from dekag.errors import FileError, InvalidInputError
from dekag.files import read_bytes, read_text
from dekag.generation.images import MAX_SIDE, UNREADABLE
from dekag.pictures.files import FORMATS, MAX_PIXELS, Picture, read_picture

METADATA = "metadata.jsonl"

ROWS = "link.jsonl"
"""What `dekag link` writes beside the pictures that it received; a subfolder with it holds no sources."""

MAX_BYTES = 2**28
"""Size of a file that is read."""

_CIFAR_SIDE = 32
_CIFAR_RECORD = 1 + 3 * _CIFAR_SIDE**2  # a label, then the planes red, green and blue
_CIFAR_LABELS = 10
_CIFAR_FOLDER = ("data_batch_1.bin", "test_batch.bin")
_PICKLE = b"\x80"  # how pickles of protocol 2 and later begin
_PICKLED_BATCHES = "data_batch_1"


@dataclass(frozen=True)
class PictureFile:
    """One picture that was found.

    Attributes:
        path: its file.
        name: what results call it: its path within the folder.
        prompt: what it shows, from metadata.jsonl; None if that says nothing of it.
        record: its number in a batch of CIFAR-10; None for a file of its own.
    """

    path: Path
    name: str
    prompt: str | None = None
    record: int | None = None

    def data(self) -> bytes:
        """Its bytes: those of the file, or 3,072 samples of CIFAR-10; FileError if it cannot be read."""
        if self.record is None:
            return read_bytes(self.path, max_bytes=MAX_BYTES)
        with self.path.open("rb") as batch:
            batch.seek(self.record * _CIFAR_RECORD + 1)
            return batch.read(_CIFAR_RECORD - 1)

    def read(self, *, max_side: int = MAX_SIDE, max_pixels: int = MAX_PIXELS) -> Picture:
        """The picture; the limits are those of `read_picture`.

        Raises:
            FileError: it cannot be read; says why.
        """
        if self.record is not None:
            planes = np.frombuffer(self.data(), np.uint8).reshape(3, _CIFAR_SIDE, _CIFAR_SIDE)
            return Picture(np.ascontiguousarray(planes.transpose(1, 2, 0)), "CIFAR-10")
        try:
            return read_picture(self.data(), max_side=max_side, max_pixels=max_pixels, field=str(self.path))
        except FileError:
            raise
        except InvalidInputError as error:
            raise FileError(self.path, str(error).removeprefix(f"{self.path} ")) from error


@dataclass(frozen=True)
class PictureFolder:
    """The pictures of a file or folder, in the order of their names.

    Attributes:
        path: as given.
        pictures: at least one.
        skipped: names of the other files of the folder, which are no pictures.
    """

    path: Path
    pictures: tuple[PictureFile, ...]
    skipped: tuple[str, ...] = field(default=())

    @property
    def name(self) -> str:
        """The name of the file or folder."""
        return self.path.absolute().name

    @property
    def skipped_note(self) -> str:
        """What was skipped, in a sentence for people; empty if nothing was."""
        if not self.skipped:
            return ""
        names = ", ".join(self.skipped[:5]) + (" ..." if len(self.skipped) > 5 else "")
        return f"Skipped, as they are no pictures, or results of dekag link ({len(self.skipped)}): {names}"

    def read(
        self, *, max_side: int = MAX_SIDE, max_pixels: int = MAX_PIXELS
    ) -> Iterator[tuple[PictureFile, Picture]]:
        """Each file with its picture, one after another; the limits are those of `read_picture`.

        Raises:
            FileError: some cannot be read. It comes after the last of the others, and names all of them.
        """
        broken: list[FileError] = []
        for each in self.pictures:
            try:
                picture = each.read(max_side=max_side, max_pixels=max_pixels)
            except FileError as error:
                broken.append(error)
                continue
            yield each, picture
        if len(self.pictures) == 1 and broken:
            raise broken[0]
        if broken:
            count = f"{len(broken)} of {len(self.pictures)} pictures that cannot be read"
            raise FileError(self.path, f"has {count}; repair or remove them: {'; '.join(map(str, broken))}")

    def content_hash(self) -> str:
        """SHA-256 (hex) of all names, prompts and contents."""
        digest = hashlib.sha256()
        for each in self.pictures:
            content = hashlib.sha256(each.data()).hexdigest()
            digest.update("\0".join([each.name, each.prompt or "", content, ""]).encode("utf-8", "replace"))
        return digest.hexdigest()


def find_pictures(path: Path | str, *, count: int | None = None) -> PictureFolder:
    """The pictures at a path.

    Example:
        >>> from pathlib import Path
        >>> from tempfile import TemporaryDirectory
        >>> import numpy as np
        >>> from dekag.generation.images import to_png
        >>> from dekag.pictures import find_pictures
        >>> with TemporaryDirectory() as folder:
        ...     _ = (Path(folder) / "black.png").write_bytes(to_png(np.zeros((64, 64, 3), np.uint8)))
        ...     [picture.name for picture in find_pictures(folder).pictures]
        ['black.png']

    Args:
        path: a picture, a folder of pictures, a batch of CIFAR-10 or its folder.
        count: take the first so many; None: all.

    Raises:
        FileError: there is no picture, metadata.jsonl is not valid, or something cannot be read.
    """
    path = Path(path)
    if not path.exists():
        raise FileError(path, "does not exist")
    if path.is_dir():
        found, skipped = _in_folder(path)
    else:
        found, skipped = _in_file(path), []
    if not found:
        raise FileError(path, "has no pictures" + _pickle_advice(path))
    return PictureFolder(path, tuple(found[:count]), tuple(skipped))


def _in_file(path: Path) -> list[PictureFile]:
    if records := _cifar_records(path):
        return [PictureFile(path, f"{path.stem}-{i:05}", record=i) for i in range(records)]
    if _is_pickle(path):
        raise FileError(path, _PICKLES)
    return [PictureFile(path, path.name)]  # whether it is a picture, reading it says


def _in_folder(folder: Path) -> tuple[list[PictureFile], list[str]]:
    """The pictures of a folder, and the names of its other files."""
    if any((folder / name).is_file() for name in _CIFAR_FOLDER):
        batches = sorted(path for path in folder.iterdir() if _cifar_records(path))
        return [picture for batch in batches for picture in _in_file(batch)], []
    prompts = dict(_metadata(folder, folder))
    found, skipped = [], []
    for path in _files(folder):
        name = path.relative_to(folder).as_posix()
        if path.is_dir():
            skipped.append(f"{name}/")
        elif path.name == METADATA:
            if path.parent != folder:
                prompts |= dict(_metadata(path.parent, folder))
        elif _is_picture(path):
            found.append((path, name))
        else:
            skipped.append(name)
    return [PictureFile(path, name, prompts.get(name)) for path, name in found], skipped


def _files(folder: Path) -> Iterator[Path]:
    """All files below a folder, without names that begin with a dot.

    Of subfolders into which an earlier `dekag link` wrote, the subfolder alone.
    """

    def refuse(error: OSError) -> None:
        raise FileError(error.filename, f"cannot be read: {error.strerror}") from None

    for parent, folders, names in os.walk(folder, onerror=refuse):
        shown = sorted(name for name in folders if not name.startswith("."))
        written = [name for name in shown if Path(parent, name, ROWS).is_file()]
        folders[:] = [name for name in shown if name not in written]
        yield from (Path(parent, name) for name in written)
        yield from (Path(parent, name) for name in sorted(names) if not name.startswith("."))


def _is_picture(path: Path) -> bool:
    """Whether a file begins as a picture does; it may be damaged further on."""
    if not path.is_file():
        return False
    try:
        with Image.open(path, formats=FORMATS):
            return True
    except Image.DecompressionBombError:  # reading it says that it is too large
        return True
    except UNREADABLE:
        return False


def _metadata(folder: Path, root: Path) -> Iterator[tuple[str, str]]:
    """Names of pictures within the root, and their prompts, as a folder's metadata.jsonl says."""
    path = folder / METADATA
    if not path.exists():
        return
    for number, line in enumerate(read_text(path, max_bytes=MAX_BYTES).split("\n"), 1):
        if not line.strip():
            continue
        where = f"{path}, line {number}"
        row = parse_json(line, where)
        if not isinstance(row, dict) or not isinstance(name := row.get("file_name"), str):
            raise FileError(where, "must be an object with file_name, the path of a picture")
        inside = PurePosixPath(name)
        if inside.is_absolute() or ".." in inside.parts or not (folder / inside).is_file():
            raise FileError(where, f"names {name!r}, which is no file in {folder}")
        text = row.get("text")
        if text is None:
            continue
        if not isinstance(text, str):
            raise FileError(where, f"must have a string as text, not {text!r}"[:120])
        try:
            prompt = check_prompt(text)
        except InvalidInputError as error:
            raise FileError(where, f"has a text that must be {error.allowed}") from None
        yield (folder / inside).relative_to(root).as_posix(), prompt


def _cifar_records(path: Path) -> int:
    """How many pictures a batch of CIFAR-10 holds; 0 for any other file."""
    if not path.is_file() or path.suffix != ".bin":
        return 0
    size = path.stat().st_size
    if not size or size % _CIFAR_RECORD or size > MAX_BYTES:
        return 0
    labels = np.memmap(path, np.uint8, mode="r")[::_CIFAR_RECORD]
    return size // _CIFAR_RECORD if labels.max() < _CIFAR_LABELS else 0


_PICKLES = (
    "is a pickle, as in CIFAR-10's Python version: reading one can run code. Use the binary version, "
    "cifar-10-binary"
)


def _is_pickle(path: Path) -> bool:
    with path.open("rb") as file:
        head = file.read(2)
    return head[:1] == _PICKLE and head[1:] in (b"\x02", b"\x03", b"\x04", b"\x05")


def _pickle_advice(path: Path) -> str:
    batch = path / _PICKLED_BATCHES
    return f": {batch} {_PICKLES}" if batch.is_file() and _is_pickle(batch) else ""
