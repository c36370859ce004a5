"""Photographs to measure with: those of a user, or those that installed packages bring.

scikit-image, scikit-learn and matplotlib install photographs for their examples; the extra `photos` installs
these packages. Nothing is downloaded.
"""

from __future__ import annotations

import importlib.util
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from dekag.generation.images import Pixels
from dekag.pictures import Picture, PictureFile, PictureFolder

SIDE = 272
"""Longer side of a photograph as it is sent, pixels: a picture of 3:2 is then large enough for MS-SSIM."""

MAX_FILE_SIDE = 16_384
"""Longer side of a file, pixels: more than `dekag.pictures` reads otherwise, as what is sent is reduced."""

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
        name: of the picture; without suffix if a package brings it.
        source: the package that brings it, or the folder.
        pixels: (height, width, 3) uint8.
        original: width and height before it was reduced, pixels.
        notes: what was done to the file's samples, as in `dekag.pictures.Picture`.
    """

    name: str
    source: str
    pixels: Pixels
    original: tuple[int, int]
    notes: tuple[str, ...] = ()


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
        files = [Path(spec.origin).parent / path for path in paths]
        found += [load_photograph(PictureFile(each, each.stem), side, source=package) for each in files]
    return found


def photographs_in(folder: PictureFolder, side: int = SIDE) -> list[Photograph]:
    """The pictures of a folder, reduced to a longer side of `side` pixels.

    Raises:
        FileError: pictures are damaged or too large; names all of them.
    """
    read = folder.read(max_side=MAX_FILE_SIDE, max_pixels=MAX_FILE_SIDE**2)
    return [_reduced(file, picture, side, folder.name) for file, picture in read]


def load_photograph(file: PictureFile, side: int = SIDE, *, source: str) -> Photograph:
    """A picture, reduced to a longer side of at most `side` pixels.

    Raises:
        FileError: it is damaged or too large.
    """
    return _reduced(file, file.read(max_side=MAX_FILE_SIDE, max_pixels=MAX_FILE_SIDE**2), side, source)


def _reduced(file: PictureFile, picture: Picture, side: int, source: str) -> Photograph:
    reduced = Image.fromarray(picture.pixels)
    reduced.thumbnail((side, side), Image.Resampling.LANCZOS)
    return Photograph(file.name, source, np.array(reduced), (picture.width, picture.height), picture.notes)
