"""Files that are no images of this system, or not any more: each is refused with its name."""

from __future__ import annotations

import io
import struct
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, PngImagePlugin

from dekag.api import image_file
from dekag.errors import FileError


def encoded(file_format: str, **options: object) -> bytes:
    """An image of noise, which no format makes small."""
    noise = np.random.default_rng(0).integers(0, 256, (48, 48, 3), dtype=np.uint8)
    file = io.BytesIO()
    Image.fromarray(noise).save(file, file_format, **options)  # type: ignore[arg-type]
    return file.getvalue()


def webp_with_exif(exif: bytes) -> bytes:
    """A WebP with these bytes as its EXIF data."""
    with_exif = encoded("WEBP", exif=b"MM\0\x2a" + bytes(96))
    at = with_exif.rindex(b"EXIF")
    body = with_exif[8:at] + b"EXIF" + struct.pack("<I", len(exif)) + exif + bytes(len(exif) % 2)
    return b"RIFF" + struct.pack("<I", len(body)) + body


def refused(path: Path, data: bytes) -> str:
    path.write_bytes(data)
    with pytest.raises(FileError) as caught:
        image_file.read_provenance(path)
    return str(caught.value)


def test_a_truncated_png_is_damaged(tmp_path: Path) -> None:
    whole = encoded("PNG")
    assert "half.png is damaged" in refused(tmp_path / "half.png", whole[: len(whole) // 2])


def test_what_a_link_never_read_is_no_reason_to_fail(tmp_path: Path) -> None:
    """Earlier releases took such fields, and wrote them into their files."""
    link = {"fading": "awgn", "snr_db": 3.0, "tau_rms_s": 1e-7, "speed_m_s": 5.0}
    origin = image_file.Provenance(
        request={"prompt": "a boat", "seed": 1, "link": link}, model_hashes={}, knowledge=[]
    )
    (tmp_path / "a.png").write_bytes(image_file.with_metadata(encoded("PNG"), origin))
    kept = image_file.read_provenance(tmp_path / "a.png")
    assert kept.request == {"prompt": "a boat", "seed": 1, "link": {"fading": "awgn", "snr_db": 3.0}}


def test_foreign_exif_is_no_reason_to_fail(tmp_path: Path) -> None:
    assert "x.webp is damaged, or has damaged metadata" in refused(
        tmp_path / "x.webp", webp_with_exif(b"no TIFF file")
    )


def damaged(data: bytes) -> Iterator[bytes]:
    """The file cut off, and with single bytes changed, at many places."""
    rng = np.random.default_rng(1)
    for _ in range(150):
        at = int(rng.integers(1, len(data)))
        yield data[:at]
        for value in rng.integers(0, 256, 2):
            yield data[:at] + bytes([value]) + data[at + 1 :]


@pytest.mark.filterwarnings("ignore")  # Pillow's, of metadata that it skips
@pytest.mark.parametrize("file_format", ["PNG", "JPEG", "WEBP"])
def test_a_damaged_file_is_refused_by_its_name(tmp_path: Path, file_format: str) -> None:
    exif = Image.Exif()
    exif[0x010E] = "a description"
    exif.get_ifd(0x8769)[0x9286] = b"ASCII\0\0\0{}"
    text = PngImagePlugin.PngInfo()
    text.add_text("Software", "another", zip=True)
    options = {"pnginfo": text} if file_format == "PNG" else {}
    for data in damaged(encoded(file_format, exif=exif, **options)):
        assert str(tmp_path / "x") in refused(tmp_path / "x", data)
        try:
            image_file.pixels(data, "x")
        except FileError as error:
            assert str(error).startswith("x ")  # noqa: PT017
