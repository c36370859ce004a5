"""A picture of any size as tiles of a size that autoencoder and codec take. Imports no torch.

The picture is cut into the fewest columns and rows of at most the profile's size, all tiles of one size, a
multiple of 32 pixels; for a codec of pixels, of at most its `tile`, a multiple of its `step`. What is missing
at the right and at the bottom is filled by repeating the last column and row; the receiver cuts it off again.
Nothing is resized.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Self

import numpy as np
import numpy.typing as npt

from dekag.api.limits import PIXEL_STEP
from dekag.errors import InvalidInputError, described
from dekag.generation.images import Pixels


@dataclass(frozen=True)
class Tiling:
    """How a picture is cut into tiles.

    Example:
        >>> from dekag.pictures import Tiling
        >>> Tiling.of(768, 512, size=256)
        Tiling(width=768, height=512, columns=3, rows=2, tile_width=256, tile_height=256)
        >>> str(Tiling.of(300, 100, size=256))
        '2 tiles of 160x128, padded from 300x100 to 320x128'

    Attributes:
        width, height: of the picture, pixels.
        columns, rows: of tiles.
        tile_width, tile_height: of every tile, pixels.
    """

    width: int
    height: int
    columns: int
    rows: int
    tile_width: int
    tile_height: int

    @classmethod
    def of(cls, width: int, height: int, size: int, step: int = PIXEL_STEP) -> Self:
        """The tiling of a picture.

        Args:
            width, height: of the picture, pixels, at least 1.
            size: largest side of a tile, a multiple of `step`.
            step: sides of tiles are multiples of it, pixels.

        Raises:
            InvalidInputError: names the argument that is no integer of at least 1.
        """
        for name, side in {"width": width, "height": height, "size": size, "step": step}.items():
            if not isinstance(side, int | np.integer) or side < 1:
                raise InvalidInputError(name, "an integer of at least 1, pixels", side)
        columns, rows = -(-width // size), -(-height // size)
        return cls(width, height, columns, rows, _side(width, columns, step), _side(height, rows, step))

    @property
    def count(self) -> int:
        """Number of tiles."""
        return self.columns * self.rows

    @property
    def source_values(self) -> int:
        """3 * width * height of the picture, to which its CBR relates."""
        return 3 * self.width * self.height

    @property
    def tile_values(self) -> int:
        """3 * width * height of a tile, to which the rate in the codec's condition relates."""
        return 3 * self.tile_width * self.tile_height

    @property
    def padded(self) -> tuple[int, int]:
        """Width and height of all tiles together, pixels."""
        return self.columns * self.tile_width, self.rows * self.tile_height

    def split(self, pixels: Pixels) -> npt.NDArray[np.uint8]:
        """(count, tile_height, tile_width, 3) uint8, row by row, of a picture (height, width, 3).

        Raises:
            InvalidInputError: the picture has another size or format.
        """
        self._check("pixels", pixels, (self.height, self.width, 3))
        width, height = self.padded
        whole = np.pad(pixels, ((0, height - self.height), (0, width - self.width), (0, 0)), mode="edge")
        grid = whole.reshape(self.rows, self.tile_height, self.columns, self.tile_width, 3)
        return grid.swapaxes(1, 2).reshape(self.count, self.tile_height, self.tile_width, 3)

    def join(self, tiles: npt.NDArray[np.uint8]) -> Pixels:
        """The picture (height, width, 3) uint8 of its tiles; the inverse of `split`.

        Raises:
            InvalidInputError: the tiles have another number, size or format.
        """
        self._check("tiles", tiles, (self.count, self.tile_height, self.tile_width, 3))
        grid = tiles.reshape(self.rows, self.columns, self.tile_height, self.tile_width, 3)
        width, height = self.padded
        whole = grid.swapaxes(1, 2).reshape(height, width, 3)
        return np.ascontiguousarray(whole[: self.height, : self.width])

    @staticmethod
    def _check(field: str, pixels: npt.NDArray[np.uint8], shape: tuple[int, ...]) -> None:
        if np.shape(pixels) != shape or pixels.dtype != np.uint8:
            raise InvalidInputError(field, f"{shape} uint8", described(pixels))

    def __str__(self) -> str:
        """In a few words, for people."""
        tiles = "1 tile" if self.count == 1 else f"{self.count} tiles"
        text = f"{tiles} of {self.tile_width}x{self.tile_height}"
        if self.padded == (self.width, self.height):
            return text
        width, height = self.padded
        return f"{text}, padded from {self.width}x{self.height} to {width}x{height}"


def _side(pixels: int, parts: int, step: int) -> int:
    """The side, a multiple of `step`, of each of some equal parts that together cover so many pixels."""
    return -(-pixels // (parts * step)) * step
