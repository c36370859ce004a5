"""The subjects, each drawn from a few shapes in its own square: x to the right, y down, both -1..1."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from dekag.world.canvas import Brush
from dekag.world.styles import Rgb, mix


@dataclass(frozen=True)
class Palette:
    """Main colour of a subject with a darker and a lighter relative, for parts and shading."""

    main: Rgb
    dark: Rgb
    light: Rgb


PAINTS: dict[str, Rgb] = {
    "red": (222, 42, 42),
    "orange": (248, 138, 24),
    "yellow": (252, 220, 52),
    "green": (52, 158, 62),
    "blue": (44, 92, 222),
    "purple": (134, 60, 184),
    "pink": (248, 134, 188),
    "brown": (124, 74, 40),
    "white": (246, 246, 246),
    "black": (40, 40, 46),
}


def palette(colour: str) -> Palette:
    """Palette of a colour word of `dekag.world.scene.COLOURS`."""
    main = PAINTS[colour]
    return Palette(main, mix(main, (20, 16, 30), 0.28), mix(main, (255, 255, 255), 0.32))


INK: Rgb = (34, 30, 40)
PAPER: Rgb = (252, 250, 244)


def _cat(b: Brush, p: Palette) -> None:
    b.polygon([(0.55, 0.85), (0.95, 0.5), (0.88, 0.0), (0.72, 0.02), (0.72, 0.42), (0.4, 0.6)], p.dark)
    b.ellipse(0.0, 0.5, 0.58, 0.5, p.main)
    b.polygon([(-0.58, -0.2), (-0.6, -0.95), (-0.1, -0.62)], p.main)
    b.polygon([(0.58, -0.2), (0.6, -0.95), (0.1, -0.62)], p.main)
    b.ellipse(0.0, -0.25, 0.62, 0.5, p.main)
    b.ellipse(-0.24, -0.3, 0.11, 0.14, PAPER)
    b.ellipse(0.24, -0.3, 0.11, 0.14, PAPER)
    b.dot(-0.24, -0.28, 0.07, INK)
    b.dot(0.24, -0.28, 0.07, INK)
    b.polygon([(-0.09, -0.1), (0.09, -0.1), (0.0, 0.02)], INK)


def _fish(b: Brush, p: Palette) -> None:
    b.polygon([(0.4, 0.0), (0.98, -0.55), (0.86, 0.0), (0.98, 0.55)], p.dark)
    b.polygon([(-0.3, -0.35), (0.1, -0.85), (0.4, -0.3)], p.dark)
    b.polygon([(-0.1, 0.4), (0.15, 0.75), (0.35, 0.3)], p.dark)
    b.ellipse(-0.15, 0.0, 0.78, 0.5, p.main)
    b.ellipse(-0.1, 0.18, 0.5, 0.22, p.light)
    b.ellipse(-0.58, -0.12, 0.15, 0.15, PAPER)
    b.dot(-0.6, -0.12, 0.08, INK)


def _bird(b: Brush, p: Palette) -> None:
    b.polygon([(0.4, 0.1), (0.98, -0.2), (0.98, 0.3), (0.5, 0.45)], p.dark)
    b.polygon([(-0.74, -0.5), (-1.0, -0.34), (-0.7, -0.24)], (250, 170, 40))
    b.line([(-0.05, 0.6), (-0.05, 0.95)], (230, 140, 40), 0.09)
    b.line([(0.22, 0.6), (0.22, 0.95)], (230, 140, 40), 0.09)
    b.ellipse(0.08, 0.2, 0.58, 0.48, p.main)
    b.ellipse(-0.42, -0.38, 0.38, 0.38, p.main)
    b.ellipse(0.22, 0.14, 0.36, 0.24, p.light)
    b.dot(-0.52, -0.44, 0.09, INK)


def _butterfly(b: Brush, p: Palette) -> None:
    b.line([(-0.05, -0.5), (-0.25, -0.95)], INK, 0.06)
    b.line([(0.05, -0.5), (0.25, -0.95)], INK, 0.06)
    for side in (-1, 1):
        b.ellipse(side * 0.5, 0.45, 0.4, 0.4, p.dark)
        b.ellipse(side * 0.54, -0.3, 0.45, 0.5, p.main)
        b.ellipse(side * 0.56, -0.32, 0.2, 0.24, p.light)
    b.ellipse(0.0, 0.05, 0.11, 0.65, INK)


def _boat(b: Brush, p: Palette) -> None:
    b.line([(0.0, -0.95), (0.0, 0.4)], (110, 76, 50), 0.09)
    b.polygon([(0.08, -0.9), (0.82, 0.22), (0.08, 0.22)], PAPER)
    b.polygon([(-0.08, -0.7), (-0.66, 0.22), (-0.08, 0.22)], p.light)
    b.polygon([(-0.98, 0.36), (0.98, 0.36), (0.62, 0.9), (-0.62, 0.9)], p.main)
    b.polygon([(-0.98, 0.36), (0.98, 0.36), (0.88, 0.52), (-0.88, 0.52)], p.dark)


def _car(b: Brush, p: Palette) -> None:
    b.polygon([(-0.5, 0.0), (-0.32, -0.55), (0.36, -0.55), (0.62, 0.0)], p.light)
    b.polygon([(-0.36, -0.05), (-0.24, -0.42), (0.0, -0.42), (0.0, -0.05)], (190, 226, 244))
    b.polygon([(0.1, -0.05), (0.1, -0.42), (0.3, -0.42), (0.46, -0.05)], (190, 226, 244))
    b.polygon([(-0.98, 0.05), (-0.86, -0.06), (0.86, -0.06), (0.98, 0.1), (0.98, 0.5), (-0.98, 0.5)], p.main)
    for x in (-0.52, 0.52):
        b.ellipse(x, 0.5, 0.27, 0.27, INK)
        b.dot(x, 0.5, 0.12, (200, 200, 206))


def _house(b: Brush, p: Palette) -> None:
    b.polygon([(0.4, -0.35), (0.4, -0.9), (0.62, -0.9), (0.62, -0.25)], p.dark)
    b.polygon([(-0.72, 0.9), (-0.72, -0.1), (0.72, -0.1), (0.72, 0.9)], p.main)
    b.polygon([(-0.98, -0.05), (0.0, -0.92), (0.98, -0.05)], p.dark)
    b.polygon([(-0.16, 0.9), (-0.16, 0.36), (0.18, 0.36), (0.18, 0.9)], INK)
    b.polygon([(-0.55, 0.45), (-0.55, 0.15), (-0.27, 0.15), (-0.27, 0.45)], (252, 236, 150))
    b.polygon([(0.3, 0.45), (0.3, 0.15), (0.56, 0.15), (0.56, 0.45)], (252, 236, 150))


def _tree(b: Brush, p: Palette) -> None:
    b.polygon([(-0.14, 0.98), (-0.14, 0.4), (0.14, 0.4), (0.14, 0.98)], (112, 74, 44))
    b.polygon([(-0.8, 0.55), (0.0, -0.25), (0.8, 0.55)], p.dark)
    b.polygon([(-0.66, 0.12), (0.0, -0.62), (0.66, 0.12)], p.main)
    b.polygon([(-0.48, -0.3), (0.0, -0.98), (0.48, -0.3)], p.light)


def _flower(b: Brush, p: Palette) -> None:
    b.line([(0.0, 0.0), (0.0, 0.98)], (46, 130, 56), 0.12)
    b.ellipse(0.28, 0.68, 0.26, 0.12, (66, 160, 70))
    for x, y in ((0.0, -0.78), (0.44, -0.46), (0.28, 0.06), (-0.28, 0.06), (-0.44, -0.46)):
        b.ellipse(x, y + 0.04, 0.28, 0.28, p.main)
    b.ellipse(0.0, -0.3, 0.24, 0.24, (250, 206, 70) if p.main != PAINTS["yellow"] else (150, 90, 40))


def _balloon(b: Brush, p: Palette) -> None:
    b.line([(-0.34, 0.1), (-0.16, 0.66)], (90, 70, 60), 0.05)
    b.line([(0.34, 0.1), (0.16, 0.66)], (90, 70, 60), 0.05)
    b.polygon([(-0.62, 0.0), (0.62, 0.0), (0.26, 0.46), (-0.26, 0.46)], p.main)
    b.ellipse(0.0, -0.28, 0.7, 0.68, p.main)
    b.ellipse(0.0, -0.28, 0.28, 0.66, p.light)
    b.polygon([(-0.2, 0.64), (0.2, 0.64), (0.16, 0.95), (-0.16, 0.95)], (140, 92, 50))


def _mushroom(b: Brush, p: Palette) -> None:
    b.polygon([(-0.24, 0.0), (0.24, 0.0), (0.36, 0.92), (-0.36, 0.92)], (240, 226, 200))
    b.chord(0.0, 0.14, 0.92, 0.95, p.main)
    b.dot(-0.42, -0.2, 0.15, PAPER)
    b.dot(0.06, -0.46, 0.17, PAPER)
    b.dot(0.48, -0.14, 0.14, PAPER)


def _umbrella(b: Brush, p: Palette) -> None:
    b.line([(0.0, -0.9), (0.0, 0.8), (0.1, 0.92), (0.26, 0.92), (0.32, 0.76)], (110, 76, 50), 0.09)
    b.chord(0.0, 0.1, 0.96, 0.9, p.main)
    b.polygon([(-0.34, 0.1), (0.0, -0.8), (0.34, 0.1)], p.light)


def _rocket(b: Brush, p: Palette) -> None:
    b.polygon([(-0.2, 0.62), (0.0, 0.99), (0.2, 0.62)], (252, 176, 40))
    b.polygon([(-0.36, 0.1), (-0.72, 0.72), (-0.3, 0.6)], p.dark)
    b.polygon([(0.36, 0.1), (0.72, 0.72), (0.3, 0.6)], p.dark)
    b.polygon(
        [(0.0, -0.98), (0.28, -0.6), (0.38, -0.1), (0.3, 0.62), (-0.3, 0.62), (-0.38, -0.1), (-0.28, -0.6)],
        p.main,
    )
    b.ellipse(0.0, -0.22, 0.19, 0.19, (190, 226, 244))
    b.polygon([(-0.26, 0.34), (0.26, 0.34), (0.28, 0.5), (-0.28, 0.5)], p.light)


def _snail(b: Brush, p: Palette) -> None:
    b.line([(-0.72, 0.1), (-0.86, -0.4)], (214, 180, 130), 0.08)
    b.line([(-0.6, 0.1), (-0.56, -0.42)], (214, 180, 130), 0.08)
    b.polygon([(-0.9, 0.2), (-0.68, 0.02), (-0.42, 0.3), (0.98, 0.82), (-0.72, 0.82)], (226, 194, 146))
    b.ellipse(0.16, 0.04, 0.62, 0.62, p.main)
    b.ellipse(0.16, 0.04, 0.4, 0.4, p.light)
    b.ellipse(0.16, 0.04, 0.19, 0.19, p.dark)


DRAW_SUBJECT: dict[str, Callable[[Brush, Palette], None]] = {
    "cat": _cat,
    "fish": _fish,
    "bird": _bird,
    "butterfly": _butterfly,
    "boat": _boat,
    "car": _car,
    "house": _house,
    "tree": _tree,
    "flower": _flower,
    "balloon": _balloon,
    "mushroom": _mushroom,
    "umbrella": _umbrella,
    "rocket": _rocket,
    "snail": _snail,
}
