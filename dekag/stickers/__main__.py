"""`python -m dekag.stickers`: fetch the artwork of the world's subjects."""

from __future__ import annotations

import sys

from dekag.stickers.assets import PACKAGE, VERSION, AssetsError, fetch, folder


def main() -> int:
    """Fetch the artwork; the exit status."""
    try:
        count = fetch(folder())
    except (AssetsError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)  # noqa: T201
        return 1
    print(f"{count} pictures of {PACKAGE} {VERSION} in {folder()}")  # noqa: T201
    return 0


if __name__ == "__main__":
    sys.exit(main())
