"""Files of received images: how each was requested, and by which models it was made, is written in the file.

A PNG has it as JSON in the text chunk `dekag`, with the prompt in `Description`; JPEG and WebP have it in the
EXIF tag UserComment. API keys, user names and the ids of requests are not part of it.
"""

from __future__ import annotations

import io
import json
import struct
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import ExifTags, Image, PngImagePlugin
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from dekag.api import limits
from dekag.api.schemas import ImagesRequest, KnowledgeUse, LinkReport
from dekag.documents import DocumentError, parse_json
from dekag.errors import FileError, MismatchError
from dekag.files import read_bytes
from dekag.link.conditions import without_unread

KEYWORD = "dekag"
"""Keyword of the text chunk of a PNG."""
FORMATS = {".png": "png", ".jpg": "jpeg", ".jpeg": "jpeg", ".webp": "webp"}
"""Formats of returned images by the suffix of the file."""

_SIGNATURE_AND_HEADER = 8 + 25  # bytes of a PNG before the chunks that may be added
_COMMENT = b"ASCII\0\0\0"  # of EXIF's UserComment
_MAX_BYTES = 64 * 2**20
# what Pillow raises for files that are damaged, or no images
_DAMAGED = (OSError, SyntaxError, ValueError, EOFError, struct.error, Image.DecompressionBombError)
# what differs between requests for the same image
_NOT_KEPT = {
    "n", "model", "user", "safety_identifier", "quality", "style", "moderation", "complexity", "background",
    "response_format", "stream", "partial_images", "consistency", "measure", "details", "metadata",
}  # fmt: skip


class Provenance(BaseModel):
    """Origin of an image.

    Attributes:
        request: body of the request that makes the image again, with its seed.
        model_hashes: SHA-256 of each model used.
        knowledge: knowledge updates applied in generation.
    """

    model_config = ConfigDict(frozen=True, extra="ignore")

    request: dict[str, Any]
    model_hashes: dict[str, str] = Field(max_length=20)
    knowledge: list[KnowledgeUse] = Field(max_length=limits.MAX_KNOWLEDGE)

    def check(self, report: LinkReport) -> None:
        """Compares the models with those of another image.

        Raises:
            MismatchError: they differ; the message names them.
        """
        made = {f"model {name}": value for name, value in report.model_hashes.items()}
        made |= {f"topic {use.topic}": use.content_hash for use in report.knowledge}
        kept = {f"model {name}": value for name, value in self.model_hashes.items()}
        kept |= {f"topic {use.topic}": use.content_hash for use in self.knowledge}
        wrong = [
            f"{name} was {_short(kept.get(name))} and is {_short(made.get(name))}"
            for name in sorted(kept.keys() | made.keys())
            if kept.get(name) != made.get(name)
        ]
        if wrong:
            raise MismatchError(f"the image was made by other models: {'; '.join(wrong)}")


def provenance(request: ImagesRequest, report: LinkReport, png: bytes) -> Provenance:
    """The origin of an image, from its request, its report and its PNG.

    Seed, size and the topics are those that were used, so that the same image is requested later.
    An image that the demand policy took from the cloud used no topics: its request keeps the original ones.
    """
    body = request.model_dump(mode="json", exclude_none=True, exclude=_NOT_KEPT)
    body |= {"seed": report.seed, "size": size_of(png)}
    if report.delivery == "semantic" and report.source == "edge":
        body["knowledge"] = [use.topic for use in report.knowledge] or ["none"]
    return Provenance(request=body, model_hashes=report.model_hashes, knowledge=report.knowledge)


def size_of(png: bytes) -> str:
    """WIDTHxHEIGHT of a PNG."""
    width, height = struct.unpack(">II", png[16:24])
    return f"{width}x{height}"


def with_metadata(png: bytes, origin: Provenance | None) -> bytes:
    """The PNG with its origin; its pixels are not compressed again."""
    if origin is None:
        return png
    chunks = PngImagePlugin.PngInfo()
    chunks.add_text("Software", "DeKA-g")
    chunks.add_itxt("Description", str(origin.request["prompt"]))
    chunks.add_text(KEYWORD, _to_ascii(origin))
    added = io.BytesIO()
    for kind, data, *_ in chunks.chunks:
        PngImagePlugin.putchunk(added, kind, data)
    return png[:_SIGNATURE_AND_HEADER] + added.getvalue() + png[_SIGNATURE_AND_HEADER:]


def converted(png: bytes, file_format: str, quality: int, origin: Provenance | None) -> bytes:
    """A PNG as a JPEG or WebP.

    Args:
        png: the image.
        file_format: "jpeg" or "webp".
        quality: 0 to 100.
        origin: to be written in the file, if not None.
    """
    exif = Image.Exif()
    if origin is not None:
        comment = _COMMENT + _to_ascii(origin).encode("ascii")
        exif.get_ifd(ExifTags.IFD.Exif)[ExifTags.Base.UserComment] = comment
    file = io.BytesIO()
    with Image.open(io.BytesIO(png)) as image:
        image.save(file, file_format, quality=quality, exif=exif)
    return file.getvalue()


def read_provenance(path: Path) -> Provenance:
    """The origin of the image in a file.

    Raises:
        FileError: the file cannot be read, is no image, or does not say how it was made; or this version
            does not allow its request.
    """
    with _opened(read_bytes(path, max_bytes=_MAX_BYTES), path) as image:
        text = image.info.get(KEYWORD)
        if text is None:
            try:
                comment = image.getexif().get_ifd(ExifTags.IFD.Exif).get(ExifTags.Base.UserComment)
            except _DAMAGED as error:
                raise FileError(path, f"is damaged, or has damaged metadata: {error}") from None
            if isinstance(comment, bytes) and comment.startswith(_COMMENT):
                text = comment.removeprefix(_COMMENT).decode("ascii", "replace")
    if not isinstance(text, str):
        raise FileError(
            path,
            "does not say how it was made; DeKA-g writes this into its images, but programs that convert or "
            "share images often remove it",
        )
    try:
        origin = Provenance.model_validate(parse_json(text.encode(), str(path)))
    except (DocumentError, ValidationError):
        raise FileError(path, "has lost what DeKA-g wrote into it: its metadata is damaged") from None
    link = origin.request.get("link")
    if isinstance(link, dict):  # earlier releases took and wrote fields that nothing reads
        origin = origin.model_copy(update={"request": {**origin.request, "link": without_unread(link)}})
    try:
        ImagesRequest.model_validate(origin.request)
    except ValidationError as error:
        field = ".".join(map(str, error.errors()[0]["loc"]))
        problem = f"has a request that this version of DeKA-g does not allow: field {field[:80]}"
        raise FileError(path, problem) from None
    if unknown := origin.request.keys() & _NOT_KEPT:
        raise FileError(path, f"has a request with fields that DeKA-g does not write: {', '.join(unknown)}")
    return origin


def pixels(file: bytes, name: Path | str) -> npt.NDArray[np.uint8]:
    """The pixels (height, width, 3) of an image file.

    Raises:
        FileError: it is no image, or larger than images of DeKA-g are.
    """
    with _opened(file, name) as image:
        if max(image.size) > limits.MAX_PIXELS:
            raise FileError(name, f"has more than {limits.MAX_PIXELS} pixels on a side")
        try:
            return np.asarray(image.convert("RGB"))
        except _DAMAGED as error:
            raise FileError(name, f"is damaged: {error}") from None


def _opened(file: bytes, name: Path | str) -> Image.Image:
    try:
        return Image.open(io.BytesIO(file), formats=("PNG", "JPEG", "WEBP"))
    except _DAMAGED:
        raise FileError(name, "is no PNG, JPEG or WebP") from None


def _to_ascii(origin: Provenance) -> str:
    return json.dumps(origin.model_dump(mode="json"), separators=(",", ":"), sort_keys=True)


def _short(content_hash: str | None) -> str:
    return "absent" if content_hash is None else content_hash[:12]
