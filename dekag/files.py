"""Reads files given by users: text in the usual encodings, with one-line errors.

Reading never blocks: named pipes and devices are refused, and the size is bounded. Imports no torch.
"""

from __future__ import annotations

import codecs
import os
import stat
from pathlib import Path

from dekag.errors import FileError

MAX_TEXT_BYTES = 4 * 2**20
_BOMS = (  # UTF-32's little-endian one begins with UTF-16's
    (codecs.BOM_UTF8, "utf-8"),
    (codecs.BOM_UTF32_LE, "utf-32-le"),
    (codecs.BOM_UTF32_BE, "utf-32-be"),
    (codecs.BOM_UTF16_LE, "utf-16-le"),
    (codecs.BOM_UTF16_BE, "utf-16-be"),
)
_KINDS = {
    stat.S_IFDIR: "a folder",
    stat.S_IFIFO: "a named pipe",
    stat.S_IFSOCK: "a socket",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
}


def read_bytes(path: Path | str, *, max_bytes: int = MAX_TEXT_BYTES) -> bytes:
    """The contents of a file.

    Args:
        path: a regular file, or a link to one.
        max_bytes: largest allowed size.

    Raises:
        FileError: it is not a file, is too large, or cannot be read.
    """
    try:
        mode = os.stat(path).st_mode  # noqa: PTH116 - may not be a valid path
        if stat.S_ISREG(mode):
            # non-blocking, in case a pipe has replaced the file since
            with open(os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC), "rb") as file:  # noqa: PTH123
                data = file.read(max_bytes + 1) or b""
    except (OSError, ValueError) as error:
        raise FileError(path, f"cannot be read: {_why(Path(path), error)}") from None
    if not stat.S_ISREG(mode):
        raise FileError(path, f"is {_KINDS.get(stat.S_IFMT(mode), 'something else')}, not a file")
    if len(data) > max_bytes:
        raise FileError(path, f"is too large: at most {max_bytes} bytes are allowed")
    return data


def read_text(path: Path | str, *, max_bytes: int = MAX_TEXT_BYTES) -> str:
    r"""The text in a file in UTF-8, UTF-16 or UTF-32, with line ends converted to ``\n``.

    Args:
        path: path of the file.
        max_bytes: largest allowed size.

    Raises:
        FileError: as `read_bytes`; also if the file is in another encoding or is not text.
    """
    return decoded(read_bytes(path, max_bytes=max_bytes), str(path))


def decoded(data: bytes, name: str) -> str:
    """The text in ``data``, the contents of the file of that name; see `read_text`."""
    encoding = next((encoding for bom, encoding in _BOMS if data.startswith(bom)), None) or _guess(data)
    try:
        text = data.decode(encoding).removeprefix("\ufeff")
    except UnicodeDecodeError as error:
        if encoding != "utf-8":
            raise FileError(name, f"is damaged: it is not valid {encoding.upper()}") from None
        line = data[: error.start].replace(b"\r\n", b"\n").replace(b"\r", b"\n").count(b"\n") + 1
        raise FileError(
            name,
            f"is not text in UTF-8 or UTF-16: line {line} contains the byte 0x{data[error.start]:02x}; save "
            "it as UTF-8, or convert it, from Latin-1 with `iconv -f latin1 -t utf-8`",
        ) from None
    if "\0" in text:
        raise FileError(name, "is a binary file, not text")
    return text.replace("\r\n", "\n").replace("\r", "\n")


def read_lines(path: Path | str, *, max_bytes: int = MAX_TEXT_BYTES) -> list[tuple[int, str]]:
    """The lines of a text file, stripped and numbered, without blank lines and comments; see `read_text`.

    A comment is ``#`` alone, or followed by a space.
    """
    lines = enumerate(map(str.strip, read_text(path, max_bytes=max_bytes).split("\n")), 1)
    return [(number, line) for number, line in lines if line and line != "#" and not line.startswith("# ")]


def list_folder(folder: Path | str) -> list[str]:
    """The names in a folder, sorted; FileError if it does not exist or cannot be read."""
    try:
        return sorted(os.listdir(folder))  # noqa: PTH208 - names alone
    except (OSError, ValueError) as error:
        raise FileError(folder, f"cannot be read: {_why(Path(folder), error)}") from None


def check_folder(folder: str | os.PathLike[str]) -> None:
    """Check that files can be written into a folder, which need not exist yet.

    Raises:
        FileError: names the path and the problem.
    """
    path = Path(folder)
    try:
        while not os.path.lexists(path) and path != path.parent:
            path = path.parent
        mode = path.stat().st_mode
    except (OSError, ValueError) as error:
        problem = _why(path, error)
    else:
        if stat.S_ISDIR(mode) and os.access(path, os.W_OK | os.X_OK):
            return
        kind = _KINDS.get(stat.S_IFMT(mode), "a file")
        problem = _permissions(path) if stat.S_ISDIR(mode) else f"{path} is {kind}, not a folder"
    raise FileError(folder, f"cannot be written: {problem}")


def _guess(data: bytes) -> str:
    """Detects UTF-16 without a byte order mark: for Latin text, every other byte is zero."""
    even, odd = data[:512:2].count(0), data[1:512:2].count(0)
    if not (even or odd) or len(data) % 2:
        return "utf-8"
    if even == 0 and odd > len(data[:512]) // 4:
        return "utf-16-le"
    return "utf-16-be" if odd == 0 and even > len(data[:512]) // 4 else "utf-8"


def _why(path: Path, error: OSError | ValueError) -> str:
    if isinstance(error, PermissionError):
        return _permissions(path)
    if isinstance(error, FileNotFoundError) and path.is_symlink():
        return f"a link to {path.readlink()}, which does not exist"
    return (error.strerror or str(error)) if isinstance(error, OSError) else str(error)


def _permissions(path: Path) -> str:
    """Explains which permission is missing, and how to grant it."""
    for part in (*reversed(path.absolute().parents), path):
        try:
            status = part.stat()
        except OSError:
            break
        needed = os.X_OK if part != path else os.X_OK | os.W_OK if stat.S_ISDIR(status.st_mode) else os.R_OK
        if not os.access(part, needed):
            uid, letters = os.geteuid(), {os.X_OK: "x", os.R_OK: "r"}.get(needed, "wx")
            return (
                f"{part} is {stat.filemode(status.st_mode)} of uid {status.st_uid}, and this is uid {uid}; "
                f"grant access with `chown {uid} {part}`, or `chmod o+{letters} {part}` unless it is secret"
            )
    return "permission denied, or the file system is read-only"
