"""The web page in a real headless Chromium, in front of the real system; run by `make test-browser`."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from axe_playwright_python.sync_playwright import Axe
from PIL import Image
from playwright.sync_api import Browser, ConsoleMessage, Page, expect, sync_playwright

from services.common.healthcheck import healthy
from services.gateway.api_keys import new_key
from services.launcher.stack import Stack, free_port

pytestmark = pytest.mark.browser

PATIENCE_MS = 60_000  # for what models must do, on a slow machine
FLAGS = [
    "--no-sandbox",  # containers and root have none
    "--disable-gpu",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--no-first-run",
]


@pytest.fixture(scope="module")
def stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    """The whole system with the shipped models and no knowledge yet."""
    env = {"DEKAG_DATA_DIR": str(tmp_path_factory.mktemp("data"))}
    with Stack(tmp_path_factory.mktemp("run"), free_ports=True, env=env) as stack:
        for _ in stack.wait_ready(600):
            pass
        yield stack


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    """Debian's Chromium, or the one that `playwright install chromium` fetched."""
    with sync_playwright() as playwright:
        found = os.environ.get("CHROMIUM") or shutil.which("chromium")
        if found is None and not Path(playwright.chromium.executable_path).exists():
            pytest.fail(
                "no Chromium: install Debian's package chromium, or run 'playwright install chromium'"
            )
        browser = playwright.chromium.launch(executable_path=found, args=FLAGS)
        yield browser
        browser.close()


@pytest.fixture
def page(browser: Browser, stack: Stack) -> Iterator[Page]:
    """The page, opened; nothing may go wrong in its scripts, and nothing may be asked of another host."""
    context = browser.new_context(viewport={"width": 1200, "height": 900})
    context.set_default_timeout(PATIENCE_MS)
    expect.set_options(timeout=PATIENCE_MS)
    page = context.new_page()
    wrong: list[str] = []
    page.on("pageerror", lambda error: wrong.append(str(error)))
    page.on("console", lambda message: wrong.append(message.text) if is_wrong(message) else None)
    page.on("request", lambda request: wrong.append(request.url) if not is_ours(request.url, stack) else None)
    page.goto(stack.url)
    yield page
    context.close()
    assert wrong == []


def is_wrong(message: ConsoleMessage) -> bool:
    # Chromium itself notes every answer that is an error; those are shown, and tested
    return message.type == "error" and "Failed to load resource" not in message.text


def is_ours(url: str, stack: Stack) -> bool:
    return url.startswith((f"{stack.url}/", "data:", "blob:"))


def send(page: Page) -> None:
    page.get_by_role("button", name="Send", exact=True).click()
    expect(page.locator("#ask-status")).to_have_text(re.compile("^Done"))


def facts(page: Page, delivery: str) -> str:
    return page.locator(f"article[data-delivery={delivery}] .facts").inner_text()


def psnr_db(page: Page, delivery: str) -> float:
    found = re.search(r"PSNR ([\d.]+) dB", facts(page, delivery))
    assert found is not None, facts(page, delivery)
    return float(found[1])


def set_slider(page: Page, name: str, value: int) -> None:
    page.locator(f"#{name}").fill(str(value))
    page.locator(f"#{name}").dispatch_event("change")


def test_a_picture_arrives_over_each_delivery(page: Page) -> None:
    expect(page.get_by_text("No topic yet.")).to_be_visible()
    send(page)
    for delivery in ("semantic", "semantic-unaligned", "conventional"):
        card = page.locator(f"article[data-delivery={delivery}]")
        for figure in (".sent", ".received"):
            img = card.locator(f"{figure} img")
            assert img.evaluate("img => img.complete && img.naturalWidth") == 128
            assert "a red car" in str(img.get_attribute("alt"))
        card.locator("summary").click()
        expect(card.locator(".constellations svg")).to_have_count(3)
        expect(card.locator(".fading svg")).to_have_attribute("aria-label", re.compile("8 blocks"))
        assert card.locator(".times .length").count() >= 3
    assert "512 channel uses" in facts(page, "semantic")
    assert re.search(r"consistency with the cloud 0\.[5-9]|1\.00", facts(page, "conventional"))
    expect(page.locator("#costs tr")).to_have_count(3)
    expect(page.locator("#saving")).to_have_text(re.compile("times the channel uses"))
    expect(page.locator("#saved")).to_have_text(re.compile("Semantic delivery took"))


def test_more_snr_is_sent_again_at_once_and_better(page: Page) -> None:
    set_slider(page, "snr_db", -5)
    send(page)
    poor = psnr_db(page, "semantic")
    before = facts(page, "semantic")
    set_slider(page, "snr_db", 25)
    expect(page.locator("#snr_db-shown")).to_have_text("25 dB")
    expect(page.locator("article[data-delivery=semantic] .facts")).not_to_have_text(before)
    expect(page.locator("#ask-status")).to_have_text(re.compile("^Done"))
    assert psnr_db(page, "semantic") > poor + 5


def test_a_lower_rate_takes_fewer_symbols_and_auto_says_what_it_expects(page: Page) -> None:
    set_slider(page, "rate", 0)
    send(page)
    assert "64 channel uses" in facts(page, "semantic")
    set_slider(page, "rate", 4)
    expect(page.locator("article[data-delivery=semantic] .facts")).to_contain_text("expected")


def test_what_is_refused_is_said_beside_the_field(page: Page) -> None:
    page.get_by_label("Prompt", exact=True).fill(" ")
    page.get_by_role("button", name="Send", exact=True).click()
    note = page.locator("#prompt-problem")
    expect(note).to_have_text(re.compile("prompt must be 1 to 1000 characters, not blank"))
    prompt = page.get_by_label("Prompt", exact=True)
    expect(prompt).to_be_focused()
    assert prompt.get_attribute("aria-describedby") == "prompt-problem"
    prompt.fill("a blue cat")
    page.locator("summary", has_text="More settings").click()
    page.get_by_label("Seed", exact=True).fill("many")
    page.get_by_label("Seed", exact=True).press("Enter")
    expect(page.locator("#seed-problem")).to_have_text(re.compile("seed must be"))
    page.get_by_label("Seed", exact=True).fill("3")
    page.get_by_label("Seed", exact=True).press("Enter")
    expect(page.locator("#ask-status")).to_have_text(re.compile("^Done"))
    expect(page.locator(".problem")).to_have_count(0)


def test_a_picture_of_ones_own_is_sent_instead(page: Page, tmp_path: Path) -> None:
    Image.new("RGB", (300, 100), "teal").save(tmp_path / "mine.png")
    page.locator("#picture").set_input_files(tmp_path / "mine.png")
    assert page.get_by_label("Prompt", exact=True).input_value() == ""
    send(page)
    for delivery in ("semantic", "semantic-unaligned", "conventional"):
        card = page.locator(f"article[data-delivery={delivery}]")
        for figure in (".sent", ".received"):
            size = card.locator(f"{figure} img").evaluate("img => [img.naturalWidth, img.naturalHeight]")
            assert size == [300, 100]
        expect(card.locator(".sent figcaption")).to_have_text("your picture")
    assert "300×100 PNG · sent as 2 tiles of 160×128" in facts(page, "semantic")
    page.get_by_role("button", name="Remove the picture").click()
    assert "a red car" in page.get_by_label("Prompt", exact=True).input_value()
    (tmp_path / "mine.png").write_text("no picture")
    page.locator("#picture").set_input_files(tmp_path / "mine.png")
    page.get_by_role("button", name="Send", exact=True).click()
    expect(page.locator("#picture-problem")).to_have_text(re.compile("picture must be a PNG"))


def test_a_gateway_that_is_gone_is_said_kindly(page: Page) -> None:
    page.route("**/v1/images/generations", lambda route: route.abort())
    page.get_by_role("button", name="Send", exact=True).click()
    expect(page.locator("#ask-status .problem")).to_have_text(re.compile("does not respond"))


def test_a_topic_is_taught_and_changes_the_picture(page: Page) -> None:
    page.get_by_label("Prompt", exact=True).fill("a red car on the beach, neon style")
    send(page)
    sent = page.locator("article[data-delivery=semantic] .sent img")
    before = sent.get_attribute("src")
    page.get_by_label("Images", exact=True).fill("1")
    page.get_by_role("button", name="Distil", exact=True).click()
    expect(page.locator("#images-problem")).to_have_text(re.compile("images must be an integer of at least"))
    page.get_by_label("Images", exact=True).fill("8")
    page.get_by_label("Steps", exact=True).fill("12")
    page.get_by_role("button", name="Distil", exact=True).click()
    expect(page.get_by_role("button", name="Cancel")).to_be_enabled()
    expect(page.locator("#samples figcaption")).to_have_text(re.compile("during training"))
    expect(page.locator("#teach-status")).to_have_text(re.compile("neon: not published: .*even so"))
    expect(page.locator("#known tr")).to_have_text(["No topic yet."])
    page.get_by_label("Publish even if it scores no better").check()
    page.get_by_role("button", name="Distil", exact=True).click()
    expect(page.locator("#teach-status")).to_have_text(re.compile("neon: published as version 1"))
    expect(page.locator("#samples figcaption")).to_have_text(re.compile("the edge before, the edge after"))
    expect(page.locator("#known tr")).to_have_count(1)
    expect(page.locator("#knowledge option", has_text="neon")).to_have_count(1)
    send(page)
    assert "generated with neon v1" in facts(page, "semantic")
    assert sent.get_attribute("src") != before
    page.get_by_role("button", name="Forget neon").click()
    expect(page.get_by_text("No topic yet.")).to_be_visible()


def test_a_distillation_is_cancelled(page: Page) -> None:
    page.get_by_label("Topic", exact=True).fill("vaporwave")
    page.get_by_role("button", name="Distil", exact=True).click()
    expect(page.locator("#teach-status")).to_have_text(re.compile("the cloud generates images, [1-9]"))
    page.get_by_role("button", name="Cancel").click()
    expect(page.locator("#teach-status")).to_have_text(re.compile("cancelled; nothing was published"))


def test_a_gateway_that_asks_for_a_key_is_given_one(browser: Browser, tmp_path: Path) -> None:
    key, line = new_key("reader")
    (tmp_path / "keys").write_text(line)
    port = free_port()
    env = {"DEKAG_PORT": str(port), "DEKAG_REDIS_URL": "none", "DEKAG_API_KEYS_FILE": str(tmp_path / "keys")}
    gateway = subprocess.Popen([sys.executable, "-m", "services.gateway"], env=os.environ | env)
    try:
        page = browser.new_page()
        while not healthy(f"http://127.0.0.1:{port}/healthz"):
            assert gateway.poll() is None
        page.goto(f"http://127.0.0.1:{port}")
        expect(page.locator("#teach-status")).to_have_text(re.compile("needs an API key"))
        page.get_by_label("API key of this gateway").fill(key)
        page.get_by_role("button", name="Use this key").click()
        expect(page.locator("#teach-status")).to_have_text(re.compile("the cloud service cannot be reached"))
        expect(page.locator("#key-form")).to_be_hidden()
        page.close()
    finally:
        gateway.terminate()
        gateway.wait(60)


def test_it_works_by_keyboard(page: Page) -> None:
    page.keyboard.press("Tab")
    expect(page.get_by_role("link", name="Skip to the images")).to_be_focused()
    page.get_by_label("Prompt", exact=True).focus()
    page.keyboard.press("Tab")
    page.keyboard.press("ArrowRight")
    expect(page.locator("#snr_db-shown")).to_have_text("11 dB")
    page.get_by_label("Prompt", exact=True).press("Enter")
    expect(page.locator("#ask-status")).to_have_text(re.compile("^Done"))


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_axe_finds_nothing_serious(page: Page, scheme: str) -> None:
    page.emulate_media(color_scheme="dark" if scheme == "dark" else "light")
    send(page)
    for summary in page.locator("summary").all():
        summary.click()
    found = Axe().run(page).response["violations"]
    assert [(each["id"], each["nodes"][0]["html"]) for each in found if each["impact"] != "minor"] == []


def test_a_phone_shows_all_of_it_without_scrolling_sideways(page: Page) -> None:
    page.set_viewport_size({"width": 360, "height": 740})
    send(page)
    for summary in page.locator("summary").all():
        summary.click()
    assert page.evaluate("document.documentElement.scrollWidth") <= 360
    for button in page.get_by_role("button").all():
        box = button.bounding_box()
        assert box is None or box["x"] + box["width"] <= 360 or button.evaluate("b => b.closest('.scroll')")
