"""Make the example pictures of the web page, and its screenshots: ``python scripts/screenshots.py``.

Starts the system with the update of flamingo that ships and requests an image that needs it, with both
semantic deliveries and without knowledge: these are the pictures in services/gateway/web/. Then opens the
page in Chromium, as wide as a desktop screen and as a phone's; its screenshots are in docs/images/. Those of
its first screen are in results/page/, for viewers who do not know it.
"""

from __future__ import annotations

import io
import tempfile
from pathlib import Path

from PIL import Image
from playwright.sync_api import Page, ViewportSize, expect

from dekag.client import Client
from services.bench.web_page import WIDE, chromium
from services.launcher.stack import Stack
from services.launcher.up import start_topics

ROOT = Path(__file__).parents[1]
IMAGES, WEB = ROOT / "docs" / "images", ROOT / "services" / "gateway" / "web"
FIRST_SCREENS = ROOT / "results" / "page"
PROMPT, SEED, LINK = (
    "a flamingo on the beach",
    21,
    {"snr_db": 5, "fading": "rayleigh"},
)  # what the page opens with
EXAMPLES = {  # by the ends of the pictures' names: delivery and knowledge
    "semantic": ("semantic", "auto"),
    "semantic-unaligned": ("semantic-unaligned", "auto"),
    "untaught": ("semantic", "none"),
}
PHONE: ViewportSize = {"width": 390, "height": 844}
PATIENCE_MS = 180_000


def show(page: Page, url: str) -> None:
    """Open the page and wait until its example is delivered and measured."""
    page.goto(url)
    expect(page.locator("#curve-status")).to_contain_text("Measured at", timeout=PATIENCE_MS)
    page.locator("#clock:not(:empty)").wait_for()


def save(png: bytes, path: Path) -> None:
    """Write a screenshot with a palette, which needs a third of the bytes and looks the same."""
    path.parent.mkdir(parents=True, exist_ok=True)
    picture = Image.open(io.BytesIO(png)).convert("RGB").quantize(256, dither=Image.Dither.NONE)
    picture.save(path, optimize=True)


def main() -> None:
    """Start the system, take the screenshots, stop it."""
    with tempfile.TemporaryDirectory() as folder:
        env = {"DEKAG_DATA_DIR": str(Path(folder) / "data"), **start_topics()}
        with Stack(Path(folder) / "run", free_ports=True, env=env) as stack, chromium() as browser:
            for _ in stack.wait_ready():
                pass
            with Client(stack.url) as client:  # it also warms the system up, for the times on the page
                for name, (delivery, knowledge) in EXAMPLES.items():
                    image = client.image(PROMPT, seed=SEED, delivery=delivery, knowledge=knowledge, link=LINK)
                    picture = Image.open(io.BytesIO(image.png or b""))
                    picture.save(WEB / f"example-{name}.webp", quality=90, method=6)
            page = browser.new_page(viewport=WIDE, color_scheme="light")
            show(page, stack.url)
            save(page.screenshot(), FIRST_SCREENS / "desktop.png")
            save(page.screenshot(full_page=True), IMAGES / "page.png")
            save(page.locator("#cards").screenshot(), IMAGES / "pictures.png")
            page.set_viewport_size(PHONE)
            show(page, stack.url)
            for path in (IMAGES / "phone.png", FIRST_SCREENS / "phone.png"):
                save(page.screenshot(), path)


if __name__ == "__main__":
    main()
