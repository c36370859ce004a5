"""Topics belong to the key that made them, or to all."""

from __future__ import annotations

import os
import threading
from pathlib import Path

import pytest

from dekag.errors import ConflictError
from services.cloud import housekeeping
from services.cloud.job_folder import JobFolders
from services.cloud.owners import Owners
from services.cloud.version_store import folders_in


def test_a_topic_belongs_to_the_first_who_claims_it(tmp_path: Path) -> None:
    owners = Owners(tmp_path)
    assert owners.of("neon") == ""
    owners.claim("neon", "alice", admin=False, exists=False)
    owners.claim("neon", "alice", admin=False, exists=True)
    with pytest.raises(ConflictError, match="'neon' belongs to another API key"):
        owners.claim("neon", "bob", admin=False, exists=True)
    owners.claim("neon", "root", admin=True, exists=True)
    assert Owners(tmp_path).of("neon") == "alice", "it stays hers when an admin changes it"


def test_a_shared_topic_is_changed_by_admins_alone(tmp_path: Path) -> None:
    owners = Owners(tmp_path)
    owners.claim("neon", "alice", admin=False, exists=False)
    owners.share("neon")
    for name in ("alice", "bob"):
        with pytest.raises(ConflictError, match="'neon' is shared, and only admins change it"):
            owners.claim("neon", name, admin=False, exists=True)
    owners.claim("neon", "root", admin=True, exists=True)
    assert owners.of("neon") == ""


def test_a_name_without_topic_and_job_is_free_again(tmp_path: Path) -> None:
    owners = Owners(tmp_path)
    owners.claim("neon", "alice", admin=False, exists=False)
    owners.claim("neon", "bob", admin=False, exists=False)
    assert owners.of("neon") == "bob"
    owners.claim("neon", "", admin=True, exists=False)
    assert owners.of("neon") == "", "topics made without keys are shared"


def test_owners_of_topics_that_are_gone_are_deleted_after_a_while(tmp_path: Path) -> None:
    owners = Owners(tmp_path)
    owners.tidy(())
    assert owners.count() == 0
    assert not list(tmp_path.iterdir())
    for topic in ("kept", "gone", "new"):
        owners.claim(topic, "alice", admin=False, exists=False)
    for name in ("kept", "gone"):
        age(tmp_path, name)
    for _ in range(2):
        owners.tidy({"kept"})
    assert sorted(file.name for file in (tmp_path / "owners").iterdir()) == ["kept", "new"]
    assert owners.count() == 2


def age(data: Path, topic: str) -> None:
    """As if the topic had been claimed long ago."""
    os.utime(data / "owners" / topic, (1.0, 1.0))


def test_a_topic_that_is_published_again_at_once_keeps_its_owner(tmp_path: Path) -> None:
    owners, others = Owners(tmp_path), Owners(tmp_path)
    owners.claim("neon", "alice", admin=False, exists=False)
    age(tmp_path, "neon")
    owners.claim("neon", "alice", admin=False, exists=False)
    for _ in range(2):  # no version is there yet
        others.tidy(())
    assert owners.of("neon") == "alice"


def test_a_clock_that_jumps_forward_takes_no_topic_that_is_being_published(tmp_path: Path) -> None:
    owners, others = Owners(tmp_path), Owners(tmp_path)
    owners.claim("neon", "alice", admin=False, exists=False)
    age(tmp_path, "neon")
    others.tidy(())
    others.tidy({"neon"})  # its first version is there
    others.tidy(())
    assert owners.of("neon") == "alice"


def test_what_a_killed_process_left_is_deleted_at_once(tmp_path: Path) -> None:
    owners = Owners(tmp_path)
    owners.claim("neon", "alice", admin=False, exists=False)
    (tmp_path / "owners" / ".new-0").write_text("of a process that was killed")
    owners.tidy({"neon"})
    assert [file.name for file in (tmp_path / "owners").iterdir()] == ["neon"]


def test_nobody_claims_while_owners_are_tidied(tmp_path: Path) -> None:
    owners, claimed = Owners(tmp_path), threading.Event()
    owners.claim("neon", "alice", admin=False, exists=False)

    def claim() -> None:
        owners.claim("neon", "alice", admin=False, exists=False)
        claimed.set()

    thread = threading.Thread(target=claim)
    with owners._changing():
        thread.start()
        assert not claimed.wait(0.1)
    thread.join()
    assert claimed.is_set()


def test_a_topic_is_in_use_while_its_job_publishes_and_ends(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    jobs = JobFolders(tmp_path)
    jobs.save_spec("job", '{"order": {"topic": "neon"}}')

    def list_and_end(parent: Path) -> list[Path]:
        found = folders_in(parent)
        (tmp_path / "knowledge" / "neon" / "1").mkdir(parents=True)
        assert jobs.decide("job", "published")
        jobs.end("job", {"version": 1})
        return found

    monkeypatch.setattr(housekeeping, "folders_in", list_and_end)
    assert housekeeping.topics_in_use(tmp_path) == {"neon"}
