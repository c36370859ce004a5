"""Paths of shipped files: models, grids of sweeps, and results.

In a checkout they are next to the package; in a wheel, inside it (`hatch_build.py`).
"""

from __future__ import annotations

from pathlib import Path

_PACKAGE = Path(__file__).resolve().parent
_IN_WHEEL = _PACKAGE / "shipped"

SHIPPED = _IN_WHEEL if _IN_WHEEL.is_dir() else _PACKAGE.parent
MODELS = SHIPPED / "models"
SWEEPS = SHIPPED / "sweeps"
RESULTS = SHIPPED / "results"


def in_checkout() -> bool:
    """Whether the package runs from a clone of the repository."""
    return (_PACKAGE.parent / "Makefile").is_file()


def shipped_sweep(name: Path) -> Path:
    """The grid at that path, else the shipped one of that name: ``quick``, ``sweeps/quick.yaml``."""
    if name.exists() or name.parent not in (Path(), Path("sweeps")):
        return name
    shipped = SWEEPS / name.with_suffix(".yaml").name
    return shipped if shipped.is_file() and name.suffix in ("", ".yaml") else name


def shipped_model(folder: Path) -> Path:
    """That folder, else the shipped one of that name: ``models/stickers/vae``."""
    shipped = SHIPPED / folder
    return shipped if not folder.exists() and folder.parts[:1] == ("models",) and shipped.is_dir() else folder
