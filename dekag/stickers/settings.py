"""The settings: layered backgrounds with haze and light, no random texture.

An 8x smaller latent with four channels can represent gradients and large shapes well, but not noise. Every
function paints the whole canvas and returns the light for its subjects.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable

import numpy as np

from dekag.stickers.canvas import ALL, Canvas, Line
from dekag.stickers.colour import Colour, mix, rgb
from dekag.stickers.light import Light, gain, outdoors, tone

WHITE = rgb("ffffff")

SKIES: dict[str, list[tuple[str, str, str]]] = {
    "day": [("4ea6f0", "9fd2fa", "e6f5fd"), ("59b4f2", "a8dcf8", "f2f8ec"), ("6aa9ee", "aed0f7", "f6eff2")],
    "sunset": [
        ("4b3f8f", "e2718a", "ffc46b"),
        ("5a3b86", "ee7a72", "ffd07a"),
        ("433d86", "d9648c", "ffb070"),
    ],
    "night": [("0b1238", "1f2f70", "45569c"), ("0a1540", "223a7a", "4c6aa6"), ("120f3c", "2c2b70", "57529c")],
}


def _sky(canvas: Canvas, rng: random.Random, time: str, horizon: float) -> tuple[float, Colour]:
    """Paint sky, sun or moon, and stars; returns the column of the light and the colour of the haze."""
    top, middle, low = (rgb(code) for code in rng.choice(SKIES[time]))
    canvas.sky([(0.0, top), (horizon * 0.6, middle), (horizon, low)])
    left = rng.random() < 0.5
    x = rng.uniform(0.10, 0.26) if left else rng.uniform(0.74, 0.90)
    if time == "day":
        y = rng.uniform(0.11, 0.17)
        canvas.glow(x, y, 0.12, rgb("fff3c4"), 0.65)
        canvas.disc(x, y, 0.052, rgb("fff4c2"), 2.0)
    elif time == "sunset":
        y = horizon - rng.uniform(0.05, 0.09)
        canvas.glow(x, y, 0.26, rgb("ffdf8e"), 0.75)
        canvas.disc(x, y, 0.105, rgb("fff0b0"), 2.0)
    else:
        y = rng.uniform(0.12, 0.18)
        _stars(canvas, rng, 9, horizon * 0.62, (x, y))
        canvas.glow(x, y, 0.12, rgb("b9c8ff"), 0.45)
        canvas.crescent(x, y, 0.066, 0.032 if left else -0.032, rgb("fdf6d8"))
    return x, low


def _stars(canvas: Canvas, rng: random.Random, count: int, lowest: float, moon: tuple[float, float]) -> None:
    """Stars across the sky down to `lowest`, not near the moon."""
    for n in range(count):
        x, y = (n + rng.uniform(0.15, 0.85)) / count, rng.uniform(0.04, lowest)
        if math.hypot(x - moon[0], y - moon[1]) > 0.11:
            canvas.disc(x, y, rng.uniform(0.006, 0.010), rgb("e8eeff"), 3.0, 0.9)


def _clouds(canvas: Canvas, rng: random.Random, time: str, source: float, lowest: float) -> None:
    light, shade, opacity = {
        "day": (WHITE, rgb("dcebf8"), 0.95),
        "sunset": (rgb("ffc9a0"), rgb("c8688e"), 0.75),
        "night": (rgb("5566a8"), rgb("34457f"), 0.55),
    }[time]
    for side in rng.choice(((-1,), (1,), (-1, 1))):
        x = 0.5 + side * rng.uniform(0.12, 0.40)
        if abs(x - source) < 0.2:
            x = 1 - x
        canvas.cloud(x, rng.uniform(0.16, lowest), rng.uniform(0.20, 0.30), light, shade, opacity)


def _water(colour: Colour, haze: Colour, time: str) -> Colour:
    """The colour of water, which reflects the sky at sunset."""
    if time != "sunset":
        return tone(colour, time)
    return mix(mix(rgb("5d3a8c"), rgb("f58e78"), float(colour.mean()) / 200), haze, 0.12)


def _pines(canvas: Canvas, rng: random.Random, base: float, height: float, step: float) -> Line:
    """The outline of a row of pines on `base`."""
    line = canvas.level(base)
    x = rng.uniform(-step, 0)
    while x < 1 + step:
        top = base - height * rng.uniform(0.66, 1.0)
        width = step * rng.uniform(0.62, 0.78)
        away = np.abs(canvas.x - np.float32(x)) / np.float32(width)
        line = np.minimum(line, _pine(away, top, base))
        x += step * rng.uniform(0.75, 1.15)
    return line


def _pine(away: Line, top: float, base: float) -> Line:
    """The outline of a pine with five tiers; `away` is the distance from its trunk in half widths."""
    tiers = away * np.float32(5)
    tier = np.floor(tiers)
    slope = (tier + (tiers - tier) * np.float32(0.62)) / np.float32(5)
    return np.where(away < 1, np.float32(top) + np.float32(base - top) * slope, np.float32(9)).astype(
        np.float32
    )


def _peaks(canvas: Canvas, peaks: list[tuple[float, float, float]], base: float) -> Line:
    """The outline of mountains (column, height of the top, slope)."""
    line = canvas.level(base)
    for x, top, slope in peaks:
        line = np.minimum(line, np.float32(top) + np.abs(canvas.x - np.float32(x)) * np.float32(slope))
    return line


def _meadow(canvas: Canvas, time: str, rng: random.Random) -> Light:
    horizon = 0.60
    source, haze = _sky(canvas, rng, time, horizon)
    _clouds(canvas, rng, time, source, 0.34)
    far, middle, near = (tone(rgb(code), time) for code in ("9ecf9c", "86cc62", "64b545"))
    deep = tone(rgb("3f8f38"), time)
    canvas.ground(
        canvas.hills(rng, horizon - 0.06, 0.05), mix(far, haze, 0.45), mix(far, haze, 0.25), 0.2, 1.6
    )
    canvas.ground(
        canvas.hills(rng, horizon + 0.03, 0.04), mix(middle, haze, 0.15), mix(middle, deep, 0.25), 0.2
    )
    canvas.ground(canvas.hills(rng, horizon + 0.13, 0.025), mix(near, haze, 0.06), deep, 0.34, 1.4)
    for _ in range(rng.randint(4, 6)):
        x, y = rng.uniform(0.04, 0.96), rng.uniform(0.80, 0.97)
        petal = tone(rgb(rng.choice(("ffffff", "ffe27a", "ffb3d1"))), time)
        canvas.disc(x, y, 0.014, petal, 1.6)
        canvas.disc(x, y, 0.0055, tone(rgb("f7b733"), time), 1.6)
    return outdoors(time, source, deep, tone(rgb("1f5a2c"), time) * 0.7)


def _beach(canvas: Canvas, time: str, rng: random.Random) -> Light:
    horizon = 0.47
    source, haze = _sky(canvas, rng, time, horizon)
    _clouds(canvas, rng, time, source, 0.30)
    far, near = (_water(rgb(code), haze, time) for code in ("2a97cf", "6ad9d8"))
    canvas.ground(canvas.level(horizon), mix(far, haze, 0.18), near, 0.22)
    if time != "day":
        glint = rgb("ffd28a") if time == "sunset" else rgb("b8c8ff")
        canvas.ellipse(source, horizon + 0.09, 0.06, 0.09, glint, 14.0, 0.55)
    shore = canvas.hills(rng, horizon + 0.19, 0.018, 1)
    foam = tone(WHITE, time)
    canvas.ground(shore - np.float32(0.030), mix(near, foam, 0.55), foam, 0.03, 2.5)
    sand, shadow = tone(rgb("f8e2ad"), time), tone(rgb("dcb473"), time)
    canvas.ground(shore - np.float32(0.004), tone(rgb("d9b983"), time), sand, 0.05, 2.5)
    canvas.ground(canvas.hills(rng, horizon + 0.27, 0.015, 1), sand, shadow, 0.34, 8.0)
    side = rng.choice((0.0, 1.0))
    _palm(canvas, abs(side - 0.05), 0.64, 1 if side == 0.0 else -1, time)
    return outdoors(time, source, shadow, tone(rgb("8a6234"), time) * 0.75)


def _palm(canvas: Canvas, x: float, foot: float, lean: int, time: str) -> None:
    """A palm in the distance, leaning into the image."""
    trunk, leaf = tone(rgb("9a6a3e"), time), tone(rgb("3f9f54"), time)
    top, cx = foot - 0.33, x + lean * 0.07
    canvas.stroke([(x, foot), (x + lean * 0.025, foot - 0.18), (cx, top)], 0.017, 0.011, trunk)
    for dx, dy in (
        (-0.12, 0.085),
        (0.12, 0.085),
        (-0.125, 0.0),
        (0.125, 0.0),
        (-0.06, -0.055),
        (0.06, -0.055),
    ):
        shade = mix(leaf, WHITE, 0.16 if dy < 0 else 0.0)
        canvas.stroke(
            [(cx, top), (cx + dx * 0.55, top + dy * 0.35 - 0.02), (cx + dx, top + dy)], 0.021, 0.005, shade
        )


def _snow(canvas: Canvas, time: str, rng: random.Random) -> Light:
    horizon = 0.62
    source, haze = _sky(canvas, rng, time, horizon)
    first, second = rng.uniform(0.10, 0.34), rng.uniform(0.62, 0.92)
    peaks = [(first, rng.uniform(0.24, 0.32), 0.95), (second, rng.uniform(0.20, 0.30), 1.05)]
    line = _peaks(canvas, peaks, horizon + 0.05)
    rock, white = tone(rgb("7f9cc6"), time), tone(rgb("fbfdff"), time)
    if time == "sunset":
        rock = rgb("8a5c9c")
    canvas.ground(line, mix(white, haze, 0.10), mix(white, haze, 0.30), 0.2, 1.5, horizon + 0.06)
    cap = np.maximum(line + np.float32(0.055), canvas.level(0.40))
    cap += np.float32(0.016) * np.sin(canvas.x * np.float32(47))
    canvas.ground(cap, mix(rock, haze, 0.30), mix(rock, haze, 0.55), 0.24, 1.5, horizon + 0.06)
    pine = mix(tone(rgb("3d6f7f"), time), haze, 0.28)
    canvas.ground(_pines(canvas, rng, horizon + 0.05, 0.17, 0.085), mix(pine, white, 0.25), pine, 0.12, 1.3)
    snow, shade = tone(rgb("f4f9ff"), time), tone(rgb("c3d8f0"), time)
    canvas.ground(canvas.hills(rng, horizon + 0.03, 0.018), snow, shade, 0.16, 1.4)
    canvas.ground(canvas.hills(rng, horizon + 0.13, 0.022), white, shade, 0.34, 1.6)
    for _ in range(rng.randint(8, 11)):
        canvas.disc(
            rng.uniform(0.03, 0.97), rng.uniform(0.04, 0.62), rng.uniform(0.006, 0.012), WHITE, 2.5, 0.9
        )
    return outdoors(time, source, rgb("dfeaf8"), tone(rgb("6d8fc0"), time) * 0.85)


def _desert(canvas: Canvas, time: str, rng: random.Random) -> Light:
    horizon = 0.56
    source, haze = _sky(canvas, rng, time, horizon)
    mesa = tone(rgb("cf7f58"), time)
    line = canvas.level(horizon + 0.02)
    centre = rng.uniform(0.25, 0.75)
    for x, top, half in ((centre, 0.33, 0.15), (centre + rng.choice((-0.34, 0.34)), 0.41, 0.10)):
        away = np.abs(canvas.x - np.float32(x))
        line = np.minimum(line, np.float32(top) + np.clip(away - np.float32(half), 0, 1) * np.float32(4.0))
    canvas.ground(line, mix(mesa, haze, 0.38), mix(mesa, haze, 0.58), 0.24, 1.5)
    sand, dune, deep = (tone(rgb(code), time) for code in ("f6cf8a", "eeb063", "c97f3e"))
    canvas.ground(
        canvas.hills(rng, horizon + 0.03, 0.030), mix(sand, haze, 0.20), mix(dune, haze, 0.08), 0.16, 1.4
    )
    canvas.ground(canvas.hills(rng, horizon + 0.14, 0.040, 1), sand, deep, 0.36, 1.4)
    green = tone(rgb("4d8f57"), time)
    for side in rng.choice(((0.07,), (0.93,), (0.06, 0.94))):
        _saguaro(canvas, side, rng.uniform(0.68, 0.74), rng.uniform(0.18, 0.24), green)
    return outdoors(time, source, dune, tone(rgb("7c4420"), time) * 0.75)


def _saguaro(canvas: Canvas, x: float, foot: float, height: float, colour: Colour) -> None:
    """A cactus in the distance."""
    half = height * 0.085
    canvas.stroke([(x, foot), (x, foot - height + half)], half, half, colour)
    for side, low, high in ((-1, 0.40, 0.72), (1, 0.30, 0.62)):
        elbow = x + side * height * 0.26
        arm = [(x, foot - height * low), (elbow, foot - height * low), (elbow, foot - height * high)]
        canvas.stroke(arm, half * 0.75, half * 0.75, colour)


def _forest(canvas: Canvas, time: str, rng: random.Random) -> Light:
    horizon = 0.68
    top, low = {
        "day": (rgb("a9dcc4"), rgb("f3f8d8")),
        "sunset": (rgb("d8718a"), rgb("ffd28a")),
        "night": (rgb("101c4a"), rgb("44639c")),
    }[time]
    canvas.sky([(0.0, top), (0.62, low)])
    source = rng.choice((0.2, 0.8))
    canvas.glow(source, 0.30, 0.22, rgb({"day": "fffbe0", "sunset": "ffe9a8", "night": "9fb8f0"}[time]), 0.7)
    for base, height, step, code, fog in (
        (0.68, 0.44, 0.13, "7fb79b", 0.55),
        (0.71, 0.46, 0.19, "4c9a76", 0.24),
    ):
        colour = mix(tone(rgb(code), time), low, fog)
        canvas.ground(_pines(canvas, rng, base, height, step), colour, mix(colour, low, 0.38), height, 1.5)
    colour = tone(rgb("2b7554"), time)
    line = canvas.level(0.74)
    for x, width in ((rng.uniform(-0.02, 0.10), 0.17), (rng.uniform(0.90, 1.02), 0.17)):
        away = np.abs(canvas.x - np.float32(x)) / np.float32(width)
        line = np.minimum(line, _pine(away, rng.uniform(0.06, 0.18), 0.76))
    canvas.ground(line, colour, mix(colour, low, 0.12), 0.6, 1.3)
    grass, deep = tone(rgb("7db858"), time), tone(rgb("38763a"), time)
    canvas.ground(canvas.hills(rng, horizon + 0.05, 0.014), mix(grass, low, 0.15), deep, 0.28, 1.6)
    return outdoors(time, source, deep, tone(rgb("173f24"), time) * 0.7)


def _city(canvas: Canvas, time: str, rng: random.Random) -> Light:
    horizon = 0.72
    source, haze = _sky(canvas, rng, time, horizon)
    far = mix(rgb("a8689c") if time == "sunset" else tone(rgb("8fb2d6"), time), haze, 0.45)
    line = canvas.level(horizon)
    x = -rng.uniform(0.0, 0.08)
    while x < 1:
        width, top = rng.uniform(0.10, 0.16), rng.uniform(0.26, 0.46)
        line = np.where((canvas.x >= x) & (canvas.x < x + width), np.float32(top), line).astype(np.float32)
        x += width
    canvas.ground(line, far, mix(far, haze, 0.5), horizon - 0.3, 1.0)
    walls = [tone(rgb(code), time) for code in ("6e93c4", "e0a184", "8c8fc6", "7fb0b8", "d9b98c")]
    pane = rgb({"day": "d9efff", "sunset": "ffe49a", "night": "ffe08a"}[time])
    x = -rng.uniform(0.02, 0.12)
    first = rng.randrange(len(walls))
    while x < 1:
        width, top = rng.choice((0.1875, 0.21875, 0.25)), rng.uniform(0.40, 0.56)
        wall = walls[first % len(walls)]
        first += rng.randint(1, 3)
        canvas.box(x, top, x + width - 0.008, horizon, mix(wall, haze, 0.10))
        columns = 3 if width > 0.2 else 2
        pitch = width / (columns + 0.4)
        for row in range(int((horizon - top - 0.03) / 0.075)):
            for column in range(columns):
                lit = rng.random() < (0.62 if time == "night" else 1.0)
                left, up = x + pitch * (column + 0.45), top + 0.03 + row * 0.075
                colour = pane if lit else mix(wall, rgb("0a1030"), 0.4)
                canvas.box(left, up, left + pitch * 0.52, up + 0.044, colour, 0.9)
        x += width
    kerb, road, deep = (tone(rgb(code), time) for code in ("d3d6dc", "8d95a3", "6d7585"))
    canvas.ground(canvas.level(horizon), kerb, mix(kerb, road, 0.4), 0.05)
    canvas.ground(canvas.level(horizon + 0.045), road, deep, 0.25)
    for n in range(-1, 4):
        left = n * 0.28 + 0.06
        canvas.box(left, 0.945, left + 0.16, 0.962, tone(rgb("f4f0dc"), time), 0.9, 1.5)
    return outdoors(time, source, road, tone(rgb("2c3444"), time) * 0.8)


def _sea(canvas: Canvas, time: str, rng: random.Random) -> Light:
    horizon = 0.52
    source, haze = _sky(canvas, rng, time, horizon)
    _clouds(canvas, rng, time, source, 0.34)
    far, near, deep = (_water(rgb(code), haze, time) for code in ("5bb4e6", "2388cf", "125a9f"))
    island = mix(tone(rgb("7c9fb0"), time), haze, 0.45)
    x = 1 - source + rng.uniform(-0.1, 0.1)
    peaks = _peaks(canvas, [(x, 0.44, 0.5), (x + 0.13, 0.47, 0.45)], horizon + 0.1)
    canvas.ground(peaks, island, haze, 0.2, 2.0, horizon)
    canvas.ground(canvas.level(horizon), mix(far, haze, 0.35), near, 0.24)
    if time != "day":
        glint = rgb("ffd28a") if time == "sunset" else rgb("b8c8ff")
        canvas.ellipse(source, horizon + 0.16, 0.07, 0.16, glint, 16.0, 0.55)
    light = mix(far, tone(WHITE, time), 0.30)
    for base, swing, turns in ((0.66, 0.008, 3.0), (0.78, 0.012, 2.4), (0.91, 0.016, 1.8)):
        phase = np.float32(rng.uniform(0, math.tau))
        line = np.float32(base) + np.float32(swing) * np.sin(canvas.x * np.float32(math.tau * turns) + phase)
        share = (base - 0.6) / 0.4
        canvas.ground(line, mix(light, near, 0.25 + share * 0.2), mix(near, deep, share), 0.10, 1.6)
    return outdoors(time, source, near, deep * 0.6)


def _underwater(canvas: Canvas, time: str, rng: random.Random) -> Light:
    canvas.sky([(0.0, rgb("6fdcea")), (0.35, rgb("2ba6d4")), (0.85, rgb("0f5c9f")), (1.0, rgb("0d4f8c"))])
    source = rng.uniform(0.25, 0.75)
    for _ in range(4):
        x, lean, width = rng.uniform(0.0, 1.0), rng.uniform(-0.25, 0.25), rng.uniform(0.035, 0.06)
        centre = np.float32(x) + np.float32(lean) * canvas.x[:, None]
        reach = np.float32(width) * (1 + canvas.x[:, None])
        beam = np.exp(-(((canvas.x[None] - centre) / reach) ** 2)) * np.clip(0.8 - canvas.x[:, None], 0, 1)
        canvas.blend(ALL, ALL, WHITE, (beam * np.float32(0.30)).astype(np.float32))
    canvas.ground(canvas.hills(rng, 0.70, 0.05), rgb("1d78b4"), rgb("135f9e"), 0.2, 3.0)
    for x in (rng.uniform(0.11, 0.20), rng.uniform(0.80, 0.89)):
        colour = rgb(rng.choice(("e8637a", "f08a5a", "b565c9")))
        _coral(canvas, x, 0.86, rng.uniform(0.14, 0.20), colour)
    for x in (rng.uniform(0.02, 0.10), rng.uniform(0.90, 0.98)):
        _seaweed(canvas, rng, x, 0.88, rng.uniform(0.22, 0.34), rgb(rng.choice(("2fae7c", "4fbf6a"))))
    canvas.ground(canvas.hills(rng, 0.83, 0.02), rgb("ecd9a3"), rgb("b89a68"), 0.2, 2.0)
    for _ in range(rng.randint(4, 6)):
        x, y, radius = rng.uniform(0.05, 0.95), rng.uniform(0.06, 0.6), rng.uniform(0.010, 0.022)
        canvas.disc(x, y, radius, rgb("c9f3fb"), 1.5, 0.75)
        canvas.disc(x + radius * 0.12, y + radius * 0.12, radius * 0.72, rgb("4db9dc"), 1.5, 0.8)
    return Light(
        gain(0.96, 1.03, 1.06), gain(0.72, 0.84, 0.94), rgb("d8fbff"), source, 0.40, 0.22, rgb("3a4f5c")
    )


def _coral(canvas: Canvas, x: float, foot: float, height: float, colour: Colour) -> None:
    """A branching coral with round-ended arms."""
    for dx, top in ((-0.34, 0.74), (0.36, 0.80), (-0.17, 0.50), (0.18, 0.55), (0.0, 1.0)):
        bend = x + dx * height
        arm = [(x, foot), (bend, foot - height * top * 0.45), (bend, foot - height * top)]
        canvas.stroke(arm, height * 0.10, height * 0.065, mix(colour, WHITE, 0.18 * top))


def _seaweed(
    canvas: Canvas, rng: random.Random, x: float, foot: float, height: float, colour: Colour
) -> None:
    """A wavy ribbon."""
    phase = rng.uniform(0, math.tau)
    shares = [n / 7 for n in range(8)]
    blade = [(x + 0.022 * math.sin(phase + s * 5.5) * (0.3 + s), foot - height * s) for s in shares]
    canvas.stroke(blade, 0.017, 0.005, colour)


def _room(canvas: Canvas, time: str, rng: random.Random) -> Light:
    wall_code = rng.choice(("f2d7b8", "cfe0d2", "f0cfd0", "cdd8ee"))
    wall, floor = rgb(wall_code), rgb("c08a58")
    lamp = time == "night"
    if lamp:
        wall, floor = wall * gain(0.62, 0.54, 0.56), floor * gain(0.62, 0.54, 0.55)
    elif time == "sunset":
        wall, floor = wall * gain(1.0, 0.84, 0.74), floor * gain(1.0, 0.84, 0.76)
    canvas.sky([(0.0, wall * 0.93), (0.5, wall), (1.0, wall * 0.95)])
    left = rng.random() < 0.5
    x = 0.24 if left else 0.76
    glass = [rgb(code) for code in rng.choice(SKIES[time])]
    frame = mix(rgb("ffffff"), wall, 0.15) if not lamp else rgb("9c8f94")
    canvas.box(x - 0.165, 0.105, x + 0.165, 0.535, frame, 1.0, 1.2)
    canvas.box(x - 0.14, 0.13, x + 0.14, 0.51, glass[0], lower=glass[2])
    if time == "sunset":
        canvas.disc(x + 0.04, 0.42, 0.045, rgb("fff0b0"), 2.0)
    if lamp:
        canvas.disc(x + 0.05, 0.21, 0.026, rgb("fdf6d8"), 1.6)
    canvas.box(x - 0.008, 0.12, x + 0.008, 0.52, frame)
    canvas.box(x - 0.15, 0.305, x + 0.15, 0.321, frame)
    canvas.box(x - 0.185, 0.53, x + 0.185, 0.556, mix(frame, rgb("000000"), 0.06))
    other = 1 - x
    source = x
    if lamp:
        source = other
        canvas.glow(other, 0.28, 0.26, rgb("ffd88a"), 0.75)
    picture = rgb(rng.choice(("e98b6d", "6da8c9", "8cbf8a", "d8a1cf")))
    if lamp:
        canvas.stroke([(other, 0.30), (other, 0.71)], 0.008, 0.008, rgb("5a4434"))
        canvas.ellipse(other, 0.715, 0.06, 0.012, rgb("5a4434"))
        canvas.trapezium(other, 0.19, 0.33, 0.06, 0.11, rgb("fff0c0"), rgb("ffd98c"))
    else:
        canvas.box(other - 0.10, 0.17, other + 0.10, 0.42, rgb("a97a50") * 0.95)
        canvas.box(other - 0.083, 0.187, other + 0.083, 0.403, mix(picture, WHITE, 0.45))
        canvas.disc(other, 0.29, 0.055, picture, 1.5)
    canvas.ground(canvas.level(0.68), mix(WHITE, wall, 0.35) if not lamp else wall * 1.15, wall * 0.9, 0.05)
    canvas.ground(canvas.level(0.715), floor, floor * 0.80, 0.28)
    rug = rgb(rng.choice(("c95f5f", "5f86c9", "6aa583", "a878b8")))
    if lamp:
        rug = rug * gain(0.66, 0.58, 0.62)
    canvas.ellipse(0.5, 0.90, 0.46, 0.095, mix(rug, WHITE, 0.35))
    canvas.ellipse(0.5, 0.90, 0.42, 0.078, rug)
    if lamp:
        return Light(
            gain(0.98, 0.88, 0.74), gain(0.72, 0.64, 0.62), rgb("ffd890"), source, 0.5, 0.3, rgb("2b1a1c")
        )
    if time == "sunset":
        return Light(
            gain(1.0, 0.90, 0.82), gain(0.86, 0.74, 0.68), rgb("ffc070"), source, 0.5, 0.25, rgb("4a2a22")
        )
    return Light(
        gain(1.0, 1.0, 0.99), gain(0.90, 0.86, 0.82), rgb("fff6e0"), source, 0.36, 0.2, rgb("4a3020")
    )


def _moon(canvas: Canvas, time: str, rng: random.Random) -> Light:
    canvas.sky([(0.0, rgb("070a1e")), (0.66, rgb("1b1c46"))])
    left = rng.random() < 0.5
    x, y = (rng.uniform(0.14, 0.24) if left else rng.uniform(0.76, 0.86)), rng.uniform(0.17, 0.23)
    _stars(canvas, rng, 14, 0.58, (x, y))
    canvas.glow(x, y, 0.13, rgb("4c8bff"), 0.55)
    canvas.disc(x, y, 0.100, rgb("3f8ee8"), 1.5)
    for dx, dy, rx, ry in (
        (-0.03, -0.03, 0.045, 0.030),
        (0.035, 0.03, 0.032, 0.026),
        (-0.02, 0.055, 0.03, 0.014),
    ):
        canvas.ellipse(x + dx, y + dy, rx, ry, rgb("62c173"), 2.0)
    canvas.ellipse(x + 0.01, y - 0.008, 0.06, 0.010, WHITE, 3.0, 0.8)
    dust, deep = rgb("c3c5d2"), rgb("6d7088")
    canvas.ground(canvas.hills(rng, 0.63, 0.025), rgb("8e91a8"), rgb("70738c"), 0.15, 1.4)
    canvas.ground(canvas.hills(rng, 0.71, 0.02, 1), dust, deep, 0.36, 1.4)
    for cx, cy, rx in ((rng.uniform(0.08, 0.30), 0.79, 0.075), (rng.uniform(0.70, 0.92), 0.83, 0.09),
                       (rng.uniform(0.3, 0.7), 0.95, 0.10)):  # fmt: skip
        canvas.ellipse(cx, cy, rx, rx * 0.30, rgb("dcdee8"), 2.0)
        canvas.ellipse(cx, cy + 0.006, rx * 0.88, rx * 0.23, rgb("7a7d94"), 2.0)
    return Light(gain(1.0, 1.0, 1.06), gain(0.72, 0.73, 0.84), rgb("e6f0ff"), x, 0.5, 0.32, rgb("20223a"))


DRAW_SETTING: dict[str, Callable[[Canvas, str, random.Random], Light]] = {
    "meadow": _meadow,
    "beach": _beach,
    "snow": _snow,
    "desert": _desert,
    "forest": _forest,
    "city": _city,
    "sea": _sea,
    "underwater": _underwater,
    "room": _room,
    "moon": _moon,
}
