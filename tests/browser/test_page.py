"""The web page in a real headless Chromium, in front of the real system; run by `make test-browser`.

Everything is tested at three widths: a phone, a tablet and a desktop screen.
"""

from __future__ import annotations

import base64
import io
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import cast

import httpx2
import pytest
from axe_playwright_python.sync_playwright import Axe
from PIL import Image, PngImagePlugin
from playwright.sync_api import Browser, ConsoleMessage, Locator, Page, Route, ViewportSize, expect

from dekag.client import Client
from services.bench.web_page import chromium, open_page
from services.common.healthcheck import healthy
from services.gateway.api_keys import new_key
from services.launcher.stack import Stack, free_port

pytestmark = pytest.mark.browser

PATIENCE_MS = 120_000  # for what models must do, on a slow machine
TEACHING_MS = 900_000  # for a distillation, of which there are few
SCREENS: dict[str, ViewportSize] = {
    "phone": {"width": 360, "height": 740},
    "tablet": {"width": 768, "height": 1024},
    "desktop": {"width": 1440, "height": 900},
}
TOPIC = "flamingo"  # of the example that the page opens with
DELIVERIES = ("semantic-unaligned", "semantic", "conventional")


@pytest.fixture(scope="module")
def stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    """The whole system with the shipped models, as `dekag up` starts it."""
    env = {"DEKAG_DATA_DIR": str(tmp_path_factory.mktemp("data")), "DEKAG_START_TOPICS": TOPIC}
    with Stack(tmp_path_factory.mktemp("run"), free_ports=True, env=env) as stack:
        for _ in stack.wait_ready(600):
            pass
        yield stack


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with chromium() as browser:
        yield browser


@pytest.fixture(params=SCREENS.values(), ids=SCREENS)
def screen(request: pytest.FixtureRequest) -> ViewportSize:
    return cast(ViewportSize, request.param)


@pytest.fixture
def page(browser: Browser, stack: Stack, screen: ViewportSize) -> Iterator[Page]:
    """The page with its example delivered.

    Nothing may go wrong in its scripts, and nothing may be asked of another host.
    """
    context = browser.new_context(viewport=screen)
    context.set_default_timeout(PATIENCE_MS)
    expect.set_options(timeout=PATIENCE_MS)
    page = context.new_page()
    wrong: list[str] = []
    page.on("pageerror", lambda error: wrong.append(str(error)))
    page.on("console", lambda message: wrong.append(message.text) if is_wrong(message) else None)
    page.on("request", lambda request: wrong.append(request.url) if not is_ours(request.url, stack) else None)
    page.goto(stack.url)
    expect(page.locator("#ask-status")).to_have_text(re.compile("^Done"))
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


def check_with_axe(page: Page) -> None:
    found = Axe().run(page).response["violations"]
    assert [(each["id"], each["nodes"][0]["html"]) for each in found] == []


def unfold(page: Page, name: str) -> None:
    page.locator("#ask-form summary", has_text=name).click()


def facts(page: Page, delivery: str) -> str:
    return page.locator(f"article[data-delivery={delivery}]").inner_text()


def psnr_db(page: Page, delivery: str) -> float:
    found = re.search(r"PSNR ([\d.]+) dB", facts(page, delivery))
    assert found is not None, facts(page, delivery)
    return float(found[1])


def set_slider(page: Page, name: str, value: int) -> None:
    page.locator(f"#{name}").fill(str(value))
    page.locator(f"#{name}").dispatch_event("change")


def width_of(element: Locator) -> float:
    box = element.bounding_box()
    assert box is not None
    return box["width"]


def number(element: Locator) -> float:
    return float(element.inner_text().replace(",", ""))


def until_measured(page: Page) -> None:
    expect(page.locator("#curve-status")).to_have_text(re.compile("^Measured at"))


def test_it_opens_with_an_image_that_shows_alignment(page: Page) -> None:
    for side in ("left", "middle", "right"):
        img = page.locator(f"#hero img.{side}")
        assert str(img.get_attribute("src")).startswith("data:image/png")
        assert img.evaluate("img => img.naturalWidth") == 256
        assert width_of(img) >= 256
    expect(page.locator("#verdict")).to_contain_text(re.compile(rf"update of {TOPIC} \([\d,]+ bytes, once\)"))


def three_values(page: Page, label: str) -> list[float]:
    """A number of the three images: without alignment, with that of the transmission, with both."""
    value = page.locator("#readout div", has_text=label).locator("dd")
    expect(value).to_have_text(re.compile(r"^-?[\d.]+ → -?[\d.]+ → -?[\d.]+$"))
    return [float(each) for each in value.inner_text().split(" → ")]


def test_each_alignment_is_seen_apart_from_the_other(page: Page) -> None:
    def tags() -> list[str]:
        return page.locator("#hero .tag:visible").all_inner_texts()

    assert tags() == ["without alignment", "+ transmission alignment", "+ knowledge alignment"]
    boxes = [page.locator(f"#hero .why.{side}").bounding_box() for side in ("left", "middle", "right")]
    assert all(box is not None and box["width"] > 60 for box in boxes)
    without, transmission, both = three_values(page, "PSNR")
    assert min(transmission, both) > without + 3, "the code makes the difference in noise"
    without, transmission, both = three_values(page, "consistency")
    assert both > max(without, transmission) + 0.3, "the drawing makes the difference in content"
    page.get_by_role("radio", name="Transmission").check()
    assert tags() == ["without alignment", "+ transmission alignment"]
    page.get_by_role("radio", name="Knowledge").check()
    assert tags() == ["+ transmission alignment", "+ knowledge alignment"]
    page.get_by_role("radio", name="Slider").check()
    assert tags() == ["+ transmission alignment", "+ knowledge alignment"]
    page.get_by_role("radio", name="Alignment").check()
    assert tags() == ["without alignment", "with alignment"]
    page.get_by_role("radio", name="Side by side").check()
    assert len(tags()) == 3


def test_what_knowledge_does_not_change_is_not_shown_apart(page: Page) -> None:
    page.get_by_role("button", name="a red car on the beach").click()
    expect(page.locator("#verdict")).to_contain_text("knowledge alignment changes nothing here")
    expect(page.locator("#hero .tag:visible")).to_have_text(["without alignment", "+ transmission alignment"])
    for name in ("Transmission", "Knowledge"):
        expect(page.get_by_role("radio", name=name)).to_be_disabled()


def test_a_word_without_an_update_is_said_and_can_be_taught(page: Page) -> None:
    page.get_by_role("button", name="a snail in the meadow").click()
    expect(page.locator("#verdict")).to_contain_text("has no update of snail and draws something else")
    expect(page.locator("#hero .tag:visible")).to_have_text(["without alignment", "+ transmission alignment"])
    why = page.locator("#hero .why.right")
    expect(why).to_contain_text("Without an update of “snail”, the edge draws something else")
    page.get_by_role("link", name="Teach it").click()
    expect(page.get_by_label("Topic", exact=True)).to_have_value("snail")


def test_the_menu_is_not_cut_off(page: Page, screen: ViewportSize) -> None:
    menu = page.get_by_role("navigation", name="Page")
    button = page.get_by_role("button", name="Menu")
    folded = screen["width"] < 640
    expect(button).to_be_visible(visible=folded)
    if folded:
        expect(menu).to_be_hidden()
        button.press("Enter")
        page.keyboard.press("Escape")
        expect(menu).to_be_hidden()
        expect(button).to_be_focused()
        button.click()
    links = menu.get_by_role("link")
    expect(links).to_have_text(["Way", "Deliveries", "Quality", "Gallery", "Teach", "Traffic", "REST"])
    for link in links.all():  # what is at both ends of its text is the link itself
        assert link.evaluate(
            "link => { const text = document.createRange(); text.selectNodeContents(link);"
            "const { left, right, top, bottom } = text.getBoundingClientRect();"
            "return [left + 1, right - 1].every((x) => "
            "document.elementFromPoint(x, (top + bottom) / 2) === link); }"
        ), link.inner_text()
    check_with_axe(page)
    menu.get_by_role("link", name="Gallery").click()
    expect(page.get_by_role("heading", name="What you asked for")).to_be_in_viewport()
    if folded:
        expect(menu).to_be_hidden()


def test_the_form_unfolds_what_is_seldom_changed(page: Page) -> None:
    controls = page.locator("#ask-form").locator("input:visible, select:visible")
    expect(controls).to_have_count(2)  # prompt and SNR
    link = page.locator("#link summary")
    expect(link).to_contain_text("rayleigh, 1/96, auto")
    link.press("Enter")
    channel = page.get_by_role("combobox", name="Channel", exact=True)
    channel.select_option("awgn")
    expect(page.locator("article[data-delivery=semantic]")).to_have_attribute("aria-busy", "true")
    expect(page.locator("#ask-status")).to_have_text(re.compile("^Done"))
    link.press("Enter")
    expect(channel).to_be_hidden()
    expect(link).to_contain_text("awgn, 1/96, auto")
    settings = page.locator("#settings summary")
    expect(settings).to_have_text(re.compile("^More settings *$"))
    settings.press("Enter")
    page.get_by_label("Seed", exact=True).fill("3")
    page.get_by_role("checkbox", name="conventional").uncheck()
    expect(settings).to_contain_text("semantic-unaligned and semantic, seed 3")


def test_it_loads_little_and_nothing_from_other_hosts(browser: Browser, stack: Stack) -> None:
    row = open_page(browser, stack.url)
    assert 30 < row["kilobytes"] < 300
    assert row["other_hosts"] == 0
    assert row["first_image_s"] > 0


def test_two_images_are_compared_by_a_slider_and_in_full_size(page: Page) -> None:
    page.get_by_role("radio", name="Slider").check()
    slider = page.locator("#hero input")
    slider.focus()
    slider.press("ArrowRight")
    assert page.locator("#hero").evaluate("hero => hero.style.getPropertyValue('--border')") == "51%"
    assert width_of(page.locator("#hero")) >= 256
    page.get_by_role("radio", name="Channel").check()
    expect(page.locator("#hero .tag.left")).to_have_text("as the edge sent it")
    page.get_by_role("button", name="Enlarge both images").click()
    dialog = page.get_by_role("dialog")
    expect(dialog.locator(".tag.right")).to_have_text("as it arrived")
    assert width_of(dialog.locator(".compare")) >= 256
    page.keyboard.press("Escape")
    expect(dialog).to_be_hidden()
    page.get_by_role("button", name="Enlarge: Semantic, aligned").click()
    expect(dialog.get_by_role("heading")).to_have_text("Semantic, aligned: a flamingo on the beach")
    with page.expect_download() as download:
        dialog.get_by_role("link", name="Download").click()
    assert Image.open(download.value.path()).size == (256, 256)
    dialog.get_by_role("button", name="Close").click()
    expect(dialog).to_be_hidden()


def test_the_way_shows_what_each_hop_carried(page: Page) -> None:
    def said(step: str) -> Locator:
        return page.locator(f"#path [data-node='{step}'], #path [data-hop='{step}']")

    expect(said("user")).to_contain_text(re.compile(r"PSNR [\d.]+ dB"))
    expect(said("cloud-edge")).to_contain_text(re.compile(rf"[\d,]+ B.*update of {TOPIC}", re.DOTALL))
    expect(said("edge-channel")).to_contain_text("2,048")
    expect(said("channel")).to_contain_text("5 dB, rayleigh")
    expect(said("channel").locator("svg")).to_have_attribute(
        "aria-label", re.compile("512 symbols as received")
    )
    expect(page.locator("#clock")).to_have_text(re.compile(r"^[\d.]+ s from request to image"))
    page.locator("#ways").get_by_role("radio", name="Conventional").check()
    expect(said("cloud-edge")).to_contain_text(re.compile(r"[\d,]{5} B.*webp file", re.DOTALL))
    expect(said("user")).to_contain_text("PSNR")
    uses = said("edge-channel").locator("b")
    expect(uses).to_have_text(page.locator("article[data-delivery=conventional] .cost b").inner_text())
    for screen in page.locator("#path .screen").all():
        assert width_of(screen) > 80


def test_the_steps_of_a_new_image_are_shown_as_they_happen(page: Page) -> None:
    unfold(page, "More settings")
    page.locator("#again").uncheck()
    page.evaluate(
        "() => { window.seen = new Set(); new MutationObserver(() => window.seen.add("
        "document.querySelector('[data-node=edge] p').textContent))"
        ".observe(document.querySelector('#path'), {subtree: true, childList: true}); }"
    )
    page.get_by_role("button", name="Another seed").click()
    expect(page.locator("#ask-status")).to_have_text(re.compile("^Done"))
    assert any(re.search(r"step \d of 6", text) for text in page.evaluate("() => [...window.seen]"))


def test_all_deliveries_are_compared_at_equal_channel_uses(page: Page) -> None:
    expect(page.locator("article")).to_have_count(4)
    expect(page.locator("article[data-delivery=equal] .facts")).to_contain_text(
        re.compile(r"reduced to \d+×\d+")
    )
    uses = {
        delivery: number(page.locator(f"article[data-delivery={delivery}] .cost b"))
        for delivery in (*DELIVERIES, "equal")
    }
    assert uses["semantic"] == uses["semantic-unaligned"] == 2048
    assert 1024 < uses["equal"] <= 2048 < uses["conventional"]
    for img in page.locator("article img").all():
        assert width_of(img) >= 256
        assert str(img.get_attribute("alt")).startswith("received: a flamingo")
    expect(page.locator("#costs tr")).to_have_count(4)
    expect(page.locator("#saving")).to_contain_text("times the channel uses")


def test_what_is_said_of_a_file_goes_with_the_file(page: Page) -> None:
    saving = page.locator("#saving")
    expect(saving).to_contain_text("times the channel uses")
    unfold(page, "More settings")
    page.get_by_role("checkbox", name="conventional").uncheck()
    expect(page.locator("article")).to_have_count(2)
    expect(page.locator("#ask-status")).to_have_text(re.compile("^Done"))
    expect(saving).to_have_text("")
    expect(page.locator("#costs tr")).to_have_count(2)
    page.get_by_role("checkbox", name="conventional").check()
    expect(saving).to_contain_text("times the channel uses")


def test_quality_against_snr_is_measured_for_this_image(page: Page) -> None:
    until_measured(page)
    page.get_by_text("As a table").click()
    expect(page.locator("#curve-rows tr")).to_have_count(7)
    cells = page.locator("#curve-rows td").all_inner_texts()
    assert len(cells) == 21
    assert "–" not in cells[1::3], "the aligned image arrives at every SNR"
    expect(page.locator("#curve circle")).to_have_count(sum(cell != "–" for cell in cells))
    page.get_by_role("radio", name="PSNR").check()
    aligned = [float(cell) for cell in page.locator("#curve-rows td:nth-child(3)").all_inner_texts()]
    assert aligned[0] < aligned[3] < aligned[-1]
    chart = page.locator("#curve svg")
    expect(chart).to_have_attribute("aria-label", re.compile(r"^PSNR, dB against SNR\. .*: [\d.]+ at -10 dB"))
    box = chart.bounding_box()
    assert box is not None
    chart.click(position={"x": box["width"] * 0.8, "y": box["height"] / 2})
    expect(page.locator("#snr_db-shown")).not_to_have_text("5 dB")
    expect(page.locator("#ask-status")).to_have_text(re.compile("^Done"))


def test_a_curve_of_equal_values_is_drawn(page: Page) -> None:
    drawn = page.evaluate(
        """async () => {
            const { curves } = await import("/web/charts.js");
            const points = [{ x: 0, y: 38.2 }, { x: 5, y: 38.2 }];
            const lines = [{ delivery: "semantic", title: "Semantic", points }];
            const axes = { width: 600, from: -10, to: 20, now: 5, unit: "PSNR, dB", range: null };
            return curves(lines, axes).outerHTML;
        }"""
    )
    assert "NaN" not in drawn
    assert "Infinity" not in drawn
    heights = re.findall(r'<circle[^>]* cy="([\d.]+)"', drawn)
    assert len(heights) == 2
    assert len(set(heights)) == 1
    assert drawn.count('class="axis"') > 3


def test_examples_and_the_worlds_words_are_clicked(page: Page) -> None:
    prompt = page.get_by_label("Prompt", exact=True)
    page.get_by_role("button", name="a rocket in the desert").click()
    assert prompt.input_value() == "a rocket in the desert"
    expect(page.get_by_role("button", name="a rocket in the desert")).to_have_attribute(
        "aria-pressed", "true"
    )
    page.get_by_text("Compose from the world's words").click()
    words = page.locator("#words")
    words.get_by_role("button", name="owl", exact=True).click()
    words.get_by_role("button", name="at night", exact=True).click()
    words.get_by_role("button", name="comic", exact=True).click()
    assert prompt.input_value() == "an owl in the desert at night, comic style"
    assert "new" in str(words.get_by_role("button", name="neon", exact=True).get_attribute("class"))
    assert "new" not in str(words.get_by_role("button", name=TOPIC, exact=True).get_attribute("class"))
    expect(page.locator("article[data-delivery=semantic] img")).to_have_attribute("alt", re.compile("an owl"))
    expect(page.locator("#ask-status")).to_have_text(re.compile("^Done"))


def test_the_gallery_keeps_what_was_asked_with_its_link(page: Page) -> None:
    set_slider(page, "snr_db", 12)
    send(page)
    entries = page.locator("#asked a")
    expect(entries).to_have_count(2)
    assert width_of(entries.first.locator("img")) >= 256
    expect(entries.first).to_contain_text("12 dB rayleigh, seed 21")
    before = page.locator("article[data-delivery=semantic] img").get_attribute("src")
    entries.nth(1).click()
    expect(page.locator("#snr_db-shown")).to_have_text("5 dB")
    expect(page.locator("#ask-status")).to_have_text(re.compile("^Done"))
    entries.nth(1).click()  # the first of before, which has moved
    expect(page.locator("article[data-delivery=semantic] img")).to_have_attribute("src", str(before))
    page.reload()  # the address is the request's
    expect(page.locator("#snr_db-shown")).to_have_text("12 dB")
    expect(entries).to_have_count(2)
    expect(page.locator("article[data-delivery=semantic] img")).to_have_attribute("src", str(before))
    page.get_by_role("button", name="Clear").click()
    expect(page.get_by_role("button", name="Clear")).to_be_hidden()
    expect(entries).to_have_count(0)


def test_colours_follow_the_system_or_the_choice(page: Page) -> None:
    def paper() -> str:
        return str(page.evaluate("() => getComputedStyle(document.documentElement).backgroundColor"))

    page.emulate_media(color_scheme="light")
    light = paper()
    page.emulate_media(color_scheme="dark")
    dark = paper()
    assert light != dark
    button = page.get_by_role("button", name="Colours")
    button.click()
    assert paper() == light
    button.click()
    page.emulate_media(color_scheme="light")
    assert paper() == dark
    page.reload()
    assert paper() == dark
    button.click()
    assert paper() == light


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_axe_finds_nothing_and_nothing_scrolls_sideways(
    page: Page, screen: ViewportSize, scheme: str
) -> None:
    page.emulate_media(color_scheme="dark" if scheme == "dark" else "light")
    until_measured(page)
    for summary in page.locator("summary:visible").all():
        summary.click()
    page.locator("#clock:not(:empty)").wait_for()
    check_with_axe(page)
    width = screen["width"]
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    for button in page.get_by_role("button").all():
        box = button.bounding_box()
        assert box is None or box["x"] + box["width"] <= width or button.evaluate("b => b.closest('.scroll')")


def test_a_card_that_waits_for_its_image_has_a_name(page: Page) -> None:
    page.route("**/v1/pictures", lambda _: None)  # for the file of equal cost, which does not come
    page.reload()
    expect(page.locator("#ask-status")).to_have_text(re.compile("^Done"))
    expect(page.get_by_role("button", name="Enlarge: File of equal cost")).to_be_disabled()
    check_with_axe(page)


def test_details_of_each_delivery(page: Page) -> None:
    for delivery in DELIVERIES:
        card = page.locator(f"article[data-delivery={delivery}]")
        card.locator("summary").click()
        expect(card.locator(".constellations svg")).to_have_count(3)
        expect(card.locator(".fading svg")).to_have_attribute("aria-label", re.compile("8 blocks"))
        assert card.locator(".times .length").count() >= 3
    expect(page.locator("article[data-delivery=conventional]")).to_contain_text(
        re.compile(r"consistency with the cloud (0\.9|1\.0)")
    )
    psnr = r"PSNR is [\d.]+ dB instead of [\d.]+ dB"
    consistency = r"consistency with the cloud is 0\.\d\d instead of [01]\.\d\d"
    saved = re.compile(f"Semantic delivery took.*{psnr}, their mean {consistency}")
    expect(page.locator("#saved")).to_have_text(saved)


def test_more_snr_is_sent_again_at_once_and_better(page: Page) -> None:
    set_slider(page, "snr_db", -5)
    send(page)
    poor = psnr_db(page, "semantic")
    set_slider(page, "snr_db", 25)
    expect(page.locator("#snr_db-shown")).to_have_text("25 dB")
    expect(page.locator("#ask-status")).not_to_have_text(re.compile("^Done"))
    expect(page.locator("#ask-status")).to_have_text(re.compile("^Done"))
    assert psnr_db(page, "semantic") > poor + 5


def test_a_lower_rate_takes_fewer_symbols_and_auto_says_what_it_expects(page: Page) -> None:
    unfold(page, "Link and knowledge")
    set_slider(page, "rate", 0)
    send(page)
    assert "256 channel uses" in facts(page, "semantic")
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
    unfold(page, "More settings")
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
    expect(page.get_by_label("Prompt", exact=True)).to_have_value("")  # once the file has been read
    send(page)
    for delivery in DELIVERIES:
        img = page.locator(f"article[data-delivery={delivery}] img")
        assert img.evaluate("img => [img.naturalWidth, img.naturalHeight]") == [300, 100]
    assert re.search(r"300×100 PNG\s+sent as \d tiles? of \d+×\d+", facts(page, "semantic"))
    page.get_by_role("radio", name="Channel").check()
    expect(page.locator("#hero .tag.left")).to_have_text("your picture")
    until_measured(page)
    expect(page.locator("#curve circle").first).to_be_visible()
    page.get_by_role("button", name="Remove the picture").click()
    assert TOPIC in page.get_by_label("Prompt", exact=True).input_value()
    (tmp_path / "mine.png").write_text("no picture")
    page.locator("#picture").set_input_files(tmp_path / "mine.png")
    page.get_by_role("button", name="Send", exact=True).click()
    expect(page.locator("#picture-problem")).to_have_text(re.compile("picture must be a PNG"))


def test_pictures_of_ones_own_do_not_move_the_break_even(page: Page, stack: Stack, tmp_path: Path) -> None:
    Image.new("RGB", (128, 128), "teal").save(tmp_path / "mine.png")
    page.locator("#picture").set_input_files(tmp_path / "mine.png")
    expect(page.get_by_label("Prompt", exact=True)).to_have_value("")
    send(page)
    until_measured(page)  # nothing else is sent from now on
    traffic = httpx2.get(f"{stack.url}/v1/traffic", trust_env=False).json()
    assert traffic["deliveries"]["semantic"]["images"] > traffic["backhaul"][-1]["images"]
    chart = page.locator("#traffic-chart svg").last
    bytes_instead = traffic["saved"]["backhaul_bytes_instead"]
    expect(chart).to_have_attribute("aria-label", re.compile(f" {bytes_instead} with a file for each image$"))


def drop(page: Page, path: Path) -> None:
    """Drops a file on the page, beside the field for files."""
    page.evaluate(
        """([name, base64]) => {
            const bytes = Uint8Array.from(atob(base64), (char) => char.charCodeAt(0));
            const dataTransfer = new DataTransfer();
            dataTransfer.items.add(new File([bytes], name, {type: "image/png"}));
            const event = new DragEvent("drop", {dataTransfer, bubbles: true, cancelable: true});
            document.querySelector("#path").dispatchEvent(event);
            if (!event.defaultPrevented) throw new Error("the browser would open the file");
        }""",
        [path.name, base64.b64encode(path.read_bytes()).decode()],
    )


def test_an_image_is_made_again_from_its_file(page: Page, tmp_path: Path) -> None:
    page.get_by_role("button", name="Enlarge: Semantic, aligned").click()
    with page.expect_download() as download:
        page.get_by_role("link", name="Download").click()
    download.value.save_as(tmp_path / "flamingo.png")
    page.get_by_role("button", name="Close").click()
    unfold(page, "More settings")
    page.locator("#again").uncheck()
    page.get_by_label("Prompt", exact=True).fill("a blue cat")
    set_slider(page, "snr_db", 12)
    drop(page, tmp_path / "flamingo.png")
    said = page.locator("#origin-said")
    expect(said).to_have_text(
        "flamingo.png was made here: “a flamingo on the beach”, seed 21, 5 dB rayleigh, semantic."
    )
    expect(page.get_by_role("button", name="Remove the picture")).to_be_hidden()
    page.get_by_text("The request in the file").click()
    expect(page.locator("#origin-request")).to_contain_text('"seed": 21')
    page.get_by_role("button", name="Make it again").click()
    expect(said).to_have_text("The same image as in the file, pixel for pixel.")
    assert page.get_by_label("Prompt", exact=True).input_value() == "a flamingo on the beach"
    expect(page.locator("#snr_db-shown")).to_have_text("5 dB")
    expect(page.locator("#more")).to_be_hidden()
    check_with_axe(page)


@pytest.mark.parametrize(
    ("file_format", "outcome"),
    [
        ("png", "The same image as in the file, pixel for pixel."),
        ("jpeg", "Made by the same models; pixels are compared with those of PNG files alone."),
        ("webp", "Made by the same models; pixels are compared with those of PNG files alone."),
    ],
)
def test_settings_that_the_form_lacks_are_kept(
    page: Page, stack: Stack, tmp_path: Path, file_format: str, outcome: str
) -> None:
    link = {"snr_db": 7.5, "fading": "rician", "rician_k_db": 3, "cbr": 0.004}
    with Client(stack.url) as client:
        made = client.image("a füchsin, 狐", seed=9, steps=3, link=link, output_format=file_format)
    path = tmp_path / f"made.{file_format}"
    path.write_bytes(made.png or b"")
    page.locator("#picture").set_input_files(path)
    page.get_by_role("button", name="Make it again").click()
    expect(page.locator("#origin-said")).to_have_text(outcome)
    expect(page.locator("#more-said")).to_have_text("Also: steps 3; cbr 0.004; rician_k_db 3.")
    expect(page.locator("#snr_db-shown")).to_have_text("7.5 dB")
    uses = page.locator("article[data-delivery=semantic] .cost b")
    assert number(uses) == made.report.channel_uses
    page.reload()  # the address has them all
    expect(page.locator("#more-said")).to_have_text("Also: steps 3; cbr 0.004; rician_k_db 3.")
    expect(page.locator("#ask-status")).to_have_text(re.compile("^Done"))
    assert number(uses) == made.report.channel_uses
    page.get_by_role("button", name="Leave out").click()
    expect(page.locator("#more")).to_be_hidden()
    expect(page.locator("#ask-status")).to_have_text(re.compile("^Done"))
    assert number(uses) != made.report.channel_uses


def test_a_delay_spread_is_sent_only_where_the_fading_reads_it(page: Page) -> None:
    unfold(page, "More settings")
    unfold(page, "Link and knowledge")
    page.locator("#tau_rms_s").fill("3e-7")
    for fading, reads in (("rician", True), ("awgn", False)):
        with page.expect_request(
            lambda request, fading=fading: f'"fading":"{fading}"' in (request.post_data or "")
        ) as asked:
            page.locator("#fading").select_option(fading)
        assert ('"tau_rms_s":3e-7' in str(asked.value.post_data)) is reads


def test_a_report_without_psnr_says_so_and_a_file_made_without_is_measured(
    page: Page, stack: Stack, tmp_path: Path
) -> None:
    with Client(stack.url) as client:
        made = client.image("a blue cat", seed=9, measure=False)
    assert made.report.psnr_db is None
    (tmp_path / "cat.png").write_bytes(made.png or b"")
    page.locator("#picture").set_input_files(tmp_path / "cat.png")
    page.get_by_role("button", name="Make it again").click()
    expect(page.locator("#origin-said")).to_have_text("The same image as in the file, pixel for pixel.")
    assert psnr_db(page, "semantic") > 0
    said = page.evaluate(
        """async (report) => {
            const { psnrSaid } = await import("/web/cards.js");
            return [{}, { decoded: false }, { psnr_db: 20 }].map((more) => psnrSaid({ ...report, ...more }));
        }""",
        made.report.model_dump(),
    )
    assert said == ["PSNR not measured", "not decoded", "PSNR 20.0 dB"]

    def unmeasured(route: Route) -> None:
        body = route.request.post_data_json
        route.continue_(post_data={**body, "measure": False, "details": False})

    unfold(page, "More settings")
    page.locator("#again").uncheck()
    for name in ("semantic-unaligned", "conventional"):
        page.locator(f"input[name=delivery][value={name}]").uncheck()
    page.route("**/v1/images/generations", unmeasured)
    send(page)
    assert "PSNR not measured" in facts(page, "semantic")
    expect(page.locator("#costs")).to_contain_text("not measured")
    expect(page.locator("#path [data-node='user']")).to_contain_text("PSNR not measured")


def test_line_breaks_of_a_prompt_are_kept_until_it_is_changed(
    page: Page, stack: Stack, tmp_path: Path
) -> None:
    with Client(stack.url) as client:
        made = client.image("a red car\non the beach,\r\npastel style", seed=9).png or b""
    (tmp_path / "car.png").write_bytes(made)
    page.locator("#picture").set_input_files(tmp_path / "car.png")
    page.get_by_role("button", name="Make it again").click()
    expect(page.locator("#origin-said")).to_have_text("The same image as in the file, pixel for pixel.")
    expect(page.locator("#more-said")).to_have_text("Also: line breaks of the prompt.")
    prompt = page.get_by_label("Prompt", exact=True)
    expect(prompt).to_have_value("a red caron the beach,pastel style")
    image = page.locator("article[data-delivery=semantic] img")
    shown = str(image.get_attribute("src"))
    page.reload()  # the address has them
    expect(page.locator("#ask-status")).to_have_text(re.compile("^Done"))
    expect(image).to_have_attribute("src", shown)
    prompt.fill("a red car on the beach, pastel style")
    send(page)
    expect(page.locator("#more")).to_be_hidden()


def test_an_image_of_this_system_is_sent_as_a_picture_if_wanted(
    page: Page, stack: Stack, tmp_path: Path
) -> None:
    with Client(stack.url) as client:
        made = client.image("a red car on the beach", seed=2, size="128x128").png or b""
    (tmp_path / "car.png").write_bytes(made)
    page.locator("#picture").set_input_files(tmp_path / "car.png")
    page.get_by_role("button", name="Send it as a picture").click()
    expect(page.locator("#ask-status")).to_have_text(re.compile("^Done"))
    assert "128×128 PNG" in facts(page, "semantic")
    chunks = PngImagePlugin.PngInfo()
    chunks.add_text("dekag", '{"request": 3}')
    Image.open(io.BytesIO(made)).save(tmp_path / "damaged.png", pnginfo=chunks)
    page.locator("#picture").set_input_files(tmp_path / "damaged.png")
    expect(page.locator("#origin-said")).to_contain_text("what was written into it is damaged")
    expect(page.get_by_role("button", name="Make it again")).to_be_hidden()
    (tmp_path / "cut.png").write_bytes(made[:60])  # in the middle of what was written
    page.locator("#picture").set_input_files(tmp_path / "cut.png")
    expect(page.locator("#picture-problem")).to_have_text(re.compile("picture must be a PNG"))
    expect(page.locator("#origin")).to_be_hidden()


def test_a_seed_is_not_rounded(page: Page) -> None:
    unfold(page, "More settings")
    page.get_by_label("Seed", exact=True).fill(str(2**60 + 1))
    page.get_by_label("Seed", exact=True).press("Enter")
    expect(page.locator("#seed-problem")).to_contain_text("seed must be at most 9007199254740991 here")


def test_a_gateway_that_is_gone_is_said_kindly(page: Page) -> None:
    page.route("**/v1/images/generations", lambda route: route.abort())
    page.get_by_role("button", name="Send", exact=True).click()
    expect(page.locator("#ask-status .problem")).to_have_text(re.compile("does not respond"))


def test_a_topic_is_taught_and_changes_the_picture(page: Page) -> None:
    page.get_by_label("Prompt", exact=True).fill("a red car on the beach, neon style")
    send(page)
    sent = page.locator("article[data-delivery=semantic] img")
    before = sent.get_attribute("src")
    page.get_by_label("Images", exact=True).fill("1")
    page.get_by_role("button", name="Distil", exact=True).click()
    expect(page.locator("#images-problem")).to_have_text(re.compile("images must be an integer of at least"))
    page.get_by_label("Images", exact=True).fill("8")
    page.get_by_label("Steps", exact=True).fill("12")
    page.get_by_label("Publish even if it scores no better").check()  # so few steps may teach it nothing
    page.get_by_role("button", name="Distil", exact=True).click()
    expect(page.get_by_role("button", name="Cancel")).to_be_enabled()
    samples, status = page.locator("#samples figcaption"), page.locator("#teach-status")
    expect(samples).to_have_text(re.compile("during training"), timeout=TEACHING_MS)
    expect(status).to_have_text(re.compile("neon: published as version 1"), timeout=TEACHING_MS)
    expect(samples).to_have_text(re.compile("the edge before, the edge after"))
    expect(page.locator("#known tr")).to_have_count(2)
    expect(page.locator("#knowledge option", has_text="neon")).to_have_count(1)
    send(page)
    assert "generated with neon v1" in facts(page, "semantic")
    assert sent.get_attribute("src") != before
    page.get_by_label("Publish even if it scores no better").uncheck()
    page.get_by_role("button", name="Distil", exact=True).click()  # makes the same update, which is no better
    expect(status).to_have_text(
        re.compile("neon: not published: .*not better than .*even so"), timeout=TEACHING_MS
    )
    expect(page.locator("#known tr").filter(has_text="neon").locator("td").first).to_have_text("1")
    page.get_by_role("button", name="Forget neon").click()
    expect(page.locator("#known tr")).to_have_count(1)


def test_a_distillation_is_cancelled(page: Page) -> None:
    page.get_by_label("Topic", exact=True).fill("vaporwave")
    page.get_by_role("button", name="Distil", exact=True).click()
    expect(page.locator("#teach-status")).to_have_text(re.compile("the cloud generates images, [1-9]"))
    page.get_by_role("button", name="Cancel").click()
    expect(page.locator("#teach-status")).to_have_text(re.compile("cancelled; nothing was published"))


def test_a_distillation_is_followed_after_its_connection_broke(page: Page) -> None:
    broken: list[str] = []

    def break_off(route: Route) -> None:
        broken.append(route.request.url)
        if len(broken) == 1:
            route.abort()
        elif len(broken) == 2:
            route.fulfill(status=503, json={"detail": "a service is away"})
        else:
            route.continue_()

    page.route("**/v1/jobs/*/events", break_off)
    page.get_by_label("Topic", exact=True).fill("thermal")
    page.get_by_role("button", name="Distil", exact=True).click()
    expect(page.locator("#teach-status")).to_have_text(re.compile("the cloud generates images, [1-9]"))
    assert len(broken) == 3
    page.get_by_role("button", name="Cancel").click()
    expect(page.locator("#teach-status")).to_have_text(re.compile("cancelled; nothing was published"))


def test_a_gateway_that_asks_for_a_key_is_given_one(
    browser: Browser, screen: ViewportSize, tmp_path: Path
) -> None:
    key, line = new_key("reader")
    (tmp_path / "keys").write_text(line)
    port = free_port()
    env = {"DEKAG_PORT": str(port), "DEKAG_REDIS_URL": "none", "DEKAG_API_KEYS_FILE": str(tmp_path / "keys")}
    gateway = subprocess.Popen([sys.executable, "-m", "services.gateway"], env=os.environ | env)
    try:
        page = browser.new_page(viewport=screen)
        while not healthy(f"http://127.0.0.1:{port}/healthz"):
            assert gateway.poll() is None
        page.goto(f"http://127.0.0.1:{port}")
        expect(page.locator("#teach-status")).to_have_text(re.compile("needs an API key"))
        page.get_by_label("API key of this gateway").fill("schlüssel")
        page.get_by_role("button", name="Use this key").click()
        expect(page.locator("#key-problem")).to_contain_text("key must be printable ASCII characters")
        expect(page.get_by_label("API key of this gateway")).to_be_focused()
        page.get_by_label("API key of this gateway").fill(f"\u200b{key} \u200b")
        page.get_by_role("button", name="Use this key").click()
        expect(page.locator("#teach-status")).to_have_text(re.compile("the cloud service cannot be reached"))
        expect(page.locator("#key-form")).to_be_hidden()
        page.close()
    finally:
        gateway.terminate()
        gateway.wait(60)


def test_with_a_key_the_page_asks_for_little_by_itself(page: Page) -> None:
    interval = "async () => (await import('/web/traffic.js')).everyMs()"
    assert page.evaluate(interval) == 3_000
    page.evaluate("sessionStorage.setItem('dekag-key', 'any')")
    pictures: list[str] = []
    page.on("request", lambda each: pictures.append(each.url) if each.url.endswith("/v1/pictures") else None)
    page.reload()
    assert page.evaluate(interval) == 30_000
    card = page.locator("article[data-delivery=equal]")
    expect(card).to_contain_text("four or five conventional deliveries")
    expect(page.get_by_role("radio", name="Equal cost")).to_be_disabled()
    expect(page.locator("article[data-delivery=semantic]")).to_contain_text("consistency with the cloud")
    assert pictures == []
    check_with_axe(page)
    card.get_by_role("button", name="Search for it").click()
    expect(card.locator(".facts")).to_contain_text(re.compile(r"reduced to \d+×\d+"))
    assert 4 <= len(pictures) <= 5
    expect(page.get_by_role("radio", name="Equal cost")).to_be_enabled()
    expect(card.get_by_role("button", name="Search for it")).to_have_count(0)


def test_it_works_by_keyboard(page: Page) -> None:
    page.keyboard.press("Tab")
    expect(page.get_by_role("link", name="Skip to the images")).to_be_focused()
    page.locator("#snr_db").focus()
    page.keyboard.press("ArrowRight")
    expect(page.locator("#snr_db-shown")).to_have_text("6 dB")
    page.locator("#pairs input:checked").focus()
    page.keyboard.press("ArrowRight")
    expect(page.locator("#hero .tag.right")).to_have_text("+ transmission alignment")
    page.get_by_role("button", name="Enlarge: Conventional").press("Enter")
    page.keyboard.press("Escape")
    page.get_by_label("Prompt", exact=True).press("Enter")
    expect(page.locator("#ask-status")).to_have_text(re.compile("^Done"))
