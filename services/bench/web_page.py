"""`dekag bench web-page`: when the web page shows its first image, what it loads, its Lighthouse scores."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.progress import track

from dekag.evaluation.pages import Row
from dekag.evaluation.registry import RESULTS, record
from dekag.evaluation.statistics import POSITIVE, mean_ci95
from services.bench.processes import chain
from services.bench.results_io import write_bench
from services.launcher.stack import LaunchError
from services.launcher.up import await_ready, start_topics

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page, ViewportSize

COMMAND = "dekag bench web-page"
WIDE: ViewportSize = {"width": 1280, "height": 900}
LIGHTHOUSE = "lighthouse@12.2.3"
CATEGORIES = ("accessibility", "best-practices")
PATIENCE_MS = 180_000
FLAGS = [
    "--no-sandbox",  # containers and root have none
    "--disable-gpu",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--no-first-run",
]
_FIRST = (
    "() => { const img = document.querySelector('#hero img.right'); "
    "return img.src.startsWith('data:') && img.complete; }"
)
_PAINTED = (
    "() => document.querySelector('#hero img.right').decode().then("
    "() => new Promise((seen) => requestAnimationFrame(() => requestAnimationFrame(seen))))"
)
_DONE = "() => document.querySelector('#curve-status').textContent.startsWith('Measured at')"


@contextmanager
def chromium() -> Iterator[Browser]:
    """A headless Chromium: $CHROMIUM, Debian's, or the one that `playwright install chromium` fetched.

    Raises:
        LaunchError: there is none, or Playwright is not installed.
    """
    try:
        from playwright.sync_api import sync_playwright
    except ModuleNotFoundError:
        raise LaunchError("the web page needs Playwright: pip install playwright") from None

    with sync_playwright() as playwright:
        found = path_of_chromium()
        if found is None and not Path(playwright.chromium.executable_path).exists():
            raise LaunchError(
                "no Chromium: install Debian's package chromium, or run 'playwright install chromium'"
            )
        browser = playwright.chromium.launch(executable_path=found, args=FLAGS)
        yield browser
        browser.close()


def path_of_chromium() -> str | None:
    """$CHROMIUM, or that of the PATH, if any."""
    return os.environ.get("CHROMIUM") or shutil.which("chromium")


def run_web_page_bench(
    *, openings: int = 10, lighthouse: bool = True, profile: str = "stickers", results: Path = RESULTS
) -> float:
    """Open the page again and again in new browser profiles, in front of a warm system.

    The system is warm once the page has been opened and has measured everything it shows. A time is from
    entering the address until the delivered image of the opening example is decoded and on the screen. The
    load average of the machine, which includes the system itself, is noted beside each.

    Args:
        openings: of the page.
        lighthouse: run Lighthouse as well, with npx.
        profile: the models.
        results: where headline.json is.

    Returns:
        The mean time, s, written to headline.json as `page_first_image_seconds`.

    Raises:
        LaunchError: the system, Chromium or Lighthouse does not start.
    """
    console, rows = Console(), []
    with tempfile.TemporaryDirectory() as folder:
        env = {"DEKAG_DATA_DIR": folder, **start_topics(profile)}
        with chain("web-page", profile, **env) as stack:
            await_ready(stack, console)
            with chromium() as browser:
                open_page(browser, stack.url)
                numbers = track(range(openings), "openings", console=console)
                rows += [{"opening": number, **open_page(browser, stack.url)} for number in numbers]
            scores = _lighthouse(stack.url) if lighthouse else {}
    config = {"profile": profile, "openings": openings, "width": WIDE["width"], **scores}
    write_bench("web-page", config, rows, results)
    seconds, ci95 = mean_ci95([row["first_image_s"] for row in rows], POSITIVE)
    record(
        "page_first_image_seconds", seconds, "s",
        command=COMMAND, count=openings, ci95=ci95, results=results,
    )  # fmt: skip
    for name, unit in (("kilobytes", "kB"), ("other_hosts", "requests")):
        most = max(row[name] for row in rows)
        record(f"page_{name}", most, unit, command=COMMAND, count=openings, results=results)
    for name in scores.keys() - {"lighthouse"}:
        record(f"page_{name}", scores[name], "points", command=COMMAND, count=1, results=results)
    console.print(f"first image after {seconds:.2f} s; {rows[-1]['kilobytes']:.0f} kB; {scores}")
    return seconds


def open_page(browser: Browser, url: str) -> Row:
    """Opens the page in a new profile, whose cache is empty, and waits for everything that it shows.

    Args:
        browser: to open it with.
        url: of the gateway.

    Returns:
        `first_image_s`, `load_average`, `kilobytes` of the page's own files without pictures, and
        `other_hosts`, the number of requests to them.
    """
    context = browser.new_context(viewport=WIDE)
    try:
        page = context.new_page()
        page.set_default_timeout(PATIENCE_MS)
        asked: list[str] = []
        page.on("request", lambda request: asked.append(request.url))
        load, start = os.getloadavg()[0], time.perf_counter()
        page.goto(url, wait_until="commit")
        page.wait_for_function(_FIRST)
        page.evaluate(_PAINTED)
        seconds = time.perf_counter() - start
        page.wait_for_function(_DONE)
        return {
            "first_image_s": seconds,
            "load_average": load,
            "kilobytes": _bytes_of_files(page, url) / 1000,
            "other_hosts": sum(not each.startswith((url, "data:", "blob:")) for each in asked),
        }
    finally:
        context.close()


def _bytes_of_files(page: Page, url: str) -> int:
    """Bytes of the page's own files as they came over the network, without pictures."""
    sizes: dict[str, int] = page.evaluate(
        "() => Object.fromEntries([...performance.getEntriesByType('navigation'), "
        "...performance.getEntriesByType('resource')].map((each) => [each.name, each.transferSize]))"
    )
    own = {name: size for name, size in sizes.items() if name == f"{url}/" or name.startswith(f"{url}/web/")}
    return sum(size for name, size in own.items() if not name.endswith(".webp"))


def _lighthouse(url: str) -> dict[str, Any]:
    """Scores of 0 to 100 by category."""
    npx = shutil.which("npx")
    if npx is None:
        raise LaunchError("Lighthouse needs npx, which comes with Node.js; --no-lighthouse leaves it out")
    command = [npx, "--yes", LIGHTHOUSE, url, "--output=json", "--quiet"]
    command += [f"--only-categories={','.join(CATEGORIES)}", f"--chrome-flags=--headless {' '.join(FLAGS)}"]
    found = path_of_chromium()
    env = os.environ | ({"CHROME_PATH": found} if found else {})
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=env)  # noqa: S603
    if done.returncode:
        raise LaunchError(f"Lighthouse has failed: {done.stderr.strip()[-400:]}")
    report = json.loads(done.stdout)
    scores = {name.replace("-", "_"): 100 * report["categories"][name]["score"] for name in CATEGORIES}
    return {"lighthouse": report["lighthouseVersion"], **scores}
