"""The artwork is fetched as pinned, and whoever lacks it is told what to run."""

from __future__ import annotations

import base64
import hashlib
import io
import re
import tarfile
from pathlib import Path

import pytest
from PIL import Image

from dekag.stickers import Scene, render
from dekag.stickers.__main__ import main
from dekag.stickers.assets import VARIABLE, AssetsError, fetch, folder, unpack
from dekag.stickers.sprites import forget_sprites


def _package(path: Path, names: tuple[str, ...]) -> str:
    """Write a package of one-colour pictures and a manifest; return its hash."""
    picture = io.BytesIO()
    Image.new("RGBA", (8, 8), (200, 30, 40, 255)).save(picture, "WEBP")
    with tarfile.open(path, "w:gz") as package:
        for name in (*names, "package/package.json"):
            member = tarfile.TarInfo(name)
            member.size = len(picture.getvalue())
            package.addfile(member, io.BytesIO(picture.getvalue()))
    return base64.b64encode(hashlib.sha512(path.read_bytes()).digest()).decode()


def test_missing_artwork_names_the_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(VARIABLE, str(tmp_path / "nothing"))
    forget_sprites()
    with pytest.raises(AssetsError, match=r"^no artwork at .*1f98a\.webp: run `make world-assets`") as error:
        render(Scene("fox", "orange", "large", "middle", "snow"), 1)
    assert "\n" not in str(error.value)


def test_damaged_artwork_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(VARIABLE, str(tmp_path))
    (tmp_path / "1f98a.webp").write_bytes(b"RIFF....WEBP")
    forget_sprites()
    with pytest.raises(AssetsError, match=r"1f98a\.webp is not an image"):
        render(Scene("fox", "orange", "large", "middle", "snow"), 1)


def test_without_a_folder_named_the_cache_of_the_checkout_is_used(monkeypatch: pytest.MonkeyPatch) -> None:
    root = Path(__file__).resolve().parents[2]
    for value in ("", None):
        if value is None:
            monkeypatch.delenv(VARIABLE, raising=False)
        else:
            monkeypatch.setenv(VARIABLE, value)
        assert folder() == root / ".cache" / "world-assets"


def test_a_package_is_unpacked_only_with_its_hash(tmp_path: Path) -> None:
    archive, target = tmp_path / "art.tgz", tmp_path / "deep" / "art"
    sha512 = _package(archive, ("package/assets/1f98a.webp", "package/assets/1f431.webp"))
    assert unpack(archive, target, sha512) == 2
    assert {path.name for path in target.iterdir()} == {"1f98a.webp", "1f431.webp"}
    archive.write_bytes(archive.read_bytes() + b"x")
    with pytest.raises(AssetsError, match=r"art\.tgz has the SHA-512 .*, expected"):
        unpack(archive, target, sha512)
    assert len(list(target.iterdir())) == 2
    assert [path.name for path in target.parent.iterdir()] == ["art"]


def test_unpacking_replaces_what_was_there_and_stays_in_its_folder(tmp_path: Path) -> None:
    archive, target = tmp_path / "art.tgz", tmp_path / "art"
    target.mkdir()
    (target / "old.webp").write_bytes(b"")
    assert unpack(archive, target, _package(archive, ("package/assets/../../../1f98a.webp",))) == 1
    assert [path.name for path in target.iterdir()] == ["1f98a.webp"]
    assert not (tmp_path.parent / "1f98a.webp").exists()


def test_without_npm_one_line_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setenv(VARIABLE, str(tmp_path / "art"))
    assert main(["fetch"]) == 1
    assert capsys.readouterr().err == "error: npm is needed to fetch the artwork (Debian: apt install npm)\n"


def test_what_npm_says_is_passed_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    npm = tmp_path / "npm"
    npm.write_text("#!/bin/sh\necho 'npm error network: no route' >&2\nexit 1\n")
    npm.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    with pytest.raises(AssetsError, match="failed: npm error network: no route"):
        fetch(tmp_path / "art")


@pytest.mark.usefixtures("artwork")
def test_contact_sheets_show_every_subject_setting_style_and_combination(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["sheets", str(tmp_path / "sheets"), "--shown", "32"]) == 0
    sizes = {}
    for line in capsys.readouterr().out.splitlines():
        with Image.open(line) as sheet:
            sizes[Path(line).name] = sheet.size
    assert sizes["world-subjects.webp"] == (9 * 32, 5 * 32)
    assert sizes["world-settings.webp"] == (9 * 32, 3 * 32)
    assert sizes["world-styles.webp"] == (7 * 32, 3 * 32)
    assert sizes["world-combinations.webp"] == (9 * 32, 1 * 32)


def test_sheets_without_artwork_end_with_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv(VARIABLE, str(tmp_path / "nothing"))
    forget_sprites()
    assert main(["sheets", str(tmp_path)]) == 1
    assert re.fullmatch(r"error: no artwork at .*: run `make world-assets`.*\n", capsys.readouterr().err)
