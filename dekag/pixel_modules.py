"""Codecs of pixels that are made of a user's own PyTorch modules, such as a DeepJSCC, ADJSCC or SwinJSCC.

A plug-in says how its modules are called; all else is the link's: tiles, rate, power, channel, equaliser and
metrics. No code and no weights of other projects are part of this one.
"""

from __future__ import annotations

import hashlib
import inspect
import math
import os
from abc import ABC, abstractmethod
from bisect import bisect_right
from collections.abc import Iterator, Sequence
from itertools import pairwise
from operator import index
from pathlib import Path
from typing import Any, ClassVar, Self

import torch
from torch import nn

from dekag import plugins
from dekag.api.limits import PIXEL_CODEC_STEP, PIXEL_CODEC_TILE
from dekag.arguments import check_each, check_sides
from dekag.cala.conditions import rate_and_snr_db
from dekag.cala.rate import QualityModel
from dekag.cala.restoration import RestorationTable
from dekag.checksums import add_file
from dekag.codec.constellation import unit_power
from dekag.codec.jscc import Modulation
from dekag.documents import read_json
from dekag.errors import DekagError, InvalidInputError, MismatchError, NotFoundError, described
from dekag.generation.loading import folder_hash
from dekag.link.conditions import EqualizerKind
from dekag.pictures import Tiling
from dekag.pixel_codec import PixelCodec, PixelShape, as_sent, check_modulation, check_received
from dekag.sources import imported_sources


class PixelModules(nn.Module, ABC):
    """Base class of plug-ins for codecs of pixels.

    Each tile of a picture is encoded and decoded by itself. The link scales its symbols to mean power 1, so
    that it does not matter whether the encoder normalises its power. The decoder gets these symbols, noisy
    and equalised. Whatever else it must know of the picture has to be sent as symbols, too.

    Attributes:
        name: of the plug-in: lower-case letters, digits, - and _.
        step: sides of tiles are multiples of it, pixels.
        tile: the longest side of a tile, a multiple of `step`.
        interleaved: whether the link sends the symbols in another order, which spreads a fade.
        equalizer: "zf", which leaves x + n of a symbol x, as most decoders were trained on; "mmse", which
            also shrinks symbols in the noise; None: what the link says.
        base_hash: hash of the folder that it was loaded from, and of the plug-in's code.
    """

    name: ClassVar[str]
    step: ClassVar[int] = PIXEL_CODEC_STEP
    tile: ClassVar[int] = PIXEL_CODEC_TILE
    interleaved: bool = True
    equalizer: EqualizerKind | None = "zf"
    base_hash: str = ""
    content_hash: str = ""
    quality: QualityModel | None = None
    restoration: RestorationTable | None = None
    text_width: int = 0

    @classmethod
    @abstractmethod
    def load(cls, folder: Path) -> Self:
        """The codec with the weights in that folder. Its modules are set to `eval` afterwards."""

    @abstractmethod
    def symbol_counts(self, height: int, width: int) -> Sequence[int]:
        """The numbers of complex symbols that a tile can be sent with, ascending; one if its rate is fixed.

        The link takes the largest one that the requested rate allows for the picture without padding.
        """

    @abstractmethod
    def to_symbols(self, image: torch.Tensor, count: int, snr_db: float) -> torch.Tensor:
        """An image (1, 3, h, w) in [0, 1] -> `count` complex symbols (1, count), of any power.

        Args:
            image: float32; sides are multiples of `step`.
            count: one of `symbol_counts`.
            snr_db: mean SNR as last reported to the sender, Es/N0 per complex symbol, dB; clipped to -17.5 to
                32.5.
        """

    @abstractmethod
    def to_image(self, symbols: torch.Tensor, height: int, width: int, snr_db: float) -> torch.Tensor:
        """Equalised symbols (1, count) complex64 -> an image (1, 3, height, width) in [0, 1].

        Args:
            symbols: of mean power 1, but for noise and fades that are left.
            height, width: of the tile, pixels.
            snr_db: mean SNR of the channel, dB; clipped likewise.
        """

    def modulation_at(self, snr_db: float) -> Modulation:
        """The constellation that is used where none is asked for: none at any SNR."""
        return "unquantised"

    def rate_note(self, cbr: float) -> None:
        """Nothing: which rates it was trained for is not known. It refuses those below its own."""

    def max_channel_uses(self, shape: PixelShape) -> int:
        """The most symbols that a tile (3, height, width) can be sent with."""
        return self._counts(shape)[-1]

    def channel_uses(self, tiling: Tiling, cbr: float) -> int:
        """The symbols of a picture at a rate: the most that the rate allows, without padding, in equal tiles.

        Raises:
            InvalidInputError: the rate is no number above 0, or the codec needs a higher one; names it.
        """
        if not (math.isfinite(cbr) and cbr > 0):
            raise InvalidInputError("cbr", "a number above 0", cbr)
        counts = self._counts((3, tiling.tile_height, tiling.tile_width))
        # what is padded brings no symbols: other senders of the picture have none for it either
        place = bisect_right(counts, round(cbr * tiling.source_values) // tiling.count)
        if not place:
            lowest = counts[0] * tiling.count / tiling.source_values
            allowed = f"at least {lowest:.6g} for this size and the codec of pixels {self.name}"
            raise InvalidInputError("cbr", allowed, cbr)
        return counts[place - 1] * tiling.count

    @torch.inference_mode()
    def encode(
        self,
        latents: torch.Tensor,
        channel_uses: Sequence[int],
        condition: torch.Tensor,
        *,
        modulation: Modulation | None = None,
        text: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """Tiles (batch, 3, h, w) in [-1, 1] -> symbols (batch, K) complex64, mean power 1 each, zero-padded.

        The arguments are those of `PixelCodec.encode`.

        Raises:
            InvalidInputError: names the argument with an invalid shape or range, such as a number of symbols
                that is not one of `symbol_counts`.
            MismatchError: the plug-in fails, or returns another shape.
        """
        check_modulation(modulation)
        if latents.ndim != 4 or latents.shape[1] != 3 or not len(latents):
            raise InvalidInputError("latents", "(batch, 3, h, w), at least 1 tile", described(latents))
        check_sides(latents.shape[2], latents.shape[3], self.step, self.tile, field="latents")
        check_each(len(latents), "tiles", channel_uses=channel_uses, condition=condition)
        counts = self._counts((3, latents.shape[2], latents.shape[3]))
        for count in channel_uses:
            if count not in counts:
                allowed = (
                    f"one of {', '.join(map(str, counts))} for this size and the codec of pixels {self.name}"
                )
                raise InvalidInputError("channel_uses", allowed, count)
        rows, most = [], max(channel_uses)
        for tile, count, snr_db in zip(latents.split(1), channel_uses, _snrs_db(condition), strict=True):
            symbols = self._checked("to_symbols", (1, count), tile.add(1).div(2), count, snr_db)
            rows.append(as_sent(unit_power(symbols.to(torch.complex64)), modulation, most))
        return torch.cat(rows)

    @torch.inference_mode()
    def decode(
        self,
        symbols: torch.Tensor,
        latent_shape: PixelShape,
        condition: torch.Tensor,
        *,
        text: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """Equalised symbols (batch, K) -> tiles (batch, 3, h, w) float32, about in [-1, 1].

        Raises:
            InvalidInputError: names the argument with an invalid shape or range.
            MismatchError: the plug-in fails, or returns another shape.
        """
        check_received(symbols, latent_shape, condition, self.step, self.max_channel_uses(latent_shape))
        _, height, width = latent_shape
        images = [
            self._checked("to_image", (1, *latent_shape), row, height, width, snr_db)
            for row, snr_db in zip(symbols.split(1), _snrs_db(condition), strict=True)
        ]
        return torch.cat(images).float().mul(2).sub(1)

    def _counts(self, shape: PixelShape) -> list[int]:
        """`symbol_counts` of a tile; MismatchError unless they are integers that ascend from 1 or more."""
        found = self._called("symbol_counts", shape[1], shape[2])
        try:
            counts = [index(each) for each in found]
        except TypeError:
            raise MismatchError(
                f"symbol_counts of the codec of pixels {self.name} must return a list of integers; "
                f"got {str(found)[:80]}"
            ) from None
        if not counts or counts[0] < 1 or any(b <= a for a, b in pairwise(counts)):
            raise MismatchError(
                f"symbol_counts of the codec of pixels {self.name} must ascend from 1 or more; "
                f"got {str(counts)[:80]}"
            )
        return counts

    def _checked(self, method: str, shape: tuple[int, ...], *arguments: Any) -> torch.Tensor:
        """A tensor of that shape that a method of the plug-in returns; MismatchError if it does not."""
        found = self._called(method, *arguments)
        if not isinstance(found, torch.Tensor) or tuple(found.shape) != shape:
            got = tuple(found.shape) if isinstance(found, torch.Tensor) else type(found).__name__
            raise MismatchError(
                f"{method} of the codec of pixels {self.name} must return a tensor {shape}; got {got}"
            )
        if found.is_complex() != (method == "to_symbols"):
            kind = "complex" if method == "to_symbols" else "real"
            raise MismatchError(f"{method} of the codec of pixels {self.name} must return {kind} numbers")
        return found.cpu()

    def _called(self, method: str, *arguments: Any) -> Any:
        try:
            return getattr(self, method)(*arguments)
        except DekagError:
            raise
        except Exception as error:  # anything that a plug-in raises
            raise MismatchError(
                f"{method} of the codec of pixels {self.name} failed: {type(error).__name__}: {error}"
            ) from error


AnyPixelCodec = PixelCodec | PixelModules

PIXEL_CODECS: dict[str, type[AnyPixelCodec]] = {"pixels": PixelCodec}
"""By name; plug-ins are added."""


def load_pixel_codec(folder: Path | str) -> AnyPixelCodec:
    """The codec of pixels in a folder, of the class that `_class_name` in its config.json names.

    Raises:
        NotFoundError: no class of that name is loaded, or the folder has no config.json.
        MismatchError: that file is damaged, the plug-in cannot load the folder, or its sizes do not fit.
    """
    known = _class_of(folder)
    if not issubclass(known, PixelModules):
        return known.load(folder)
    try:
        codec = known.load(Path(folder))
        _check(codec, known)
        codec.eval()
    except DekagError:
        raise
    except Exception as error:  # anything that a plug-in raises
        why = f"{type(error).__name__}: {error}"
        raise MismatchError(
            f"the codec of pixels {known.name} cannot be loaded from {folder}: {why}"
        ) from error
    codec.base_hash = pixel_codec_hash(folder)
    return codec


def pixel_codec_hash(folder: Path | str) -> str:
    """SHA-256 (hex) of what results of a codec of pixels depend on: its weights, and a plug-in's code.

    A plug-in may read files of any kind: all of its folder count, but for those that begin with a dot. Of its
    code, the plug-in's file and what that imports count, but not installed packages.
    """
    known = _class_of(folder)
    if not issubclass(known, PixelModules):
        return folder_hash(folder)
    digest = hashlib.sha256(plugins.code_hashes()[f"pixel_codec {known.name}"].encode())
    for file in _code(known):
        digest.update(hashlib.sha256(file.read_bytes()).digest())
    for file in _files(Path(folder)):
        digest.update(os.fsencode(file.relative_to(folder).as_posix()) + b"\0")
        add_file(digest, file)
    return digest.hexdigest()


def _class_of(folder: Path | str) -> type[AnyPixelCodec]:
    known = {each.__name__: each for each in map(_codec, plugins.names("pixel_codec"))}
    named = _config(folder).get("_class_name", PixelCodec.__name__)
    if named not in known:
        raise NotFoundError(
            f"the codec of pixels in {folder} is a {named}, not one of {', '.join(known)}; load its plug-in"
        )
    return known[named]


def _config(folder: Path | str) -> dict[str, Any]:
    """What config.json in the folder of a codec of pixels holds; nothing is asked of a hub."""
    path = Path(folder) / "config.json"
    if not path.is_file():
        raise NotFoundError(f"the codec of pixels has no {path}")
    try:
        config = read_json(path)
    except InvalidInputError as error:
        raise MismatchError(f"the codec of pixels cannot be read: {error}") from error
    if not isinstance(config, dict):
        raise MismatchError(f"the codec of pixels cannot be read: {path} holds no object")
    return config


def _check(codec: Any, known: type[PixelModules]) -> None:
    """MismatchError unless `load` made a codec whose tiles can be cut."""
    if not isinstance(codec, PixelModules):
        raise MismatchError(
            f"load of the codec of pixels {known.name} must return a {PixelModules.__name__}; "
            f"got {type(codec).__name__}"
        )
    step, tile = codec.step, codec.tile
    if not (isinstance(step, int) and isinstance(tile, int) and step >= 1 and tile >= 1 and tile % step == 0):
        raise MismatchError(
            f"step of the codec of pixels {known.name} must be an integer of 1 or more, and tile a multiple "
            f"of it; got step {step} and tile {tile}"
        )


def check_codec(codec: object) -> None:
    """Whether a link of pixels can use it.

    Raises:
        InvalidInputError: it is no codec of pixels.
        MismatchError: the sides of its tiles do not fit each other.
    """
    if isinstance(codec, PixelModules):
        _check(codec, type(codec))
    elif not isinstance(codec, PixelCodec):
        allowed = f"a {PixelCodec.__name__}, or a {PixelModules.__name__} of your own"
        raise InvalidInputError("codec", allowed, type(codec).__name__)


def _codec(name: str) -> type[AnyPixelCodec]:
    found: type[AnyPixelCodec] = plugins.get("pixel_codec", name)
    return found


def _code(known: type[PixelModules]) -> list[Path]:
    """Files of a user's own that the plug-in's file imports, where the network usually is."""
    try:
        return imported_sources(Path(inspect.getfile(known)))
    except (OSError, TypeError):
        return []  # a class that was made without a file


def _files(folder: Path) -> Iterator[Path]:
    for path in sorted(folder.rglob("*")):
        parts = path.relative_to(folder).parts
        if path.is_file() and not any(part.startswith(".") or part == "__pycache__" for part in parts):
            yield path


def _snrs_db(condition: torch.Tensor) -> list[float]:
    """The mean SNR in each condition vector, dB."""
    _, snrs_db = rate_and_snr_db(condition)
    return [float(each) for each in snrs_db]
