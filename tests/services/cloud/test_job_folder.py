"""Folders of jobs: one process works at a job, and only old work is purged."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from services.cloud.job_folder import JobFolders

pytestmark = pytest.mark.asyncio(loop_scope="session")


@pytest.fixture
def folders(tmp_path: Path) -> JobFolders:
    return JobFolders(tmp_path / "data")


async def test_a_claim_is_for_one_process_and_ends_with_it(folders: JobFolders, tmp_path: Path) -> None:
    program = (
        "import sys; from pathlib import Path; from services.cloud.job_folder import JobFolders\n"
        "with JobFolders(Path(sys.argv[1])).claimed('job1') as mine:\n"
        "    print(mine, flush=True); sys.stdin.read()"
    )
    other = subprocess.Popen(  # noqa: ASYNC220
        [sys.executable, "-c", program, str(tmp_path / "data")],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        cwd=Path(__file__).parents[3],
    )
    assert other.stdout is not None
    assert other.stdout.readline() == "True\n"
    with folders.claimed("job1") as mine, folders.claimed("job2") as another:
        assert not mine
        assert another
    other.kill()
    other.communicate()
    with folders.claimed("job1") as mine:
        assert mine


async def test_what_ended_jobs_left_behind_is_tidied_away(folders: JobFolders) -> None:
    folders.save_spec("cancelled", "{}")
    assert folders.decide("cancelled", "cancelled")
    (folders.work("cancelled") / "checkpoint").write_bytes(b"1")  # its distiller was killed
    folders.work("empty").mkdir()
    folders.save_spec("damaged", "{")
    folders.quarantine_spec("damaged")
    folders.tidy(keep_s=60, keep=10)
    assert not folders.work("cancelled").exists()
    assert not folders.work("empty").exists()
    assert folders.work("damaged").exists(), "people can still look at it"
    folders.tidy(keep_s=-1, keep=10)
    assert not folders.work("damaged").exists()


async def test_jobs_that_wait_or_run_are_never_tidied_away(folders: JobFolders) -> None:
    folders.save_spec("waiting", "{}")
    week_ago = time.time() - 7 * 86_400
    for path in (folders.work("waiting"), folders.work("waiting") / "order.json"):
        os.utime(path, (week_ago, week_ago))
    folders.tidy(keep_s=-1, keep=1)
    assert folders.specs() == {"waiting": b"{}"}
    with folders.claimed("running"):
        folders.tidy(keep_s=-1, keep=1)  # as after a jump of the clock
        assert folders.work("running").exists()
    folders.decide("waiting", "published")
    folders.tidy(keep_s=-1, keep=1)
    assert folders.exists("waiting"), "its update is not published yet"
    folders.end("waiting", {"version": 1})
    folders.tidy(keep_s=-1, keep=1)
    assert not folders.work("waiting").exists()
    assert not folders.work("running").exists()


async def test_the_first_decision_is_final(folders: JobFolders) -> None:
    folders.save_spec("job", '{"created": 5}')
    assert folders.record("job") is None
    assert folders.decide("job", "cancelled")
    assert not folders.decide("job", "published")
    assert folders.decide("job", "cancelled")
    assert not folders.exists("job")
    folders.end("job", {"version": 1})
    record = folders.record("job")
    assert record is not None
    assert (record["decision"], record["created"]) == ("cancelled", 5)
    assert "result" not in record
    assert not folders.decide("unknown", "cancelled")
    assert folders.ended() == ["job"]


async def test_records_are_kept_up_to_a_number_and_an_age(folders: JobFolders, tmp_path: Path) -> None:
    for number in range(5):
        folders.save_spec(f"job{number}", "{}")
        folders.decide(f"job{number}", "published")
        folders.end(f"job{number}", {})
        os.utime(tmp_path / "data" / "ended" / f"job{number}.json", (number, number))
    (tmp_path / "data" / "ended" / ".job9.json").write_text("{")  # of a process that was killed
    folders.tidy(keep_s=1e12, keep=2)
    assert folders.ended() == ["job4", "job3"]
    assert len(list((tmp_path / "data" / "ended").iterdir())) == 2
    folders.tidy(keep_s=60, keep=2)
    assert folders.ended() == []


async def test_what_is_decided_stays_decided_while_the_order_exists(folders: JobFolders) -> None:
    folders.save_spec("publishing", "{}")
    assert folders.decide("publishing", "published")
    folders.save_spec("cancelled", "{}")
    assert folders.decide("cancelled", "cancelled")
    with folders.claimed("cancelled"):  # its distiller works on for a moment
        folders.tidy(keep_s=-1, keep=0)  # as after a jump of the clock
        assert folders.spec("cancelled") is not None
        assert not folders.decide("cancelled", "published"), "a cancelled job was revived"
        assert not folders.decide("publishing", "cancelled")
    folders.tidy(keep_s=-1, keep=0)
    assert folders.ended() == ["publishing"]
    folders.end("publishing", {})
    folders.tidy(keep_s=-1, keep=0)
    assert folders.ended() == []


async def test_an_order_that_is_saved_while_folders_are_tidied_is_kept(
    folders: JobFolders, monkeypatch: pytest.MonkeyPatch
) -> None:
    folders.work("job").mkdir(parents=True)  # the start of `save_spec`
    claimed = folders.claimed

    @contextlib.contextmanager
    def save_first(job: str) -> Iterator[bool]:
        monkeypatch.undo()
        folders.save_spec(job, "{}")
        with claimed(job) as mine:
            yield mine

    monkeypatch.setattr(folders, "claimed", save_first)
    folders.tidy(keep_s=-1, keep=1)
    assert folders.exists("job")


async def test_looking_at_a_job_leaves_nothing(folders: JobFolders) -> None:
    assert not folders.is_claimed("job")
    assert folders.spec("job") is None
    assert not folders.work("job").exists()


async def test_work_that_cannot_be_looked_at_keeps_nobody_from_tidying(
    folders: JobFolders,
) -> None:
    for job in ("bad", "old"):
        folders.work(job).mkdir(parents=True)
    (folders.work("bad") / "lock").mkdir()  # claiming it is an OSError
    folders.tidy(keep_s=-1, keep=1)
    assert folders.work("bad").is_dir()
    assert not folders.work("old").exists()
