"""Network counters of containers beside what the services logged: by hand, and of a recorded run."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest

from services.bench.loadtest.containers import Snapshot, compare
from services.bench.loadtest.report import service_traffic, write_report

# Of a real stack, as the engine's API says it: four requests, then ten seconds without any.
RECORDED = json.loads((Path(__file__).parent / "recorded.json").read_text())


def statistics(at: str, **interfaces: tuple[int, int, int, int]) -> dict[str, Any]:
    """What the engine says of a container with those interfaces."""
    names = ("rx_bytes", "rx_packets", "tx_bytes", "tx_packets")
    rest = {"rx_errors": 0, "rx_dropped": 0, "tx_errors": 0, "tx_dropped": 0}
    networks = {each: dict(zip(names, counted, strict=True)) | rest for each, counted in interfaces.items()}
    return {"read": f"2026-11-24T16:00:{at}Z", "networks": networks}


def snapshot(at: str, **services: tuple[int, int, int, int]) -> Snapshot:
    return Snapshot.of({(name, "1"): statistics(at, eth0=counted) for name, counted in services.items()})


def recorded(name: str) -> Snapshot:
    found: Sequence[Mapping[str, Any]] = RECORDED[name]
    return Snapshot.of(
        {(each["service"], f"{each['id']} {each['started']}"): each["stats"] for each in found}
    )


def recorded_comparison() -> dict[str, Any]:
    return compare(
        recorded("before"),
        recorded("after"),
        recorded("idle"),
        service_traffic([json.dumps(line) for line in RECORDED["log"]]),
        http_received_bytes=RECORDED["http_received_bytes"],
        http_sent_bytes=RECORDED["http_sent_bytes"],
    )


def test_a_snapshot_adds_up_interfaces_and_replicas() -> None:
    both = statistics("01.500000000", eth0=(10, 1, 20, 2), eth1=(100, 3, 200, 4))
    replica = statistics("01.250000001", eth0=(1000, 5, 2000, 6))
    first = Snapshot.of({("gateway", "1"): both, ("gateway", "2"): replica})
    assert first.counters["gateway", "1"] == {
        "rx_bytes": 110,
        "rx_packets": 4,
        "tx_bytes": 220,
        "tx_packets": 6,
    }
    later = statistics("02.250000000", eth0=(1001, 6, 2002, 8))
    second = Snapshot.of({("gateway", "1"): both, ("gateway", "2"): later})
    assert second.at_s - first.at_s == pytest.approx(0.25)
    assert second.since(second)["gateway"].total() == 0
    assert second.since(first) == {
        "gateway": Counter({"rx_bytes": 1, "rx_packets": 1, "tx_bytes": 2, "tx_packets": 2})
    }


def test_a_comparison_by_hand() -> None:
    # 20 s of load, then 10 s in which a packet of 100 bytes, 66 of them headers, went from gateway to Redis
    before = snapshot("00", gateway=(0, 0, 0, 0), redis=(0, 0, 0, 0), user=(0, 0, 0, 0))
    after = snapshot(
        "20",
        gateway=(50 + 1010 + 66 * 2, 2, 500 + 110 + 34 * 2 + 30 + 66 * 5, 5),
        redis=(34 * 2 + 30 + 66 * 3, 3, 0, 0),
        user=(110 + 66, 1, 1010 + 66, 1),
    )
    idle = snapshot(
        "30",
        gateway=(50 + 1010 + 66 * 2, 2, 500 + 110 + 34 * 3 + 30 + 66 * 6, 6),
        redis=(34 * 3 + 30 + 66 * 4, 4, 0, 0),
        user=(110 + 66, 1, 1010 + 66, 1),
    )
    # a request of 50 bytes, its call of 100 with an answer of 1000, and an answer of 500
    calls = [{"service": "user", "received_bytes": 100, "sent_bytes": 1000}]
    found = compare(before, after, idle, calls, http_received_bytes=50, http_sent_bytes=500)
    assert (found["run_s"], found["idle_s"]) == (20, 10)
    names = ("counted_bytes", "idle_bytes", "headers_bytes", "messages_bytes", "rest_bytes")
    assert {
        (row["service"], row["direction"]): tuple(row[name] for name in names) for row in found["rows"]
    } == {
        ("gateway", "received"): (1192, 0, 132, 1050, 10),
        ("gateway", "sent"): (1038, 200, 198, 600, 40),
        ("redis", "received"): (296, 200, 66, 0, 30),
        ("redis", "sent"): (0, 0, 0, 0, 0),
        ("user", "received"): (176, 0, 66, 100, 10),
        ("user", "sent"): (1076, 0, 66, 1000, 10),
    }
    # both ends of both messages and the bodies of HTTP; and beside them 10 bytes of framing at each end
    assert found["interceptors_bytes"] == 2 * 1100 + 550
    assert (found["counters_bytes"], found["redis_bytes"]) == (2750 + 40, 30)
    assert found["counters_gap_percent"] == pytest.approx(100 * 40 / 2790)
    assert found["raw_gap_percent"] == pytest.approx(100 * (1 - 2750 / (1192 + 1038 + 176 + 1076 - 296)))


def test_a_recorded_run_agrees() -> None:
    found = recorded_comparison()
    assert 0 < found["counters_gap_percent"] < 5
    assert found["counters_gap_percent"] < found["raw_gap_percent"]
    for row in found["rows"]:
        assert row["counted_bytes"] >= row["messages_bytes"]
        parts = ("idle_bytes", "headers_bytes", "messages_bytes", "rest_bytes")
        assert sum(row[name] for name in parts) == row["counted_bytes"]
    # the two ends of a hop that has no Redis at either of them counted the same
    rest = {(row["service"], row["direction"]): row["rest_bytes"] for row in found["rows"]}
    assert rest["channel", "sent"] == pytest.approx(rest["user", "received"], abs=2500)


def test_counters_that_started_anew_are_not_compared() -> None:
    first = snapshot("00", edge=(1, 1, 1, 1), user=(1, 1, 1, 1))
    restarted = Snapshot.of(
        {
            ("edge", "2"): statistics("01", eth0=(9, 9, 9, 9)),
            ("user", "1"): statistics("01", eth0=(2, 2, 2, 2)),
        }
    )
    with pytest.raises(ValueError, match=r"started or stopped meanwhile: edge$"):
        restarted.since(first)


def test_what_cannot_be_compared_says_so() -> None:
    with pytest.raises(ValueError, match="no running containers"):
        Snapshot.of({})
    with pytest.raises(ValueError, match="edge has no network counters"):
        Snapshot.of({("edge", "1"): {"read": "0001-01-01T00:00:00Z"}})  # as the engine says of a stopped one
    with pytest.raises(ValueError, match="logged no calls"):
        compare(
            snapshot("00", edge=(0, 0, 0, 0)),
            snapshot("01", edge=(0, 0, 0, 0)),
            snapshot("02", edge=(0, 0, 0, 0)),
            [],
            http_received_bytes=0,
            http_sent_bytes=0,
        )


def test_the_report_shows_the_comparison_or_why_there_is_none(tmp_path: Path) -> None:
    found = recorded_comparison()
    summary = write_report(tmp_path, [], {}, load_s=1.0, updates={}, log=[], containers=found)
    share = f"{found['counters_gap_percent']:.1f} %"
    assert f"| bytes that only containers counted | {share} |" in summary
    page = (tmp_path / "report.md").read_text()
    assert "| service | direction | counted | idle | headers | messages | rest |" in page
    assert page.count("| received |") == page.count("| sent |") == 7
    assert json.loads((tmp_path / "report.json").read_text())["containers"] == found
    not_told = {"not_told": "the engine went away"}
    assert len(write_report(tmp_path, [], {}, load_s=1.0, updates={}, containers=not_told)) < len(summary)
    assert "Not measured: the engine went away." in (tmp_path / "report.md").read_text()
