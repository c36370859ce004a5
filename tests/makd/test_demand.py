"""The demand policy: the rule, its bound, and what other policies would have cost."""

from __future__ import annotations

import math
from itertools import combinations

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from dekag.makd.demand import (
    REPLAYED,
    Action,
    DemandPolicy,
    ImageDemand,
    TopicDemand,
    crossing,
    decide,
    replay,
)

FILE, UPDATE = 400, 1000


@pytest.mark.parametrize(
    ("policy", "files", "available", "budget_left", "action", "why"),
    [
        ("auto", 0, True, math.inf, "file", "does not pay yet"),
        ("auto", 2, True, math.inf, "file", "2 files took 800 B, the update takes 1,000 B"),
        ("auto", 3, True, math.inf, "update", "an update pays"),
        ("auto", 3, False, math.inf, "distil", "an update pays"),
        ("auto", 3, True, 999, "file", "the budget does not allow it"),
        ("auto", 3, False, 399, "wait", "the budget does not allow it"),
        ("auto", 0, True, 399, "wait", "the budget does not allow a file either"),
        ("always", 0, True, math.inf, "update", "at once"),
        ("always", 0, False, math.inf, "distil", "at once"),
        ("never", 9, True, math.inf, "file", "never sends updates"),
        ("off", 9, True, 0, "update", "no demand policy"),
        ("off", 9, False, math.inf, "wait", "no demand policy"),
    ],
)
def test_decisions_and_their_reasons(
    policy: DemandPolicy, files: int, available: bool, budget_left: float, action: Action, why: str
) -> None:
    found = decide(
        policy,
        TopicDemand(requests=files, files=files, file_bytes=files * FILE),
        update_bytes=UPDATE,
        next_file_bytes=FILE,
        available=available,
        budget_left=budget_left,
    )
    assert found.action == action
    assert why in found.reason


def test_what_is_planned_for_other_updates_leaves_room_for_a_file() -> None:
    args = {"update_bytes": UPDATE, "next_file_bytes": FILE, "budget_left": UPDATE + FILE}
    assert decide("always", TopicDemand(), **args).action == "update"
    assert decide("always", TopicDemand(), **args, planned=UPDATE).action == "file"
    assert decide("always", TopicDemand(), **args, planned=UPDATE + FILE).action == "file", (
        "none is sent then"
    )


def test_an_update_that_was_sent_is_used_whatever_the_budget() -> None:
    sent = TopicDemand(requests=9, sent=True)
    args = {"update_bytes": UPDATE, "next_file_bytes": FILE, "budget_left": 0.0}
    assert decide("auto", sent, **args).action == "update"
    assert decide("auto", sent, **args, available=False).action == "wait"


def test_a_topic_that_cannot_be_distilled_stays_with_files_and_says_why() -> None:
    found = decide(
        "auto", TopicDemand(files=3, file_bytes=1200), update_bytes=UPDATE, next_file_bytes=FILE,
        available=False, cannot_distil="its distillation was cancelled",
    )  # fmt: skip
    assert found.action == "file"
    assert found.reason == "an update would pay, but its distillation was cancelled"


LOAD = [ImageDemand(("neon",), image, FILE) for image in "abca"] + [ImageDemand((), "d", FILE)]


def test_a_load_is_replayed_with_each_policy() -> None:
    spent = {policy: replay(policy, LOAD, {"neon": UPDATE}) for policy in REPLAYED}
    assert spent == {
        "files": [400, 800, 1200, 1600, 2000],
        "cached files": [400, 800, 1200, 1200, 1600],
        "never": [400, 800, 1200, 1200, 1200],
        "always": [1000] * 5,
        "auto": [400, 800, 1200, 2200, 2200],
        "hindsight": [1000] * 5,
    }, "the fourth request makes the rule send the update, though the image is in the cache"
    assert replay("hindsight", LOAD, {"neon": 1201}) == spent["never"], "files are cheaper"
    assert replay("always", LOAD, {}) == spent["never"], "a topic without an update is sent as files"


def test_an_image_of_two_topics_is_drawn_once_both_are_taught() -> None:
    both = [ImageDemand(("neon", "snail"), image, FILE) for image in "abcdefgh"]
    # from the fourth image on, all files count for snail alone; the fifth is drawn with both updates
    spent = [400, 800, 1200, 1600, 3100, 3100, 3100, 3100]
    assert replay("auto", both, {"neon": 500, "snail": 1000}) == spent


@given(
    st.lists(st.integers(0, 30), min_size=1, max_size=120),
    st.integers(1, 20_000),
    st.lists(st.integers(1, 3000), min_size=31, max_size=31),
)
@example([0] * 50, 1, [3000] * 31)
@settings(max_examples=60, deadline=None)
def test_the_rule_takes_less_than_twice_the_best_choice_and_a_file(
    images: list[int], update: int, sizes: list[int]
) -> None:
    load = [ImageDemand(("neon",), str(image), sizes[image]) for image in images]
    best, auto = (replay(policy, load, {"neon": update})[-1] for policy in ("hindsight", "auto"))
    assert best <= auto < 2 * best + max(sizes)
    for policy in ("never", "always"):
        assert best <= replay(policy, load, {"neon": update})[-1]


def test_the_choice_for_each_topic_alone_is_not_the_best_one_for_pairs() -> None:
    both = [ImageDemand(("neon", "snail"), image, FILE) for image in "abcdefgh"]
    updates = {"neon": 100, "snail": 1700}
    # snail's update is dearer than its half of 8 files, so all images are files and neon's is never sent
    assert replay("hindsight", both, updates)[-1] == 8 * FILE
    assert replay("always", both, updates)[-1] == 1800


def best_bytes(load: list[ImageDemand], updates: dict[str, int]) -> float:
    """The least that any choice of topics to teach would have taken."""
    files = {each.image: each for each in load}.values()

    def taken(taught: set[str]) -> float:
        sent = sum(each.file_bytes for each in files if not taught.issuperset(each.topics))
        return sent + sum(updates[topic] for topic in taught)

    choices = [set(some) for n in range(len(updates) + 1) for some in combinations(updates, n)]
    return min(map(taken, choices))


@given(
    st.lists(st.integers(0, 11), min_size=1, max_size=60),
    st.lists(st.integers(1, 5000), min_size=3, max_size=3),
    st.lists(st.integers(1, 3000), min_size=12, max_size=12),
)
@example([0] * 5 + list(range(12)), [100, 1700, 1700], [400] * 12)
@settings(max_examples=60, deadline=None)
def test_with_pairs_of_topics_the_rule_takes_less_than_twice_the_best_and_a_file_of_each(
    images: list[int], sizes: list[int], files: list[int]
) -> None:
    updates = dict(zip("abc", sizes, strict=True))
    prompts = [tuple(dict.fromkeys("abc"[i % 3] for i in (n, n + n // 3))) for n in range(12)]  # one or two
    load = [ImageDemand(prompts[n], str(n), files[n]) for n in images]
    best = best_bytes(load, updates)
    taken = {policy: replay(policy, load, updates)[-1] for policy in REPLAYED}
    assert best <= min(taken[policy] for policy in ("auto", "always", "never", "hindsight"))
    assert taken["auto"] < 2 * best + len(updates) * max(files)


def test_where_one_curve_falls_below_the_other_for_good() -> None:
    assert crossing([100, 100, 100], [40, 80, 120]) == 3
    assert crossing([10, 100, 100, 100], [40, 80, 120, 160]) == 3, "it was below before, but not for good"
    assert crossing([0, 0], [0, 40]) == 1
    assert crossing([100, 100], [40, 80]) is None
    assert crossing([], []) is None
