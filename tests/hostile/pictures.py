"""Files that users or attackers may send as pictures, one of each kind, with what must come of them."""

from __future__ import annotations

import io
import struct
import zipfile
import zlib
from collections.abc import Callable
from typing import Any

import numpy as np
from PIL import Image

SIZE = (40, 24)  # width, height

Kind = tuple[Callable[[], bytes], tuple[int, int] | None, str]
"""How a file is made; the size of the picture that must come of it, None: it must be refused; and a word that
the note or the refusal must hold, if any."""


def gradient(width: int, height: int, channels: int = 3) -> Image.Image:
    """A picture of which no two neighbouring rows or columns are equal."""
    x, y = np.meshgrid(np.linspace(0, 255, width), np.linspace(0, 255, height))
    planes = [x, y, 255 - x, np.full_like(x, 128)][:channels]
    values = np.stack(planes, axis=-1).astype(np.uint8)
    return Image.fromarray(values[..., 0] if channels == 1 else values)


def saved(image: Image.Image, kind: str, **options: Any) -> bytes:
    """The file of a picture."""
    out = io.BytesIO()
    image.save(out, kind, **options)
    return out.getvalue()


def chunk(name: bytes, data: bytes) -> bytes:
    """A chunk of a PNG."""
    return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))


def png(
    width: int, height: int, *, depth: int = 8, colour: int = 2, rows: bytes, extra: bytes = b""
) -> bytes:
    """A PNG of any header, around compressed rows."""
    header = struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + extra + chunk(b"IDAT", rows) + chunk(b"IEND", b"")


def _sixteen_bits(colour: int, samples: int) -> bytes:
    width, height = SIZE
    row = b"\0" + b"\x80\x40" * samples * width
    return png(width, height, depth=16, colour=colour, rows=zlib.compress(row * height))


def _exif_turned(orientation: int) -> bytes:
    exif = Image.Exif()
    exif[0x0112] = orientation
    return saved(gradient(*SIZE), "JPEG", exif=exif)


def _animated(kind: str) -> bytes:
    frames = [gradient(*SIZE), gradient(*SIZE).rotate(180)]
    return saved(frames[0], kind, save_all=True, append_images=frames[1:], duration=50)


def _text_bomb() -> bytes:
    text = chunk(b"zTXt", b"Comment\0\0" + zlib.compress(bytes(2**26)))
    return png(8, 8, rows=zlib.compress((b"\0" + bytes(24)) * 8), extra=text)


def _profile_bomb() -> bytes:
    profile = chunk(b"iCCP", b"p\0\0" + zlib.compress(bytes(2**26)))
    return png(8, 8, rows=zlib.compress((b"\0" + bytes(24)) * 8), extra=profile)


def _webp_bomb() -> bytes:
    """The header of a lossless WebP of 16,383 x 16,383 pixels, and little else."""
    frame = b"\x2f" + (16_382 | 16_382 << 14).to_bytes(4, "little") + bytes(100)
    parts = b"WEBPVP8L" + len(frame).to_bytes(4, "little") + frame + b"\0" * (len(frame) % 2)
    return b"RIFF" + len(parts).to_bytes(4, "little") + parts


def _archive_behind() -> bytes:
    out = io.BytesIO(saved(gradient(*SIZE), "PNG"))
    out.seek(0, io.SEEK_END)
    with zipfile.ZipFile(out, "a") as archive:
        archive.writestr("evil.py", "raise SystemExit")
    return out.getvalue()


def _html_inside() -> bytes:
    return saved(gradient(*SIZE), "JPEG", comment=b"<script>alert(1)</script>")


def _transparent() -> bytes:
    return saved(gradient(*SIZE, channels=4), "PNG")


def _palette() -> bytes:
    image = gradient(*SIZE).quantize(8)
    return saved(image, "PNG", transparency=0)


def _wrong_checksum() -> bytes:
    data = bytearray(saved(gradient(*SIZE), "PNG"))
    data[-20] ^= 0xFF  # within IDAT
    return bytes(data)


def _damaged_exif() -> bytes:
    return saved(gradient(*SIZE), "JPEG", exif=b"Exif\0\0MM\0*\xff\xff\xff\xff")


def _multiple_pictures() -> bytes:
    return saved(gradient(*SIZE), "MPO", save_all=True, append_images=[gradient(*SIZE)])


def _cut(data: bytes, share: float) -> bytes:
    return data[: int(len(data) * share)]


def _cmyk() -> bytes:
    return saved(gradient(*SIZE).convert("CMYK"), "JPEG")


KINDS: dict[str, Kind] = {
    # the right result
    "plain": (lambda: saved(gradient(*SIZE), "PNG"), SIZE, ""),
    "one pixel": (lambda: saved(gradient(1, 1), "PNG"), (1, 1), ""),
    "one row": (lambda: saved(gradient(1000, 1), "PNG"), (1000, 1), ""),
    "odd size": (lambda: saved(gradient(129, 33), "WEBP"), (129, 33), ""),
    "16 bits, grey": (lambda: _sixteen_bits(0, 1), SIZE, "16 bits"),
    "16 bits, RGB": (lambda: _sixteen_bits(2, 3), SIZE, "16 bits"),
    "16 bits, RGBA": (lambda: _sixteen_bits(6, 4), SIZE, "16 bits"),
    "16 bits, PPM": (
        lambda: b"P6 2 1 65535\n" + b"\x80\x40" * 6, (2, 1), "16 bits"
    ),
    "grey": (lambda: saved(gradient(*SIZE, channels=1), "JPEG"), SIZE, "grey"),
    "one bit": (lambda: saved(gradient(*SIZE).convert("1"), "PNG"), SIZE, "grey"),
    "CMYK": (_cmyk, SIZE, "CMYK"),
    "transparent": (_transparent, SIZE, "white"),
    "palette, transparent": (_palette, SIZE, "white"),
    "EXIF, on its side": (lambda: _exif_turned(6), SIZE[::-1], "turned"),
    "EXIF, mirrored": (lambda: _exif_turned(2), SIZE, "turned"),
    "EXIF, impossible orientation": (lambda: _exif_turned(200), SIZE, ""),
    "EXIF, damaged": (_damaged_exif, SIZE, ""),
    "two pictures of a camera": (_multiple_pictures, SIZE, "first of 2"),
    "PNG with an archive behind it": (_archive_behind, SIZE, ""),
    "JPEG with a script inside": (_html_inside, SIZE, ""),
    "BMP": (lambda: saved(gradient(*SIZE), "BMP"), SIZE, ""),
    "AVIF": (lambda: saved(gradient(*SIZE), "AVIF"), SIZE, ""),
    # a clear refusal
    "empty": (lambda: b"", None, "1 to"),
    "text": (lambda: b"not a picture", None, "PNG"),
    "zeros": (lambda: bytes(1000), None, "PNG"),
    "20,000 pixels wide": (lambda: saved(gradient(20_000, 2), "PNG"), None, "4096"),
    "too many pixels": (lambda: saved(Image.new("1", (1100, 1000)), "PNG"), None, "pixels"),
    "bomb, 50,000 x 50,000": (
        lambda: png(50_000, 50_000, rows=zlib.compress(bytes(10_000))), None, "4096"
    ),
    "bomb, 2**31 wide": (lambda: png(2**31 - 1, 1, rows=zlib.compress(b"\0")), None, ""),
    "bomb of WebP": (_webp_bomb, None, "4096"),
    "bomb in a text": (_text_bomb, None, "PNG"),
    "bomb in a colour profile": (_profile_bomb, None, "PNG"),
    "no width": (lambda: png(0, 10, rows=zlib.compress(b"")), None, ""),
    "truncated PNG": (lambda: _cut(saved(gradient(*SIZE), "PNG"), 0.6), None, "PNG"),
    "truncated JPEG": (lambda: _cut(saved(gradient(*SIZE), "JPEG"), 0.7), None, "PNG"),
    "truncated WebP": (lambda: _cut(saved(gradient(*SIZE), "WEBP"), 0.7), None, "PNG"),
    "truncated AVIF": (lambda: _cut(saved(gradient(*SIZE), "AVIF"), 0.7), None, "PNG"),
    "header alone": (lambda: saved(gradient(*SIZE), "PNG")[:33], None, "PNG"),
    "wrong checksum": (_wrong_checksum, None, "PNG"),
    "animated PNG": (lambda: _animated("PNG"), None, "still"),
    "animated WebP": (lambda: _animated("WEBP"), None, "still"),
    "animated AVIF": (lambda: _animated("AVIF"), None, "still"),
    "animated GIF": (lambda: _animated("GIF"), None, "PNG"),
    "GIF": (lambda: saved(gradient(*SIZE), "GIF"), None, "PNG"),
    "TIFF": (lambda: saved(gradient(*SIZE), "TIFF"), None, "PNG"),
    "TIFF of 32-bit floats": (
        lambda: saved(Image.fromarray(np.zeros(SIZE, np.float32)), "TIFF"), None, "PNG"
    ),
    "PostScript": (lambda: saved(gradient(*SIZE), "EPS"), None, "PNG"),
    "PDF": (lambda: saved(gradient(*SIZE), "PDF"), None, "PNG"),
    "SVG": (lambda: b'<svg xmlns="http://www.w3.org/2000/svg"><image href="file:///etc/passwd"/></svg>',
            None, "PNG"),
    "pickle": (lambda: b"\x80\x04cos\nsystem\n(S'true'\ntR.", None, "PNG"),
    "PPM without pixels": (lambda: b"P6 100 100 255\n", None, "PNG"),
    "PPM of floats": (lambda: b"Pf 2 1 -1.0\n" + bytes(8), None, ""),
}  # fmt: skip
