"""`python -m dekag.stickers`: download the artwork of the subjects, or render contact sheets."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from dekag.stickers.assets import PACKAGE, VERSION, AssetsError, fetch, folder
from dekag.stickers.sheet import world_sheets


def main(arguments: list[str] | None = None) -> int:
    """Run the command line; returns the exit status."""
    parser = argparse.ArgumentParser(prog="python -m dekag.stickers", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("fetch", help=f"download {PACKAGE} {VERSION} with npm")
    sheets = commands.add_parser("sheets", help="render contact sheets")
    sheets.add_argument("folder", type=Path, help="folder for the sheets")
    sheets.add_argument("--seed", type=int, default=0, help="seed of the scenes (default 0)")
    sheets.add_argument("--shown", type=int, default=256, help="side of an image, pixels (default 256)")
    chosen = parser.parse_args(arguments)
    try:
        if chosen.command == "fetch":
            print(f"{fetch(folder())} pictures of {PACKAGE} {VERSION} in {folder()}")  # noqa: T201
        else:
            for path in world_sheets(chosen.folder, chosen.seed, shown=chosen.shown):
                print(path)  # noqa: T201
    except (AssetsError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)  # noqa: T201
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
