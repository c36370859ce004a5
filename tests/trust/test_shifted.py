"""What is stored grows older when the clock is shifted; what is in use does not."""

from __future__ import annotations

import time
from pathlib import Path

from redis import Redis

from services.cloud.job_folder import JobFolders
from tests.trust.shifted import shift

HOUR_S, JOB = 3600, "1" * 32


def test_what_is_stored_expires_when_the_clock_is_shifted(tmp_path: Path, redis_url: str) -> None:
    folders = JobFolders(tmp_path)
    folders.save_spec(JOB, "{}")
    assert folders.decide(JOB, "failed")
    folders.end(JOB, {})
    version = tmp_path / "knowledge" / "neon"
    version.mkdir(parents=True)
    dated = version.stat().st_mtime_ns
    with Redis.from_url(redis_url) as redis:
        redis.flushdb()
        redis.set("dekag:report:1", b"", ex=2 * HOUR_S)
        redis.set("dekag:knowledge", b"")
        redis.set("dekag:lock:jobs", b"", ex=5)
        for hours, kept in ((1, True), (1.5, False)):
            shift(tmp_path, redis, hours * HOUR_S)
            time.sleep(0.01)
            assert bool(redis.exists("dekag:report:1")) == kept
            folders.tidy(keep_s=2 * HOUR_S, keep=10)
            assert (folders.record(JOB) is not None) == kept
        assert redis.ttl("dekag:knowledge") == -1
        assert redis.ttl("dekag:lock:jobs") in (4, 5)
    assert version.stat().st_mtime_ns == dated
    assert not any((tmp_path / "jobs").iterdir())
