"""Pictures of a user's own: read safely, found in folders, and cut into tiles that the models can send."""

from dekag.pictures.files import Picture, read_picture
from dekag.pictures.folders import PictureFile, PictureFolder, find_pictures
from dekag.pictures.headers import announced_size
from dekag.pictures.tiles import Tiling

__all__ = [
    "Picture",
    "PictureFile",
    "PictureFolder",
    "Tiling",
    "announced_size",
    "find_pictures",
    "read_picture",
]
