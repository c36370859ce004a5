"""Folders of jobs: one process works at a job, and only old work is purged."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
import time
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


async def test_only_old_work_is_tidied_away(folders: JobFolders) -> None:
    with folders.claimed("job1"):
        (folders.work("job1") / "checkpoint").write_bytes(b"1")
    folders.work("job2").mkdir()  # as an order is about to be written
    folders.purge_stale(60)
    assert folders.work("job1").exists()
    assert folders.work("job2").exists()
    folders.purge_stale(-1)
    assert not folders.work("job1").exists()
    assert not folders.work("job2").exists()


async def test_jobs_that_wait_or_run_are_never_tidied_away(folders: JobFolders) -> None:
    folders.save_spec("waiting", "{}")
    week_ago = time.time() - 7 * 86_400
    for path in (folders.work("waiting"), folders.work("waiting") / "order.json"):
        os.utime(path, (week_ago, week_ago))
    folders.purge_stale(2 * 86_400)
    assert folders.specs() == {"waiting": b"{}"}
    with folders.claimed("running"):
        folders.purge_stale(-1)  # as after a jump of the clock
        assert folders.work("running").exists()
    folders.delete_spec("waiting")  # it has ended
    folders.purge_stale(-1)
    assert not folders.work("waiting").exists()
    assert not folders.work("running").exists()


async def test_work_that_cannot_be_looked_at_keeps_nobody_from_tidying(
    folders: JobFolders, monkeypatch: pytest.MonkeyPatch
) -> None:
    for job in ("bad", "old"):
        folders.work(job).mkdir(parents=True)
        (folders.work(job) / "checkpoint").touch()
    stat = Path.stat

    def failing(path: Path, **options: bool) -> os.stat_result:
        if path == folders.work("bad") / "checkpoint":
            raise OSError(errno.EIO, "of a disk that fails")
        return stat(path, **options)

    monkeypatch.setattr(Path, "stat", failing)
    folders.purge_stale(-1)
    assert folders.work("bad").is_dir()
    assert not folders.work("old").exists()
