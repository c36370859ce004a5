"""Photographs to measure with: those of a folder, or those that installed packages bring.

scikit-image, scikit-learn and matplotlib install photographs for their examples; the extra `photos` installs
these packages. Nothing is downloaded.
"""

from __future__ import annotations

import importlib.util
import os
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps

from dekag.errors import FileError, InvalidInputError
from dekag.generation.images import Pixels

SIDE = 272
"""Longer side of a photograph as it is sent, pixels: a picture of 3:2 is then large enough for MS-SSIM."""

MAX_FILE_SIDE = 16_384
SUFFIXES = (".avif", ".bmp", ".jpeg", ".jpg", ".png", ".ppm", ".tif", ".tiff", ".webp")

INSTALLED = {
    "skimage": (
        "data/astronaut.png",
        "data/camera.png",
        "data/chelsea.png",
        "data/coffee.png",
        "data/coins.png",
        "data/hubble_deep_field.jpg",
        "data/motorcycle_left.png",
        "data/retina.jpg",
        "data/rocket.jpg",
    ),
    "sklearn": ("datasets/images/china.jpg", "datasets/images/flower.jpg"),
    "matplotlib": ("mpl-data/sample_data/grace_hopper.jpg",),
}
"""Photographs by package, as paths in it; drawings, textures and test patterns are left out."""


@dataclass(frozen=True)
class Photograph:
    """A photograph as it is sent.

    Attributes:
        name: its file's name without suffix.
        source: the package that brings it, or its folder.
        pixels: (height, width, 3) uint8.
        original: width and height of the file, pixels.
    """

    name: str
    source: str
    pixels: Pixels
    original: tuple[int, int]


def installed_photographs(side: int = SIDE) -> list[Photograph]:
    """The photographs of INSTALLED, reduced to a longer side of `side` pixels.

    Raises:
        ModuleNotFoundError: the extra `photos` is not installed.
    """
    found = []
    for package, paths in INSTALLED.items():
        spec = importlib.util.find_spec(package)
        if spec is None or spec.origin is None:
            raise ModuleNotFoundError(f"No module named {package!r}", name=package)
        found += [load_photograph(Path(spec.origin).parent / path, side, source=package) for path in paths]
    return found


def photographs_in(folder: Path, side: int = SIDE) -> list[Photograph]:
    """The image files in a folder, by name, reduced to a longer side of `side` pixels.

    Raises:
        InvalidInputError: there is no such folder, or no image in it.
        FileError: a file with the suffix of an image is none, or is too large.
    """
    if not folder.is_dir():
        raise InvalidInputError("folder", "an existing folder", str(folder))
    paths = sorted(each for each in folder.iterdir() if each.suffix.lower() in SUFFIXES)
    if not paths:
        allowed = f"a folder of images ({', '.join(SUFFIXES)})"
        raise InvalidInputError("folder", allowed, f"{folder} without any")
    return [load_photograph(path, side) for path in paths]


def load_photograph(path: Path, side: int = SIDE, *, source: str | None = None) -> Photograph:
    """A photograph, turned upright as its EXIF data say, in RGB, with a longer side of at most `side` pixels.

    Transparent parts become white; of an animation, the first frame is taken.

    Raises:
        FileError: it is no image, or is too large.
    """
    try:
        with Image.open(path) as image:
            original = image.size
            if max(original) > MAX_FILE_SIDE:
                raise FileError(
                    path, f"is {original[0]}x{original[1]} pixels; at most {MAX_FILE_SIDE} a side"
                )
            upright = ImageOps.exif_transpose(image)
            if upright.mode.startswith("I;16"):  # which Pillow would clip to white
                upright = Image.fromarray((np.array(upright) >> 8).astype(np.uint8))
            if upright.has_transparency_data:
                white = Image.new("RGBA", upright.size, "white")
                upright = Image.alpha_composite(white, upright.convert("RGBA"))
            rgb = upright.convert("RGB")
    except FileError:
        raise
    except (OSError, ValueError, SyntaxError, EOFError, Image.DecompressionBombError) as error:
        raise FileError(path, f"is no image that can be read: {error}") from None
    rgb.thumbnail((side, side), Image.Resampling.LANCZOS)
    return Photograph(path.stem, source or os.fspath(path.parent), np.array(rgb), original)
