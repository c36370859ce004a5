"""The time of an image against an earlier commit's: workers that answer, and errors that say why."""

from __future__ import annotations

from pathlib import Path

import pytest

from dekag.paths import SHIPPED
from services.bench.picture import _seconds, _worker, unpack_commit
from services.launcher.stack import LaunchError


def test_a_worker_draws_an_image_for_each_seed(dummy_profile: Path) -> None:
    with _worker(SHIPPED, str(dummy_profile)) as process:
        assert all(0 < _seconds(process, index) < 60 for index in range(2))


def test_a_worker_that_fails_is_reported() -> None:
    with _worker(SHIPPED, "no-such-profile") as process, pytest.raises(LaunchError, match="status 1"):
        _seconds(process, 0)


def test_a_commit_that_is_not_here_is_named(tmp_path: Path) -> None:
    with pytest.raises(LaunchError, match="commit 0000000 is needed"):
        unpack_commit("0000000", tmp_path)
