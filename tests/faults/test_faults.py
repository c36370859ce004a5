"""Everything that can go wrong goes wrong, under load: `make test-faults`, or with FAULTS=redis a part of it.

Every request must end in an image or a clear error within its deadline, all deliveries must work again within
10 s of the fault's end, and no knowledge may be lost. What was measured goes to results/trust/faults.json.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from tests.faults.faults import Fault, pairs, singles
from tests.faults.load import DELIVERIES, TOPIC, Load, counted
from tests.faults.report import write_results
from tests.faults.stack import DEADLINE_S, ROOT, Stack, order, wait_for

pytestmark = pytest.mark.faults
WANTED = os.environ.get("FAULTS", "")
FAULTS = [*singles(), *pairs()]
CHOSEN = [fault for fault in FAULTS if WANTED in fault.name]
RECOVERY_S = 10.0
PATIENCE_S = 60.0  # until a recovery that takes longer is given up
CALM_S = 90.0
LOG = ROOT / ".run" / "faults" / "rows.jsonl"


@pytest.fixture(scope="module")
def stack() -> Iterator[Stack]:
    """The chain, with knowledge of one topic."""
    with Stack() as stack:
        started = stack.insist("POST", "/v1/knowledge", json=order(TOPIC))
        assert started.status_code == 202, started.text
        wait_for(lambda: TOPIC in stack.knowledge(), 300, "the first distillation")
        yield stack


@pytest.fixture(scope="module")
def load(stack: Stack) -> Iterator[Load]:
    """Steady load on it."""
    with Load(stack.url, DEADLINE_S) as load:
        yield load


@pytest.fixture(scope="module")
def rows(load: Load) -> Iterator[list[dict[str, Any]]]:
    """A row for each fault; they are written in the end, also of a run that was interrupted."""
    rows: list[dict[str, Any]] = []
    yield rows
    if rows and not WANTED:
        write_results(rows, load.every_s, planned=len(FAULTS))


@pytest.mark.parametrize("fault", CHOSEN, ids=lambda fault: fault.name.replace(" ", "_"))
def test_chain_survives_the_fault(stack: Stack, load: Load, rows: list[dict[str, Any]], fault: Fault) -> None:
    row: dict[str, Any] = {"fault": fault.name, "pair": fault.pair}
    wrong: list[str] = []
    try:
        _try(stack, load, fault, row, wrong)
    except AssertionError as error:
        wrong.append(str(error).splitlines()[0])
    rows.append(row | {"wrong": wrong})
    with LOG.open("a") as log:  # what was tried stays, if the run does not come to its end
        log.write(json.dumps(rows[-1]) + "\n")
    said = ", ".join(f"{key} {value}" for key, value in row.items() if key not in ("fault", "pair", "said"))
    print("", said, row.get("said", {}), *wrong, sep="\n    ", flush=True)  # noqa: T201
    assert not wrong, "\n".join(wrong)


def _try(stack: Stack, load: Load, fault: Fault, row: dict[str, Any], wrong: list[str]) -> None:
    before = _calm(stack, load)
    fault.prepare(stack)
    begin = time.monotonic()
    try:
        fault.inject(stack)
        injected = time.monotonic()
        time.sleep(fault.hold_s)
    finally:
        fault.end(stack)
    ended = time.monotonic()
    row |= {"injecting_s": round(injected - begin, 2), "lasted_s": round(ended - begin, 2)}
    with ThreadPoolExecutor(len(DELIVERIES) + 1) as pool:
        asking = {name: pool.submit(load.ask, name, ended, PATIENCE_S) for name in DELIVERIES}
        asking["jobs"] = pool.submit(_jobs, stack, ended)
        recovery = {}
        for name, answer in asking.items():
            try:
                recovery[name] = round(answer.result(), 2)
            except AssertionError as error:
                wrong.append(str(error))
                recovery[name] = PATIENCE_S
    longest = max(recovery.values())
    row |= {"recovery_s": longest, "recovery": recovery}
    if longest > RECOVERY_S:
        wrong.append(f"recovered {longest:.1f} s after the fault's end")
    results = load.between(begin, ended + longest)
    lost = [
        each for each in results if each.outcome == "lost" or (each.outcome == "cut" and not fault.gateway)
    ]
    row |= {**counted(results), "lost": len(lost)}
    wrong += [f"lost: {each.delivery}: {each.said}" for each in lost]
    wrong += [
        f"{each.delivery} must work all the while: {each.said}"
        for each in results
        if each.delivery in fault.works and each.outcome == "problem" and each.status != 429
    ]
    fault.check(stack)
    after = stack.knowledge()
    for topic, (version, content_hash) in before.items():
        now, its_hash = after.get(topic, (0, ""))
        if now < version or (now == version and its_hash != content_hash):
            wrong.append(f"knowledge lost: version {version} of {topic}, now {now}")


def _calm(stack: Stack, load: Load) -> dict[str, tuple[int, str]]:
    """What knowledge there is, once the chain answers everything."""

    def calm() -> bool:
        latest = load.results[-len(DELIVERIES) :]
        return len(latest) == len(DELIVERIES) and all(
            each.outcome == "image" and each.taught for each in latest
        )

    wait_for(calm, CALM_S, "the chain is well before the fault")
    return stack.knowledge()


def _jobs(stack: Stack, since: float) -> float:
    answer = stack.insist("GET", "/v1/jobs", PATIENCE_S)
    assert answer.status_code == 200, f"jobs: {answer.text}"
    return time.monotonic() - since
