"""The artwork of the subjects: its location and its download.

`python -m dekag.stickers fetch` (`make world-assets`) downloads the package with npm, checks it against the
hash below and unpacks it to a folder that git ignores. It is used for training and evaluation, and never
committed.
"""

from __future__ import annotations

import base64
import hashlib
import os
import shutil
import subprocess
import tarfile
import tempfile
from pathlib import Path

from PIL import Image

PACKAGE = "@lobehub/fluent-emoji-3d"
VERSION = "1.1.0"
SHA512 = (
    "Wlq2lVStTnr8BDpIJ0pEnTKO4LuDxxqTEhTvRtD1DLRF0me7"  # pragma: allowlist secret
    "ogeRQjKoehDHXuVJ2Qaecgl5wRBv60lUAG3h7g=="  # pragma: allowlist secret
)
VARIABLE = "DEKAG_WORLD_ASSETS"
DEFAULT_FOLDER = Path(__file__).resolve().parents[2] / ".cache" / "world-assets"
FETCH_SECONDS = 300


class AssetsError(RuntimeError):
    """The artwork is missing, damaged or cannot be downloaded; the message names the remedy."""


def folder() -> Path:
    """The folder of the artwork: the value of `DEKAG_WORLD_ASSETS`, or by default a cache in the checkout."""
    return Path(os.environ.get(VARIABLE) or DEFAULT_FOLDER)


def artwork(code: str) -> Image.Image:
    """The image of the code point `code`, which is also the name of its file, RGBA.

    Raises:
        AssetsError: the file is missing or is not an image.
    """
    path = folder() / f"{code}.webp"
    try:
        with Image.open(path) as image:
            return image.convert("RGBA")
    except FileNotFoundError:
        raise AssetsError(
            f"no artwork at {path}: run `make world-assets`, or name its folder in {VARIABLE}"
        ) from None
    except OSError as error:
        raise AssetsError(f"{path} is not an image ({error}): run `make world-assets` again") from None


def fetch(target: Path) -> int:
    """Download the package with npm, check its hash and unpack its images to `target`; returns their number.

    Raises:
        AssetsError: npm is missing or fails, or the hash of the package is wrong.
    """
    npm = shutil.which("npm")
    if npm is None:
        raise AssetsError("npm is needed to fetch the artwork (Debian: apt install npm)")
    with tempfile.TemporaryDirectory() as name:
        try:
            done = subprocess.run(  # noqa: S603 - fixed arguments
                [npm, "pack", f"{PACKAGE}@{VERSION}", "--silent"],
                cwd=name,
                capture_output=True,
                text=True,
                timeout=FETCH_SECONDS,
                check=False,
            )
        except subprocess.TimeoutExpired:
            raise AssetsError(f"npm did not fetch {PACKAGE}@{VERSION} in {FETCH_SECONDS} s") from None
        archives = sorted(Path(name).glob("*.tgz"))
        if done.returncode or not archives:
            reason = (done.stderr.strip().splitlines() or ["no package came"])[-1]
            raise AssetsError(f"npm pack {PACKAGE}@{VERSION} failed: {reason}")
        return unpack(archives[0], target)


def unpack(archive: Path, target: Path, sha512: str = SHA512) -> int:
    """Check `archive` against `sha512` (base64) and unpack its images to `target`; returns their number.

    Raises:
        AssetsError: the hash is wrong.
    """
    found = base64.b64encode(hashlib.sha512(archive.read_bytes()).digest()).decode()
    if found != sha512:
        raise AssetsError(f"{archive.name} has the SHA-512 {found}, expected {sha512}")
    target.parent.mkdir(parents=True, exist_ok=True)
    fresh = Path(tempfile.mkdtemp(dir=target.parent, prefix=f"{target.name}."))
    try:
        count = 0
        with tarfile.open(archive) as package:
            for member in package:
                source = package.extractfile(member) if member.name.endswith(".webp") else None
                if source is not None:
                    (fresh / Path(member.name).name).write_bytes(source.read())
                    count += 1
        fresh.chmod(0o755)
        if target.exists():
            shutil.rmtree(target)
        fresh.rename(target)
    finally:
        if fresh.exists():
            shutil.rmtree(fresh)
    return count
