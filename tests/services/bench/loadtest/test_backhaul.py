"""Traffic beside files: totals, savings, break-even and policies, number by number."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from services.bench.loadtest.backhaul import EQUAL, USUAL, Quality, compared, policies, verdict
from services.bench.loadtest.report import Answer, write_report
from tests.services.bench.loadtest.test_report import ANSWERS, NEON, UPDATES, answer

GOOD = [each for each in ANSWERS if each.error is None]
NONE = Quality({}, {}, {}, missing="it was not asked for")
SCORED = Quality(
    {"load-1-semantic": 0.9, "load-3-semantic": 0.5},
    {EQUAL: {NEON: 400.0, (): 100.0}, USUAL: {NEON: 6000.0, (): 3000.0}},
    {"load-1-semantic": (100, 300), "load-3-semantic": (100, 500)},
    {"load-1-semantic": 0.8},
    0.97,
    {"load-1-semantic": 21.0, "load-3-semantic": 19.0},
)


def found(answers: list[Answer] = GOOD, quality: Quality = NONE, load_s: float = 4.0) -> dict[str, Any]:
    return compared(answers, UPDATES, quality, load_s=load_s)


def test_an_update_that_was_held_before_the_run_is_charged_all_the_same() -> None:
    own = found()
    # neon was fetched for 8000 of its 9000 bytes, the jewels' 600 not at all
    assert (own["bytes"], own["update_bytes"], own["requests"]) == (9600, 9600, 4)
    assert own["curves"]["ours"] == [[1, 9000], [2, 9000], [3, 9000], [4, 9600]]


def test_without_files_of_equal_quality_those_that_were_sent_are_compared() -> None:
    own = found()
    usual = own["files"][USUAL]
    # a cat in neon 6000 on average, the boat 3000; of jewels no file was sent, so the mean of both
    assert usual["bytes"] == 6000 + 6000 + 3000 + 4500
    assert usual["cached_bytes"] == 6000 + 3000 + 4500, "the second cat is in the cache"
    assert usual["saved_percent"] == pytest.approx(100 * (1 - 9600 / 19_500))
    assert (usual["break_even_images"], usual["break_even_in_run"]) == (2, True)
    assert usual["break_even_minutes"] == pytest.approx(2 / 60)
    assert own["main"] == USUAL
    text = verdict(own)
    assert text == (
        "**9,600 B** cloud-edge, 51 % less than WebP of quality 75 (better images: PSNR 26.0 dB, "
        "ours 20.0 dB); **600 channel uses** edge-user; break-even after 2 images (0.0 min at this load)."
    )


@pytest.mark.parametrize(
    ("theirs_db", "said"),
    [
        (26.0, "(better images: PSNR 26.0 dB, ours 20.0 dB)"),
        (18.0, "(worse images: PSNR 18.0 dB, ours 20.0 dB)"),
        (20.01, "(equally good images: PSNR 20.0 dB, ours 20.0 dB)"),
        (None, "(quality not measured)"),
    ],
)
def test_the_numbers_say_whose_images_are_better(theirs_db: float | None, said: str) -> None:
    own = found()
    assert said in verdict({**own, "usual_psnr_db": {**own["usual_psnr_db"], "mean": theirs_db}})


def test_files_of_equal_quality_are_the_verdicts() -> None:
    own = found(quality=SCORED)
    assert own["main"] == EQUAL
    equal = own["files"][EQUAL]
    assert equal["bytes"] == 400 + 400 + 100 + 250
    # not in this run: 9600 B of updates, 287.5 B of a file, nothing of ours beside the updates
    assert (equal["break_even_in_run"], equal["break_even_images"]) == (False, 34)
    # of neon's two requests 0.9, of the one without a topic 0.5
    assert own["consistency"] == {"n": 2, "mean": pytest.approx((2 * 0.9 + 0.5) / 3)}
    assert own["radio_saved_percent"] == pytest.approx(75)
    assert verdict(own) == (
        "**9,600 B** cloud-edge, 735 % **more** than WebP of equal consistency (0.77); "
        "**600 channel uses** edge-user, 75 % fewer than WebP of equal PSNR (20.0 dB); "
        "not yet paid: break-even after about 34 images (0.6 min at this load)."
    )


def test_a_delivery_that_always_takes_more_never_pays() -> None:
    dear = [answer(str(n), "semantic", backhaul=500) for n in range(3)]
    own = found(dear, replace(SCORED, consistency={}, equal_psnr_uses={}))
    assert own["files"][EQUAL]["break_even_images"] is None
    assert verdict(own).endswith("no break-even at this load.")
    assert verdict(found([])) == "No aligned semantic image was delivered."


def test_the_verdict_names_topics_that_nothing_was_spent_on() -> None:
    taught = answer("0", "semantic", topics=("neon",), needs=("neon",))
    sent = answer("1", "semantic", needs=("jewels",))
    sent = replace(sent, link_report={**sent.report, "source": "cloud"})
    untaught = [answer(str(n), "semantic", needs=("rocket", "snail")) for n in (2, 3)]
    assert "no update" not in verdict(found([taught, sent, answer("4", "semantic")]))
    assert verdict(found([taught, sent, *untaught])).endswith(
        "; **no update of rocket, snail**: their images are those of the untaught edge."
    )


def test_each_topic_has_its_own_account() -> None:
    topics = {tuple(each["topics"]): each for each in found(quality=SCORED)["topics"]}
    assert topics.keys() == {(), NEON, ("jewels", "neon")}
    neon = topics[NEON]
    assert (neon["requests"], neon["images"], neon["update_bytes"], neon["bytes"]) == (2, 1, 9000, 9000)
    file = neon["files"][EQUAL]
    assert (file["bytes"], file["saved_by_cache"], file["break_even_images"]) == (800, 400, 23)
    assert file["break_even_minutes"] == pytest.approx(23 / 30), "two of four requests, 60 a minute"
    assert topics[()]["update_bytes"] is None


def test_the_same_load_under_other_policies() -> None:
    by_kind = policies(found(quality=SCORED), UPDATES)
    equal = by_kind[EQUAL]
    assert equal["files"] == 400 + 400 + 100 + 250
    assert equal["cached files"] == 400 + 100 + 250
    assert equal["never"] == equal["auto"] == 400 + 250, "the boat needs no topic"
    assert equal["always"] == 9600
    assert equal["hindsight"] == 400 + 250
    usual = by_kind[USUAL]
    assert usual["files"] == 6000 + 6000 + 3000 + 4500
    assert usual["never"] == 6000 + 4500
    assert usual["always"] == 9600
    assert usual["hindsight"] == 6000 + 4500, "neon alone is not worth 9000 B, with the jewels' house it is"


def test_reports_of_one_kind_of_file_are_replayed_from_their_counts() -> None:
    neon = [answer(str(n), "semantic", prompt=f"neon {n % 3}", needs=("neon",)) for n in range(7)]
    jewels = [answer(str(n), "semantic", prompt=f"jewels {n}", needs=("jewels",)) for n in (7, 8)]
    plain = [answer("plain", "semantic")]
    sizes = {("neon",): 3500.0, ("jewels",): 100.0, (): 50.0}
    own = found([*neon, *jewels, *plain], replace(SCORED, file_bytes={EQUAL: sizes, USUAL: sizes}))
    exact = policies(own, UPDATES)
    for files in own["files"].values():
        del files["policies"]
    assert policies(own, UPDATES) == exact
    assert exact[EQUAL]["auto"] == 3 * 3500 + 9000 + 2 * 100
    assert policies({"files": {}}, UPDATES) == {}


def test_the_page_opens_with_the_verdict_and_says_what_the_cloud_decided(tmp_path: Path) -> None:
    decided = {"topic": "neon", "requests": 2, "files": 1, "file_bytes": 400, "update_bytes": 9000}
    decided |= {"action": "file", "reason": "an update does not pay yet"}
    demand = {"policy": "auto", "data": [decided]}
    first, *_ = write_report(tmp_path, GOOD, {}, load_s=4.0, updates=UPDATES, quality=SCORED, demand=demand)
    page = (tmp_path / "report.md").read_text()
    assert page.startswith(f"# Load test\n\n{first}\n")
    for row in (
        "| WebP of equal consistency | 1,150 | 9,600 | -734.8 | 0.767 | 0.767 | 34 | 0.6 |",
        "| WebP of quality 75, as conventional delivery sends it | 19,500 | 9,600 | 50.8 | 0.970 | 0.767 |",
        "| neon | 2 | 1 | 9,000 | 9,000 | 0.900 (1) | 0.800 | 0.900 | 400 | 800 | 400 | -1025.0 | 23 (0.8 ",
        "| `auto` | the break-even rule | 650 | 10,500 |",
        "| neon | 2 | 1 | 400 | 9,000 | file | an update does not pay yet |",
    ):
        assert row in page, row
    assert "bytes edge-channel" not in page
    figures = json.loads((tmp_path / "report.json").read_text())
    assert figures["verdict"] == first
    answers = [json.loads(line) for line in (tmp_path / "answers.jsonl").read_text().splitlines()]
    assert [each["consistency"] for each in answers][:2] == [0.9, None]
    assert answers[0]["needs"] == ["neon"]


def test_a_run_without_files_says_so(tmp_path: Path) -> None:
    alone = [answer("1", "semantic", backhaul=10)]
    write_report(tmp_path, alone, {}, load_s=1.0, updates={}, quality=NONE)
    page = (tmp_path / "report.md").read_text()
    assert "Nothing to compare with" in page
    assert "What the cloud decided is not known" in page
