"""Pictures in the terminal: by a graphics protocol that it says it knows, else in coloured half blocks."""

from __future__ import annotations

import base64
import io
from collections.abc import Mapping
from typing import Literal

import numpy as np
from PIL import Image
from rich.color import Color
from rich.console import Console
from rich.style import Style
from rich.text import Text

Protocol = Literal["kitty", "iterm2", "sixel"]

_COLUMNS = 48  # of the terminal, that a picture takes at most
_PIXELS = 384  # longer side of a picture in sixels, which know no columns
_CHUNK = 4096  # kitty's most, characters of base64
_TERMS: Mapping[str, Protocol] = {
    "xterm-kitty": "kitty",
    "xterm-ghostty": "kitty",
    "foot": "sixel",
    "foot-extra": "sixel",
    "mlterm": "sixel",
}
_PROGRAMS: Mapping[str, Protocol] = {"ghostty": "kitty", "iTerm.app": "iterm2", "WezTerm": "iterm2"}


def protocol(env: Mapping[str, str]) -> Protocol | None:
    """The graphics protocol of the terminal that ``env`` describes; None if it names none.

    Within tmux and screen it is None, as they do not pass pictures on.
    """
    if "TMUX" in env or "STY" in env:
        return None
    if "KITTY_WINDOW_ID" in env:
        return "kitty"
    return _TERMS.get(env.get("TERM", "")) or _PROGRAMS.get(env.get("TERM_PROGRAM", ""))


def can_show(console: Console, env: Mapping[str, str]) -> bool:
    """Whether a picture would look like one there: a terminal with graphics or 24-bit colour."""
    coloured = console.color_system == "truecolor" and not console.no_color
    return console.file.isatty() and (protocol(env) is not None or coloured)


def show(png: bytes, console: Console, env: Mapping[str, str]) -> None:
    """Shows a picture in the terminal of ``console``; does nothing if that is none."""
    if not console.file.isatty():  # console.is_terminal would be true for a pipe under FORCE_COLOR
        return
    columns = min(console.width, _COLUMNS)
    kind = protocol(env)
    if kind is None:
        console.print(half_blocks(png, columns))
        return
    if kind == "kitty":
        sequence = kitty(png, columns)
    elif kind == "iterm2":
        sequence = iterm2(png, columns)
    else:
        sequence = sixel(png)
    # past rich, which would take the escape sequences for text and break them into lines
    console.file.write(sequence + "\n")
    console.file.flush()


def half_blocks(png: bytes, columns: int) -> Text:
    """The picture in characters of two pixels each, one above the other."""
    picture = Image.open(io.BytesIO(png)).convert("RGB")
    rows = max(1, round(columns * picture.height / picture.width / 2))
    pixels = np.asarray(picture.resize((columns, 2 * rows), Image.Resampling.LANCZOS))
    text = Text(no_wrap=True, end="")
    for upper, lower in zip(pixels[::2], pixels[1::2], strict=True):
        for above, below in zip(upper, lower, strict=True):
            style = Style(color=Color.from_rgb(*above), bgcolor=Color.from_rgb(*below))
            text.append("▀", style)
        text.append("\n")
    return text


def kitty(png: bytes, columns: int) -> str:
    """The escape sequences of kitty's graphics protocol that show the picture ``columns`` wide."""
    data = base64.b64encode(png).decode()
    chunks = [data[start : start + _CHUNK] for start in range(0, len(data), _CHUNK)]
    parts = []
    for index, chunk in enumerate(chunks):
        keys = f"a=T,f=100,q=2,c={columns}," if index == 0 else ""
        parts.append(f"\x1b_G{keys}m={int(index < len(chunks) - 1)};{chunk}\x1b\\")
    return "".join(parts)


def iterm2(png: bytes, columns: int) -> str:
    """The escape sequence of iTerm2's inline images that shows the picture ``columns`` wide."""
    data = base64.b64encode(png).decode()
    return f"\x1b]1337;File=inline=1;size={len(png)};width={columns}:{data}\x07"


def sixel(png: bytes) -> str:
    """The picture in sixels: columns of six pixels, one colour after another, band below band."""
    picture = Image.open(io.BytesIO(png)).convert("RGB")
    scale = _PIXELS / max(picture.size)
    size = (round(picture.width * scale), round(picture.height * scale))
    indexed = picture.resize(size, Image.Resampling.LANCZOS).quantize(256)
    palette = np.asarray(indexed.getpalette()).reshape(-1, 3) * 100 // 255  # sixels count in percent
    parts = [f"#{index};2;{red};{green};{blue}" for index, (red, green, blue) in enumerate(palette)]
    pixels = np.asarray(indexed)
    weights = 1 << np.arange(6)[:, None]
    for top in range(0, size[1], 6):
        band = pixels[top : top + 6]
        for colour in np.unique(band):
            sixels = ((band == colour) * weights[: len(band)]).sum(0) + 63
            parts.append(f"#{colour}{bytes(sixels.astype(np.uint8)).decode()}$")
        parts.append("-")
    return f'\x1bPq"1;1;{size[0]};{size[1]}{"".join(parts)}\x1b\\'
