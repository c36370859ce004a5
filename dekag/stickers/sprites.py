"""Sprites: the trimmed, recoloured and scaled artwork of a subject, cached for further images."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageFilter

from dekag.stickers.assets import artwork
from dekag.stickers.colour import PAINTS, recolour
from dekag.stickers.subjects import ACCESSORIES, SUBJECT_BY_NAME

EDGE = 24  # alpha (0..255) below which a pixel counts as empty margin


@dataclass(frozen=True)
class Sprite:
    """A subject ready for placement; uint8 planes, (3, height, width) and (height, width).

    All planes have an empty margin of `margin` pixels. `planes` are red, green and blue times `alpha`; `soft`
    is the blurred alpha, used for light and shade at the rim; `left` and `right` (columns without the margin)
    limit the part that touches the ground.
    """

    planes: npt.NDArray[np.uint8]
    alpha: npt.NDArray[np.uint8]
    soft: npt.NDArray[np.uint8]
    left: int
    right: int
    margin: int


def _crop(image: Image.Image) -> Image.Image:
    """`image` without its empty margins."""
    return image.crop(image.getchannel("A").point(lambda value: 255 if value > EDGE else 0).getbbox())


def _dressed(image: Image.Image, accessory: str) -> Image.Image:
    """A premultiplied image with an accessory on its head, the top of its middle columns."""
    code, share = ACCESSORIES[accessory]
    hat = _crop(artwork(code)).convert("RGBa")
    width = round(image.width * share)
    hat = hat.resize((width, round(hat.height * width / hat.width)), Image.Resampling.LANCZOS)
    middle = np.asarray(image)[:, image.width * 47 // 100 : image.width * 53 // 100 + 1, 3].max(axis=1)
    top = int(np.flatnonzero(middle > EDGE * 4)[0]) - round(hat.height * 0.84)
    grown = max(0, -top)
    joined = Image.new("RGBa", (image.width, image.height + grown))
    joined.paste(image, (0, grown))
    whole = np.array(joined)
    left = (image.width - width) // 2
    part = whole[top + grown : top + grown + hat.height, left : left + width]
    over = np.asarray(hat).astype(np.float32)
    part[:] = np.round(over + part * (1 - over[..., 3:] / 255)).clip(0, 255).astype(np.uint8)
    return Image.fromarray(whole, "RGBa")


@lru_cache(maxsize=128)
def _trimmed(name: str) -> Image.Image:
    """The artwork without its margins."""
    return _crop(artwork(SUBJECT_BY_NAME[name].code))


@lru_cache(maxsize=512)
def _painted(name: str, colour: str) -> Image.Image:
    """The artwork in a colour, premultiplied, which is required for scaling."""
    subject = SUBJECT_BY_NAME[name]
    image = np.asarray(_trimmed(name), np.float64) / 255
    pixels, alpha = image[..., :3], image[..., 3]
    if colour in PAINTS and subject.paintable:
        pixels = recolour(pixels, alpha, colour, subject.hue, subject.reach)
    joined = np.concatenate([pixels * alpha[..., None], alpha[..., None]], axis=-1)
    return Image.fromarray(np.round(joined * 255).astype(np.uint8), "RGBa")


@lru_cache(maxsize=2048)
def sprite(
    name: str, colour: str, pixels: int, highest: int, cut: float = 0.0, accessory: str | None = None
) -> Sprite:
    """The subject `name` in `colour`, its longer side `pixels` long, without the lowest fraction `cut`.

    An accessory adds to the height; the total height is at most `highest` pixels.
    """
    image = _painted(name, colour)
    scale = pixels / max(image.size)
    if accessory is not None:
        image = _dressed(image, accessory)
        scale = min(scale, highest / image.height)
    if cut:
        image = image.crop((0, 0, image.width, round(image.height * (1 - cut))))
    size = (max(1, round(image.width * scale)), max(1, round(image.height * scale)))
    scaled = np.asarray(image.resize(size, Image.Resampling.LANCZOS, reducing_gap=3.0))
    foot = np.flatnonzero(scaled[-max(2, round(size[1] * 0.05)) :, :, 3].max(axis=0) > 100)
    if not len(foot):
        foot = np.array([size[0] // 3, size[0] * 2 // 3])
    reach = max(2, round(pixels * 0.045))
    margin = reach * 2
    planes = np.pad(scaled, ((margin, margin), (margin, margin), (0, 0))).transpose(2, 0, 1)
    alpha = np.ascontiguousarray(planes[3])
    soft = np.asarray(Image.fromarray(alpha).filter(ImageFilter.GaussianBlur(reach)))
    return Sprite(np.minimum(planes[:3], alpha), alpha, soft, int(foot[0]), int(foot[-1]), margin)


def forget_sprites() -> None:
    """Clear the caches after a change of the artwork."""
    for cached in (_trimmed, _painted, sprite):
        cached.cache_clear()
