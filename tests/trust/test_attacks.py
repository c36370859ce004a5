"""Attacks from outside, by other keys and from inside on a system of real processes; `make test-trust`."""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.trust import from_inside, from_other_keys, from_outside
from tests.trust.attack import ATTACKS, Attack
from tests.trust.system import ALICES, HEALTH_S, System
from tests.trust.tally import Tally

pytestmark = pytest.mark.trust
TRIES, BETWEEN_S = 3, 61.0
"""How often an attack that was only slow is tried, and the time in between, after which limits per minute are
as before, s."""
assert from_inside
assert from_other_keys
assert from_outside


@pytest.fixture(scope="module")
def tally(request: pytest.FixtureRequest) -> Iterator[Tally]:
    """Counts; a run of all attacks with ``--record`` writes the results."""
    counted = Tally()
    yield counted
    whole = sum(item.path.stem == "test_attacks" for item in request.session.items) == len(ATTACKS)
    if request.config.getoption("--record") and whole:
        counted.write()


@pytest.fixture(scope="module")
def system(
    dummy_profile: Path, tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest
) -> Iterator[System]:
    """The running system, with a topic of the victim's."""
    with System(tmp_path_factory.mktemp("attacked"), dummy_profile) as system:
        answer = asyncio.run(system.publish("alice", ALICES, ["neon"]))
        assert answer.status_code == 200, answer.text
        if request.config.getoption("--record") and (calm_s := system.slowest_calm_s()) > HEALTH_S / 2:
            pytest.fail(
                f"without an attack a health check takes {calm_s:.1f} s already, at a load average of "
                f"{os.getloadavg()[0]:.1f}: record on a quiet machine"
            )
        yield system


@pytest.mark.parametrize("attack", ATTACKS, ids=[f"{each.kind}: {each.name}" for each in ATTACKS])
def test_attack(attack: Attack, system: System, tally: Tally) -> None:
    for tries in range(1, TRIES + 1):
        with system.watched():
            asyncio.run(attack.run(system))
        if tries == TRIES or not system.problems or system.problems != system.slow:
            break
        time.sleep(BETWEEN_S)
    tally.note(attack, system.problems, system.slowest_health_s, tries)
    assert not system.problems
