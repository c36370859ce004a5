"""Make the example pictures of the web page, and its screenshots: ``python scripts/screenshots.py``.

Starts the system with the update of flamingo that ships and requests an image that needs it, with both
semantic deliveries: these are the pictures in services/gateway/web/. Then opens the page in Chromium,
as wide as a desktop screen and as a phone's; its screenshots are in docs/images/.
"""

from __future__ import annotations

import io
import os
import shutil
import tempfile
from pathlib import Path

from PIL import Image
from playwright.sync_api import Page, expect, sync_playwright

from dekag.client import Client
from services.launcher.stack import Stack
from services.launcher.up import start_topics

ROOT = Path(__file__).parents[1]
IMAGES, WEB = ROOT / "docs" / "images", ROOT / "services" / "gateway" / "web"
PROMPT, SEED, LINK = (
    "a flamingo on the beach",
    6,
    {"snr_db": 5, "fading": "rayleigh"},
)  # what the page opens with
DELIVERIES = ("semantic", "semantic-unaligned")
WIDE, PHONE = {"width": 1280, "height": 900}, {"width": 390, "height": 844}
PATIENCE_MS = 180_000


def show(page: Page, url: str) -> None:
    """Open the page and wait until its example is delivered and measured."""
    page.goto(url)
    expect(page.locator("#curve-status")).to_contain_text("Measured at", timeout=PATIENCE_MS)
    page.locator("#clock:not(:empty)").wait_for()


def save(png: bytes, name: str) -> None:
    """Write a screenshot with a palette, which needs a third of the bytes and looks the same."""
    IMAGES.mkdir(parents=True, exist_ok=True)
    picture = Image.open(io.BytesIO(png)).convert("RGB").quantize(256, dither=Image.Dither.NONE)
    picture.save(IMAGES / name, optimize=True)


def main() -> None:
    """Start the system, take the screenshots, stop it."""
    with tempfile.TemporaryDirectory() as folder:
        env = {"DEKAG_DATA_DIR": str(Path(folder) / "data"), **start_topics()}
        with (
            Stack(Path(folder) / "run", free_ports=True, env=env) as stack,
            sync_playwright() as playwright,
        ):
            for _ in stack.wait_ready():
                pass
            with Client(stack.url) as client:  # it also warms the system up, for the times on the page
                for delivery in DELIVERIES:
                    image = client.image(PROMPT, seed=SEED, delivery=delivery, link=LINK)
                    picture = Image.open(io.BytesIO(image.png or b""))
                    picture.save(WEB / f"example-{delivery}.webp", quality=90, method=6)
            browser = playwright.chromium.launch(
                executable_path=os.environ.get("CHROMIUM") or shutil.which("chromium"), args=["--no-sandbox"]
            )
            page = browser.new_page(viewport=WIDE)
            show(page, stack.url)
            save(page.screenshot(full_page=True), "page.png")
            save(page.locator("#cards").screenshot(), "pictures.png")
            page.set_viewport_size(PHONE)
            show(page, stack.url)
            save(page.screenshot(), "phone.png")
            browser.close()


if __name__ == "__main__":
    main()
