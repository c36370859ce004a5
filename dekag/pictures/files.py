"""Reads picture files that nobody has checked. Imports no torch.

The kind of a file is what its bytes say, never its name. Its size is checked before anything is decoded, and
whatever changes its samples is noted: nothing is resized, cropped or converted without a word.
"""

from __future__ import annotations

import contextlib
import io
from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageOps

from dekag.errors import InvalidInputError
from dekag.generation.images import MAX_SIDE, UNREADABLE, Pixels

FORMATS = ("PNG", "JPEG", "WEBP", "AVIF", "BMP", "PPM")
"""Kinds of files that are read, as Pillow names them."""
READABLE = "a PNG, JPEG, WebP, AVIF, BMP or PPM file"
MAX_PIXELS = MAX_SIDE**2
"""Pixels of a picture, width times height."""

_ORIENTATION = 0x0112  # of EXIF; 1: as it is
_SIXTEEN_BITS = ("I", "I;16", "I;16L", "I;16B", "I;16N")  # modes of grey pictures with 16 bits a sample
_EIGHT_BITS = 255  # largest value of a sample
_TRANSPARENT = ("RGBA", "LA", "PA", "RGBa", "La")
_PLAIN = ("RGB", "RGBX", "L", "1", "P", "YCbCr")


@dataclass(frozen=True, eq=False)
class Picture:
    """A decoded picture.

    Attributes:
        pixels: (height, width, 3) uint8, RGB.
        format: what the file was, such as "PNG".
        notes: what was done to the file's samples to get these pixels, in words; empty if nothing.
    """

    pixels: Pixels
    format: str
    notes: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        """Raises InvalidInputError("pixels") unless they are what is said above."""
        shape, dtype = np.shape(self.pixels), getattr(self.pixels, "dtype", type(self.pixels).__name__)
        if len(shape) != 3 or shape[2] != 3 or not all(shape) or dtype != np.uint8:
            raise InvalidInputError("pixels", "(height, width, 3) uint8, RGB", f"{shape} {dtype}")

    @property
    def width(self) -> int:
        """Pixels."""
        return int(self.pixels.shape[1])

    @property
    def height(self) -> int:
        """Pixels."""
        return int(self.pixels.shape[0])


def read_picture(
    data: bytes, *, max_side: int = MAX_SIDE, max_pixels: int = MAX_PIXELS, field: str = "picture"
) -> Picture:
    """The picture in a file's bytes.

    Turned upright as its EXIF orientation says; transparent parts become white; 16 bits a sample become 8;
    CMYK becomes RGB. The notes say so.

    Example:
        >>> import numpy as np
        >>> from dekag.generation.images import to_png
        >>> from dekag.pictures import read_picture
        >>> picture = read_picture(to_png(np.zeros((100, 300, 3), np.uint8)))
        >>> picture.width, picture.height, picture.format, picture.notes
        (300, 100, 'PNG', ())

    Args:
        data: the whole file.
        max_side: largest width and height.
        max_pixels: largest width times height.
        field: name of the argument in errors.

    Raises:
        InvalidInputError: the file is damaged, of another kind, too large or animated, or its samples are not
            numbers of 8 or 16 bits.
    """
    try:
        with Image.open(io.BytesIO(data), formats=FORMATS) as image:
            _check_size(image, max_side, max_pixels, field)
            notes = _check_frames(image, field)
            if _has_sixteen_bits(image):
                notes.append("16 bits a sample reduced to 8")
            image.load()
            return _upright(image, notes, field)
    except Image.DecompressionBombError as error:
        allowed = f"at most {max_side} pixels a side and {max_pixels:,} pixels in all"
        raise InvalidInputError(field, allowed, _reason(error)) from error
    except UNREADABLE as error:
        got = f"{len(data)} bytes" + (f", {_reason(error)}" if data else "")
        raise InvalidInputError(field, f"{READABLE} that can be read", got) from error


def _check_size(image: Image.Image, max_side: int, max_pixels: int, field: str) -> None:
    width, height = image.size
    if min(width, height) < 1 or max(width, height) > max_side or width * height > max_pixels:
        allowed = f"at most {max_side} pixels a side and {max_pixels:,} pixels in all"
        raise InvalidInputError(field, allowed, f"{width}x{height}")


def _check_frames(image: Image.Image, field: str) -> list[str]:
    """Notes on a file of several pictures; InvalidInputError if they are an animation."""
    frames = int(getattr(image, "n_frames", 1))
    if frames == 1:
        return []
    if image.format == "MPO":  # cameras put a preview or the other eye's picture behind the first one
        return [f"the first of {frames} pictures in the file"]
    raise InvalidInputError(field, "a still picture", f"{frames} frames of {image.format}")


def _upright(image: Image.Image, notes: list[str], field: str) -> Picture:
    """The loaded image as RGB of 8 bits, upright."""
    mode, kind = image.mode, image.format or ""
    turned = image
    with contextlib.suppress(*UNREADABLE, KeyError, TypeError, ZeroDivisionError, AttributeError):
        if image.getexif().get(_ORIENTATION, 1) in range(2, 9):  # damaged EXIF says nothing
            turned = ImageOps.exif_transpose(image)
            notes.append("turned as its EXIF orientation says")
    if mode in _SIXTEEN_BITS:
        notes.append("grey")
        samples = np.asarray(turned).astype(np.int64).clip(0, 65535)
        grey = ((samples + 128) // 257).astype(np.uint8)
        return Picture(np.repeat(grey[:, :, None], 3, axis=2), kind, tuple(notes))
    if mode in _TRANSPARENT or "transparency" in image.info:
        turned = turned.convert("RGBA")
        if turned.getchannel("A").getextrema() != (255, 255):
            notes.append("transparent parts on white")
        turned = Image.alpha_composite(Image.new("RGBA", turned.size, "white"), turned)
    elif mode == "CMYK":
        notes.append("CMYK converted to RGB without a colour profile")
    elif mode not in _PLAIN:
        raise InvalidInputError(field, "of 8 or 16 bits a sample, grey, RGB or CMYK", f"Pillow's mode {mode}")
    if mode in ("L", "1", "LA", "La"):
        notes.append("grey")
    if mode != "CMYK" and _has_other_colours(image.info.get("icc_profile")):
        notes.append("its colour profile is not applied")
    return Picture(np.array(turned.convert("RGB")), kind, tuple(notes))


def _has_sixteen_bits(image: Image.Image) -> bool:
    """Whether the samples of a file that is not loaded yet have 16 bits."""
    if image.mode in _SIXTEEN_BITS:
        return True
    for tile in getattr(image, "tile", ()):  # what Pillow is about to decode, and how
        for value in tile.args if isinstance(tile.args, tuple) else (tile.args,):
            if "16" in value if isinstance(value, str) else image.format == "PPM" and value > _EIGHT_BITS:
                return True
    return False


def _has_other_colours(profile: object) -> bool:
    """Whether an embedded colour profile is there and does not call itself sRGB."""
    return (
        isinstance(profile, bytes)
        and bool(profile)
        and not any("sRGB".encode(code) in profile for code in ("ascii", "utf-16-be"))
    )


def _reason(error: BaseException) -> str:
    """Why Pillow could not read it, in its words, without what tells of the inside."""
    text = str(error).split("<", 1)[0].strip().rstrip(":")
    return text[:60] or type(error).__name__
