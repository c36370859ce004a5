"""Make the example pictures of the web page, and its screenshots: ``python scripts/screenshots.py``.

Starts the system with the update of snail that ships and requests an image that needs it, with each delivery
mode: these are the pictures in services/gateway/web/. Then opens the page in headless Chromium, as wide as a
desktop screen and as a phone's; its screenshots are in docs/images/.
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
from dekag.generation.loading import pipeline_hash
from dekag.profile import load_profile
from services.cloud.publish import publish_update, update_of
from services.cloud.version_store import KnowledgeStore
from services.launcher.stack import Stack

ROOT = Path(__file__).parents[1]
IMAGES, WEB = ROOT / "docs" / "images", ROOT / "services" / "gateway" / "web"
UPDATE = ROOT / "models" / "stickers" / "knowledge" / "snail"
PROMPT, SEED, SNR_DB = "a snail on the beach", 7, 5
DELIVERIES = ("semantic", "semantic-unaligned", "conventional")
WIDE, PHONE = {"width": 1180, "height": 900}, {"width": 390, "height": 844}


def show(page: Page) -> None:
    """Request the image on the page."""
    page.get_by_label("Prompt", exact=True).fill(PROMPT)
    page.locator("#snr_db").fill(str(SNR_DB))
    page.locator("summary", has_text="More settings").click()
    page.get_by_label("Seed", exact=True).fill(str(SEED))
    page.locator("summary", has_text="More settings").click()
    page.get_by_role("button", name="Send", exact=True).click()
    expect(page.locator("#ask-status")).to_contain_text("Done")
    page.evaluate("document.activeElement.blur(); scrollTo(0, 0)")


def save(png: bytes, name: str) -> None:
    """Write a screenshot with a palette, which needs a third of the bytes and looks the same."""
    IMAGES.mkdir(parents=True, exist_ok=True)
    picture = Image.open(io.BytesIO(png)).convert("RGB").quantize(256, dither=Image.Dither.NONE)
    picture.save(IMAGES / name, optimize=True)


def main() -> None:
    """Start the system, take the screenshots, stop it."""
    with tempfile.TemporaryDirectory() as folder:
        data = Path(folder) / "data"
        edge_hash = pipeline_hash(load_profile("stickers").edge)
        publish_update(update_of(UPDATE), KnowledgeStore(data), edge_hash)
        with (
            Stack(Path(folder) / "run", free_ports=True, env={"DEKAG_DATA_DIR": str(data)}) as stack,
            sync_playwright() as playwright,
        ):
            for _ in stack.wait_ready():
                pass
            with Client(stack.url) as client:  # it also warms the system up, for the times on the page
                for delivery in DELIVERIES:
                    image = client.image(PROMPT, seed=SEED, delivery=delivery, link={"snr_db": SNR_DB})
                    picture = Image.open(io.BytesIO(image.png or b""))
                    picture.save(WEB / f"example-{delivery}.webp", quality=90, method=6)
            browser = playwright.chromium.launch(
                executable_path=os.environ.get("CHROMIUM") or shutil.which("chromium"), args=["--no-sandbox"]
            )
            page = browser.new_page(viewport=WIDE)
            page.goto(stack.url)
            show(page)
            save(page.locator("#cards").screenshot(), "pictures.png")
            for card in page.locator("article").all():
                card.locator("summary").click()
            page.evaluate("document.activeElement.blur(); scrollTo(0, 0)")
            save(page.screenshot(full_page=True), "page.png")
            page.set_viewport_size(PHONE)
            page.evaluate("document.querySelector('#pictures').scrollIntoView({behavior: 'instant'})")
            save(page.screenshot(), "phone.png")
            browser.close()


if __name__ == "__main__":
    main()
