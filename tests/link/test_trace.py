"""Recorded channels: what is read, what is played, what is refused."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch

from dekag.errors import InvalidInputError
from dekag.link import trace
from dekag.link.channel import transmit
from dekag.link.conditions import BLOCKS, BUILT_IN_TRACES, LinkConditions
from dekag.link.make_traces import write


def loaded(folder: Path, content: str | bytes, name: str = "t") -> trace.Trace:
    data = content.encode() if isinstance(content, str) else content
    (folder / f"{name}.csv").write_bytes(data)
    return trace.load(name, folder)


def test_gains_are_played_back_at_mean_power_one(tmp_path: Path) -> None:
    # Samples hold for 1, 3 and, as the last one, the mean distance of 2 s: power (1 + 3 * 4 + 2 * 25) / 6.
    played = loaded(tmp_path, "time_s,gain_re,gain_im\n10,1,0\n11,0,2\n14,-3,4\n")
    assert played.period_s == 6
    assert 10 ** (played.mean_snr_db / 10) == pytest.approx(63 / 6)
    times = torch.tensor([0, 0.99, 1, 3.99, 4, 5.99, 6, 7.5, 600])
    expected = torch.tensor([1, 1, 2j, 2j, -3 + 4j, -3 + 4j, 1, 2j, 1], dtype=torch.complex128)
    torch.testing.assert_close(played.at(times), expected / (63 / 6) ** 0.5)


def test_snrs_are_amplitudes_around_their_mean(tmp_path: Path) -> None:
    played = loaded(tmp_path, "time_s,snr_db\n0,20\n1,0\n")
    assert played.mean_snr_db == pytest.approx(10 * torch.tensor(50.5).log10().item())
    torch.testing.assert_close(played.gains, torch.tensor([10, 1], dtype=torch.complex128) / 50.5**0.5)


def test_a_transmission_plays_the_slot_that_it_starts_in(tmp_path: Path) -> None:
    step = 1e-3 / BLOCKS
    lines = [f"{i * step:.9f},{i + 1},0" for i in range(64)]
    played = loaded(tmp_path, "\n".join(["time_s,gain_re,gain_im", *lines]))
    symbols = torch.ones(1, 64, dtype=torch.complex64)
    for start, first in ((0.0, 0), (1e-3, 8), (7e-3, 56), (played.period_s, 0)):
        conditions = LinkConditions(fading="trace", trace="t", trace_start_s=start)
        gains = transmit(symbols, [conditions], [1], traces=tmp_path).gains[0]
        torch.testing.assert_close(gains, played.gains[first : first + BLOCKS].to(torch.complex64))
    conditions = LinkConditions(fading="trace", trace="t", trace_start_s=step / 2)
    long = transmit(symbols[:, :1].expand(1, 9000), [conditions], [1], traces=tmp_path).gains[0]
    torch.testing.assert_close(long, played.gains[1:16:2].to(torch.complex64))  # two slots, twice as coarse


@pytest.mark.parametrize("name", ["walk", "drive"])
def test_shipped_traces_have_mean_power_one(name: str) -> None:
    played = trace.load(name)
    assert played.gains.abs().square().mean().item() == pytest.approx(1, abs=1e-9)
    assert played.gains.abs().min() < 0.4 < 1.5 < played.gains.abs().max()


def test_shipped_traces_are_what_their_command_makes(tmp_path: Path) -> None:
    assert sorted(path.name for path in BUILT_IN_TRACES.iterdir()) == ["drive.csv", "walk.csv"]
    for path in write(tmp_path, seed=1):
        assert path.read_text() == (BUILT_IN_TRACES / path.name).read_text()


@pytest.mark.parametrize(
    "name", ["nobody", "", "../traces/walk", "/etc/passwd", "walk.csv", "WALK", "*", "wal?"]
)
def test_only_names_of_traces_that_there_are(name: str) -> None:
    with pytest.raises(InvalidInputError, match="one of drive, walk") as caught:
        trace.load(name)
    assert caught.value.field == "link.trace"


def test_a_trace_that_changed_is_read_again(tmp_path: Path) -> None:
    first = loaded(tmp_path, "time_s,snr_db\n0,20\n1,0\n")
    assert trace.load("t", tmp_path) is first
    (tmp_path / "t.csv").write_text("time_s,snr_db\n0,20\n1,20\n")
    os.utime(tmp_path / "t.csv", ns=(1, 1))
    assert (trace.load("t", tmp_path).gains == 1).all()


@pytest.mark.parametrize(
    ("content", "complaint"),
    [
        ("", "start with time_s,snr_db"),
        ("time,snr\n0,1\n1,1\n", "start with time_s,snr_db"),
        ("time_s,snr_db\n", "2 to 100000 samples"),
        ("time_s,snr_db\n0,1\n", "2 to 100000 samples"),
        ("time_s,snr_db\n" + "0,1\n" * 100_001, "2 to 100000 samples"),
        ("time_s,snr_db\n0,1\n0,1\n", "later time_s in line 3"),
        ("time_s,snr_db\n0,1\n2,1\n1,1\n", "later time_s in line 4"),
        ("time_s,snr_db\n0,1\n1,x\n", "2 finite numbers in line 3"),
        ("time_s,snr_db\n0,nan\n1,1\n", "2 finite numbers in line 2"),
        ("time_s,snr_db\n0,1\n1,1,1\n", "2 finite numbers in line 3"),
        ("time_s,snr_db\n\n0,1\n\n1\n", "2 finite numbers in line 5"),
        ("time_s,snr_db\n0,1\n0,5,12,5\n", "in line 3 (with commas between columns, numbers need"),
        ("time_s,snr_db\n0,1\n0;5\n", "2 finite numbers in line 3"),
        ("time_s;snr_db\n0;1\n1;1,0,0\n", "2 finite numbers in line 3"),
        ("time_s;snr_db\n0;1\n1.000,5;1\n", "2 finite numbers in line 3"),
        ("time_s,snr_db\n0,1\n1,1_0\n", "2 finite numbers in line 3"),
        ('time_s,snr_db\n0,1\n1,"1\n', "be CSV in line 3"),
        (b"time_s,snr_db\n0,1\n1,2 \xb5W\n", "line 3 contains the byte 0xb5"),
        (b"\x89PNG\r\n\x1a\n\0\0\0\r", "is not text"),
        ("time_s,snr_db\n0,1\n1,1e9\n", "SNRs between"),
        ("time_s,gain_re,gain_im\n0,0,0\n1,0,0\n", "mean power above 0"),
        ("time_s,gain_re,gain_im\n0,1e300,0\n1,0,0\n", "mean power above 0"),
        (b"time_s,snr_db\n0,\xff\n", "is not text in UTF-8 or UTF-16"),
        (b"x" * (8 * 2**20 + 1), "at most 8388608 bytes"),
    ],
)
def test_a_file_that_is_no_trace_is_named_with_what_is_wrong(
    tmp_path: Path, content: str | bytes, complaint: str
) -> None:
    with pytest.raises(InvalidInputError) as caught:
        loaded(tmp_path, content)
    assert caught.value.field == "link.trace"
    assert complaint in caught.value.allowed


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16", "utf-16-be"])
@pytest.mark.parametrize("newline", ["\n", "\r\n", "\r"])
def test_a_trace_of_any_editor_is_read(tmp_path: Path, encoding: str, newline: str) -> None:
    plain = loaded(tmp_path, "time_s,snr_db\n0,20\n1.5,-3e0\n")
    other = "# walk, by hand\n\ntime_s, snr_db\n0,20\n\n# a turn\n 1.5 ,-3e0\n\n\n".replace("\n", newline)
    found = loaded(tmp_path, other.encode(encoding))
    assert torch.equal(found.gains, plain.gains)
    assert torch.equal(found.times, plain.times)


@pytest.mark.parametrize("separator", [";", "\t"])
@pytest.mark.parametrize("mark", [",", "."])
def test_a_trace_of_a_spreadsheet_is_read(tmp_path: Path, separator: str, mark: str) -> None:
    plain = loaded(tmp_path, "time_s,snr_db\n0,20.5\n1.5,-3e0\n")
    rows = [["time_s", "snr_db"], ["0", f"20{mark}5"], [f"1{mark}5", "-3e0"]]
    found = loaded(tmp_path, "\n".join(map(separator.join, rows)).encode("utf-8-sig"))
    assert torch.equal(found.gains, plain.gains)
    assert torch.equal(found.times, plain.times)


def test_what_only_looks_like_a_trace_is_said(tmp_path: Path) -> None:
    (tmp_path / "folder.csv").mkdir()
    (tmp_path / "dangling.csv").symlink_to("gone")
    os.mkfifo(tmp_path / "pipe.csv")
    for name, told in {"folder": "is a folder", "dangling": "exist", "pipe": "is a named pipe"}.items():
        with pytest.raises(InvalidInputError, match=told) as caught:
            trace.load(name, tmp_path)
        assert caught.value.field == "link.trace"
        assert str(tmp_path) not in str(caught.value), "which is none of a client's business"
