"""The load test's report of canned answers, number by number."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from services.bench.loadtest.report import (
    LEAST_PROMPTS,
    Answer,
    log_lines,
    service_traffic,
    summarise,
    write_report,
)

UPDATES, NEON = {"neon": 9000, "jewels": 600}, ("neon",)


def answer(
    question: str,
    delivery: str,
    *,
    prompt: str = "a cat",
    planned_s: float = 0.0,
    latency_s: float = 1.0,
    error: str | None = None,
    backhaul: int = 0,
    uses: int = 100,
    pilots: int = 0,
    topics: tuple[str, ...] = (),
    needs: tuple[str, ...] = (),
    cached: bool = False,
    decoded: bool = True,
) -> Answer:
    report: Mapping[str, Any] | None = None
    if error is None:
        report = {
            "seed": 1,
            "source": "edge" if delivery == "semantic" else "cloud",
            "decoded": decoded,
            "channel_uses": uses,
            "pilot_uses": pilots,
            "psnr_db": (20.0 if delivery == "semantic" else 26.0) if decoded else None,
            "gains": [[1.0, 0.0]] * 8,
            "stages": [{"stage": "edge.encode", "seconds": latency_s / 10}],
            "hops": [
                {"hop": "cloud-edge", "sent_bytes": backhaul},
                {"hop": "edge-channel", "sent_bytes": 8 * uses},
            ],
            "cached": cached,
            "knowledge": [{"topic": topic, "version": 1, "content_hash": "0"} for topic in topics],
        }
    return Answer(
        request_id=f"load-{question}-{delivery}",
        question=question,
        prompt=prompt,
        delivery=delivery,
        planned_s=planned_s,
        late_s=0.001,
        latency_s=latency_s,
        error=error,
        sent_bytes=50,
        received_bytes=0 if error else 1000,
        link_report=report,
        needs=needs or tuple(sorted(topics)),
    )


ANSWERS = [
    # a cat, asked twice both ways, with an update that the first of them fetched
    answer("1", "semantic", backhaul=8000, uses=100, topics=("neon",)),
    answer("1", "conventional", needs=NEON, planned_s=1, latency_s=3.0, backhaul=5000, uses=900, pilots=100),
    answer("2", "semantic", uses=300, topics=("neon",), latency_s=2.0, cached=True),
    answer("2", "conventional", needs=NEON, backhaul=7000, uses=600, latency_s=4.0, decoded=False),
    # a boat, both ways, without an update
    answer("3", "semantic", prompt="a boat", uses=100),
    answer("3", "conventional", prompt="a boat", backhaul=3000, uses=1000, latency_s=5.0),
    # a house, one way only; the other failed. An update that the edge held from before
    answer("4", "semantic", prompt="a house", topics=("neon", "jewels")),
    answer("4", "conventional", prompt="a house", planned_s=6, error="HTTP 503 Service Unavailable"),
]


def test_figures_are_computed_from_the_answers() -> None:
    found = summarise(ANSWERS, load_s=4.0, updates=UPDATES)
    assert (found["requests"], found["answered"]) == (8, 7)
    assert found["errors"] == {"HTTP 503 Service Unavailable": 1}
    assert found["offered_per_s"] == 2.0
    assert found["throughput_per_s"] == 1.0  # the last answer, an error, came after 7 s
    assert found["latency_s"]["all"] == pytest.approx({"n": 7, "p50": 2, "p90": 4.4, "p95": 4.7, "p99": 4.94})
    assert found["latency_s"]["semantic"]["p50"] == 1.0
    assert found["latency_s"]["conventional"]["p50"] == 4.0
    semantic, conventional = found["deliveries"]["semantic"], found["deliveries"]["conventional"]
    assert list(found["deliveries"]) == ["semantic", "conventional"]
    assert (semantic["requests"], semantic["decoded"], semantic["cache_hits"]) == (4, 4, 1)
    assert (conventional["requests"], conventional["decoded"], conventional["cache_hits"]) == (3, 2, 0)
    assert (semantic["channel_uses"], conventional["channel_uses"], conventional["pilot_uses"]) == (
        600,
        2500,
        100,
    )
    sizes = {"cloud-edge": 8000, "gateway-client": 4200}
    assert semantic["hops_bytes"] == sizes, "symbols are channel uses, not bytes"
    assert conventional["hops_bytes"]["cloud-edge"] == 15_000
    assert semantic["stages_s"]["edge.encode"]["n"] == 4
    assert conventional["stages_s"]["edge.encode"]["p50"] == pytest.approx(0.4)


def test_updates_are_spread_over_the_requests_that_used_them() -> None:
    found = summarise(ANSWERS, load_s=4.0, updates=UPDATES)["knowledge"]
    neon = {"requests": 3, "fetched_bytes": 8000, "update_bytes": 9000, "bytes_per_request": 3000}
    jewel = {"requests": 1, "fetched_bytes": 0, "update_bytes": 600, "bytes_per_request": 600}
    assert found == {"neon": neon, "jewels": jewel}
    unknown = summarise(ANSWERS, load_s=4.0, updates={})["knowledge"]["neon"]
    assert unknown["bytes_per_request"] == pytest.approx(8000 / 3)
    assert unknown["update_bytes"] is None


def test_savings_are_of_sums_over_prompts_answered_both_ways() -> None:
    found = summarise(ANSWERS, load_s=4.0, updates=UPDATES)["savings"]
    assert found["questions"] == 3
    # the cat: 3000 of 6000 bytes, 200 of 800 uses; the boat: 0 of 3000 bytes, 100 of 1000 uses
    means = {"n": 2, "semantic": 1500, "conventional": 4500, "ci95": None, "decides": False}
    assert found["backhaul_bytes"] == {**means, "saved_percent": pytest.approx(100 * (1 - 3000 / 9000))}
    means |= {"semantic": 150, "conventional": 900}
    assert found["channel_uses"] == {**means, "saved_percent": pytest.approx(100 * (1 - 300 / 1800))}
    assert found["psnr_db"] == {"semantic": 20.0, "conventional": 26.0}, "one of three did not decode"


def test_a_saving_stands_beside_the_quality_of_both_sides(tmp_path: Path) -> None:
    measured = write_report(tmp_path, ANSWERS, {}, load_s=4.0, updates=UPDATES)
    row = "| PSNR of the same requests, of those that decoded | semantic 20.0 dB, conventional 26.0 dB |"
    assert measured.index(row) == 2 + next(
        place for place, line in enumerate(measured) if line.startswith("| backhaul saved")
    )
    assert "(better images: PSNR 26.0 dB, ours 20.0 dB)" in measured[0]
    assert "| PSNR of those that decoded, dB | 20.0 | 26.0 |  |" in (tmp_path / "report.md").read_text()
    unmeasured = [
        replace(each, link_report=each.link_report and {**each.link_report, "psnr_db": None})
        for each in ANSWERS
    ]
    said = write_report(tmp_path, unmeasured, {"measure": "no"}, load_s=4.0, updates=UPDATES)
    assert row.replace("20.0 dB", "not measured").replace("26.0 dB", "not measured") in said
    assert "(quality not measured)" in said[0]


def pairs(costs: Sequence[tuple[int, int]]) -> list[Answer]:
    """Answers in which each prompt cost so many (semantic, conventional) channel uses and backhaul bytes."""
    return [
        answer(str(number), delivery, prompt=f"prompt {number}", uses=cost, backhaul=cost)
        for number, both in enumerate(costs)
        for delivery, cost in zip(("semantic", "conventional"), both, strict=True)
    ]


@given(st.lists(st.tuples(st.integers(0, 10**6), st.integers(0, 10**6)), min_size=1, max_size=30))
@example([(0, 0)])
@example([(1, 0), (0, 1)])
@example([(10**6, 1)] + [(0, 10**6)] * 20)
@settings(max_examples=25, deadline=None)
def test_no_saving_is_more_than_all_and_its_interval_holds_it(costs: list[tuple[int, int]]) -> None:
    savings = summarise(pairs(costs), load_s=1.0, updates={})["savings"]
    for name in ("backhaul_bytes", "channel_uses"):
        saved = savings[name]
        if saved["n"] == 0:
            assert sum(other for _, other in costs) == 0
            continue
        assert saved["n"] == len(costs), "none is left out for what it cost"
        assert saved["saved_percent"] <= 100
        assert (saved["ci95"] is None) == (len(costs) < LEAST_PROMPTS)
        if saved["ci95"] is not None:
            low, high = saved["ci95"]
            assert low <= saved["saved_percent"] <= high <= 100
            assert saved["decides"] == (low > 0 or high < 0)


def test_the_report_says_what_a_saving_decides(tmp_path: Path) -> None:
    cases = {
        "clear": (
            [(10, 100)] * 20,
            r"backhaul saved against `conventional` as sent \| 90\.0 \[90\.0, 90\.0\] %, n = 20 \|",
        ),
        "dearer": ([(300, 100), (400, 100)] * 10, r"-250\.0 \[.*\] %, n = 20: more was spent \|"),
        "open": ([(10, 100), (190, 100)] * 5, r" %, n = 10: too few to tell which is cheaper \|"),
        "few": ([(10, 100)] * 3, r"90\.0 %, n = 3: too few to tell \|"),
        "free": ([(0, 0)] * 9, r"not measured: nothing that costs something was answered both ways"),
    }
    for name, (costs, told) in cases.items():
        summary = write_report(tmp_path / name, pairs(costs), {}, load_s=1.0, updates={})
        assert re.search(told, "\n".join(summary)), (name, summary)
        assert re.search(told, (tmp_path / name / "report.md").read_text()), name


def test_a_run_that_was_stopped_at_once() -> None:
    for answers in ([], [answer("1", "semantic", latency_s=0.0)]):
        found = summarise(answers, load_s=0.0, updates={})
        assert found["offered_per_s"] == 0.0
        assert found["throughput_per_s"] == 0.0


def test_bytes_that_the_services_logged(tmp_path: Path) -> None:
    def line(request_id: str, method: str, received: int, sent: int) -> str:
        found = {"event": "request", "service": "edge", "request_id": request_id, "method": method}
        return json.dumps(found | {"received_bytes": received, "sent_bytes": sent}) + "\n"

    (tmp_path / "edge.log").write_text(
        line("load-1", "/dekag.v1.Downlink/Provide", 10, 100)
        + "no JSON, with \"sent_bytes\"\n"
        + line("load-2", "/dekag.v1.Downlink/Provide", 20, 200)
        + line("another", "/dekag.v1.Downlink/Provide", 40, 400)
    )  # fmt: skip
    (tmp_path / "gateway.log").write_text('{"event": "request", "request_id": "load-1", "status": 200}\n')
    lines = log_lines(tmp_path)
    assert service_traffic(lines, ["load-1", "load-2", "load-3"]) == [
        {"service": "edge", "method": "Provide", "calls": 2, "received_bytes": 30, "sent_bytes": 300}
    ]
    (everybody,) = service_traffic(lines)
    assert (everybody["calls"], everybody["received_bytes"], everybody["sent_bytes"]) == (3, 70, 700)


def test_report_files_are_written(tmp_path: Path) -> None:
    summary = write_report(tmp_path, ANSWERS, {"shape": "steady"}, load_s=4.0, updates=UPDATES)
    names = {"report.json", "report.md", "answers.jsonl", "load.svg", "backhaul.svg"}
    assert {path.name for path in tmp_path.iterdir()} == names
    assert "| backhaul saved against `conventional` as sent | 66.7 %, n = 2: too few to tell |" in summary
    page = (tmp_path / "report.md").read_text()
    for row in (
        *summary,
        "| error: HTTP 503 Service Unavailable | 1 |",
        "| conventional | bytes cloud-edge | 15,000 | 5,000.00 |",
        "| channel uses with pilots | 150 | 900 | 83.3 %, n = 2: too few to tell |",
        "| neon | 3 | 8,000 | 9,000 | 3,000 |",
        "Not measured: the services' logs cannot be read from here.",
    ):
        assert row in page
    found = json.loads((tmp_path / "report.json").read_text())
    assert found["settings"] == {"shape": "steady"}
    assert found["savings"]["questions"] == 3
    assert found["services"] is None
    rows = [json.loads(line) for line in (tmp_path / "answers.jsonl").read_text().splitlines()]
    assert len(rows) == 8
    assert "gains" not in rows[0]["link_report"]
    assert rows[7]["link_report"] is None


def test_a_run_without_answers(tmp_path: Path) -> None:
    refused = [answer("1", "semantic", error="ConnectionRefusedError")]
    for answers in ([], refused):
        summary = write_report(tmp_path, answers, {}, load_s=1.0, updates={}, log=[])
        assert (
            "| backhaul saved against `conventional` as sent | not measured: nothing that costs something was"
            " answered both ways |" in summary
        )
    assert "| error: ConnectionRefusedError | 1 |" in summary
