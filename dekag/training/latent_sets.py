"""Latent sets: latents of a profile's own autoencoder, to train a codec and its adapters on.

A latent set is a folder with `latents.json`, which says what it holds, and files of `ROWS` latents each. It
is made from prompts, whose latents the profile's edge generates as for a request, or from pictures, which its
autoencoder encodes. Latents are scaled as in `dekag.generation.autoencoder`. Prompts and pictures of the last
rows are held out of training, to measure on.
"""

from __future__ import annotations

import hashlib
import os
import random
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any, Literal, Self

import numpy as np
import torch
from PIL import Image, ImageOps
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from tqdm import tqdm

from dekag.api.limits import check_prompt
from dekag.documents import parse_json
from dekag.errors import FileError, InvalidInputError, MismatchError
from dekag.files import list_folder, read_bytes, read_text
from dekag.generation.autoencoder import encode
from dekag.generation.images import from_bytes
from dekag.generation.loading import autoencoder_hash, pipeline_hash
from dekag.generation.machine import machine_placement
from dekag.generation.models import Generator, LatentDecoder
from dekag.generation.placement import Placement
from dekag.generation.profile import GeneratorProfile
from dekag.generation.side_information import SideInformation
from dekag.makd.topics import expanded
from dekag.numerics import check_finite
from dekag.profile import Profile
from dekag.training.data import CELL, Pixels, to_tensor
from dekag.training.examples import Examples, states_of

INFO = "latents.json"
CAPTIONS = "metadata.jsonl"
ROWS = 16
"""Latents of a file, and the most that an interruption loses."""
MIN_HELD_OUT = 16  # what `dekag train cala` measures the table for rate control on
HELD_OUT_PART = 24  # one of so many latents is held out
MIN_COUNT = 2 * MIN_HELD_OUT
SUFFIXES = (".png", ".jpg", ".jpeg", ".webp")
MAX_SIDE = 8192
MAX_PICTURE_BYTES = 2**27
_MAX_INFO_BYTES = 2**28


class Row(BaseModel):
    """What a latent was made from: a prompt and a seed, or a picture."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    prompt: str | None = None
    seed: int | None = None
    file: str | None = Field(default=None, description="Path below the folder of the pictures.")
    text: str | None = Field(default=None, description="The picture's caption.")


class DrawnBy(BaseModel):
    """The edge that generated latents, and how it sampled."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    edge_hash: str
    steps: int
    guidance_scale: float


class LatentSetInfo(BaseModel):
    """The content of latents.json."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    format: Literal[1] = 1
    vae_hash: str = Field(description="`autoencoder_hash` of the profile's edge.")
    formats: tuple[str, ...] = Field(
        default=(), description="Parts of the edge that did not compute in float32, with their formats."
    )
    size: int = Field(description="Side of the images, pixels.")
    latent_shape: tuple[int, int, int] = Field(description="Channels, height and width of each latent.")
    count: int
    held_out: int = Field(description="So many of the last rows are not for training.")
    seed: int = Field(description="Seed of the draw of prompts and their seeds, or of the pictures' order.")
    drawn_by: DrawnBy | None = Field(default=None, description="None: encoded from pictures.")
    pictures_hash: str | None = Field(
        default=None, description="SHA-256 (hex) of the pictures' files, in the order of the rows."
    )
    rows: tuple[Row, ...]

    @classmethod
    def read(cls, folder: Path) -> Self:
        """The latents.json of a folder; FileError if there is none, or it is not valid."""
        path = folder / INFO
        try:
            info = cls.model_validate(parse_json(read_text(path, max_bytes=_MAX_INFO_BYTES), str(path)))
        except ValidationError as error:
            first = error.errors()[0]
            where = ".".join(map(str, first["loc"]))
            raise FileError(path, f"describes no latent set: {where}: {first['msg']}") from None
        if len(info.rows) != info.count or not 0 < info.held_out < info.count:
            raise FileError(path, "describes no latent set: count, held_out and rows contradict each other")
        return info


@dataclass(frozen=True)
class LatentSet:
    """A complete latent set.

    Attributes:
        folder: its folder.
        info: its description.
        latents: (count, channels, height, width) float16, scaled.
    """

    folder: Path
    info: LatentSetInfo
    latents: torch.Tensor

    @classmethod
    def load(cls, folder: Path) -> Self:
        """The latent set in a folder.

        Raises:
            FileError: it is no latent set, not complete or damaged.
        """
        info, parts = LatentSetInfo.read(folder), []
        for start in range(0, info.count, ROWS):
            path = folder / _file(start)
            if not path.exists():
                again = "run `dekag train latents` again with the same options to complete it"
                raise FileError(folder, f"has no {path.name}: {again}")
            try:
                part = load_file(path)["latents"]
            except (SafetensorError, KeyError):
                part = torch.empty(0)
            if part.shape != (min(ROWS, info.count - start), *info.latent_shape):
                raise FileError(path, "is damaged: delete it and run `dekag train latents` again")
            parts.append(part)
        return cls(folder, info, torch.cat(parts))

    def check_autoencoder(self, edge: GeneratorProfile) -> None:
        """MismatchError if the latents are not of the autoencoder of `edge`."""
        own = autoencoder_hash(edge)
        if self.info.vae_hash != own:
            raise MismatchError(
                f"{self.folder} holds latents of autoencoder {self.info.vae_hash[:12]}; "
                f"the profile's is {own[:12]}"
            )

    def examples(self, side_information: SideInformation | None = None) -> tuple[Examples, Examples]:
        """What to train on, and what to measure on; with prompts or captions if the text encoder is given."""
        whole = Examples(self.latents)
        if side_information is not None:
            said = [row.prompt or row.text or "" for row in self.info.rows]
            whole = Examples(self.latents, states_of(said, side_information))
        return whole.rows(slice(-self.info.held_out)), whole.rows(slice(-self.info.held_out, None))


def latents_of_prompts(
    folder: Path,
    profile: Profile,
    prompts: Sequence[str],
    *,
    count: int,
    seed: int,
    size: int | None = None,
    batch: int = 1,
    placed: Placement | None = None,
    show: bool = True,
) -> None:
    """Make a latent set that the profile's edge generates; continues one that was interrupted.

    Args:
        folder: folder of the latent set.
        profile: its edge generates.
        prompts: templates, which may contain alternatives, "a {red|blue} car". If they give fewer different
            prompts than `count`, prompts are repeated with other seeds; if more, `count` are drawn.
        count: number of latents, at least MIN_COUNT.
        seed: seed of the draws.
        size: side of the images, pixels; default: the profile's.
        batch: latents to generate at once. With 1 they have the bits of those that are sent; otherwise they
            differ by rounding.
        placed: devices of the edge; default: as the machine's settings say.
        show: show a progress bar.

    Raises:
        InvalidInputError: too few or invalid prompts.
        FileError: the folder holds another latent set.
        MismatchError: an image is not eight times as wide as its latent.
    """
    rows, held_out = _prompt_rows(prompts, count, seed)
    edge, size = profile.edge, size or profile.size
    generator = Generator.from_profile(profile, "edge", placed)
    info = LatentSetInfo(
        vae_hash=autoencoder_hash(edge),
        formats=generator.formats,
        size=size,
        latent_shape=_latent_shape(generator.decoder, size),
        count=count,
        held_out=held_out,
        seed=seed,
        drawn_by=DrawnBy(edge_hash=pipeline_hash(edge), steps=edge.steps, guidance_scale=edge.guidance_scale),
        rows=tuple(rows),
    )

    def draw(some: Sequence[Row]) -> torch.Tensor:
        said, seeds = [str(row.prompt) for row in some], [row.seed or 0 for row in some]
        return generator.batch(said, seeds, width=size, height=size)

    _fill(folder, info, draw, batch, show)


def latents_of_pictures(
    folder: Path,
    profile: Profile,
    pictures: Path,
    *,
    count: int | None = None,
    seed: int,
    size: int | None = None,
    batch: int = 1,
    placed: Placement | None = None,
    show: bool = True,
) -> None:
    """Make a latent set from pictures; continues one that was interrupted.

    Pictures are cropped to their central square, and reduced or enlarged to the size.

    Args:
        folder: folder of the latent set.
        profile: the autoencoder of its edge encodes.
        pictures: folder of PNG, JPEG and WebP files, also in folders below it. The texts of a metadata.jsonl
            with lines {"file_name": ..., "text": ...} are kept.
        count: number of latents, at least MIN_COUNT; default: all pictures.
        seed: seed of the pictures' order, and thus of which are taken and which are held out.
        size: side of the images, pixels; default: the profile's.
        batch: pictures to encode at once.
        placed: device of the autoencoder; default: as the machine's settings say.
        show: show a progress bar.

    Raises:
        InvalidInputError: `count` is larger than the number of pictures.
        FileError: there are too few pictures, one cannot be read, or the folder holds another latent set.
        MismatchError: an image is not eight times as wide as its latent.
    """
    captions = _pictures(pictures)
    if len(captions) < MIN_COUNT:
        raise FileError(
            pictures,
            f"has {len(captions)} PNG, JPEG and WebP files: at least {MIN_COUNT} are needed, of which "
            f"{MIN_HELD_OUT} are held out of training",
        )
    count = len(captions) if count is None else count
    if count > len(captions):
        raise InvalidInputError("count", f"at most {len(captions)}, the number of pictures", count)
    names = random.Random(seed).sample(sorted(captions), count)
    placed, size = placed or machine_placement(), size or profile.size
    decoder = LatentDecoder.load(profile.edge, placed)
    info = LatentSetInfo(
        vae_hash=decoder.model_hash,
        formats=placed.formatted(profile.edge).formats,
        size=size,
        latent_shape=_latent_shape(decoder, size),
        count=count,
        held_out=_held_out(count),
        seed=seed,
        pictures_hash=_content_hash(pictures / name for name in names),
        rows=tuple(Row(file=name, text=captions[name]) for name in names),
    )

    @torch.inference_mode()
    def encoded(some: Sequence[Row]) -> torch.Tensor:
        pixels = np.stack([read_picture(pictures / str(row.file), size) for row in some])
        return encode(decoder.vae, to_tensor(pixels))

    _fill(folder, info, encoded, batch, show)


def read_picture(path: Path, size: int) -> Pixels:
    """The central square of a PNG, JPEG or WebP file, (size, size, 3) uint8; FileError if unreadable."""
    data = read_bytes(path, max_bytes=MAX_PICTURE_BYTES)
    try:
        pixels = from_bytes(data, max_side=MAX_SIDE)
    except InvalidInputError:
        problem = f"is no readable PNG, JPEG or WebP picture of at most {MAX_SIDE} pixels a side"
        raise FileError(path, problem) from None
    square = ImageOps.fit(Image.fromarray(pixels), (size, size), Image.Resampling.LANCZOS)
    return np.array(square)


def _content_hash(files: Iterable[Path]) -> str:
    """SHA-256 (hex) of files: pictures may change under the same names."""
    whole = hashlib.sha256()
    for file in files:
        whole.update(hashlib.sha256(read_bytes(file, max_bytes=MAX_PICTURE_BYTES)).digest())
    return whole.hexdigest()


def _held_out(count: int) -> int:
    return max(MIN_HELD_OUT, count // HELD_OUT_PART)


def _prompt_rows(templates: Sequence[str], count: int, seed: int) -> tuple[list[Row], int]:
    """The rows of a set, and how many of them are held out; no held-out prompt is one of the others."""
    if count < MIN_COUNT:
        raise InvalidInputError("count", f"at least {MIN_COUNT}", count)
    rng, found = random.Random(seed), dict[str, None]()
    for _ in range(20 * count if templates else 0):
        found[check_prompt(expanded(rng.choice(templates), rng))] = None
        if len(found) == count:
            break
    if len(found) < 2:
        raise InvalidInputError("prompts", "at least 2 different ones, of which 1 is held out", len(found))
    different, held_out = list(found), _held_out(count)
    kept = max(1, len(different) * held_out // count)
    rows = []
    for some, number in ((different[:-kept], count - held_out), (different[-kept:], held_out)):
        rows += [Row(prompt=some[i % len(some)], seed=rng.randrange(2**32)) for i in range(number)]
    return rows, held_out


def _pictures(folder: Path) -> dict[str, str | None]:
    """The captions of the pictures below a folder, by their path below it."""
    list_folder(folder)  # says why, if it cannot be read
    paths = sorted(path.relative_to(folder) for path in folder.rglob("*"))
    captions: dict[str, str | None] = {
        path.as_posix(): None for path in paths if path.suffix.lower() in SUFFIXES
    }
    for path in paths:
        if path.name != CAPTIONS:
            continue
        text = read_text(folder / path, max_bytes=_MAX_INFO_BYTES)
        for number, line in enumerate(text.split("\n"), 1):
            if line.strip():
                where = f"{folder / path}, line {number}"
                name, said = _caption(parse_json(line, where), where)
                known = PurePosixPath(path.parent.as_posix(), name).as_posix()
                if known not in captions:
                    raise FileError(where, f"names {name!r}, which is no PNG, JPEG or WebP file there")
                captions[known] = said
    return captions


def _caption(entry: Any, where: str) -> tuple[str, str | None]:
    name, text = (entry.get("file_name"), entry.get("text")) if isinstance(entry, dict) else (None, None)
    if not isinstance(name, str) or not isinstance(text, str | None):
        raise FileError(where, 'must be like {"file_name": "car.png", "text": "a red car"}')
    return name, text


def _latent_shape(decoder: LatentDecoder, size: int) -> tuple[int, int, int]:
    if decoder.factor != CELL:
        raise MismatchError(
            f"the edge's autoencoder reduces images {decoder.factor}-fold: codecs are trained for {CELL}-fold"
        )
    return int(decoder.vae.config.latent_channels), size // CELL, size // CELL


def _file(start: int) -> str:
    return f"latents-{start:06d}.safetensors"


def _fill(
    folder: Path,
    info: LatentSetInfo,
    make: Callable[[Sequence[Row]], torch.Tensor],
    batch: int,
    show: bool,
) -> None:
    """Write the files that are missing; a file is there only when it is complete."""
    if os.path.lexists(folder / INFO):
        if LatentSetInfo.read(folder) != info:
            raise FileError(folder, "holds another latent set: delete it, or choose another folder")
    else:
        folder.mkdir(parents=True, exist_ok=True)
        _written(
            folder / INFO, lambda path: path.write_text(info.model_dump_json(indent=1, exclude_none=True))
        )
    with tqdm(total=info.count, desc="latents", dynamic_ncols=True, disable=not show) as bar:
        for start in range(0, info.count, ROWS):
            stop, path = min(start + ROWS, info.count), folder / _file(start)
            if path.exists():
                bar.update(stop - start)
                continue
            parts = []
            for first in range(start, stop, batch):
                rows = info.rows[first : min(first + batch, stop)]
                parts.append(make(rows).half())
                # rounded: float16 ends at 65504
                check_finite(parts[-1], "encode", model_hash=info.vae_hash)
                bar.update(len(rows))
            latents = {"latents": torch.cat(parts).contiguous()}
            _written(path, lambda path, latents=latents: save_file(latents, path))  # type: ignore[misc]


def _written(path: Path, write: Callable[[Path], Any]) -> None:
    """Write a file so that an interruption leaves none."""
    new = path.with_suffix(".new")
    write(new)
    new.replace(path)
