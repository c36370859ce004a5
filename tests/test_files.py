"""Files that people give: every encoding, whatever else a path may lead to, and one line of what is wrong."""

from __future__ import annotations

import codecs
import contextlib
import copy
import os
import socket
import stat
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dekag.errors import FileError
from dekag.files import check_folder, decoded, list_folder, read_bytes, read_lines, read_text

ROOT = Path(__file__).resolve().parents[1]
TEXT = "naïve café\n一条船\n"
LINES = st.lists(st.text(st.characters(exclude_characters="\r\n\0", exclude_categories=["Cs"]), min_size=1))


@pytest.mark.parametrize(
    "encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-16-le-bom", "utf-16-be-bom", "utf-32"]
)
@pytest.mark.parametrize("newline", ["\n", "\r\n", "\r"])
def test_text_is_read_in_every_encoding_that_says_so(tmp_path: Path, encoding: str, newline: str) -> None:
    text = TEXT.replace("\n", newline)
    if encoding.endswith("-bom"):
        data = ("\ufeff" + text).encode(encoding.removesuffix("-bom"))
    else:
        data = text.encode(encoding)
    (tmp_path / "text").write_bytes(data)
    assert read_text(tmp_path / "text") == TEXT


@pytest.mark.parametrize("encoding", ["utf-16-le", "utf-16-be"])
def test_utf_16_without_a_mark_is_known_by_its_zeros(encoding: str) -> None:
    assert decoded("time_s,snr_db\r\n0,1\r\n".encode(encoding), "x") == "time_s,snr_db\n0,1\n"


@given(LINES)
def test_utf_8_comes_back_as_it_was(lines: list[str]) -> None:
    text = "\n".join(lines)
    if not text.startswith("\ufeff"):
        assert decoded(text.encode(), "x") == text
    assert decoded(codecs.BOM_UTF8 + text.encode(), "x") == text


@given(st.binary(max_size=80))
def test_any_bytes_are_text_or_refused(data: bytes) -> None:
    with contextlib.suppress(FileError):
        assert "\0" not in decoded(data, "x")


def test_unknown_encoding_names_the_line_and_the_remedy() -> None:
    with pytest.raises(FileError, match=r"keys is not text in UTF-8 or UTF-16: line 3 .* 0xe9.*iconv"):
        decoded("one\r\ntwo\rcaf\xe9\n".encode("latin-1"), "keys")
    for data in (b"\x89PNG\r\n\x1a\n\0\0", b"a\0b", b"\xff\xfea\0b"):
        with pytest.raises(FileError, match=r"not text|binary|damaged"):
            decoded(data, "x")


def test_blank_lines_are_skipped_without_renumbering(tmp_path: Path) -> None:
    (tmp_path / "text").write_bytes(b"\xef\xbb\xbf# a header\r\n\r\n  one \r\n#\r\n#two\r\n\t\r\n\r\n")
    assert read_lines(tmp_path / "text") == [(3, "one"), (5, "#two")]
    (tmp_path / "text").write_bytes(b"")
    assert read_lines(tmp_path / "text") == []


def test_only_regular_files_are_read(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "dangling").symlink_to("gone")
    (tmp_path / "loop").symlink_to("loop")
    (tmp_path / "to-pipe").symlink_to("pipe")
    (tmp_path / "file").write_text("x")
    cases = {
        "": "cannot be read",
        str(tmp_path): "is a folder, not a file",
        str(tmp_path / "pipe"): "is a named pipe, not a file",
        str(tmp_path / "to-pipe"): "is a named pipe, not a file",
        str(tmp_path / "none"): "cannot be read: No such file or directory",
        str(tmp_path / "dangling"): "cannot be read: a link to gone, which does not exist",
        str(tmp_path / "loop"): "cannot be read: Too many levels of symbolic links",
        str(tmp_path / "file" / "below"): "cannot be read: Not a directory",
        str(tmp_path / ("x" * 300)): "cannot be read: File name too long",
        "/dev/zero": "is a device, not a file",
        "a\0b": "cannot be read: ",
    }
    for path, told in cases.items():
        with pytest.raises(FileError) as caught:
            read_bytes(path)
        assert str(caught.value).startswith(f"{path} {told}")
        assert str(copy.copy(caught.value)) == str(caught.value)  # as a worker process hands it on
    with tempfile.TemporaryDirectory(dir="/tmp") as short, socket.socket(socket.AF_UNIX) as listening:
        listening.bind(f"{short}/socket")
        with pytest.raises(FileError, match="is a socket, not a file"):
            read_bytes(f"{short}/socket")


def test_file_above_the_size_limit_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"x" * 11)
    assert len(read_bytes(tmp_path / "file", max_bytes=11)) == 11
    with pytest.raises(FileError, match="is too large: at most 10 bytes are allowed"):
        read_bytes(tmp_path / "file", max_bytes=10)
    with (tmp_path / "sparse").open("wb") as file:
        file.truncate(2**40)
    with pytest.raises(FileError, match="too large"):
        read_text(tmp_path / "sparse")


def test_a_folder_that_cannot_be_written_is_said_before_the_work(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    (tmp_path / "dangling").symlink_to("gone")
    check_folder(tmp_path)
    check_folder(tmp_path / "new" / "deep")
    assert list(tmp_path.glob("new*")) == []
    for path, told in {
        tmp_path / "file": "is a file, not a folder",
        tmp_path / "file" / "deep": "is a file, not a folder",
        tmp_path / "dangling" / "x": "a link to gone, which does not exist",
        "/dev/null/x": "is a device, not a folder",
        "/proc/1/x": "cannot be written: ",
    }.items():
        with pytest.raises(FileError, match=told):
            check_folder(path)


def test_a_folder_is_listed_or_said_to_be_none(tmp_path: Path) -> None:
    (tmp_path / "b").touch()
    (tmp_path / "a").touch()
    assert list_folder(tmp_path) == ["a", "b"]
    with pytest.raises(FileError, match="Not a directory"):
        list_folder(tmp_path / "a")


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become another user")
def test_another_user_is_told_who_may_not_read_what_and_what_mends_it(tmp_path: Path) -> None:
    with tempfile.TemporaryDirectory(dir="/tmp") as name:
        place = Path(name)
        place.chmod(0o755)
        (place / "api-keys").write_text("x")
        (place / "api-keys").chmod(0o600)
        (place / "closed").mkdir(mode=0o700)
        (place / "closed" / "api-keys").write_text("x")
        program = (
            "import os, sys; from dekag.files import *; from dekag.errors import FileError\n"
            "os.setgroups([]); os.setgid(10001); os.setuid(10001)\n"
            "asked = (read_text, 'api-keys'), (read_text, 'closed/api-keys'), (check_folder, 'closed')\n"
            "for work, path in asked:\n"
            "    try: work(os.path.join(sys.argv[1], path))\n"
            "    except FileError as error: print(error)\n"
        )
        command = [sys.executable, "-c", program, name]
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60, check=True)
        first, second, third = done.stdout.splitlines()
        assert first == (
            f"{name}/api-keys cannot be read: {name}/api-keys is -rw------- of uid 0, and this is uid 10001; "
            f"grant access with `chown 10001 {name}/api-keys`, or `chmod o+r {name}/api-keys` unless it is "
            "secret"
        )
        assert f"{name}/closed is drwx------ of uid 0" in second
        assert f"`chmod o+x {name}/closed`" in second
        assert f"`chmod o+wx {name}/closed`" in third
        assert stat.S_IMODE((place / "api-keys").stat().st_mode) == 0o600
