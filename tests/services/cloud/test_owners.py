"""Topics belong to the key that made them, or to all."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from dekag.errors import ConflictError
from services.cloud.owners import Owners


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
    for topic in ("kept", "gone", "new"):
        owners.claim(topic, "alice", admin=False, exists=False)
    (tmp_path / "owners" / ".new-0").write_text("of a process that was killed")
    for name in ("kept", "gone", ".new-0"):
        os.utime(tmp_path / "owners" / name, (1.0, 1.0))
    owners.tidy({"kept"})
    assert sorted(file.name for file in (tmp_path / "owners").iterdir()) == ["kept", "new"]
    assert owners.count() == 2
